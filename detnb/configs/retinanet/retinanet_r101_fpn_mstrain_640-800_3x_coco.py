_base_ = ['../_base_/models/retinanet_r50_fpn.py', '../common/mstrain_3x_coco.py']

model = dict(backbone=dict(depth=101), pretrained='torchvision://resnet101')
optimizer = dict(lr=0.01)
