_base_ = './mask_rcnn_r50_fpn_sample1e-3_mstrain_2x_lvis_v0.5.py'

model = dict(
    backbone=dict(
        type='ResNeXt', depth=101,
        init_cfg=dict(checkpoint='open-mmlab://resnext101_32x4d'),
        groups=32, base_width=4))
