_base_ = './cornernet_hourglass104_mstest_8x6_210e_coco.py'

auto_scale_lr = dict(base_batch_size=96)
data = dict(samples_per_gpu=3)
