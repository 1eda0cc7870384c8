_base_ = './cascade_mask_rcnn_r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        type='ResNeXt', depth=101,
        init_cfg=dict(checkpoint='open-mmlab://resnext101_64x4d'),
        groups=64, base_width=4))
