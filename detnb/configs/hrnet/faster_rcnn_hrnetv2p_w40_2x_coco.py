_base_ = './faster_rcnn_hrnetv2p_w40_1x_coco.py'

lr_config = dict(step=[16, 22])
runner = dict(max_epochs=24)
