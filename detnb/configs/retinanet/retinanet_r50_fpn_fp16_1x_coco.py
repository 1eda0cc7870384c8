_base_ = './retinanet_r50_fpn_1x_coco.py'

optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
fp16 = dict(loss_scale=512.0)
