"YOLOv3 and FCOS: a batch is its images, each alone; augmented testing; options of FCOS"
import numpy as np, pytest, torch

from detnb import Config
from detnb.models import build_detector

CONFIGS = 'yolo/yolov3_mobilenetv2_320_300e_coco.py', 'hrnet/fcos_hrnetv2p_w18_gn-head_4x4_1x_coco.py'


def detector(path):
    torch.manual_seed(0)
    cfg = Config.fromfile(path); cfg.model.backbone.init_cfg = None
    model = build_detector(cfg.model); model.init_weights()
    model.bbox_head.test_cfg = Config(dict(model.test_cfg, score_thr=.0, conf_thr=0., max_per_img=5))._cfg_dict
    return model.eval()


def meta(h, w, flip=False):
    return dict(img_shape=(h, w, 3), pad_shape=(h, w, 3), ori_shape=(h, w, 3), scale_factor=np.ones(4, np.float32), flip=flip, flip_direction='horizontal')


@pytest.mark.parametrize('path', CONFIGS)
def test_batch_and_augmented(path):
    model, img = detector(path).double(), torch.randn(2, 3, 64, 96, dtype=torch.double)
    metas = [meta(64, 96), meta(60, 80)]
    with torch.inference_mode():
        both = model.simple_test(img, metas, rescale=True)
        for i in (0, 1):
            alone = model.simple_test(img[i:i + 1], metas[i:i + 1], rescale=True)[0]
            scores = [np.sort(np.concatenate([r[:, 4] for r in found]))[::-1] for found in (both[i], alone)]      # untrained: boxes nearly tie
            np.testing.assert_allclose(*scores, rtol=1e-3)
        result = model.aug_test([img[:1], img[:1].flip(3)], [[meta(64, 96)], [meta(64, 96, True)]], rescale=True)
    assert len(result) == 1 and len(result[0]) == 80 and all(r.shape[1] == 5 for r in result[0])


@pytest.mark.parametrize('path', CONFIGS)
def test_losses_are_finite(path):
    model = detector(path).train()
    boxes = [torch.tensor([[8., 8., 60., 50.]]), torch.zeros(0, 4)]
    for gts in (boxes, boxes[1:] * 2):
        losses = model(img=torch.randn(2, 3, 64, 96), img_metas=[meta(64, 96)] * 2, gt_bboxes=gts, gt_labels=[torch.zeros(len(g), dtype=torch.long) for g in gts])
        total, numbers = model._parse_losses(losses); total.backward()
        assert all(np.isfinite(v) for v in numbers.values()), numbers
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
