"Analyses beside what their notebooks tell: COCO's own oracle, blood cells, counts by hand, the commands from a shell's side, their option names"
import contextlib, gzip, io, json, pickle, re, sys
from pathlib import Path

import numpy as np
import pytest
import torch

from detnb import Config
from detnb.apis.anchors import optimize_anchors
from detnb.apis.error_files import analyze_errors
from detnb.apis.predictions import Predictions, test_dataset as dataset_of
from detnb.apis.robustness import numbers
from detnb.cli.main import main
from detnb.datasets import build_dataloader, build_dataset
from detnb.datasets.shapes import CLASSES, make_shapes
from detnb.datasets.transforms import Corrupt
from detnb.datasets.transforms.corruptions import GROUPS, OWN, corrupt
from detnb.evaluation.coco import COCO, evaluate_coco
from detnb.evaluation.class_sizes import class_sizes
from detnb.evaluation.confusion import confusion_matrix
from detnb.evaluation.error_analysis import error_analysis
from detnb.evaluation.image_scores import image_scores
from detnb.evaluation.mean_ap import eval_map
from detnb.foundation.environment import data_root
from detnb.foundation.files import dump, load
from detnb.foundation.images import imread

pytestmark = pytest.mark.filterwarnings('ignore:.*have no box in')


def data(*parts):
    root = data_root()
    if root is None or not root.joinpath(*parts).exists(): pytest.skip(f'needs {"/".join(parts)} (DETNB_DATA)')
    return root.joinpath(*parts)


# --- COCO's own oracle

@pytest.fixture(scope='module')
def oracle():
    root = data('coco_eval')
    return COCO(str(root/'instances_val2014_100.json')), {k: load(root/f'instances_val2014_fake{k}100_results.json') for k in ('bbox', 'segm')}


@pytest.mark.parametrize('kind, ap', [('bbox', (.573, .697)), ('segm', (.299, .562))])
def test_first_curves_are_cocos(oracle, kind, ap):
    "C75 and C50 are COCO's AP at these overlaps, and no curve lies below the one before"
    truth, records = oracle
    figures = error_analysis(truth, records[kind], kind)
    areas = list(figures.areas().values())
    assert areas[:2] == pytest.approx(ap, abs=5e-4) and areas == sorted(areas) and areas[6] == 1
    theirs = evaluate_coco(truth, records[kind], kind, proposal_nums=(1, 10, 100))
    for size, key in zip(('small', 'medium', 'large'), ('mAP_s', 'mAP_m', 'mAP_l')):
        curves = figures.curves(size=size)
        assert (np.diff(curves, axis=0) >= -1e-9).all()
        p = theirs.precision[5, ..., ('mAP_s', 'mAP_m', 'mAP_l').index(key) + 1, 2]
        assert figures.areas(size=size)['C75'] == pytest.approx(p[p > -1].mean())


@pytest.mark.parametrize('name', ['person', 'car', 'dog', 'bottle'])
def test_forgiven_classes_equal_crowds(oracle, name):
    "Sim and Oth: the same as a copy of the annotations in which the other classes are crowds"
    from pycocotools.cocoeval import COCOeval
    truth, records = oracle
    figures, cats = error_analysis(truth, records['bbox']), truth.dataset['categories']
    own = next(c for c in cats if c['name'] == name)
    for kind, similar in ((3, True), (4, False)):
        others = {c['id'] for c in cats if c['id'] != own['id'] and (not similar or c['supercategory'] == own['supercategory'])}
        turned = [dict(a, iscrowd=1, ignore=1, category_id=own['id']) if a['category_id'] in others else dict(a) for a in truth.dataset['annotations']]
        with contextlib.redirect_stdout(io.StringIO()):
            gt = COCO(dict(truth.dataset, annotations=turned))
            mine = [dict(r) for r in records['bbox'] if r['category_id'] == own['id']]
            if not mine: pytest.skip(f'no {name} was found')
            run = COCOeval(gt, gt.loadRes(mine), 'bbox')
            run.params.iouThrs, run.params.maxDets, run.params.catIds = np.array([.1]), [100], [own['id']]
            run.evaluate(); run.accumulate()
        got = figures.precision[kind, :, figures.names.index(name), 0]
        assert got == pytest.approx(run.eval['precision'][0, :, 0, 0, 0])


def test_class_sizes_add_up(oracle):
    truth, records = oracle
    figures = evaluate_coco(truth, records['bbox'])
    table = class_sizes(figures, [truth.cats[c]['name'] for c in figures.cat_ids], truth.dataset['annotations'])
    assert np.nanmean(table.ap, 0) == pytest.approx([figures[k] for k in ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')])
    assert figures['mAP'] == pytest.approx(.505, abs=5e-4)
    some = [a for a in truth.dataset['annotations'] if not a['iscrowd']]
    assert table.counts[:, 0].sum() == len(some) and (table.counts[:, 1:].sum(1) == table.counts[:, 0]).all()


def test_twelve_figures_are_cocos(oracle):
    "`numbers` of a robustness test: all twelve, as COCO prints them"
    truth, records = oracle

    class Stand:                      # as much of a dataset as is asked for
        coco, cat_ids, CLASSES = truth, sorted(truth.cats), ()
        data_infos = [dict(id=i) for i in truth.imgs]
    place = {c: k for k, c in enumerate(Stand.cat_ids)}
    results = {i: [np.zeros((0, 5))] * len(place) for i in truth.imgs}
    for r in records['bbox']:
        x, y, w, h = r['bbox']
        per_class = results[r['image_id']] = list(results[r['image_id']])
        per_class[place[r['category_id']]] = np.vstack([per_class[place[r['category_id']]], [x, y, x + w, y + h, r['score']]])
    text = (data('coco_eval')/'val2014_fake_eval_res.txt').read_text()
    wanted = [float(v) for v in re.findall(r'= ([\d.]+)$', text.split('type=bbox')[1].split('type=')[0], re.M)]
    assert list(numbers(Stand, list(results.values()))['bbox'].values()) == pytest.approx(wanted[:12], abs=6e-4)


# --- blood cells

@pytest.fixture(scope='module')
def cells():
    d = json.load(gzip.open(Path(__file__).parent/'figures/eval_voc.json.gz'))
    rows, gts = np.array(d['dets']), d['gts']
    results = [[rows[(rows[:, 0] == i) & (rows[:, 1] == c), 2:].astype(np.float32) for c in range(3)] for i in range(len(gts))]
    root = data('bccd')
    ds = build_dataset(dict(type='XMLDataset', ann_file=f'{root}/ImageSets/Main/val.txt', img_prefix=str(root), pipeline=[],
                            classes=tuple(d['classes'])), dict(test_mode=True))
    return Predictions(ds, results)


def test_confusion_of_blood_cells(cells):
    "Against counting one by one; and a perfect detector confuses nothing"
    from detnb.evaluation.overlaps import bbox_overlaps
    counts, picture = cells.confusion(score_thr=.3)
    wanted = np.zeros((4, 4), int)
    for ann, result in zip(cells.truth, cells.boxes):
        right = set()
        for c, dets in enumerate(result):
            for det in dets[dets[:, 4] >= .3]:
                at = np.flatnonzero(bbox_overlaps(det[None], ann['bboxes'])[0] >= .5)
                wanted[3, c] += not len(at)
                for g in at:
                    wanted[ann['labels'][g], c] += 1
                    if ann['labels'][g] == c: right.add(g)
        for g, label in enumerate(ann['labels']): wanted[label, 3] += g not in right
    assert (counts == wanted).all() and counts[:3, :3].trace() > 500
    assert 'WBC' in [t.get_text() for t in picture.axes[0].get_xticklabels()]
    exact = [[np.hstack([a['bboxes'][a['labels'] == c], np.ones(((a['labels'] == c).sum(), 1))]) for c in range(3)] for a in cells.truth]
    perfect = confusion_matrix(cells.truth, exact, 3, tp_iou_thr=.999)
    assert perfect[:3, 3].sum() == perfect[3].sum() == 1             # a box without area overlaps nothing, not even itself
    assert (perfect[:3, :3] == np.diag(perfect.diagonal()[:3])).all()


def test_scores_of_single_images_are_eval_maps(cells):
    got = cells.scores()
    for i in (0, 20, 60):
        aps = [eval_map(cells.boxes[i:i + 1], cells.truth[i:i + 1], iou_thr=t, logger='silent')[0] for t in np.linspace(.5, .95, 10)]
        assert got[i] == pytest.approx(np.mean(aps), abs=1e-6)


def test_extremes_of_blood_cells(cells, tmp_path):
    found = cells.extremes(str(tmp_path), topk=2, show_score_thr=.3, overlay_gt_pred=True)
    scores = cells.scores()
    assert [s for _, _, s in found['good']] == pytest.approx(sorted(scores)[::-1][:2], abs=6e-4)
    for kind in ('good', 'bad'):
        files = {p.name for p in (tmp_path/kind).iterdir()}
        assert files == {f'{Path(name).stem}_{score}{Path(name).suffix}' for _, name, score in found[kind]}
        assert imread(next((tmp_path/kind).iterdir())).shape == (480, 640, 3)


def test_saved_with_other_data(cells):
    with pytest.raises(ValueError, match='results of 3 images, the test set has 87'): Predictions(cells.dataset, cells.results[:3])
    with pytest.raises(TypeError, match='has no COCO file'): cells.errors()
    with pytest.raises(FileNotFoundError, match='detnb test'): Predictions(cells.dataset, 'no_such.pkl')


def test_three_classes_by_hand():
    "A cat found, a dog taken for a cat, a bird overlooked, a bird out of the blue; the difficult cat is nobody's"
    box = lambda x: [x, 0, x + 10, 10]
    truth = [dict(bboxes=np.float32([box(0), box(20)]), labels=np.array([0, 1]), bboxes_ignore=np.float32([box(60)]), labels_ignore=np.array([0])),
             dict(bboxes=np.float32([box(40)]), labels=np.array([2]))]
    det = lambda x, s: np.float32([[*box(x), s]])
    none = np.zeros((0, 5), np.float32)
    found = [[np.vstack([det(0, .9), det(20, .8), det(60, .7)]), none, none], [none, none, det(80, .6)]]
    assert confusion_matrix(truth, found, 3).tolist() == [[1, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1], [1, 0, 1, 0]]
    assert confusion_matrix(truth, found, 3, score_thr=.85).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert image_scores(found, truth, 3).tolist() == [.5, 0]


# --- masks and panoptic maps

def test_masks_are_drawn_with_truth(tmp_path):
    root = data('coco_mini')
    ann = next((root/'annotations').glob('*.json'))
    names = tuple(c['name'] for c in load(ann)['categories'])
    ds = dataset_of(Config(dict(data=dict(test=dict(type='CocoDataset', ann_file=str(ann), img_prefix=str(root/'train2017'), classes=names, pipeline=[])))))
    results = []
    for i in range(len(ds)):
        a, info = ds.get_ann_info(i), ds.data_infos[i]
        rles = [ds.coco.annToRLE(dict(segmentation=m, image_id=info['id'])) for m in a['masks']]
        of = lambda c: np.flatnonzero(a['labels'] == c)
        boxes = [np.hstack([a['bboxes'][of(c)], np.full((len(of(c)), 1), .9)]).astype(np.float32) for c in range(len(names))]
        results.append((boxes, [[rles[k] for k in of(c)] for c in range(len(names))]))
    predictions = Predictions(ds, results)
    assert np.nanmin(predictions.scores()) > .99
    figures, drawn = predictions.errors('segm', extraplots=True)
    assert figures.areas()['C75'] > .99
    assert drawn['segm-allclass-gt-areas']().axes[0].containers and drawn['segm-allclass-ap-bar-plot']().axes[0].containers
    assert np.nanmean(predictions.sizes('segm').ap[:, 0]) > .99
    found = predictions.extremes(str(tmp_path), topk=1)
    h, w = imread(Path(ds.img_prefix)/found['good'][0][1]).shape[:2]
    assert imread(next((tmp_path/'good').iterdir())).shape == (2 * h, w, 3)


def test_panoptic_quality_of_single_images(tmp_path):
    root = data('panoptic_sample')
    known = load(root/'panoptic_coco_categories.json')
    ann = root/'annotations'/'panoptic_val2017.json'
    ds = build_dataset(dict(type='CocoPanopticDataset', ann_file=str(ann), img_prefix=str(root/'val2017'), seg_prefix=str(ann.with_suffix('')), pipeline=[]),
                       dict(test_mode=True))
    assert len(known) == len(ds.CLASSES)
    true = [dict(ds.truth(i)) for i in range(len(ds))]
    blank = dict(pan_results=np.full_like(true[1]['pan_results'], len(ds.CLASSES)))
    predictions = Predictions(ds, [true[0], blank])
    assert predictions.scores().tolist() == [1, 0]
    found = predictions.extremes(str(tmp_path), topk=5)
    assert [r[0] for r in found['good']] == [0] and [r[0] for r in found['bad']] == [1] and len(list(tmp_path.rglob('*.*'))) == 2


# --- corruptions

def test_corrupted_images_do_not_depend_on_the_order(tmp_path):
    "Each image's corruption is drawn from its own seed: batches and workers change nothing"
    make_shapes(tmp_path, 4, (64, 48), seed=0, name='val')
    steps = [dict(type='LoadImageFromFile'), dict(type='Corrupt', corruption='gaussian_noise', severity=3),
             dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img'], meta_keys=('filename', 'ori_shape'))]
    ds = build_dataset(dict(type='CocoDataset', ann_file=str(tmp_path/'val.json'), img_prefix=str(tmp_path/'val'), classes=CLASSES, pipeline=steps), dict(test_mode=True))
    all_of = lambda n, workers: torch.cat([b['img'] for b in build_dataloader(ds, n, workers, dist=False, shuffle=False, seed=3)])
    first = all_of(1, 0)
    assert torch.equal(first, all_of(2, 0)) and torch.equal(first, all_of(3, 1))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize('name', sorted(OWN))
@pytest.mark.parametrize('shape', [(1, 1, 3), (5, 200, 3), (33, 20, 3)])
def test_own_corruptions_take_any_size(name, shape):
    img = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for severity in (1, 5):
        before = img.copy()
        out = corrupt(img, name, severity, own=True)
        assert out.shape == shape and out.dtype == np.uint8 and (img == before).all()


FOUR = ['snow', 'frost', 'elastic_transform', 'spatter']


def test_four_corruptions_need_a_package(monkeypatch):
    "And a test under all of them says so before it begins, not after the hours that the others take"
    from detnb.apis.robustness import test_robustness as run
    monkeypatch.setitem(sys.modules, 'imagecorruptions', None)
    assert set(GROUPS['all']) - set(OWN) == set(FOUR) and len(GROUPS['benchmark']) == 15
    with pytest.raises(ImportError, match=r'snow needs imagecorruptions.*pip install "detnb\[corruptions\]"'): Corrupt('snow')(dict(img=np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(ImportError, match='snow, frost, elastic_transform needs imagecorruptions'): run(None, None)


@pytest.mark.parametrize('name', FOUR)
def test_the_four_of_the_package(name):
    pytest.importorskip('imagecorruptions', exc_type=ImportError)
    img = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    mild, strong = (corrupt(img, name, severity) for severity in (1, 5))
    assert mild.shape == strong.shape == img.shape and mild.dtype == np.uint8 and 0 < np.abs(mild - 1. * img).mean() < np.abs(strong - 1. * img).mean()


# --- anchors

def test_anchors_of_blood_cells():
    "Red cells are round and of one size: anchors that fit overlap more than COCO's"
    from detnb.evaluation.anchor_fit import mean_best
    root = data('bccd')
    cfg = Config.fromfile('yolo/yolov3_d53_mstrain-608_273e_coco.py')
    ds = build_dataset(dict(type='VOCDataset', ann_file=f'{root}/ImageSets/Main/val.txt', img_prefix=str(root), pipeline=[], classes=('RBC', 'WBC', 'Platelets')))
    fit = optimize_anchors(cfg, 'k-means', (416, 416), dataset=ds)
    theirs = np.array(sum(cfg.model.bbox_head.anchor_generator.base_sizes, []), float) * 416 / 608
    assert len(fit.anchors) == 9 and [len(level) for level in fit.base_sizes()] == [3, 3, 3]
    assert fit.overlap.mean() > .8 > mean_best(fit.whs, theirs)
    assert optimize_anchors(cfg, 'v5-k-means', (416, 416), iters=50, dataset=ds).overlap.mean() > .75


# --- commands

CONFIG = '''
_base_ = ['demo/retinanet_r18_shapes.py']
test = dict(type='CocoDataset', ann_file={root!r} + '/val.json', img_prefix={root!r} + '/val', classes={classes!r})
data = dict(test=test, workers_per_gpu=0, train=dict(_delete_=True, pipeline=[], **test))
device = 'cpu'
'''


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Six pictures, a config, random weights and results with known mistakes: a ball is always taken for a box"
    from detnb.models.builder import build_detector
    root = tmp_path_factory.mktemp('analysis')
    make_shapes(root, 6, (96, 64), seed=4, name='val')
    (root/'cfg.py').write_text(CONFIG.format(root=str(root), classes=tuple(CLASSES)))
    cfg = Config.fromfile(root/'cfg.py')
    torch.manual_seed(0)
    torch.save(dict(state_dict=build_detector(cfg.model).state_dict(), meta=dict(CLASSES=tuple(CLASSES))), root/'random.pth')
    ds, results = dataset_of(cfg), []
    for i in range(len(ds)):
        a = ds.get_ann_info(i)
        said = np.where(a['labels'] == 0, 1, a['labels'])
        score = np.where(a['labels'] == 0, .95, .9)[:, None]
        results.append([np.hstack([a['bboxes'], score])[said == c].astype(np.float32) for c in range(len(CLASSES))])
    dump(results, str(root/'results.pkl'))
    ds.format_results(results, jsonfile_prefix=str(root/'sent'))
    return root


def run(*argv): return main([str(a) for a in argv])


def test_confusion_matrix_command(place, tmp_path, capsys):
    assert run('confusion-matrix', place/'cfg.py', place/'results.pkl', tmp_path, '--score-thr', .5) == 0
    found = load(tmp_path/'confusion_matrix.json')
    counts, truth = np.array(found['counts']), load(place/'val.json')
    name = {c['id']: c['name'] for c in truth['categories']}
    there = [sum(name[a['category_id']] == c for a in truth['annotations']) for c in CLASSES]
    assert found['classes'] == [*CLASSES, 'background'] and (tmp_path/'confusion_matrix.png').stat().st_size > 1000
    assert counts[0, 1] >= there[0] > 0 and counts[0, 0] == 0        # every ball was called a box (and overlapping things may add to it)
    assert counts[0, -1] >= there[0] - counts[0, 0] and counts[-1].sum() == 0
    assert run('confusion-matrix', place/'cfg.py', place/'nothing.pkl', tmp_path) == 1
    assert 'detnb test' in capsys.readouterr().err


def test_eval_and_sizes_commands(place, capsys):
    assert run('analyze', 'eval', place/'cfg.py', place/'results.pkl', '--eval', 'bbox', '--eval-options', 'classwise=True') == 0
    out = capsys.readouterr().out
    ds = dataset_of(place/'cfg.py')
    assert f"'bbox_mAP': {ds.evaluate(load(place/'results.pkl'), logger='silent')['bbox_mAP']}" in out and 'triangle' in out
    assert run('analyze', 'sizes', place/'cfg.py', place/'results.pkl') == 0
    out = capsys.readouterr().out
    assert re.search(r'ball +0\.000', out) and re.search(r'star +1\.000', out)
    assert run('analyze', 'eval', place/'cfg.py', place/'results.pkl') == 2
    assert run('analyze', 'eval', place/'cfg.py', place/'results.pkl', '--eval', 'nonsense') == 1
    assert 'nonsense' in capsys.readouterr().err


def test_results_command(place, tmp_path, capsys):
    assert run('analyze', 'results', place/'cfg.py', place/'results.pkl', tmp_path, '--topk', 2, '--overlay-gt-pred') == 0
    assert len(list((tmp_path/'good').iterdir())) == len(list((tmp_path/'bad').iterdir())) == 2
    assert 'bad:' in capsys.readouterr().out


def test_coco_errors_command(place, tmp_path, capsys):
    args = ['analyze', 'coco-errors', place/'sent.bbox.json', tmp_path, '--ann', place/'val.json']
    assert run(*args) == 0
    assert len(list((tmp_path/'bbox').glob('*.png'))) == (len(CLASSES) + 1) * 4
    figures = analyze_errors(str(place/'sent.bbox.json'), None, str(place/'val.json'))['bbox']
    assert figures.areas('star')['C75'] == pytest.approx(1) and figures.areas('ball')['Oth'] == 0
    assert figures.areas('box')['Oth'] == pytest.approx(1) and figures.areas('box')['Loc'] < .9
    assert run('analyze', 'coco-errors', place/'sent.bbox.json', tmp_path, '--ann', place/'none.json') == 1
    assert run(*args, '--types', 'segm') == 1
    assert 'segmentation' in capsys.readouterr().err


def log_file(path, rate):
    records = [dict(env_info='', seed=0)]
    for e in range(1, 4):
        records += [dict(mode='train', epoch=e, iter=i, lr=.1, loss=1 / (e * rate), time=.1 * e + (9 if i == 10 else 0)) for i in (10, 20, 30)]
        records.append(dict(mode='val', epoch=e, iter=5, lr=.1, bbox_mAP=.1 * e * rate))
    path.write_text('\n'.join(map(json.dumps, records)))
    return path


def test_logs_commands(tmp_path, capsys):
    a, b = log_file(tmp_path/'a.log.json', 1), log_file(tmp_path/'b.log.json', 2)
    out = tmp_path/'curves.png'
    assert run('analyze', 'logs', 'plot_curve', a, b, '--keys', 'loss', 'bbox_mAP', '--legend', *'wxyz', '--out', out, '--eval-interval', 2, '--title', 'two') == 0
    assert out.stat().st_size > 1000
    assert run('analyze', 'logs', 'cal_train_time', a) == 0
    said = capsys.readouterr().out
    assert 'slowest epoch 3, average time is 0.3000' in said and 'average iter time: 0.2000 s/iter' in said
    assert run('analyze', 'logs', 'cal_train_time', a, '--include-outliers') == 0
    assert 'slowest epoch 3, average time is 3.3000' in capsys.readouterr().out
    assert run('analyze', 'logs', 'plot_curve', a, '--keys', 'segm_mAP', '--out', out) == 1
    assert 'a has no segm_mAP; it has bbox_mAP, loss, lr, time' in capsys.readouterr().err


def test_robustness_commands(place, tmp_path, capsys):
    args = ['analyze', 'robustness', place/'cfg.py', place/'random.pth', '--out', tmp_path/'r.pkl', '--corruptions', 'contrast', 'saturate', '--severities', 0, 4,
            '--summaries', '--final-prints', 'P', 'mPC', 'rPC', '--show-dir', tmp_path/'shown', '--show-score-thr', .9]
    assert run(*args) == 0
    found = load(tmp_path/'r_results.pkl')
    assert {c: sorted(s) for c, s in found.items()} == dict(contrast=[0, 4], saturate=[0, 4]) and found['contrast'][0] == found['saturate'][0]
    assert (tmp_path/'r_results.png').exists() and len(list((tmp_path/'shown'/'contrast'/'4').iterdir())) == 6
    capsys.readouterr()
    found['contrast'][0]['bbox'].update(AP=.5); found['contrast'][4]['bbox'].update(AP=.1)
    dump(found, str(tmp_path/'r_results.pkl'))
    assert run('analyze', 'robustness-eval', tmp_path/'r_results.pkl', '--prints', 'P', 'mPC', 'rPC', '--metric', 'AP', '--out', tmp_path/'sums.png') == 0
    assert re.search(r'AP +50.0 % +10.0 % +20.0 %', capsys.readouterr().out)
    assert run(*args[:4], '--corruptions', 'rain') == 1


def test_anchors_command(place, tmp_path, capsys):
    text = (place/'cfg.py').read_text() + "model = dict(bbox_head=dict(anchor_generator=dict(type='YOLOAnchorGenerator', base_sizes=[[(9, 9)] * 2, [(5, 5)]])))\n"
    (tmp_path/'yolo.py').write_text(text)
    args = ['analyze', 'anchors', '--algorithm', 'k-means', '--input-shape', 96, '--output-dir', tmp_path]
    assert run(*args[:2], tmp_path/'yolo.py', *args[2:]) == 0
    assert len(load(tmp_path/'anchor_optimize_result.json')) == 3 and (tmp_path/'anchors.png').exists()
    assert run(*args[:2], place/'cfg.py', *args[2:]) == 1
    assert 'base_sizes' in capsys.readouterr().err


def test_flops_and_benchmark_commands(place, capsys):
    assert run('flops', place/'cfg.py', '--shape', 60, 90) == 0
    out = capsys.readouterr().out
    assert '64 x 96' in out and 'GFLOPs, Params' in out
    assert run('flops', place/'cfg.py', '--shape', 1, 2, 3) == 2
    assert run('benchmark', place/'cfg.py', place/'random.pth', '--max-iter', 2, '--log-interval', 1, '--repeat-num', 2, '--fuse-conv-bn') == 0
    out = capsys.readouterr().out
    assert out.count('Done image') == 4 and 'Overall fps' in out
    assert run('benchmark', place/'cfg.py', place/'random.pth', '--launcher', 'slurm') == 2
