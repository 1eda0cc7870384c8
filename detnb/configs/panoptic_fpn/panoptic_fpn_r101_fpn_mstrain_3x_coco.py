_base_ = './panoptic_fpn_r50_fpn_mstrain_3x_coco.py'

model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
