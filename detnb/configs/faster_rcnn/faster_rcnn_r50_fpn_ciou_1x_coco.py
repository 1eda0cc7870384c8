_base_ = './faster_rcnn_r50_fpn_1x_coco.py'

model = dict(
    roi_head=dict(bbox_head=dict(loss_bbox=dict(type='CIoULoss', loss_weight=12.0), reg_decoded_bbox=True)))
