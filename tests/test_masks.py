"""Detectors with masks: odd batches, a batch of two and two of one, several versions of a picture, and the evaluation of what comes out."""
import copy, json

import numpy as np
import pytest
import torch

from detnb import Config
from detnb.core import BitmapMasks, PolygonMasks
from detnb.models import build_detector
from test_detectors import BOXES, LABELS, NONE, NOTHING, batch, step

NAMES = ['mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py', 'cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py']


def each(x): return x if isinstance(x, (list, tuple)) else [x]


def small(name, **rcnn_test):
    "A shipped config on ResNet-18 with thin parts, without weights"
    model = copy.deepcopy(Config.fromfile(name).model)
    model.backbone = dict(type='ResNet', depth=18)
    model.neck.in_channels, model.neck.out_channels = [64, 128, 256, 512], 32
    model.rpn_head.update(in_channels=32, feat_channels=32)
    head = model.roi_head
    for extractor in ('bbox_roi_extractor', 'mask_roi_extractor'):
        if extractor in head: head[extractor].out_channels = 32
    for h in each(head.bbox_head): h.update(in_channels=32, fc_out_channels=32, num_classes=5)
    for h in each(head.get('mask_head', [])): h.update(in_channels=32, conv_out_channels=16, num_convs=1, num_classes=5)
    model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
    model.test_cfg.rcnn.update(dict(score_thr=.15, max_per_img=8), **rcnn_test)
    torch.manual_seed(0)
    detector = build_detector(model); detector.init_weights()
    return detector


def masks_of(boxes, metas, kind=BitmapMasks):
    "An ellipse, or a diamond, in each box"
    out = []
    for b, m in zip(boxes, metas):
        h, w = m['img_shape'][:2]; y, x = np.mgrid[:h, :w] + .5
        if kind is PolygonMasks: out.append(kind([[np.array([(x1 + x2) / 2, y1, x2, (y1 + y2) / 2, (x1 + x2) / 2, y2, x1, (y1 + y2) / 2])] for x1, y1, x2, y2 in b.tolist()], h, w))
        else: out.append(kind([((((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2) <= .25).astype(np.uint8) for x1, y1, x2, y2 in b.tolist()], h, w))
    return out


@pytest.mark.parametrize('kind', [BitmapMasks, PolygonMasks])
@pytest.mark.parametrize('name', NAMES)
def test_odd_batches_train(name, kind):
    "Two steps, then images without boxes, and with a single tiny one"
    detector = small(name); img, metas = batch(); tiny = torch.tensor([[3., 3., 3.5, 4.]])
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], 1e-3)
    for _ in range(2):
        optimizer.zero_grad(); step(detector, img, metas, BOXES, LABELS, gt_masks=masks_of(BOXES, metas, kind)); optimizer.step()
    for boxes, labels in (([NONE, NONE], [NOTHING, NOTHING]), ([tiny, NONE], [torch.tensor([3]), NOTHING])):
        optimizer.zero_grad(); log = step(detector, img, metas, boxes, labels, gt_masks=masks_of(boxes, metas, kind))
        masks = [v for k, v in log.items() if 'loss_mask' in k]
        assert masks and all((v == 0) == (len(boxes[0]) == 0) for v in masks), log
        assert all(p.grad is not None for h in each(detector.roi_head.mask_head) for p in h.parameters()), 'distributed training needs a gradient for each weight'


@pytest.mark.parametrize('name', NAMES)
def test_batch_of_two(name):
    "Results of two images together are those of each alone, in the original picture's pixels and in the network's (in double precision: no ties of scores)"
    detector = small(name).eval().double(); img, metas = batch(); img = img.double()
    metas[1].update(scale_factor=np.full(4, .5, np.float32), ori_shape=(160, 192, 3))
    with torch.no_grad():
        for rescale in (True, False):
            both = detector.simple_test(img, metas, rescale=rescale)
            for i, (boxes, masks) in enumerate(both):
                one = detector.simple_test(img[i:i + 1], metas[i:i + 1], rescale=rescale)[0]
                assert sum(map(len, boxes)) == 8 and [len(b) for b in boxes] == [len(m) for m in masks]
                for a, b in zip(boxes, one[0]): np.testing.assert_allclose(a, b, atol=1e-2)
                size = metas[i]['ori_shape' if rescale else 'img_shape'][:2]
                for a, b in zip(masks, one[1]):
                    for p, q in zip(a, b): assert p.shape == size and p.dtype == bool and (p != q).mean() < 1e-3


@pytest.mark.parametrize('name', NAMES)
def test_versions_of_a_picture(name):
    "One version alone is a simple test; a mirrored second version changes little else than the numbers, and nothing found gives empty lists"
    detector = small(name).eval().double(); img, metas = batch(((96, 128),)); img = img.double()
    with torch.no_grad():
        boxes, masks = detector.simple_test(img, metas, rescale=True)[0]
        alone = detector.aug_test([img], [metas], rescale=True)[0]
        for a, b in zip(boxes, alone[0]): np.testing.assert_allclose(a, b, atol=1e-2)
        for a, b in zip(masks, alone[1]): assert all((p != q).mean() < 1e-3 for p, q in zip(a, b))
        mirrored = [dict(metas[0], flip=True, flip_direction='horizontal')]
        two = detector(return_loss=False, rescale=True, img=[img, img.flip(-1)], img_metas=[metas, mirrored])[0]
        assert [len(b) for b in two[0]] == [len(m) for m in two[1]] and all(m.shape == (96, 128) for c in two[1] for m in c)
        flipped = detector(return_loss=False, rescale=True, img=[img.flip(-1), img], img_metas=[mirrored, metas])[0]      # the order does not matter
        assert [len(b) for b in two[0]] == [len(b) for b in flipped[0]]
    nothing = small(name, score_thr=2.).eval().double()
    with torch.no_grad():
        for result in (nothing.simple_test(img, metas, rescale=True)[0], nothing.aug_test([img], [metas], rescale=True)[0]):
            assert result[1] == [[] for _ in range(5)] and not sum(map(len, result[0]))


def test_segm_is_evaluated(tmp_path):
    "Masks that are the truth have AP 1 in CocoDataset, boxes too; shifted masks have less"
    from detnb.apis.test import encode_mask_results
    from detnb.datasets import CocoDataset
    import pycocotools.mask as rle
    _, metas = batch(((96, 128), (80, 96))); truth = masks_of(BOXES, metas); records = []
    for i, (b, l, m) in enumerate(zip(BOXES, LABELS, truth)):
        for (x1, y1, x2, y2), c, mask in zip(b.tolist(), l.tolist(), m.masks):
            code = rle.encode(np.asfortranarray(mask)); code['counts'] = code['counts'].decode()
            records.append(dict(id=len(records) + 1, image_id=i, category_id=c + 1, bbox=[x1, y1, x2 - x1, y2 - y1], area=int(mask.sum()), iscrowd=0, segmentation=code))
    sizes = [m['img_shape'] for m in metas]; names = ['a', 'b', 'c']
    (tmp_path/'truth.json').write_text(json.dumps(dict(annotations=records, categories=[dict(id=c + 1, name=n) for c, n in enumerate(names)],
        images=[dict(id=i, file_name=f'{i}.jpg', height=h, width=w) for i, (h, w, _) in enumerate(sizes)])))
    dataset = CocoDataset(str(tmp_path/'truth.json'), [], classes=names, test_mode=True)
    def results(shift):
        for b, l, m in zip(BOXES, LABELS, truth):
            own = [l.numpy() == c for c in range(3)]; b = np.concatenate([b.numpy(), np.full((len(b), 1), .9, np.float32)], 1)
            yield [b[o] for o in own], [[np.roll(x, shift, 1).astype(bool) for x in m.masks[o]] for o in own]
    scores = [dataset.evaluate([encode_mask_results(r) for r in results(shift)], metric=['bbox', 'segm']) for shift in (0, 12)]
    assert scores[0]['segm_mAP'] == scores[0]['bbox_mAP'] == scores[1]['bbox_mAP'] == 1 and scores[1]['segm_mAP'] < .7, scores
