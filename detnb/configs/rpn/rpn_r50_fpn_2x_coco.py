_base_ = './rpn_r50_fpn_1x_coco.py'

lr_config = dict(step=[16, 22])
runner = dict(max_epochs=24)
