# Balloons (VIA polygons, converted to COCO by detnb.datasets.converters) with a small Mask R-CNN that learns them from scratch on a CPU in a few
# minutes: narrow ResNet-18, three levels, square-ish anchors, a mask head of two layers. The data are looked for in the folder that DETNB_DATA names.
_base_ = ['../_base_/models/mask_rcnn_r50_fpn.py', '../_base_/default_runtime.py']

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    backbone=dict(
        depth=18, base_channels=24, out_indices=(1, 2, 3), frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[48, 96, 192], out_channels=48, num_outs=3, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=48, feat_channels=48,
        anchor_generator=dict(scales=[3, 4.75], ratios=[0.75, 1.33], strides=[8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=48, featmap_strides=[8, 16, 32], finest_scale=28),
        bbox_head=dict(in_channels=48, fc_out_channels=128, num_classes=1),
        mask_roi_extractor=dict(out_channels=48, featmap_strides=[8, 16, 32], finest_scale=28),
        mask_head=dict(num_convs=2, in_channels=48, conv_out_channels=48, num_classes=1)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100)))
dataset_type = 'CocoDataset'
data_root = '{{$DETNB_DATA:data}}/balloon/'
classes = ('balloon', )
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False),
    dict(type='Resize', img_scale=[(192, 192), (480, 480)], multiscale_mode='range', keep_ratio=True),
    dict(type='RandomCrop', crop_size=(192, 192)),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks'])
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug', img_scale=(384, 384), flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='Pad', size_divisor=32),
            dict(type='DefaultFormatBundle'),
            dict(type='Collect', keys=['img'])
        ])
]
data = dict(
    samples_per_gpu=4, workers_per_gpu=0,
    train=dict(
        type='RepeatDataset', times=7,
        dataset=dict(
            type=dataset_type, classes=classes, ann_file=data_root + 'train/annotation_coco.json', img_prefix=data_root + 'train/',
            pipeline=train_pipeline)),
    val=dict(
        type=dataset_type, classes=classes, ann_file=data_root + 'val/annotation_coco.json', img_prefix=data_root + 'val/',
        pipeline=test_pipeline),
    test=dict(
        type=dataset_type, classes=classes, ann_file=data_root + 'val/annotation_coco.json', img_prefix=data_root + 'val/',
        pipeline=test_pipeline))
optimizer = dict(type='AdamW', lr=0.002, weight_decay=0.05)
optimizer_config = dict(grad_clip=dict(max_norm=10, norm_type=2))
lr_config = dict(
    policy='CosineAnnealing', min_lr=0, by_epoch=False, warmup='linear', warmup_iters=50, warmup_ratio=0.05)
runner = dict(type='EpochBasedRunner', max_epochs=7)
evaluation = dict(interval=1, metric=['bbox', 'segm'])
checkpoint_config = dict(interval=7)
auto_scale_lr = dict(base_batch_size=4)
log_config = dict(interval=20, hooks=[dict(type='TextLoggerHook')])
