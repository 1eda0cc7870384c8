# Blood cells (BCCD: Pascal VOC layout, 3 classes) at 320 pixels, from scratch on a CPU: the shapes' small RetinaNet, with smaller anchors for
# platelets. The data are looked for in the folder that DETNB_DATA names.
_base_ = './retinanet_r18_shapes.py'

model = dict(bbox_head=dict(num_classes=3, anchor_generator=dict(octave_base_scale=3)))
dataset_type = 'VOCDataset'
data_root = '{{$DETNB_DATA:data}}/bccd/'
classes = ('RBC', 'WBC', 'Platelets')
img_norm_cfg = {{_base_.img_norm_cfg}}
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', img_scale=(320, 320), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=[0.25, 0.25], direction=['horizontal', 'vertical']),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'])
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug', img_scale=(320, 320), flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='Pad', size_divisor=32),
            dict(type='DefaultFormatBundle'),
            dict(type='Collect', keys=['img'])
        ])
]
data = dict(
    train=dict(
        type=dataset_type, classes=classes, ann_file=data_root + 'ImageSets/Main/train.txt', img_prefix=data_root,
        pipeline=train_pipeline),
    val=dict(
        type=dataset_type, classes=classes, ann_file=data_root + 'ImageSets/Main/val.txt', img_prefix=data_root,
        pipeline=test_pipeline),
    test=dict(
        type=dataset_type, classes=classes, ann_file=data_root + 'ImageSets/Main/test.txt', img_prefix=data_root,
        pipeline=test_pipeline))
evaluation = dict(metric='mAP', save_best='mAP')
