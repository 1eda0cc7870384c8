_base_ = ['../common/mstrain-poly_3x_coco_instance.py', '../_base_/models/mask_rcnn_r50_fpn.py']

model = dict(
    backbone=dict(
        type='ResNeXt', depth=101,
        init_cfg=dict(checkpoint='open-mmlab://resnext101_64x4d'),
        groups=64, base_width=4))
