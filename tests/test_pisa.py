"PISA's ranks and the deformable RoI pooling beside versions written as loops over images, classes and boxes"
import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from detnb.models.losses import CrossEntropyLoss, isr_p
from detnb.models.targets import AssignResult, DeltaXYWHBBoxCoder, ScoreHLRSampler


class Head:
    "Says of each region what a table says"
    num_classes = 3
    def __init__(self, scores): self.table, self.bbox_head, self.bbox_coder = scores, self, self
    def _bbox_forward(self, feats, rois):
        at = rois[:, 1].long(); assert (rois[:, 1] == at).all()              # the left edge is the number of the box
        return dict(cls_score=self.table[rois[:, 0].long(), at], bbox_pred=rois[:, 1:])
    def loss(self, cls_score, labels, **kw): return dict(loss_cls=torch.nn.functional.cross_entropy(cls_score, labels, reduction='none'))
    def scores_of(self, logits): return logits.softmax(-1)
    def of_class(self, deltas, labels): return deltas
    def decode(self, boxes, deltas): return heaps(boxes)


def heaps(boxes): # thirty numbers, some of which share a place
    at = (boxes[:, :1] % 7) * 13 + (boxes[:, :1] // 7) * 1.5
    return torch.cat([at, at * 0, at + 10, at * 0 + 10], 1)


def by_loop(boxes, logits, wanted, quota, k, bias, score_thr, iou_thr):
    "One image as the paper tells it: inds of those that are ranked, best first, and weights of all that are drawn, before the scale"
    inds = wanted.nonzero()[:, 0]; moved, score = heaps(boxes[inds]), logits[inds].softmax(-1)[:, :-1].max(1)[0]
    left = [int(i) for i in score.argsort(descending=True) if score[i] > score_thr]; valid, importance = len(left), {}
    while left:
        same = [i for i in left if i == left[0] or box_iou(moved[left[:1]], moved[i:i + 1]) > iou_thr]
        for place, i in enumerate(same): importance[i] = valid - place + float(score[i])
        left = [i for i in left if i not in same]
    order = sorted(importance, key=importance.get, reverse=True)[:quota]
    drawn, most = min(quota, len(inds)), max(min(quota, len(inds)), valid)
    weights = [(most - min(r, max(len(order) - 1, 0))) / most if valid else 1. for r in range(drawn)]
    return inds[order], (bias + (1 - bias) * torch.tensor(weights)) ** k


@pytest.mark.parametrize('num,score_thr', [(10, .4), (10, .05), (25, .6), (100, .5), (10, 1.)])
def test_score_hlr_by_loop(num, score_thr):
    torch.manual_seed(num)
    logits = torch.randn(2, 30, 4) * 2
    boxes = torch.arange(30.)[:, None].repeat(1, 4)
    assigned = torch.zeros(2, 30, dtype=torch.long); assigned[0, 5:9], assigned[1, ::3] = -1, 1
    sampler = ScoreHLRSampler(num, .25, Head(logits), add_gt_as_proposals=False, k=.5, bias=.1, score_thr=score_thr)
    drawn = sampler.sample_batch(AssignResult(torch.tensor([1, 1]), assigned, torch.zeros(2, 30), torch.zeros_like(assigned)), boxes,
                                 torch.zeros(2, 1, 4), torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1, dtype=torch.long))
    for i in range(2):
        quota = num - len(drawn[i].pos_inds)
        want, weights = by_loop(boxes, logits[i], assigned[i] == 0, quota, .5, .1, score_thr, .5)
        got, scaled = drawn[i].neg_inds, drawn.neg_weights[i][drawn.neg[i]]
        assert got[:len(want)].tolist() == want.tolist() and len(got) == len(got.unique()) == min(quota, int((assigned[i] == 0).sum()))
        loss = torch.nn.functional.cross_entropy(logits[i, got], torch.full((len(got),), 3), reduction='none')
        torch.testing.assert_close(scaled, weights * (loss.sum() / (loss * weights).sum()))


def test_isr_p_by_loop():
    torch.manual_seed(0)
    coder, cls = DeltaXYWHBBoxCoder(), CrossEntropyLoss(loss_weight=2.)
    labels = torch.randint(0, 4, (60,)); owner = labels * 2 + torch.randint(0, 2, (60,))           # two boxes a class; class 3 is background
    at = torch.rand(60, 2) * 100; rois = torch.cat([torch.zeros(60, 1), at, at + 30], 1)
    scores, deltas, weights = torch.randn(60, 4), torch.randn(60, 12) * .3, torch.rand(60) + .5
    truth = torch.randn(60, 4) * .3
    pos = labels < 3
    ious = torch.stack([box_iou(coder.decode(r[None, 1:], d.view(3, 4)[l][None]), coder.decode(r[None, 1:], t[None]))[0, 0] if l < 3 else torch.tensor(0.)
                        for r, d, l, t in zip(rois, deltas, labels.tolist(), truth)])
    most, new = int(labels[pos].bincount().max()), weights.clone()
    for c in range(3):
        mine, keys = (labels == c).nonzero()[:, 0].tolist(), {}
        for box in owner[mine].unique():
            for place, i in enumerate(sorted((i for i in mine if owner[i] == box), key=lambda i: -ious[i])): keys[i] = float(ious[i]) - place
        for rank, i in enumerate(sorted(mine, key=lambda i: -keys[i])): new[i] = (.2 + .8 * weights[i] * (most - rank) / most) ** 2
    loss = cls(scores[pos], labels[pos], reduction_override='none')
    new[pos] *= (loss * weights[pos]).sum() / (loss * new[pos]).sum()
    got = isr_p(scores, deltas, (labels, weights, truth, torch.ones(60, 4)), rois, owner[pos], cls, coder, k=2, bias=.2, num_class=3)[1]
    torch.testing.assert_close(got, new)


@pytest.mark.parametrize('config', ['dcn/faster_rcnn_r50_fpn_dpool_1x_coco.py', 'dcnv2/faster_rcnn_r50_fpn_mdpool_1x_coco.py'])
def test_pooling_packs_begin_as_roi_align(config):
    "Detections of an untrained pack are those of its parent with RoI Align; the modulated pack halves what the box head sees"
    from detnb import Config
    from detnb.models import build_roi_extractor
    cfg = Config.fromfile(config).model.roi_head.bbox_roi_extractor
    cfg.out_channels = cfg.roi_layer.output_channels = 8
    plain = build_roi_extractor(dict(cfg, roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0)))
    pack = build_roi_extractor(cfg)
    torch.manual_seed(0)
    feats = [torch.randn(2, 8, 64 >> i, 64 >> i) for i in range(4)]
    at = torch.rand(40, 2) * 120; rois = torch.cat([torch.arange(40)[:, None] % 2, at, at + torch.rand(40, 2) * 136], 1)
    part = .5 if 'mdpool' in config else 1.
    torch.testing.assert_close(pack(feats, rois), part * plain(feats, rois), atol=1e-4, rtol=1e-4)
    pack(feats, rois).square().sum().backward()
    lasts = [layer.offset_fc[-1] for layer in pack.roi_layers]
    assert all(torch.isfinite(l.weight.grad).all() for l in lasts) and sum(float(l.weight.grad.abs().sum()) for l in lasts) > 0


def test_absurd_regions():
    "Huge, empty, reversed and far-away regions give finite numbers and finite gradients"
    from detnb.ops import deform_roi_pool
    x = torch.randn(1, 3, 20, 20, requires_grad=True)
    rois = torch.tensor([[0, -1e4, -1e4, 1e4, 1e4], [0, 5, 5, 5, 5], [0, 15, 15, 5, 5], [0, 1e5, 1e5, 1e5 + 9, 1e5 + 9.]])
    move = torch.randn(4, 2, 3, 3, requires_grad=True)
    out = deform_roi_pool(x, rois, move, 3, 1 / 4)
    out.sum().backward()
    assert out.shape == (4, 3, 3, 3) and torch.isfinite(out).all() and torch.isfinite(x.grad).all() and torch.isfinite(move.grad).all()
    assert not out[3].any()
