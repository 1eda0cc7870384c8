_base_ = './fcos_hrnetv2p_w32_gn-head_4x4_1x_coco.py'

lr_config = dict(step=[16, 22])
runner = dict(max_epochs=24)
