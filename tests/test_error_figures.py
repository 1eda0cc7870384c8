"The split of the lost AP, curves and counts beside other reckonings: by hand, COCO's own tables, and the figures of TIDE's authors"
import importlib, json

import numpy as np
import pytest
import torch

from detnb import Config
from detnb.apis.inference import init_detector, prepare_batch
from detnb.apis.predictions import Predictions, test_dataset as dataset_of
from detnb.apis.top_losses import image_losses
from detnb.cli.main import main
from detnb.datasets import build_dataset
from detnb.datasets.shapes import CLASSES, make_shapes
from detnb.evaluation.coco import COCO, evaluate_coco
from detnb.evaluation.matching import Matched, Pairs, found_in, there_in, there_in_coco
from detnb.evaluation.mean_ap import tpfp_default
from detnb.evaluation.precision_recall import precision_recall
from detnb.evaluation.tide import KINDS, tide
from detnb.foundation.environment import data_root
from detnb.foundation.files import dump
from detnb.models import build_detector

pytestmark = pytest.mark.filterwarnings('ignore:.*have no box in')


def data(*parts):
    root = data_root()
    if root is None or not root.joinpath(*parts).exists(): pytest.skip(f'needs {"/".join(parts)} (DETNB_DATA)')
    return root.joinpath(*parts)


def box(x): return [x, 0, x + 10, 10]
def scene(objects, found, classes=2): # (class, x) each; (class, x, score) each
    ann = dict(bboxes=np.array([box(x) for _, x in objects], float).reshape(-1, 4), labels=np.array([c for c, _ in objects], int))
    return Pairs([found_in([np.array([[*box(x), s] for k, x, s in found if k == c], float).reshape(-1, 5) for c in range(classes)])],
                 [there_in(ann, classes)], classes)


def pairs_of(coco, records, kind):
    ids, cats, rows = sorted(coco.imgs), sorted(coco.cats), {}
    for r in records: rows.setdefault(r['image_id'], []).append(r)
    found = []
    for i in ids:
        mine = rows.get(i, [])
        shapes = [r['segmentation'] for r in mine] if kind == 'segm' else np.array([r['bbox'] for r in mine], float).reshape(-1, 4)
        found.append(dict(scores=[r['score'] for r in mine], labels=[cats.index(r['category_id']) for r in mine], shapes=shapes))
    return Pairs(found, [there_in_coco(coco, i, cats, kind) for i in ids], len(cats)), [coco.cats[c]['name'] for c in cats]


# --- by hand

def test_a_mixed_case_by_hand():
    "Three cats and two dogs; a cat found twice, one badly placed, one called a dog, a cat of nothing, a dog found and one overlooked"
    t = tide(scene([(0, 0), (0, 30), (0, 60), (1, 90), (1, 120)],
                   [(0, 0, .9), (0, 1, .8), (0, 35, .7), (1, 60, .6), (0, 200, .5), (1, 90, .4)]), ('cat', 'dog'))
    assert {k: int(n.sum()) for k, n in t.counts().items()} == dict(Cls=1, Loc=1, Both=0, Dupe=1, Bkg=1, Miss=1, FalsePos=4, FalseNeg=3)
    cat, dog = 34 / 101, 25.5 / 101                  # recall 1/3 is reached at once; recall 1/2 after a false alarm, precision 1/2
    assert t.class_ap == pytest.approx([cat, dog])
    put_right = dict(Cls=((34 + 33 * 2 / 4) / 101, 51 / 101),    # the third cat comes fourth, and no dog is false any more
                     Loc=((34 + 33 * 2 / 3) / 101, dog),         # the second cat comes third
                     Both=(cat, dog), Dupe=(cat, dog), Bkg=(cat, dog),   # after the last hit: nothing to gain
                     Miss=(cat, .5),                             # one dog is asked for
                     FalsePos=(cat, 51 / 101), FalseNeg=(1, .5))
    for kind, ap in put_right.items(): assert t.costs[kind] == pytest.approx(np.mean(ap) - (cat + dog) / 2), kind


def test_only_the_best_of_several_is_put_right():
    "Two badly placed boxes of one cat, the worse with the better score; and one of a cat that was found"
    p = scene([(0, 0), (0, 50)], [(0, 56, .9), (0, 54, .8), (0, 0, .7), (0, 5, .6)], 1)
    t = tide(p, ('cat',))
    assert list(t.kind) == ['Loc', 'Loc', '', 'Loc'] and t.ap == pytest.approx(51 / 101 / 3)
    assert t.costs['Loc'] == pytest.approx(1 - 51 / 101 / 3)      # .9 hits, .8 and .6 are gone
    assert t.costs['Miss'] == 0 and t.costs['FalseNeg'] == pytest.approx((1 - 51 / 101) / 3)


@pytest.mark.parametrize('x, kind', [(0, ''), (3, ''), (3.4, 'Loc'), (8, 'Loc'), (8.5, 'Bkg'), (20, 'Bkg')])
def test_thresholds_of_a_kind(x, kind):
    "10 x 10 boxes moved by x overlap by (10 - x) / (10 + x): 0.54 at 3, 0.49 at 3.4, 0.11 at 8, 0.08 at 8.5"
    assert list(tide(scene([(0, 0)], [(0, x, .9)], 1), ('cat',)).kind) == [kind]


def test_a_crowd_forgives():
    "Inside a crowd of its class a detection is neither right nor wrong; a dog in a crowd of cats is wrong"
    ann = dict(bboxes=np.array([box(0)], float), labels=np.array([0]), bboxes_ignore=np.array([[50, 0, 100, 10.]]), labels_ignore=np.array([0]))
    found = [np.array([[*box(0), .9], [*box(60), .8]], float), np.array([[*box(70), .7]], float)]
    p = Pairs([found_in(found)], [there_in(ann, 2)], 2)
    m = Matched(p)
    assert m.forgiven.tolist() == [False, True, False] and m.wrong.tolist() == [False, False, True] and m.missed.sum() == 0
    t = tide(p, ('cat', 'dog'))
    assert t.ap == pytest.approx(1) and np.isnan(t.class_ap[1]) and t.costs['FalsePos'] == 0


# --- beside COCO's tables, and beside the package of TIDE's authors

@pytest.fixture(scope='module')
def oracle():
    root = data('coco_eval')
    return COCO(str(root/'instances_val2014_100.json')), {k: json.loads((root/f'instances_val2014_fake{k}100_results.json').read_text())
                                                          for k in ('bbox', 'segm')}


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_curves_are_cocos(oracle, kind):
    coco, records = oracle
    curves = precision_recall(*pairs_of(coco, records[kind], kind))
    theirs = evaluate_coco(coco, records[kind], kind)
    assert np.nan_to_num(curves.precision, nan=-1) == pytest.approx(theirs.precision[..., 0, -1], abs=1e-9)
    assert curves.mean().mean() == pytest.approx(theirs['mAP']) and curves.mean()[curves.at(.75)].mean() == pytest.approx(theirs['mAP_75'])


# tidecv 1.0.1 (pip install tidecv), 100 * dAP, TIDE.BOX and TIDE.MASK at 0.5, on the COCO API's example results. So that both mean the same, scores
# are made distinct (tied ones come in another order there), classes without a hit are left out (a class with nothing left to find leaves its mean),
# and AP is read at k / 100 (COCO reads it at k * 0.01, which differs in the last bit and then in where a recall of exactly that much counts).
TIDECV = dict(bbox=dict(AP=71.758517, Cls=15.651950, Loc=.257232, Both=0, Dupe=.021205, Bkg=0, Miss=10.037626, FalsePos=7.624127, FalseNeg=18.564336),
              segm=dict(AP=58.759151, Cls=12.277304, Loc=12.663958, Both=.366414, Dupe=0, Bkg=.309898, Miss=9.736779, FalsePos=9.823677, FalseNeg=25.817570))
COUNTS = dict(bbox=dict(Cls=70, Loc=1, Both=0, Dupe=1, Bkg=0, Miss=108), segm=dict(Cls=62, Loc=80, Both=5, Dupe=0, Bkg=3, Miss=120))


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_prices_are_those_of_the_authors(oracle, kind, monkeypatch):
    coco, records = oracle
    distinct = [dict(r, score=r['score'] - 1e-9 * k) for k, r in enumerate(records[kind])]
    p, _ = pairs_of(coco, distinct, kind)
    hit = {c for k, c in enumerate(sorted(coco.cats)) if Matched(p).right[p.label == k].any()}
    part = COCO(dict(coco.dataset, annotations=[a for a in coco.dataset['annotations'] if a['category_id'] in hit]))
    p, names = pairs_of(part, [r for r in distinct if r['category_id'] in hit], kind)
    t = tide(p, names)
    assert {k: int(t.counts()[k].sum()) for k in KINDS} == COUNTS[kind]
    assert {'AP': 100 * t.ap, **{k: 100 * v for k, v in t.costs.items()}} == pytest.approx(TIDECV[kind], abs=.02)
    monkeypatch.setattr(importlib.import_module('detnb.evaluation.precision_recall'), 'RECALLS', np.arange(101) / 100)
    t = tide(p, names)
    assert {'AP': 100 * t.ap, **{k: 100 * v for k, v in t.costs.items()}} == pytest.approx(TIDECV[kind], abs=2e-6)


def test_ap_is_cocos_on_everything(oracle):
    coco, records = oracle
    for kind in ('bbox', 'segm'):
        t = tide(*pairs_of(coco, records[kind], kind))
        assert t.ap == pytest.approx(evaluate_coco(coco, records[kind], kind)['mAP_50'])


# --- image by image

@pytest.fixture(scope='module')
def cells():
    "Blood cells found with known slips: every fifth box is left out, every seventh has another name, each image has one of nothing"
    root = data('bccd')
    ds = build_dataset(dict(type='XMLDataset', ann_file=f'{root}/ImageSets/Main/val.txt', img_prefix=str(root), pipeline=[],
                            classes=('RBC', 'WBC', 'Platelets')), dict(test_mode=True))
    results = []
    for i in range(len(ds)):
        a, rows = ds.get_ann_info(i), [[], [], []]
        for k, (b, label) in enumerate(zip(a['bboxes'], a['labels'])):
            if k % 5 != 4: rows[(label + (k % 7 == 6)) % 3].append([*b, .5 + .4 * (k % 3) / 3])
        rows[1].append([0, 0, 9, 9, .35])
        results.append([np.array(r, np.float32).reshape(-1, 5) for r in rows])
    return Predictions(ds, results)


def test_misses_and_false_alarms_of_blood_cells(cells):
    "Against VOC's counting image by image and class by class, which differs a little where cells overlap: there the second choice does not count"
    for thr in (.3, .6):
        misses, alarms = np.zeros(len(cells.dataset), int), np.zeros(len(cells.dataset), int)
        for i, (ann, result) in enumerate(zip(cells.truth, cells.boxes)):
            for c, dets in enumerate(result):
                dets, gts = dets[dets[:, 4] >= thr], ann['bboxes'][ann['labels'] == c]
                tp, fp = tpfp_default(dets, gts)
                misses[i] += len(gts) - int(tp.sum())
                alarms[i] += int(fp.sum())
        assert cells.misses(thr).sum() > 100 and cells.false_alarms(.3).sum() > 100
        assert (np.abs(cells.misses(thr) - misses) <= 1).all() and (cells.misses(thr) == misses).mean() > .95
        assert (np.abs(cells.false_alarms(thr) - alarms) <= 1).all() and (cells.false_alarms(thr) == alarms).mean() > .95


def test_mistakes_without_a_coco_file(cells):
    curves, picture = cells.curves()
    assert curves.names == ['RBC', 'WBC', 'Platelets'] and len(picture.axes) == 2
    t, picture = cells.tide()
    assert t.counts()['Cls'].sum() > 50 and t.counts()['Miss'].sum() > 100 and t.counts()['Bkg'][1] > 60
    assert len(cells.examples('Cls', k=3).axes) == 3 and len(cells.worst(2).axes) == 2
    with pytest.raises(TypeError, match='have no masks|no COCO file'): cells.tide('segm')


# --- losses image by image, the page, the commands

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Six pictures, the demo's detector with random weights, and results in which every ball is called a box"
    root = tmp_path_factory.mktemp('mistakes')
    make_shapes(root, 6, (96, 64), seed=4, name='val', empty=0)
    cfg = Config.fromfile('demo/retinanet_r18_shapes.py')
    for part in ('train', 'test'): cfg.data[part].update(ann_file=str(root/'val.json'), img_prefix=str(root/'val'))
    cfg.device = 'cpu'
    cfg.dump(str(root/'cfg.py'))
    torch.manual_seed(0)
    torch.save(dict(state_dict=build_detector(cfg.model).state_dict(), meta=dict(CLASSES=CLASSES)), root/'random.pth')
    ds, results = dataset_of(cfg), []
    for i in range(len(ds)):
        a = ds.get_ann_info(i)
        said, rows = np.where(a['labels'] == 0, 1, a['labels']), np.hstack([a['bboxes'], np.full((len(a['labels']), 1), .9)])
        results.append([rows[said == c].astype(np.float32) for c in range(len(CLASSES))])
    dump(results, str(root/'results.pkl'))
    return root


def run(*argv): return main([str(a) for a in argv])


def test_loss_is_that_of_a_batch_of_one(place):
    "The same as the training path gives for this image alone, from the same pixels, in evaluation mode"
    model = init_detector(str(place/'cfg.py'), str(place/'random.pth'), 'cpu')
    ds = dataset_of(model.cfg)
    losses = image_losses(model, ds)
    i = 3
    a, info = ds.get_ann_info(i), ds.data_infos[i]
    batch = prepare_batch(model, [f'{ds.img_prefix}/{info["filename"]}'])
    with torch.no_grad():
        terms = model.forward_train(model.ready(batch['img'][0], batch['img_metas'][0]), batch['img_metas'][0],
                                    [torch.tensor(a['bboxes'] * np.tile(batch['img_metas'][0][0]['scale_factor'][:2], 2))], [torch.tensor(a['labels'])])
    assert losses['loss'][i] == pytest.approx(sum(float(v) for vs in terms.values() for v in vs), rel=1e-4)
    assert set(losses) == {'loss', 'loss_cls', 'loss_bbox'} and len(losses['loss']) == 6


def test_training_counts_of_yolox_are_put_back(place):
    "YOLOX changes its size every tenth batch: the losses do not depend on how many came before, and training goes on where it was"
    cfg = Config.fromfile('yolox/yolox_tiny_8x8_300e_coco.py')
    cfg.model.update(input_size=(64, 64))
    cfg.model.backbone.update(widen_factor=.125)
    cfg.model.neck.update(in_channels=[32, 64, 128], out_channels=32)
    cfg.model.bbox_head.update(in_channels=32, feat_channels=32, num_classes=5)
    torch.manual_seed(0)
    model = build_detector(cfg.model)
    model.cfg, model._progress_in_iter = cfg, 7
    ds = dataset_of(place/'cfg.py')
    one, two = image_losses(model, ds), image_losses(model, ds)
    assert model.run_state() == dict(input_size=[64, 64], progress_in_iter=7) and model.training
    assert all((one[k] == two[k]).all() for k in one)


def test_page_and_commands(place, tmp_path, capsys):
    assert run('analyze', 'tide', place/'cfg.py', place/'results.pkl', '--out', tmp_path/'prices.png') == 0
    out = capsys.readouterr().out
    truth = json.loads((place/'val.json').read_text())
    balls = sum(a['category_id'] == 1 for a in truth['annotations'])
    assert any(line.split()[0] == 'Cls' and int(line.split()[-1]) == balls for line in out.splitlines() if line.startswith('Cls'))
    assert (tmp_path/'prices.png').stat().st_size > 1000
    assert run('analyze', 'report', place/'cfg.py', place/'results.pkl', tmp_path/'page.html', '--topk', 2) == 0
    page = (tmp_path/'page.html').read_text()
    assert page.count('<img') == 5 and 'wrong class' in page
    assert run('analyze', 'top-losses', place/'cfg.py', place/'random.pth', '--topk', 2, '--out', tmp_path/'losses.jpg') == 0
    assert 'the 2 greatest losses of 6' in capsys.readouterr().out and (tmp_path/'losses.jpg').stat().st_size > 1000
    assert run('analyze', 'tide', place/'cfg.py', place/'results.pkl', '--iou-thr', .05) == 1
    assert '0 < bg_thr < iou_thr' in capsys.readouterr().err
