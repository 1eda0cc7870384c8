# A small RetinaNet that learns the synthetic shapes from scratch on a CPU: narrow ResNet-18, three levels, two anchors a place.
_base_ = '../_base_/default_runtime.py'

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='RetinaNet',
    backbone=dict(
        type='ResNet', depth=18, base_channels=24, num_stages=4, out_indices=(1, 2, 3), frozen_stages=-1, norm_cfg=norm_cfg,
        norm_eval=False, style='pytorch'),
    neck=dict(type='FPN', in_channels=[48, 96, 192], out_channels=48, num_outs=3),
    bbox_head=dict(
        type='RetinaHead', num_classes=5, in_channels=48, stacked_convs=2, feat_channels=48, norm_cfg=norm_cfg,
        anchor_generator=dict(
            type='AnchorGenerator', octave_base_scale=4, scales_per_octave=2, ratios=[1.0], strides=[8, 16, 32]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
dataset_type = 'CocoDataset'
data_root = 'data/shapes/'
classes = ('ball', 'box', 'triangle', 'star', 'ring')
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', img_scale=(224, 160), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=[0.25, 0.25], direction=['horizontal', 'vertical']),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'])
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug', img_scale=(224, 160), flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='Pad', size_divisor=32),
            dict(type='DefaultFormatBundle'),
            dict(type='Collect', keys=['img'])
        ])
]
data = dict(
    samples_per_gpu=8, workers_per_gpu=0,
    val_dataloader=dict(samples_per_gpu=16),
    test_dataloader=dict(samples_per_gpu=16),
    train=dict(
        type=dataset_type, classes=classes, ann_file=data_root + 'train.json', img_prefix=data_root + 'train/',
        filter_empty_gt=False, pipeline=train_pipeline),
    val=dict(
        type=dataset_type, classes=classes, ann_file=data_root + 'val.json', img_prefix=data_root + 'val/',
        pipeline=test_pipeline),
    test=dict(
        type=dataset_type, classes=classes, ann_file=data_root + 'val.json', img_prefix=data_root + 'val/',
        pipeline=test_pipeline))
optimizer = dict(type='AdamW', lr=0.002, weight_decay=0.05)
optimizer_config = dict(grad_clip=dict(max_norm=10, norm_type=2))
lr_config = dict(
    policy='CosineAnnealing', min_lr_ratio=0.001, by_epoch=False, warmup='linear', warmup_iters=50, warmup_ratio=0.01)
runner = dict(type='EpochBasedRunner', max_epochs=12)
evaluation = dict(interval=2, metric='bbox', save_best='bbox_mAP')
checkpoint_config = dict(interval=12)
auto_scale_lr = dict(base_batch_size=8)
log_config = dict(interval=10, hooks=[dict(type='TextLoggerHook')])
