"""Training on a GPU mixes no devices and never waits for a number, as far as a machine without one can tell.

Fake tensors carry shape and device but no values: an operation over two devices raises, and so does every look at a value (`.item()`,
`nonzero` followed by its length), which on a GPU would make the processor wait."""
import numpy as np, pytest, torch
from fresh_process import run
from torch._subclasses.fake_tensor import FakeTensorMode


def fake_gpu():
    try:
        with FakeTensorMode(), torch.device('cuda'): torch.nn.Conv2d(2, 2, 1)
    except (RuntimeError, AssertionError): return False
    return True


def training_step(config, root):
    import sys
    sys.path.insert(0, root)
    from detnb import Config
    from detnb.models import build_detector
    cfg, (h, w) = Config.fromfile(config), (320, 320)
    cfg.model.backbone.init_cfg = None
    norm = dict(mean=np.float32([123, 116, 103]), std=np.float32([58, 57, 57]), to_rgb=True)
    meta = dict(filename='none', ori_shape=(h, w, 3), img_shape=(h, w, 3), pad_shape=(h, w, 3), scale_factor=np.ones(4, np.float32), img_norm_cfg=norm)
    with FakeTensorMode():
        with torch.device('cuda'):
            model = build_detector(cfg.model).train()
            img = torch.empty(2, 3, h, w, dtype=torch.uint8)
            boxes, labels = [torch.empty(3, 4), torch.empty(0, 4)], [torch.empty(3, dtype=torch.long), torch.empty(0, dtype=torch.long)]
        truth = dict(gt_bboxes=boxes) | ({} if config.startswith('rpn/') else dict(gt_labels=labels))
        losses = model(img=img, img_metas=[dict(meta), dict(meta)], return_loss=True, **truth)
        total = sum(torch.stack(v).sum() if isinstance(v, list) else v for k, v in losses.items() if 'loss' in k)
        assert total.device.type == 'cuda' and total.shape == ()


@pytest.mark.skipif(not fake_gpu(), reason='this version of torch (2.4 is one) makes no fake parameters of a GPU that is not there')
@pytest.mark.parametrize('config', ['retinanet/retinanet_r18_fpn_1x_coco.py', 'ssd/ssd300_coco.py', 'rpn/rpn_r50_fpn_1x_coco.py', 'yolox/yolox_s_8x8_300e_coco.py'])
def test_a_training_step_stays_on_its_device(config, project):
    "In a process of its own: fake tensors do not mix with what other tests have left in caches"
    good, text = run(training_step, config, str(project))
    assert good, text
