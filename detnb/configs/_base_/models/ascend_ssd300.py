_base_ = './ssd300.py'

model = dict(
    bbox_head=dict(type='AscendSSDHead'),
    train_cfg=dict(assigner=dict(type='AscendMaxIoUAssigner')))
