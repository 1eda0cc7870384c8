"Looking at data: batches and pipelines as pictures, the report on what is wrong, its page, command and browser, and what errors say"
import json, shutil, time
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image
from detnb.apis import anchor_sizes, check_data
from detnb.cli.main import main
from detnb.datasets import (BoxTable, box_tables, boxes_per_image, build_dataloader, build_dataset, class_histogram, make_shapes, show_batch, show_pipeline,
                            size_histogram)
from detnb.datasets.batches import unbatched
from detnb.datasets.data_report import DataReport
from detnb.datasets.faults import ious, twins
from detnb.datasets.loader import collate
from detnb.datasets.findings import KINDS, all_findings
from detnb.datasets.picture_files import difference_hash, look_at, near_pairs
from detnb.datasets.shapes import CLASSES
from detnb.datasets.steps import sample_steps
from detnb.datasets.transforms.compose import seeded
from detnb.foundation.config import Config
from detnb.foundation.environment import data_root
from detnb.foundation.images import ImageError, imread
from detnb.widgets.data_browser import VIEWS, DataBrowser
from detnb.widgets.events import click

LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
NORM = dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
END = [NORM, dict(type='Pad', size_divisor=32), dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks'])]
RESIZE = dict(type='Resize', img_scale=(160, 120), keep_ratio=True)


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    for i, name in enumerate(('train', 'val')): make_shapes(root, 24 - 12 * i, (160, 120), seed=i, name=name)
    return root


@pytest.fixture
def copy(shapes, tmp_path): return Path(shutil.copytree(shapes, tmp_path/'s'))


def part(root, name='train', pipeline=(*LOAD, RESIZE, *END), **kw):
    base = dict(type='CocoDataset', ann_file=str(root/f'{name}.json'), img_prefix=str(root/name), classes=CLASSES, pipeline=list(pipeline))
    return {**base, **kw}


def spoil(root, name='train', **change):
    "Change the annotation file by functions of its lists"
    data = json.loads((root/f'{name}.json').read_text())
    for key, how in change.items(): data[key] = how(data[key])
    (root/f'{name}.json').write_text(json.dumps(data))


def first(**values): return lambda anns: [dict(anns[0], **values), *anns[1:]]
def kinds(report): return {f.kind for f in report.faults}


def test_a_batch_comes_back_as_the_files_pixels(shapes):
    dataset = build_dataset(part(shapes, pipeline=[*LOAD, *END]))
    for batch in (next(iter(build_dataloader(dataset, 4, 0, dist=False, shuffle=False, seed=0))), collate([dataset[i] for i in range(4)])):
        for s in unbatched(batch):                                                          # bytes, and normalised floats
            file = imread(shapes/'train'/s['filename'])
            assert np.abs(s['img'][:120, :160].astype(int) - file).max() <= 1 and s['img_shape'][:2] == (120, 160)


def test_padding_masks_and_seed_are_seen(shapes):
    dataset = build_dataset(part(shapes, pipeline=[*LOAD, dict(type='RandomFlip', flip_ratio=.5), *END]))
    picture = show_batch(dataset, [0, 1, 2], seed=1)
    hatched = [p for ax in picture.axes for p in ax.patches if p.get_hatch()]
    assert len(hatched) == 3 and hatched[0].get_bbox().bounds == (0, 120, 160, 8)           # 120 rows are padded to 128
    assert all(len(ax.images) == 2 for ax in picture.axes)                                  # the pixels, and a layer of masks
    shots = [show_batch(dataset, 6, seed=s).array() for s in (1, 1, 2)]
    assert (shots[0] == shots[1]).all() and (shots[0] != shots[2]).any()


def test_looking_at_a_loader_changes_nothing(shapes):
    dataset = build_dataset(part(shapes, pipeline=[*LOAD, dict(type='RandomFlip', flip_ratio=.5), *END]))
    def epoch(look):
        loader = build_dataloader(dataset, 4, 0, dist=False, seed=3)
        np.random.seed(5); torch.manual_seed(5)
        if look: show_batch(loader)
        return [(m['ori_filename'], m['flip']) for b in loader for m in b['img_metas']], np.random.random(), float(torch.rand(1))
    assert epoch(False) == epoch(True)


def test_steps_end_where_the_dataset_ends(shapes):
    policies = [[dict(type='Rotate', level=6, prob=1.)], [dict(type='Shear', level=8, prob=1.), dict(type='ColorTransform', level=5, prob=.5)]]
    augmented = part(shapes, pipeline=[*LOAD, dict(type='RandomFlip', flip_ratio=.5), dict(type='AutoAugment', policies=policies), *END])
    boxes_only = part(shapes, pipeline=[LOAD[0], dict(type='LoadAnnotations', with_bbox=True)])
    mixed = dict(type='MultiImageMixDataset', dataset=boxes_only, pipeline=[dict(type='Mosaic', img_scale=(120, 160)),
                 dict(type='MixUp', img_scale=(120, 160)), *END[:-1], dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'])])
    for cfg in (augmented, mixed, dict(type='RepeatDataset', times=2, dataset=augmented), [augmented, augmented]):
        dataset = build_dataset(cfg)
        for seed in range(3):
            with seeded(seed): item = dataset[len(dataset) - 2]
            with seeded(seed): *_, (_, last) = sample_steps(dataset, len(dataset) - 2)
            assert (item['img'] == last['img']).all() and (item['gt_bboxes'] == last['gt_bboxes']).all()
    titles = [ax.get_title().split('\n')[0] for ax in show_pipeline(build_dataset(augmented), 3).axes if ax.get_title()]
    assert titles[0] == 'LoadAnnotations' and titles[-2:] == ['Normalize', 'Pad'] and any(t.startswith('AutoAugment: ') for t in titles)
    titles = [ax.get_title().split('\n')[0] for ax in show_pipeline(build_dataset(mixed), 3).axes if ax.get_title()]
    assert titles == ['LoadAnnotations', 'Mosaic', 'MixUp', 'Normalize', 'Pad']


def test_twins_are_those_of_all_pairs():
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 200, (160, 2)); boxes = np.hstack([low, low + rng.uniform(5, 80, (160, 2))])
    boxes[100:150] = boxes[:50] + rng.uniform(-1, 1, (50, 4))
    image = rng.integers(0, 3, 160); image[100:150] = image[:50]
    for thr in (.5, .8, .95):
        naive = [[i, j] for i in range(160) for j in range(i + 1, 160) if image[i] == image[j] and ious(boxes[[i]], boxes[[j]])[0] > thr]
        assert twins(image, boxes, thr).tolist() == naive and naive


@pytest.mark.parametrize('kind,change', [
    ('outside', dict(annotations=first(bbox=[170, 10, 20, 20]))), ('outside', dict(annotations=first(bbox=[-30, 10, 20, 20]))),
    ('over_edge', dict(annotations=first(bbox=[-9, 10, 40, 40]))), ('broken', dict(annotations=first(bbox=[50, 50, -20, 10]))),
    ('thin', dict(annotations=first(bbox=[50, 50, 0, 10]))), ('twice', dict(annotations=lambda a: [*a, dict(a[0], id=900)])),
    ('two_labels', dict(annotations=lambda a: [*a, dict(a[0], id=900, category_id=a[0]['category_id'] % 5 + 1)])),
    ('fractions', dict(annotations=lambda a: [dict(x, bbox=[v / 200 for v in x['bbox']]) for x in a])),
    ('size', dict(images=lambda i: [dict(i[0], width=320), *i[1:]])), ('missing', dict(images=lambda i: [dict(i[0], file_name='no.jpg'), *i[1:]]))])
def test_a_planted_fault_is_found_and_nothing_else(copy, kind, change):
    spoil(copy, **change)
    report = check_data(dict(train=part(copy)), progress=False)
    assert kinds(report) == {kind} and (kind == 'fractions' or report[kind][0].number == 1)
    assert check_data(part(copy, 'val'), progress=False).faults == []
    assert KINDS[kind][1] in report._repr_html_().replace('&#x27;', "'") and kind in str(report)
    assert len(report.picture().axes) and 'img src' in report._repr_html_()


def test_files_and_leaks(copy):
    train, val = copy/'train', copy/'val'
    (train/'000003.jpg').write_bytes((train/'000003.jpg').read_bytes()[:2500])
    (train/'000004.jpg').write_bytes(b'')
    shutil.copy(train/'000007.jpg', val/'000001.jpg')                                       # the same bytes
    Image.open(train/'000008.jpg').resize((140, 105)).resize((160, 120)).save(val/'000002.jpg', quality=70)  # the same shot
    shutil.copy(train/'000009.jpg', train/'000010.jpg')
    cfg = Config(dict(data=dict(train=part(copy), val=part(copy, 'val'), test=part(copy, 'val'))))
    report = check_data(cfg, progress=False)
    assert [t.part for t in report.tables] == ['train', 'val']                              # test is val once more
    assert report.names_of('unreadable') == [str(train/'000003.jpg'), str(train/'000004.jpg')]
    assert report.names_of('leak') == [str(train/'000007.jpg'), str(val/'000001.jpg')]
    assert report.names_of('near') == [str(train/'000008.jpg'), str(val/'000002.jpg')] and not report['near'][0].fault
    assert report.names_of('copies', 'train') == [str(train/'000009.jpg'), str(train/'000010.jpg')]
    quick = check_data(cfg, pixels=False)
    assert kinds(quick) == set() and quick['names'] and 'files were not read' in quick.headline
    shared = check_data(dict(train=part(copy), val=part(copy)), pixels=False)               # one file for both: taken once
    assert len(shared.tables) == 1
    assert kinds(check_data(dict(train=part(copy), val=part(copy, ann_file=str(shutil.copy(copy/'train.json', copy/'again.json')))), pixels=False)) == {'leak'}


def test_the_perceptual_hash_knows_the_same_shot_and_no_strangers(shapes):
    files = sorted((shapes/'train').iterdir())
    same = [int((difference_hash(Image.open(f)) != difference_hash(Image.open(f).resize((80, 60)).point(lambda v: v * .8))).sum()) for f in files]
    assert np.median(same) <= 2 and max(same) <= 4
    bits = np.stack([look_at(f)[3] for f in files])
    assert len(near_pairs(bits)[0]) == 0
    pairs, apart = near_pairs(bits, np.stack([bits[3], ~bits[3]]), 0)
    assert pairs.tolist() == [[3, 0]] and apart.tolist() == [0]


def test_classes_that_are_judged_and_not_taught(copy):
    spoil(copy, annotations=lambda anns: [a for a in anns if a['category_id'] != 4])
    report = check_data(dict(train=part(copy), val=part(copy, 'val')), pixels=False)
    assert kinds(report) == {'untaught'} and report['untaught'][0].offenders[0].text.startswith('star') and [f.part for f in report['unused']] == ['train']


def test_tables_of_every_format(copy):
    tables = box_tables(dict(train=part(copy)))
    data = json.loads((copy/'train.json').read_text())
    boxes = np.array([a['bbox'] for a in sorted(data['annotations'], key=lambda a: a['image_id'])], float)
    assert np.allclose(tables[0].boxes, np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]))
    for wrapped in (build_dataset(part(copy)), build_dataset(dict(type='RepeatDataset', times=2, dataset=part(copy))), [part(copy)], {'train': part(copy)}):
        assert np.array_equal(box_tables(wrapped)[0].boxes, tables[0].boxes)
    middle = [dict(filename=f'{i}.jpg', width=160, height=120, ann=dict(bboxes=[[150, 5, 300, 40]] * (i % 2), labels=[2] * (i % 2), bboxes_ignore=[[1, 1, 9, 9]]))
              for i in range(4)]
    (copy/'m.json').write_text(json.dumps(middle))
    table, = box_tables(dict(type='CustomDataset', ann_file=str(copy/'m.json'), classes=CLASSES, pipeline=[]))
    assert table.ignore.sum() == 4 and table.counts.tolist() == [0, 1, 0, 1] and {f.kind for f in all_findings([table])} >= {'over_edge', 'ignored'}
    two = dict(part(copy), ann_file=[str(copy/'train.json'), str(copy/'val.json')], img_prefix=[str(copy/'train'), str(copy/'val')])
    assert [t.part for t in box_tables(dict(train=two))] == ['train', 'train 2']


@pytest.mark.skipif(data_root() is None or not (data_root()/'bccd').is_dir(), reason='needs the blood cells')
def test_real_blood_cells():
    root = data_root()/'bccd'
    of = lambda name: dict(type='VOCDataset', ann_file=str(root/f'ImageSets/Main/{name}.txt'), img_prefix=str(root), classes=('RBC', 'WBC', 'Platelets'), pipeline=[])
    report = check_data({name: of(name) for name in ('train', 'val', 'test')}, progress=False)
    assert kinds(report) == {'thin'} and [f.number for f in report['thin']] == [1, 1] and [len(t) for t in report.tables] == [205, 87, 72]
    assert [Path(f).name for f in report.names_of('near')] == ['BloodImage_00038.jpg', 'BloodImage_00037.jpg']      # one field of view, twice


def test_ten_thousand_images_in_seconds(tmp_path):
    rng = np.random.default_rng(0)
    xy, wh = rng.uniform(0, 400, (80_000, 2)).round(1), rng.uniform(9, 200, (80_000, 2)).round(1)
    data = dict(images=[dict(id=i, file_name=f'{i}.jpg', width=640, height=640) for i in range(10_000)], categories=[dict(id=1, name='a')],
                annotations=[dict(id=i, image_id=i % 10_000, category_id=1, bbox=[*xy[i].tolist(), *wh[i].tolist()], area=1, iscrowd=0) for i in range(80_000)])
    (tmp_path/'a.json').write_text(json.dumps(data))
    begin = time.process_time()
    report = check_data(dict(type='CocoDataset', ann_file=str(tmp_path/'a.json'), img_prefix=str(tmp_path), classes=('a',), pipeline=[]), pixels=False)
    assert time.process_time() - begin < 20 and report['missing'][0].number == 10_000


def test_histograms(shapes):
    cfg = Config(dict(data=dict(train=part(shapes), val=part(shapes, 'val'))))
    text = [t.get_text() for t in class_histogram(cfg).axes[0].texts]
    assert sorted(map(int, text)) == sorted(n for t in box_tables(cfg) for n in t.of_classes()[0].tolist())
    assert 'small' in size_histogram(cfg, anchor_sizes('demo/retinanet_r18_shapes.py')).axes[0].get_title()
    assert len(boxes_per_image(cfg).axes) == 1
    half = box_tables(dict(part(shapes), pipeline=[*LOAD, dict(type='Resize', img_scale=(80, 80))]))[0]
    assert np.allclose(half.seen(), (half.boxes[:, 2:] - half.boxes[:, :2]) / 2)


def test_command(copy, tmp_path, capsys):
    config = tmp_path/'c.py'
    config.write_text(f'data = dict(train={part(copy)!r})')
    assert main(['check-data', str(config)]) == 0
    spoil(copy, annotations=first(bbox=[170, 10, 20, 20]))
    assert main(['check-data', str(config), '--no-pixels', '--out', str(tmp_path/'page.html')]) == 1
    assert 'FAULT outside' in capsys.readouterr().out and 'wholly beside' in (tmp_path/'page.html').read_text()
    assert main(['check-data', str(config), '--cfg-options', 'data.train.ann_file=nowhere.json']) == 1
    assert 'does not exist' in capsys.readouterr().err


def test_browser(copy):
    dataset = build_dataset(part(copy, pipeline=[*LOAD, RESIZE, dict(type='RandomFlip', flip_ratio=.5), dict(type='RandomCrop', crop_size=(90, 120)), *END]))
    spoil(copy, annotations=lambda a: [*a, dict(a[0], id=900)])
    report = check_data(part(copy), pixels=False)
    browser = DataBrowser(dataset, report, per_page=4)
    seen = {view: (setattr(browser.view, 'value', view), browser.image.value)[1] for view in VIEWS}
    assert len(set(seen.values())) == 3 and 'detnb-data-browser' in browser.box._dom_classes
    browser.view.value = 'augmented'
    assert browser.image.value == seen['augmented']                            # the same seed, the same crops
    click(browser.reroll)
    assert browser.seed.value == 1 and browser.image.value != seen['augmented']
    browser.page.value = browser.page.max
    star = CLASSES.index('star')
    browser.classes.value = star
    assert browser.page.value == 0 and all(star in dataset.get_cat_ids(i) for i in browser.entries())
    browser.finding.value = report['twice'][0]
    assert browser.entries() == report['twice'][0].offenders and 'offenders' in browser.count.value and len(browser.picture().axes) == 4
    assert {'application/vnd.jupyter.widget-view+json', 'text/plain'} < set(browser.forms())


def test_browser_errors(copy):
    browser = DataBrowser(build_dataset(part(copy)), per_page=1)
    (copy/'train'/browser.dataset.data_infos[1]['filename']).write_bytes(b'')
    with pytest.raises(ImageError, match='the file is empty'): browser.page.value = 1
    assert browser.errors.outputs[0]['ename'] == 'ImageError'
    with pytest.raises(ValueError, match='nothing to browse'): DataBrowser()
    with pytest.raises(ValueError, match='no picture to show'): DataBrowser(report=DataReport([BoxTable('a', 'b', ('c',), [], np.zeros((0, 2)), *np.zeros((1, 0), int),
                                                                            np.zeros((0, 4)), *np.zeros((2, 0), int))]))


@pytest.mark.parametrize('content,words', [
    ('', ['is empty (0 bytes)', 'copy, download or write it again']), ('<html>404</html>', ['not JSON', 'web page']),
    ('{"images": [{"id": 1}, {"id"', ['not JSON', 'ends in the middle']), ('{"annotations": [], "categories": []}', ['lacks the list images', 'it has annotations', '`detnb convert`'])])
def test_annotation_files_that_are_none(copy, content, words):
    (copy/'bad.json').write_text(content)
    for act in (build_dataset, check_data):
        with pytest.raises(ValueError) as e: act(part(copy, ann_file=str(copy/'bad.json')))
        assert all(w in str(e.value) for w in [*words, 'bad.json'])
    if content: return
    for name in ('bad.json', 'bad.pkl'):
        (copy/name).write_text('')
        with pytest.raises(ValueError, match=f'{name}.*is empty'): build_dataset(dict(type='CustomDataset', ann_file=str(copy/name), classes=CLASSES, pipeline=[]))


def test_slips_of_a_user(copy):
    with pytest.raises(ValueError, match=r"'triangel': did you mean 'triangle'\? It has 'ball'"): build_dataset(part(copy, classes=('triangel',)))
    with pytest.raises(FileNotFoundError, match=r"has no 'trian.json'; did you mean 'train.json'\?"): build_dataset(part(copy, ann_file=str(copy/'trian.json')))
    with pytest.raises(FileNotFoundError, match='is a folder; name a file in it: it has train, train.json'): build_dataset(part(copy, ann_file=str(copy)))
    spoil(copy, annotations=lambda a: [])
    with pytest.raises(ValueError, match='no image is left to train on .*filter_empty_gt=False keeps images without boxes'): build_dataset(part(copy))
    dataset = build_dataset(part(copy, filter_empty_gt=False))
    assert len(dataset) == 24 and dataset[0]['gt_bboxes'].shape == (0, 4)                  # images without boxes can be trained on, and shown
    assert len(show_batch(dataset, 2).axes) == 2 and len(show_pipeline(dataset, 1).axes)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_truncated_picture_in_training(copy, workers):
    dataset = build_dataset(part(copy))
    name = dataset.data_infos[2]['filename']
    (copy/'train'/name).write_bytes((copy/'train'/name).read_bytes()[:2500])
    with pytest.raises(ImageError, match=f'cannot decode .*{name}.*truncated') as e:
        for _ in build_dataloader(dataset, 4, workers, dist=False, seed=0): pass
    notes = ' '.join(getattr(e.value, '__notes__', [str(e.value)]))
    assert f'on image {name}' in notes and 'image 2 of CocoDataset' in notes and 'detnb check-data' in notes
