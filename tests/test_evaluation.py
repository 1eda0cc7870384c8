"Evaluation: figures of MMDetection 2.28.2, equality with the plain algorithm, bad input"
import gzip, json
from pathlib import Path
import numpy as np, pytest
from detnb.evaluation import (CocoFigures, average_precision, bbox_overlaps, eval_map, eval_recalls, evaluate_coco, get_classes,
                              results2records, tpfp_default)
from detnb.evaluation.coco import COCO, engine, read_coco
from detnb.evaluation.mean_ap import mark
from detnb.foundation.environment import data_root

FIGURES = Path(__file__).parent / 'figures'


@pytest.fixture(scope='module')
def blood():
    "Detections and true boxes of 87 images, and what MMDetection made of them"
    d = json.load(gzip.open(FIGURES / 'eval_voc.json.gz'))
    C, n = len(d['classes']), len(d['gts'])
    gts = [np.array(g, float).reshape(-1, 5) for g in d['gts']]
    annotations = [dict(bboxes=g[:, 1:].astype(np.float32), labels=g[:, 0].astype(int)) for g in gts]
    rows = np.array(d['dets'])
    results = [[rows[(rows[:, 0] == i) & (rows[:, 1] == c), 2:].astype(np.float32) for c in range(C)] for i in range(n)]
    return results, annotations, d['expected']


def tie_bounds(results, annotations, thr, mode):
    "Least and greatest AP of each class over all orders of equal scores, which the reference leaves to the sorting routine"
    scores, label, tp, fp, num_gts = mark(results, annotations, thr, [(None, None)])
    for c, n in enumerate(num_gts[:, 0]):
        m, out = label == c, []
        for right_first in (-1, 1):
            order = np.lexsort((-right_first * tp[0, m], -scores[m]))
            t, f = tp[0, m][order].cumsum(), fp[0, m][order].cumsum()
            out.append(float(average_precision(t / n, t / (t + f), mode)))
        yield out


@pytest.mark.parametrize('key, dataset, thr', [('voc07@0.5', 'voc07', .5), ('voc07@0.75', 'voc07', .75), ('area@0.5', None, .5), ('area@0.75', None, .75)])
def test_mean_ap_is_mmdetections(blood, key, dataset, thr):
    results, annotations, expected = blood
    mean, classes = eval_map(results, annotations, iou_thr=thr, dataset=dataset, logger='silent')
    bounds = list(tie_bounds(results, annotations, thr, '11points' if dataset else 'area'))
    for got, want, (least, most) in zip(classes, expected[key]['per_class'], bounds):
        assert (int(got['num_gts']), got['num_dets']) == (want['num_gts'], want['num_dets'])
        assert least - 1e-6 <= want['ap'] <= most + 1e-6 and least - 1e-6 <= got['ap'] <= most + 1e-6
        assert most - least < 2e-3
    assert mean == pytest.approx(expected[key]['mAP'], abs=5e-4)


def test_scale_ranges_are_mmdetections(blood):
    results, annotations, expected = blood
    mean, _ = eval_map(results, annotations, scale_ranges=[(0, 64), (64, 128), (128, 1024)], logger='silent')
    assert mean == pytest.approx(expected['area@0.5_scales(0,64),(64,128),(128,1024)']['mAP'], abs=1e-5)


def test_recall_is_mmdetections(blood):
    results, annotations, expected = blood
    proposals = [np.concatenate(r) for r in results]
    got = eval_recalls([a['bboxes'] for a in annotations], proposals, [10, 100], [.5, .75], logger='silent')
    want = np.array(expected['recall@[10,100]x[.5,.75]'])
    boxes = sum(len(a['labels']) for a in annotations)
    assert got[1] == pytest.approx(want[1], abs=1e-6)                     # all proposals count: nothing to choose
    assert np.abs(got[0] - want[0]).max() < 1.01 / boxes                  # the tenth and the eleventh may have one score


def plain_map(results, annotations, thr):
    "VOC's rule, one detection after the other"
    aps = []
    for c in range(len(results[0])):
        dets, n = [], 0
        for i, (r, a) in enumerate(zip(results, annotations)):
            dets += [(d[4], i, d[:4]) for d in r[c]]; n += (a['labels'] == c).sum()
        claimed, hits = set(), []
        for _, i, box in sorted(dets, key=lambda d: -d[0]):
            mine = annotations[i]['bboxes'][annotations[i]['labels'] == c]
            iou = bbox_overlaps(box[None], mine)[0] if len(mine) else np.zeros(0)
            hit = len(mine) and iou.max() >= thr and (i, iou.argmax()) not in claimed
            if hit: claimed.add((i, iou.argmax()))
            hits.append(bool(hit))
        t = np.cumsum(hits)
        aps.append(average_precision(t / n, t / np.arange(1, len(t) + 1)))
    return float(np.mean(aps))


def test_one_pass_equals_one_by_one(blood):
    results, annotations, _ = blood
    assert eval_map(results, annotations, logger='silent')[0] == pytest.approx(plain_map(results, annotations, .5), abs=1e-6)
    assert eval_map(results, annotations, tpfp_fn=tpfp_default, logger='silent')[0] == pytest.approx(plain_map(results, annotations, .5), abs=1e-6)


def test_order_of_images_does_not_matter(blood):
    results, annotations, _ = blood
    rng = np.random.default_rng(0)
    untied = [[np.hstack([d[:, :4], rng.random((len(d), 1))]) for d in r] for r in results]
    order = rng.permutation(len(results))
    assert eval_map(untied, annotations, logger='silent')[0] == pytest.approx(
        eval_map([untied[i] for i in order], [annotations[i] for i in order], logger='silent')[0], abs=1e-7)


def test_legacy_coordinate_is_wider():
    "Two boxes of 2x2 that touch overlap when pixels are counted"
    a, b = np.array([[0, 0, 1, 1.]]), np.array([[1, 0, 2, 1.]])
    assert bbox_overlaps(a, b)[0, 0] == 0
    assert bbox_overlaps(a, b, use_legacy_coordinate=True)[0, 0] == pytest.approx(2 / 6)


def test_voc_table_is_printed(blood, capsys):
    results, annotations, _ = blood
    eval_map(results, annotations, dataset=('RBC', 'WBC', 'Platelets'))
    out = capsys.readouterr().out
    assert 'Platelets' in out and '968' in out and 'mAP' in out
    eval_map(results, annotations, logger='silent')
    assert not capsys.readouterr().out


def test_unknown_names():
    with pytest.raises(ValueError, match="did you mean 'cityscapes'"): get_classes('cityscape')
    with pytest.raises(ValueError, match='results of 1 images, but annotations of 2'): eval_map([[]], [{}, {}])
    with pytest.raises(ValueError, match="'area' or '11points'"): average_precision(np.ones(1), np.ones(1), '101points')


# --- COCO

def coco_results(records, coco, masks=None):
    cats, ids = coco.get_cat_ids(), coco.get_img_ids()
    boxes = {i: [[] for _ in cats] for i in ids}
    segms = {i: [[] for _ in cats] for i in ids}
    for r in records:
        x, y, w, h = r['bbox']
        boxes[r['image_id']][cats.index(r['category_id'])].append([x, y, x + w, y + h, r['score']])
        if masks: segms[r['image_id']][cats.index(r['category_id'])].append(r['segmentation'])
    arrays = [[np.array(c, np.float32).reshape(-1, 5) for c in boxes[i]] for i in ids]
    return [(b, segms[i]) for b, i in zip(arrays, ids)] if masks else arrays


@pytest.fixture(scope='module')
def oracle():
    root = data_root()
    if root is None or not (root / 'coco_eval').is_dir(): pytest.skip('needs data/coco_eval (DETNB_DATA)')
    folder = root / 'coco_eval'
    from detnb.datasets import CocoDataset
    dataset = CocoDataset(str(folder / 'instances_val2014_100.json'), [], test_mode=True)
    boxes = json.load(open(folder / 'instances_val2014_fakebbox100_results.json'))
    from pycocotools import mask
    segms = json.load(open(folder / 'instances_val2014_fakesegm100_results.json'))
    for s in segms: s['bbox'] = mask.toBbox(s['segmentation']).tolist()
    return dataset, coco_results(boxes, dataset.coco), coco_results(segms, dataset.coco, masks=True), json.load(open(FIGURES / 'eval_coco.json'))


@pytest.mark.filterwarnings('ignore:.*have no box')
@pytest.mark.parametrize('key, kw', [('coco_bbox', {}), ('coco_bbox_classwise', dict(classwise=True)), ('coco_segm', dict(metric=['bbox', 'segm'])),
                                     ('coco_proposal', dict(metric='proposal')), ('coco_proposal_fast', dict(metric='proposal_fast'))])
def test_coco_figures_are_mmdetections(oracle, key, kw, capsys):
    dataset, boxes, masks, want = oracle
    got = dataset.evaluate(masks if key == 'coco_segm' else boxes, **kw)
    assert list(got) == list(want[key])
    for name, value in want[key].items():
        assert got[name] == value if isinstance(value, str) else got[name] == pytest.approx(value, abs=1e-6), name
    assert ('traffic light' in capsys.readouterr().out) == ('classwise' in key)


@pytest.mark.filterwarnings('ignore:.*have no box')
def test_faster_coco_eval_agrees(oracle, monkeypatch):
    pytest.importorskip('faster_coco_eval')
    import detnb.evaluation.coco as module
    from pycocotools.cocoeval import COCOeval
    dataset, boxes, masks, _ = oracle
    records = results2records(masks, dataset.img_ids, dataset.cat_ids)
    fast = [evaluate_coco(dataset.coco, records[kind], kind) for kind in ('bbox', 'segm')]
    assert engine()[0] is not COCO
    monkeypatch.setattr(module, 'engine', lambda: (COCO, COCOeval))
    for kind, figures in zip(('bbox', 'segm'), fast):
        slow = evaluate_coco(dataset.coco, records[kind], kind)
        np.testing.assert_allclose(figures.precision, slow.precision, atol=1e-9)
        np.testing.assert_allclose(figures.recall, slow.recall, atol=1e-9)


def test_detections_that_are_not_finite_find_nothing():
    "pycocotools alone would give an AP above 0 for boxes of NaN"
    truth = dict(images=[dict(id=1, width=99, height=99)], categories=[dict(id=1, name='a')],
                 annotations=[dict(id=1, image_id=1, category_id=1, bbox=[10, 10, 20, 20], area=400, iscrowd=0)])
    for bad in (np.nan, np.inf):
        with pytest.warns(UserWarning, match='1 of 1 detections are not finite'):
            records = results2records([[np.full((1, 5), bad, np.float32)]], [1], [1])['bbox']
        assert evaluate_coco(truth, records)['mAP'] == 0


@pytest.mark.parametrize('results, complaint', [
    ([[np.zeros((0, 5))]] * 2, 'results of 1 classes for a dataset of 2'), ([[np.zeros((0, 5))] * 2, np.zeros((0, 5))], 'image 8 is a ndarray'),
    ([[np.zeros((1, 4)), np.zeros((0, 5))]] * 2, r'image 7 has boxes of shape \(1, 4\)')])
def test_results_of_another_form(results, complaint):
    with pytest.raises((TypeError, ValueError), match=complaint): results2records(results, [7, 8], [1, 2])


def test_coco_file_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.json'): read_coco(str(tmp_path / 'nowhere.json'))
    for text, complaint in (('{"images": [', 'is not JSON'), ('[]', 'holds a list'), ('{"images": []}', 'lacks the list categories; it has images')):
        (tmp_path / 'a.json').write_text(text)
        with pytest.raises(ValueError, match=f'a.json.*{complaint}'): read_coco(str(tmp_path / 'a.json'))


def test_coco_keys_that_converters_forget():
    "area and iscrowd are filled in"
    coco = COCO(dict(images=[dict(id=1, width=50, height=50)], categories=[dict(id=1, name='a')],
                     annotations=[dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 40, 40])]))
    assert evaluate_coco(coco, [dict(image_id=1, category_id=1, bbox=[0, 0, 40, 40], score=1.)])['mAP_m'] == pytest.approx(1)


def test_coco_figures_without_thresholds_they_need():
    p = np.ones((1, 101, 1, 4, 1))
    figures = CocoFigures(p, p[:, 0], [.9], [1], [50])
    assert figures['mAP'] == 1 and figures['mAP_50'] == -1
