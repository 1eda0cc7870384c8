"""Detectors as wholes: odd batches, other losses and samplers, a user's own parts, pixels."""
import copy

import numpy as np
import pytest
import torch

from detnb import Config
from detnb.models import build_detector
from detnb.models.detectors import normalize_batch
from detnb.models.targets import BBOX_ASSIGNERS, MaxIoUAssigner

NONE, NOTHING = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)


def small(name, **changes):
    "A shipped config on ResNet-18 with thin neck and heads, on the CPU, without weights"
    model = copy.deepcopy(Config.fromfile(name).model)
    model.backbone = dict(type='ResNet', depth=18)
    model.neck.in_channels, model.neck.out_channels = [64, 128, 256, 512], 32
    for head in ('rpn_head', 'bbox_head'):
        if head in model: model[head].update(in_channels=32, feat_channels=32)
    if 'bbox_head' in model: model.bbox_head.stacked_convs = 1
    if 'roi_head' in model:
        model.roi_head.bbox_roi_extractor.out_channels = 32
        model.roi_head.bbox_head.update(in_channels=32, fc_out_channels=32)
    if 'rpn_proposal' in model.train_cfg: model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
    torch.manual_seed(0)
    detector = build_detector(model); detector.init_weights()
    return detector


def batch(sizes=((96, 128), (80, 96))):
    "A padded batch of images of these sizes, and their metas"
    H, W = (max(s[i] for s in sizes) for i in (0, 1)); torch.manual_seed(1)
    img = torch.zeros(len(sizes), 3, H, W); metas = []
    for x, (h, w) in zip(img, sizes):
        x[:, :h, :w] = torch.randn(3, h, w)
        metas.append(dict(img_shape=(h, w, 3), pad_shape=(h, w, 3), ori_shape=(h, w, 3), scale_factor=np.ones(4, np.float32), flip=False, filename='x.jpg'))
    return img, metas


def step(detector, img, metas, boxes, labels, **more):
    out = detector.train().train_step(dict(img=img, img_metas=metas, gt_bboxes=boxes, gt_labels=labels, **more), None)
    out['loss'].backward()
    assert all(np.isfinite(v) for v in out['log_vars'].values()), out['log_vars']
    grads = [p.grad for p in detector.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads)
    return out['log_vars']


BOXES, LABELS = [torch.tensor([[10., 10., 60., 70.], [50., 20., 120., 90.]]), torch.tensor([[5., 5., 70., 60.]])], [torch.tensor([1, 2]), torch.tensor([0])]
FASTER = [f'faster_rcnn/faster_rcnn_r50_fpn_{x}1x_coco.py' for x in ('', 'giou_', 'bounded_iou_', 'ciou_', 'iou_', 'ohem_', 'soft_nms_')]


@pytest.mark.parametrize('name', FASTER + ['retinanet/retinanet_r50_fpn_1x_coco.py', 'retinanet/retinanet_r18_fpn_1x_coco.py'])
def test_odd_batches_train(name):
    detector = small(name); img, metas = batch()
    tiny = torch.tensor([[3., 3., 3.5, 4.]])
    for boxes, labels in ((BOXES, LABELS), ([NONE, NONE], [NOTHING, NOTHING]), ([tiny, NONE], [torch.tensor([3]), NOTHING])):
        step(detector, img, metas, boxes, labels)


@pytest.mark.parametrize('name', [FASTER[0], FASTER[-1], 'retinanet/retinanet_r50_fpn_1x_coco.py'])
def test_a_batch_is_its_images(name):
    "Two images of one size together, and one by one: the same boxes; two sizes: boxes inside each"
    detector = small(name).eval().double()              # in single precision boxes of random weights nearly tie
    head = detector.roi_head if detector.with_mask or hasattr(detector, 'roi_head') else detector.bbox_head
    head.test_cfg.score_thr = .005
    img, metas = batch(((96, 128), (96, 128))); img = img.double()
    with torch.inference_mode():
        both = detector.simple_test(img, metas)
        for i in (0, 1):
            one = detector.simple_test(img[i:i + 1], metas[i:i + 1])[0]
            assert any(len(a) for a in one) and [len(a) for a in both[i]] == [len(a) for a in one]
            for a, b in zip(both[i], one): np.testing.assert_allclose(a, b, atol=1e-3)
        img, metas = batch()
        for result, m in zip(detector.simple_test(img.double(), metas), metas):
            found = np.concatenate(result)
            assert not len(found) or (found[:, 2].max() <= m['img_shape'][1] and found[:, 3].max() <= m['img_shape'][0])


def test_ignored_regions_take_no_part():
    "A crowd region over all of the image leaves nothing to learn from background"
    detector = small('retinanet/retinanet_r50_fpn_1x_coco.py'); img, metas = batch(((96, 128),))
    detector.bbox_head.assigner.ignore_iof_thr = .5
    crowd = [torch.tensor([[-500., -500., 700., 700.]])]
    with torch.no_grad():
        feats = detector.extract_feat(img)
        plain = detector.bbox_head.forward_train(feats, metas, [BOXES[0]], [LABELS[0]])
        none = detector.bbox_head.forward_train(feats, metas, [BOXES[0]], [LABELS[0]], crowd)
    assert sum(plain['loss_cls']) > 0 and sum(none['loss_cls']) == 0 and sum(none['loss_bbox']) == 0


def test_own_assigner_inside_a_batched_head():
    class Nobody(MaxIoUAssigner):
        calls = 0
        def assign(self, bboxes, gt_bboxes, gt_bboxes_ignore=None, gt_labels=None):
            Nobody.calls += 1; result = super().assign(bboxes, gt_bboxes, gt_bboxes_ignore, gt_labels)
            result.gt_inds[:] = 0
            return result
    BBOX_ASSIGNERS.register_module(name='Nobody', module=Nobody, force=True)
    detector = small(FASTER[0]); img, metas = batch()
    detector.rpn_head.assigner = Nobody(.7, .3)
    logs = step(detector, img, metas, BOXES, LABELS)
    assert Nobody.calls == 2 and logs['loss_rpn_bbox'] == 0


def test_own_box_head_gets_images_one_by_one():
    detector = small(FASTER[0]).eval().double(); img, metas = batch(((96, 128), (96, 128))); img, seen = img.double(), []
    kind = type(detector.roi_head.bbox_head)
    class Mine(kind):
        def get_bboxes(self, rois, *args, **kwargs): seen.append(len(rois)); return super().get_bboxes(rois, *args, **kwargs)
    detector.roi_head.bbox_head.__class__ = Mine
    with torch.inference_mode(): mine = detector.simple_test(img, metas)
    detector.roi_head.bbox_head.__class__ = kind
    with torch.inference_mode(): ours = detector.simple_test(img, metas)
    assert len(seen) == 2
    for a, b in zip(mine, ours):
        for p, q in zip(a, b): assert p.shape == q.shape and np.allclose(p, q, atol=1e-3)


def test_bytes_and_floats_give_the_same():
    "A uint8 batch is what the pipeline's Normalize and Pad would have given"
    from detnb.foundation.images import imnormalize
    rng = np.random.RandomState(0); norm = dict(mean=np.array([123.675, 116.28, 103.53], np.float32), std=np.array([58.395, 57.12, 57.375], np.float32), to_rgb=True)
    sizes, img, want, metas = ((20, 30), (16, 24)), np.zeros((2, 20, 30, 3), np.uint8), np.zeros((2, 20, 30, 3), np.float32), []
    for i, (h, w) in enumerate(sizes):
        img[i, :h, :w] = rng.randint(0, 256, (h, w, 3)); want[i, :h, :w] = imnormalize(img[i, :h, :w], norm['mean'], norm['std'], norm['to_rgb'])
        metas.append(dict(img_shape=(h, w, 3), img_norm_cfg=norm))
    got = normalize_batch(torch.from_numpy(img).permute(0, 3, 1, 2), metas)
    assert np.allclose(got.permute(0, 2, 3, 1), want, atol=1e-4)


def test_augmented_boxes_of_a_mirrored_image():
    "Plain and mirrored version of an image through both kinds of detector"
    for name in (FASTER[0], 'retinanet/retinanet_r50_fpn_1x_coco.py'):
        detector = small(name).eval(); img, metas = batch(((96, 128),))
        (detector.roi_head if hasattr(detector, 'roi_head') else detector.bbox_head).test_cfg.score_thr = .005
        mirrored = [dict(metas[0], flip=True, flip_direction='horizontal')]
        with torch.inference_mode():
            result = detector(img=[img, img.flip(3)], img_metas=[metas, mirrored], return_loss=False, rescale=True)[0]
        found = np.concatenate(result)
        assert len(result) == 80 and (not len(found) or (found[:, :4].min() >= 0 and found[:, 2].max() <= 128))


@pytest.mark.parametrize('change,words', [
    (dict(bbox_head=dict(type='RetinaHed')), 'RetinaHead'), (dict(bbox_head=dict(num_classess=3)), 'num_classes'), (dict(neck=dict(num_outs=4)), 'levels')])
def test_slips_are_named(change, words):
    cfg = copy.deepcopy(Config.fromfile('retinanet/retinanet_r18_fpn_1x_coco.py').model)
    for part, values in change.items(): cfg[part].update(values)
    img, metas = batch(((64, 64),))
    with pytest.raises(Exception) as error: build_detector(cfg).simple_test(img, metas)
    text = str(error.value) + ' '.join(getattr(error.value, '__notes__', []))
    assert words in text
