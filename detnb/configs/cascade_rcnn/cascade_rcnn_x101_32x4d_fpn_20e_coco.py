_base_ = './cascade_rcnn_r50_fpn_20e_coco.py'

model = dict(
    backbone=dict(
        type='ResNeXt', depth=101,
        init_cfg=dict(checkpoint='open-mmlab://resnext101_32x4d'),
        groups=32, base_width=4))
