"Datasets by format and their metrics: figures of lvis-api, cityscapesScripts and MMDetection, real samples, every shipped config"
import importlib.util, json, shutil, sys, types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from detnb import Config
from detnb.datasets import DATASETS, Compose, build_dataset
from detnb.datasets.cityscapes import CLASS_IDS
from detnb.datasets.converters import cityscapes_to_coco, make_streets
from detnb.evaluation.cityscapes import evaluate_instances, mask_overlaps
from detnb.evaluation.class_names import get_classes
from detnb.evaluation.lvis import evaluate_lvis
from detnb.evaluation.mean_ap import eval_map
from detnb.foundation.config_roots import update_data_root
from detnb.foundation.environment import data_root
from detnb.structures.results import encode_mask

pytestmark = pytest.mark.filterwarnings('ignore:.*have no box in', 'ignore:.*stand in another order')
root = Path(__file__).resolve().parent.parent
configs = root/'detnb'/'configs'
figures = json.loads((Path(__file__).parent/'figures'/'federated.json').read_text())


def sample(*parts):
    if data_root() is None or not data_root().joinpath(*parts).exists(): pytest.skip(f'needs data/{"/".join(parts)} (DETNB_DATA)')
    return data_root().joinpath(*parts)


def federated(seed=0, num_images=40, num_classes=24):
    "Pictures with classes found, denied and not exhaustive; detections near things, doubles and strays -> the content of an LVIS JSON, records"
    rng, images, anns, records = np.random.RandomState(seed), [], [], []
    cats = [dict(id=3 * k + 2, name=f'c{k}', frequency='rcf'[k % 3]) for k in range(num_classes)]
    for i in range(num_images):
        order = rng.permutation(num_classes)
        ids = [3 * int(k) + 2 for k in order]
        images.append(dict(id=100 - i, width=200, height=160, neg_category_ids=ids[4:8], not_exhaustive_category_ids=ids[:1]))
        for cat in ids[:4]:
            for _ in range(rng.randint(1, 4)):
                x, y = (int(v) for v in rng.randint(0, 100, 2)); s = rng.choice([12, 40, 100]); w, h = [int(s * v) for v in rng.uniform(.5, 1, 2)]
                w, h = min(w, 200 - x), min(h, 160 - y)
                anns.append(dict(id=len(anns) + 1, image_id=100 - i, category_id=cat, bbox=[x, y, w, h], area=w * h * .9, segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]]))
        for cat in ids[:12]:
            mine = [a for a in anns if a['image_id'] == 100 - i and a['category_id'] == cat]
            for a in mine + mine[:1] + [None] * 2:
                base = np.array(a['bbox'] if a else [*rng.randint(0, 120, 2), *rng.randint(8, 40, 2)], float)
                box = np.round(base + rng.normal(0, .07, 4) * np.tile(base[2:], 2), 1); box[:2] = box[:2].clip(0, 150); box[2:] = box[2:].clip(2, 100)
                records.append(dict(image_id=100 - i, category_id=cat, bbox=box.tolist(), score=round(float(rng.rand()), 2)))
    return dict(images=images, annotations=anns, categories=cats), records


def as_masks(truth, records):
    "The same detections with the masks of their boxes"
    sizes, out = {i['id']: (i['height'], i['width']) for i in truth['images']}, []
    for r in records:
        x, y, w, h = (int(round(v)) for v in r['bbox'])
        mask = np.zeros(sizes[r['image_id']], np.uint8); mask[y:y + h, x:x + w] = 1
        out.append({**{k: r[k] for k in ('image_id', 'category_id', 'score')}, 'segmentation': encode_mask(mask)})
    return out


@pytest.mark.parametrize('kind', ['bbox_300', 'bbox_10', 'segm_300', 'segm_10'])
def test_lvis_equals_lvis_api(kind):
    "Figures that lvis 0.5.3 printed"
    truth, records = federated()
    iou_type, max_dets = kind.split('_')
    found = evaluate_lvis(truth, records if iou_type == 'bbox' else as_masks(truth, records), iou_type, max_dets=int(max_dets))
    assert {k: found[k] for k in found.items()} == pytest.approx(figures['lvis'][kind], abs=1e-9)


def test_lvis_package_agrees(tmp_path, monkeypatch):
    if importlib.util.find_spec('cv2') is None: monkeypatch.setitem(sys.modules, 'cv2', types.ModuleType('cv2'))     # lvis draws with it
    pytest.importorskip('lvis', reason='pip install lvis')
    from lvis import LVIS, LVISEval, LVISResults
    monkeypatch.setattr(np, 'float', float, raising=False)
    truth, records = federated(seed=5, num_images=12)
    (tmp_path/'lvis.json').write_text(json.dumps(truth))
    gt = LVIS(str(tmp_path/'lvis.json'))
    run = LVISEval(gt, LVISResults(gt, json.loads(json.dumps(records))), 'bbox'); run.run()
    found = evaluate_lvis(truth, records)
    assert {k: found[k] for k in found.items()} == pytest.approx(dict(run.get_results()), abs=1e-9)


def test_lvis_sample():
    "LVIS's own pictures: 2014's names shortened, a class spelt otherwise, perfect answers give AP 1"
    folder = sample('lvis_sample')
    data = build_dataset(dict(type='LVISV05Dataset', ann_file=str(folder/'lvis_v0.5_val_3images.json'), img_prefix=str(folder/'val2017'),
                              pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]))
    assert len(data.CLASSES) == len(data.cat_ids) == 1230 and data.cat_ids == sorted(data.cat_ids)
    assert 'speaker_(stereo_equipment)' in data.CLASSES and 'speaker_(stero_equipment)' in {c['name'] for c in data.coco.dataset['categories']}
    results, n = [], 0
    for i in range(len(data)):
        got = data[i]
        assert got['img'].shape[:2] == (data.data_infos[i]['height'], data.data_infos[i]['width']) and len(got['gt_masks']) == len(got['gt_labels'])
        boxes, masks = [np.zeros((0, 5), np.float32)] * 1230, [[] for _ in range(1230)]
        for label in set(got['gt_labels'].tolist()):
            mine = got['gt_labels'] == label
            boxes[label] = np.hstack([got['gt_bboxes'][mine], np.full((mine.sum(), 1), .9)]).astype(np.float32)
            masks[label] = [encode_mask(m) for m in got['gt_masks'].masks[mine]]
            n += mine.sum()
        results.append((boxes, masks))
    assert n > 0
    out = data.evaluate(results, ['bbox', 'segm'], 'silent')
    assert out['bbox_AP'] == 1 and out['segm_AP'] > .99 and out['bbox_mAP_copypaste'].startswith('AP:1.000 AP50:1.000')


def crowded(seed, num_images=40):
    "Boxes, some around groups, and detections near them"
    rng = np.random.default_rng(seed)
    def boxes(n, size): p = rng.uniform(0, 40, (n, 2)); return np.hstack([p, p + rng.uniform(.5, 1, (n, 2)) * size]).astype(np.float32)
    none = np.zeros((0, 4), np.float32)
    anns = [dict(bboxes=np.vstack([boxes(4, 15), boxes(2, 40)]), labels=rng.integers(0, 3, 6), bboxes_ignore=none, labels_ignore=np.zeros(0, int),
                 gt_is_group_ofs=rng.random(6) < .3) for _ in range(num_images)]
    near = lambda b: np.hstack([b + rng.normal(size=b.shape), rng.random((len(b), 1))]).astype(np.float32)
    return [[np.vstack([near(a['bboxes'][a['labels'] == c]), near(boxes(5, 12))]) for c in range(3)] for a in anns], anns


@pytest.mark.parametrize('seed,thr,mean', [(0, .3, .378139466047287), (0, .5, .3577980101108551), (0, .75, .22613877058029175), (1, .5, .3432142436504364), (4, .75, .19054190814495087)])
def test_groups_equal_mmdetection(seed, thr, mean):
    "Means that MMDetection 2.28.2's eval_map(use_group_of=True) gave"
    assert eval_map(*crowded(seed), iou_thr=thr, ioa_thr=thr, use_group_of=True, logger='silent')[0] == pytest.approx(mean, abs=1e-7)


def streets(seed, num_images=4):
    "Label pictures with things, groups, small ones and unjudged ground; masks near them, doubles and strays"
    rng, pictures = np.random.RandomState(seed), []
    for _ in range(num_images):
        ids = np.full((128, 256), 7); ids[:20] = rng.choice([0, 3, 23], p=[.4, .3, .3]); ids[100:, :60] = 4
        count, boxes, masks, labels, scores = {}, [], [], [], []
        for _ in range(9):
            c = int(rng.choice([24, 25, 26, 26, 33])); h, w = rng.randint(8, 40, 2); y, x = rng.randint(5, 128 - h), rng.randint(0, 256 - w)
            k = count.get(c, 0); count[c] = k + 1
            ids[y:y + h, x:x + w] = c if rng.rand() < .2 else c * 1000 + k
            boxes.append((c, y, x, h, w))
        for c, y, x, h, w in boxes + boxes[:4]:
            dy, dx = rng.randint(-3, 4, 2); m = np.zeros(ids.shape, bool); m[max(y + dy, 0):y + dy + h, max(x + dx, 0):x + dx + w] = True
            masks.append(m); labels.append(c); scores.append(round(float(rng.rand()), 2))
        for _ in range(4):
            h, w = rng.randint(8, 40, 2); y, x = rng.randint(0, 128 - h), rng.randint(0, 256 - w); m = np.zeros(ids.shape, bool); m[y:y + h, x:x + w] = True
            masks.append(m); labels.append(int(rng.choice([24, 26, 28]))); scores.append(round(float(rng.rand()), 2))
        pictures.append((ids, masks, labels, scores))
    return pictures


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_cityscapes_equals_the_official_scripts(seed):
    "Figures that cityscapesScripts 2.3.0 gave"
    found, want = evaluate_instances([mask_overlaps(*p) for p in streets(seed)], CLASS_IDS), figures['cityscapes'][str(seed)]
    assert (found.ap, found.ap50) == pytest.approx((want['mAP'], want['AP50']), abs=1e-12)
    classes = {name: None if np.isnan(ap) else ap for name, ap in zip(found.classes, found.per_class())}
    assert classes == {name: None if ap is None else pytest.approx(ap, abs=1e-12) for name, ap in want['classes'].items()}


def test_cityscapes_from_label_pictures_to_figures(tmp_path):
    "Streets in the official layout, converted; perfect masks give 1, on a config's dataset, and the server's files are there"
    make_streets(tmp_path/'cityscapes', train=2, val=2)
    cityscapes_to_coco(tmp_path/'cityscapes', out_dir=tmp_path/'cityscapes'/'annotations')
    cfg = Config.fromfile(configs/'cityscapes'/'mask_rcnn_r50_fpn_1x_cityscapes.py')
    cfg._cfg_dict.data_root = 'data/cityscapes/'
    moved = json.loads(json.dumps(cfg.data.val).replace('data/cityscapes/', f'{tmp_path}/cityscapes/'))
    val = build_dataset(moved, dict(test_mode=True))
    results = []
    for i in range(len(val)):
        ann = val.get_ann_info(i)
        boxes = [np.hstack([ann['bboxes'][ann['labels'] == c], np.full(((ann['labels'] == c).sum(), 1), .9)]).astype(np.float32) for c in range(8)]
        info = val.data_infos[i]
        codes = [m if isinstance(m, dict) and not isinstance(m['counts'], list) else coco_mask.frPyObjects(m, info['height'], info['width']) for m in ann['masks']]
        results.append((boxes, [[encode_mask(m) for m, l in zip(codes, ann['labels']) if l == c] for c in range(8)]))
    out = val.evaluate(results, ['cityscapes', 'bbox', 'segm'], 'silent', outfile_prefix=str(tmp_path/'out'))
    assert out['mAP'] == out['AP@50'] == pytest.approx(1) and out['segm_mAP'] == out['bbox_mAP'] == 1
    assert len(list((tmp_path/'out').glob('*_pred.txt'))) == 2 and list((tmp_path/'out').glob('*.png')) and (tmp_path/'out.segm.json').is_file()
    empty = [([np.zeros((0, 5), np.float32)] * 8, [[]] * 8)] * 2
    assert val.evaluate(empty, 'cityscapes', 'silent') == {'mAP': 0, 'AP@50': 0}
    shutil.rmtree(tmp_path/'cityscapes'/'gtFine')
    with pytest.raises(FileNotFoundError, match='unpack gtFine beside leftImg8bit'): val.evaluate(empty, 'cityscapes', 'silent')


def test_objects365_sample():
    "Categories in another order than their numbers: the same labels by number, and the file object sorted"
    path = sample('formats', 'Objects365', 'unsorted_obj365_sample.json')
    content = json.loads(path.read_text())
    cats = sorted(content['categories'], key=lambda c: c['id'])
    assert cats != content['categories']
    data = build_dataset(dict(type='Objects365V1Dataset', ann_file=str(path), classes=[c['name'] for c in cats], pipeline=[]))
    assert data.cat_ids == [c['id'] for c in cats] and data.coco.dataset['categories'] == cats


def test_wider_face_sample():
    folder = sample('formats', 'WIDERFace')
    cfg = Config.fromfile(configs/'wider_face'/'ssd300_wider_face.py').data.train.dataset
    data = build_dataset({**cfg, 'ann_file': str(folder/'train.txt'), 'img_prefix': str(folder/'WIDER_train'), 'pipeline': []})
    info = data.data_infos[0]
    assert info['filename'] == '0--Parade/0_Parade_marchingband_1_5.jpg' and info['id'] == '0_Parade_marchingband_1_5'
    ann = data.get_ann_info(0)
    sizes = [min(b[2:] - b[:2]) for key in ('bboxes', 'bboxes_ignore') for b in ann[key]]
    assert len(ann['bboxes']) > 0 and min(sizes[:len(ann['bboxes'])]) >= 17 and all(s < 17 for s in sizes[len(ann['bboxes']):])


def test_open_images_sample(tmp_path):
    folder = sample('formats', 'OpenImages')
    old, new = folder/'annotations', folder/'challenge2019'
    Image.new('RGB', (200, 100)).save(tmp_path/'0001eeaf4aed83f9.jpg')
    (tmp_path/'validation').mkdir(); shutil.copy(tmp_path/'0001eeaf4aed83f9.jpg', tmp_path/'validation')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, denorm_bbox=True)]
    sets = [dict(type='OpenImagesDataset', ann_file=str(old/'oidv6-train-annotations-bbox.csv'), label_file=str(old/'class-descriptions-boxable.csv'),
                 image_level_ann_file=str(old/'annotations-human-imagelabels-boxable.csv'), hierarchy_file=str(old/'bbox_labels_600_hierarchy.json')),
            dict(type='OpenImagesChallengeDataset', ann_file=str(new/'challenge-2019-train-detection-bbox.txt'), label_file=str(new/'cls-label-description.csv'),
                 image_level_ann_file=str(new/'annotations-human-imagelabels-boxable.csv'), hierarchy_file=str(new/'class_label_tree.np'))]
    want = np.array([.022673031, .07103825, .9642005, .80054647]) * [200, 100, 200, 100]
    for cfg in sets:
        data = build_dataset(dict(cfg, img_prefix=str(tmp_path), pipeline=pipeline))
        assert data.CLASSES == ('Airplane',) and data.class_label_tree.shape == (1, 1)
        assert data[0]['gt_bboxes'][0] == pytest.approx(want, abs=1e-4)
        assert data.evaluate([[np.array([[*want, .9]])]], logger='silent') == {'AP50': 1, 'mAP': 1}
        assert data.evaluate([[np.zeros((0, 5))]], logger='silent') == {'AP50': 0, 'mAP': 0}


def test_voc_2007_takes_eleven_points(tmp_path):
    "07 and 12 in one ConcatDataset; 2007's figure has 11 points, the others the whole area"
    folder = sample('formats', 'voc_coco_custom', 'VOCdevkit')
    cfg = Config.fromfile(configs/'_base_'/'datasets'/'voc0712.py').data.train.dataset
    both = build_dataset({**cfg, 'ann_file': [str(folder/y/'ImageSets'/'Main'/'trainval.txt') for y in ('VOC2007', 'VOC2012')],
                          'img_prefix': [f'{folder}/{y}/' for y in ('VOC2007', 'VOC2012')], 'pipeline': []}, dict(test_mode=True))
    assert [d.year for d in both.datasets] == [2007, 2012] and len(both) == 2
    anns = [dict(bboxes=np.array([[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9.]]), labels=np.zeros(3, int))]
    found = [[np.array([[0, 0, 9, 9, .9]])] + [np.zeros((0, 5))] * 19]             # one of three: recall 1/3, at precision 1
    for data, ap in zip(both.datasets, (4 / 11, 1 / 3)): assert data.evaluate_on(anns, found, logger='silent')['mAP'] == pytest.approx(ap, abs=1e-6)
    assert len(both.datasets[0].get_ann_info(0)['labels']) > 0


def test_all_twenty_datasets_are_registered():
    names = '''CocoDataset RepeatDataset CocoPanopticDataset LVISV1Dataset ClassBalancedDataset MultiImageMixDataset VOCDataset LVISV05Dataset Objects365V1Dataset
        OpenImagesDataset CityscapesDataset Objects365V2Dataset OpenImagesChallengeDataset DeepFashionDataset WIDERFaceDataset ConcatDataset CustomDataset LVISDataset
        OccludedSeparatedCocoDataset XMLDataset'''.split()
    assert len(names) == 20 and not [n for n in names if n not in DATASETS]


def data_parts(node):
    "Every dict of a config that describes a dataset"
    if isinstance(node, dict):
        if 'type' in node and ('ann_file' in node or 'dataset' in node or 'datasets' in node): yield node
        for v in node.values(): yield from data_parts(v)
    elif isinstance(node, (list, tuple)):
        for v in node: yield from data_parts(v)


def test_pipelines_and_datasets_of_all_configs():
    "Each dataset type of each shipped config is there, takes its arguments, and each pipeline builds"
    import inspect
    seen, bad = set(), []
    for path in sorted(p for p in configs.glob('*/*.py') if p.parent.name != '_base_'):
        cfg = Config.fromfile(path)
        for part in data_parts(cfg._cfg_dict.get('data', {})):
            name = path.relative_to(configs).as_posix()
            if part['type'] not in DATASETS: bad.append(f'{name}: {part["type"]}'); continue
            taken = {p for c in DATASETS.get(part['type']).__mro__ if '__init__' in vars(c) for p in inspect.signature(c.__init__).parameters}
            bad += [f'{name}: {part["type"]} takes no {k}' for k in part if k not in taken and k not in ('type', 'separate_eval', 'samples_per_gpu')]
            pipeline = part.get('pipeline')
            if not pipeline or str(pipeline) in seen: continue
            seen.add(str(pipeline))
            try: Compose(pipeline)
            except ImportError as e: assert 'pip install' in str(e)          # InstaBoost and Albu have packages of their own
            except Exception as e: bad.append(f'{name}: {e}')
    assert len(seen) > 80 and not bad, '\n'.join(bad)


@pytest.mark.parametrize('name', ['cityscapes/mask_rcnn_r50_fpn_1x_cityscapes', 'lvis/mask_rcnn_r50_fpn_sample1e-3_mstrain_1x_lvis_v1', 'wider_face/ssd300_wider_face',
    'lvis/mask_rcnn_r50_fpn_sample1e-3_mstrain_2x_lvis_v0.5', 'openimages/faster_rcnn_r50_fpn_32x2_1x_openimages', 'pascal_voc/ssd300_voc0712', 'htc/htc_r50_fpn_1x_coco',
    'openimages/faster_rcnn_r50_fpn_32x2_1x_openimages_challenge', 'deepfashion/mask_rcnn_r50_fpn_15e_deepfashion', 'panoptic_fpn/panoptic_fpn_r50_fpn_1x_coco'])
def test_B5_the_root_moves(name, monkeypatch):
    "MMDET_DATASETS takes the place of data_root in every path of the data part"
    monkeypatch.setenv('MMDET_DATASETS', '/elsewhere/set'); monkeypatch.delenv('DETNB_DATASETS', raising=False)
    cfg = Config.fromfile(configs/f'{name}.py')
    update_data_root(cfg, logger='silent')
    def strings(node):
        if isinstance(node, str): yield node
        elif isinstance(node, dict): yield from (s for v in node.values() for s in strings(v))
        elif isinstance(node, (list, tuple)): yield from (s for v in node for s in strings(v))
    paths = [s for part in data_parts(cfg.data) for k in ('ann_file', 'img_prefix', 'seg_prefix', 'label_file', 'hierarchy_file', 'meta_file', 'image_level_ann_file')
             for s in strings(part.get(k))]
    assert len(paths) >= 4 and all(p.startswith('/elsewhere/set/') for p in paths), paths


def test_stuff_maps_of_coco(tmp_path):
    "seg_prefix beside the images: the pixel map of the picture with the same stem arrives, and is scaled as HTC wants it"
    (tmp_path/'img').mkdir(); (tmp_path/'stuff').mkdir()
    Image.new('RGB', (64, 48)).save(tmp_path/'img'/'a.jpg')
    stuff = np.arange(64 * 48, dtype=np.uint8).reshape(48, 64) % 183; Image.fromarray(stuff).save(tmp_path/'stuff'/'a.png')
    ann = dict(id=1, image_id=1, category_id=1, bbox=[8, 8, 30, 30], area=900, iscrowd=0, segmentation=[[8, 8, 38, 8, 38, 38]])
    (tmp_path/'a.json').write_text(json.dumps(dict(images=[dict(id=1, file_name='a.jpg', width=64, height=48)], categories=[dict(id=1, name='cat')], annotations=[ann])))
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True), dict(type='SegRescale', scale_factor=1 / 8)]
    data = build_dataset(dict(type='CocoDataset', ann_file='a.json', img_prefix='img/', seg_prefix='stuff/', data_root=str(tmp_path), classes=['cat'], pipeline=pipeline))
    assert data[0]['gt_semantic_seg'].shape == (6, 8)
    data.pipeline.transforms.pop()
    assert (data[0]['gt_semantic_seg'] == stuff).all()


def test_class_lists():
    for name, n in dict(lvis_v1=1203, oid_v6=601, openimages_challenge=500, obj365v1=365, obj365v2=365, det=200, vid=30, deepfashion=15).items():
        assert len(get_classes(name)) == n
    assert get_classes('obj365v1')[:2] == ['person', 'sneakers'] and 'tissue ' in get_classes('obj365v1')


def test_open_images_figures_are_mmdetections():
    "Hierarchy, image-level labels, fractions and groups together: figures of MMDetection 2.28.2's OpenImagesDataset.evaluate"
    from detnb.datasets.open_images import OpenImagesDataset
    rng, C, N, size = np.random.default_rng(3), 6, 30, (64, 48)
    tree = np.eye(C); tree[0, 1] = tree[0, 2] = tree[1, 2] = tree[3, 2] = tree[4, 5] = 1
    def boxes(n, s): p = rng.uniform(0, .6, (n, 2)); return np.hstack([p, p + rng.uniform(.3, 1, (n, 2)) * s]).clip(0, 1).astype(np.float32)
    none = np.zeros((0, 4), np.float32)
    anns = [dict(bboxes=boxes(4, .3), labels=rng.integers(0, C, 4), bboxes_ignore=none, labels_ignore=np.zeros(0, int), gt_is_group_ofs=rng.random(4) < .3) for _ in range(N)]
    said, dets = [rng.integers(0, C, 1) for _ in range(N)], []
    for a in anns:
        result = []
        for c in range(C):
            b = np.vstack([a['bboxes'][a['labels'] == c], boxes(2, .3)]) * np.tile(size, 2); b = b + rng.normal(size=b.shape)
            result.append(np.hstack([b, rng.random((len(b), 1))]).astype(np.float32) if rng.random() < .8 else np.zeros((0, 5), np.float32))
        dets.append(result)
    class Given(OpenImagesDataset):
        def __init__(self): self.CLASSES, self.class_label_tree, self.get_supercategory, self.filter_labels, self.data_infos = tuple('abcdef'), tree, True, True, anns
        def get_ann_info(self, idx): return dict(anns[idx])
        def image_sizes(self): return [size] * N
        def image_level_labels(self): return said
    assert Given().evaluate(dets, logger='silent') == {'AP50': .311, 'mAP': pytest.approx(.31143924593925476, abs=1e-7)}
    assert Given().evaluate(dets, logger='silent', iou_thr=[.5, .75], ioa_thr=[.5, .75]) == {'AP50': .311, 'AP75': .132, 'mAP': pytest.approx(.22188182920217514, abs=1e-7)}


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(path)


def coco_file(path, classes, names, **more):
    "Two pictures with a box of the first class each, in COCO's format"
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [dict(id=i + 1, width=80, height=60, **{k: v.format(name=n) for k, v in more.items()}, neg_category_ids=[], not_exhaustive_category_ids=[]) for i, n in enumerate(names)]
    anns = [dict(id=i + 1, image_id=i + 1, category_id=1, bbox=[10, 10, 40, 30], area=1200, iscrowd=0, segmentation=[[10, 10, 50, 10, 50, 40, 10, 40]]) for i in range(len(names))]
    path.write_text(json.dumps(dict(images=images, annotations=anns, categories=[dict(id=i + 1, name=n, frequency='f') for i, n in enumerate(classes)])))


def lay_out(name, root, cfg):
    "The files that the train and val parts of a config name, with two pictures each"
    names = ['a', 'b']
    if name.startswith('cityscapes'):
        make_streets(root, train=3, val=2)
        return cityscapes_to_coco(root, out_dir=root/'annotations')
    for split in ('train', 'val'):
        part = cfg.data[split]
        while 'dataset' in part: part = part['dataset']
        for ann, prefix in zip(*([part[k]] if isinstance(part[k], str) else part[k] for k in ('ann_file', 'img_prefix'))):
            ann, prefix = Path(ann), Path(prefix)
            if part.type.startswith('LVIS'):
                coco_file(ann, DATASETS.get(part.type).CLASSES, names, file_name='{name}.jpg', coco_url='http://images.cocodataset.org/' + split + '2017/{name}.jpg')
                for n in names: picture(prefix/f'{n}.jpg'); picture(prefix/f'{split}2017'/f'{n}.jpg')
            elif part.type == 'DeepFashionDataset':
                coco_file(ann, DATASETS.get(part.type).CLASSES, names, file_name='{name}.jpg')
                for n in names: picture(prefix/f'{n}.jpg')
            elif part.type in ('VOCDataset', 'WIDERFaceDataset'):
                ann.parent.mkdir(parents=True, exist_ok=True); ann.write_text('\n'.join(names)); (prefix/'Annotations').mkdir(parents=True, exist_ok=True)
                for n in names:
                    cls, where = ('face', '0--Parade') if part.type == 'WIDERFaceDataset' else ('cat', 'JPEGImages')
                    picture(prefix/where/f'{n}.jpg')
                    box = '<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>50</xmax><ymax>40</ymax></bndbox>'
                    (prefix/'Annotations'/f'{n}.xml').write_text(f'<annotation><folder>{where}</folder><size><width>80</width><height>60</height></size><object><name>{cls}</name>{box}</object></annotation>')
            else: open_images_files(part, ann, prefix, names)


def open_images_files(part, ann, prefix, names):
    code, challenge = '/m/0cmf2', part.type == 'OpenImagesChallengeDataset'
    for p in (ann, Path(part.label_file), Path(part.hierarchy_file)): p.parent.mkdir(parents=True, exist_ok=True)
    if challenge:
        ann.write_text(''.join(f'{n}.jpg\n-1\n1\n1 0.1 0.1 0.6 0.7 0\n' for n in names)); Path(part.label_file).write_text(f'{code},Airplane,1\n')
        with open(part.hierarchy_file, 'wb') as f: np.save(f, np.eye(2))
    else:
        head = 'ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n'
        ann.write_text(head + ''.join(f'{n},x,{code},1,0.1,0.6,0.1,0.7,0,0,0,0,0\n' for n in names)); Path(part.label_file).write_text(f'{code},Airplane\n')
        Path(part.hierarchy_file).write_text(json.dumps(dict(LabelName='/m/0bl9f', Subcategory=[dict(LabelName=code)])))
    for n in names: picture(prefix/f'{n}.jpg')
    if part.get('image_level_ann_file'): Path(part.image_level_ann_file).write_text(f'ImageID,LabelName,Confidence\na,{code},1\n')


@pytest.mark.parametrize('name', ['cityscapes/mask_rcnn_r50_fpn_1x_cityscapes', 'lvis/mask_rcnn_r50_fpn_sample1e-3_mstrain_1x_lvis_v1', 'wider_face/ssd300_wider_face',
    'lvis/mask_rcnn_r50_fpn_sample1e-3_mstrain_2x_lvis_v0.5', 'openimages/faster_rcnn_r50_fpn_32x2_cas_1x_openimages', 'openimages/ssd300_32x8_36e_openimages',
    'pascal_voc/ssd300_voc0712', 'openimages/faster_rcnn_r50_fpn_32x2_1x_openimages_challenge', 'deepfashion/mask_rcnn_r50_fpn_15e_deepfashion'])
def test_a_config_from_files_to_batches_and_figures(name, tmp_path, monkeypatch):
    "The config as shipped, its root moved: a batch to train on, a sample to test, and the metric of its `evaluation`"
    from detnb.datasets import build_dataloader
    monkeypatch.setenv('MMDET_DATASETS', str(tmp_path)); monkeypatch.delenv('DETNB_DATASETS', raising=False)
    cfg = Config.fromfile(configs/f'{name}.py')
    update_data_root(cfg, logger='silent')
    lay_out(name, tmp_path, cfg)
    train, val = build_dataset(cfg.data.train), build_dataset(cfg.data.val, dict(test_mode=True))
    sampler = cfg.data.get('train_dataloader', {}).get('class_aware_sampler')
    np.random.seed(0)
    loader = build_dataloader(train, samples_per_gpu=2, workers_per_gpu=0, dist=False, seed=0, class_aware_sampler=sampler)
    batch = next(iter(loader))
    assert len(batch['gt_bboxes']) == 2 and all(len(b) and b.shape[1] == 4 for b in batch['gt_bboxes']) and batch['img'].shape[0] == 2
    w, h = batch['img_metas'][0]['img_shape'][1::-1]
    assert float(batch['gt_bboxes'][0].max()) > 2 and float(batch['gt_bboxes'][0].max()) <= max(w, h)      # pixels, no fractions
    assert val[0]['img'][0].ndim == 3
    settings = {k: v for k, v in cfg.get('evaluation', {}).items() if k in ('metric', 'iou_thr', 'classwise')}
    metric = settings.pop('metric', 'mAP')
    metric = [m for m in ([metric] if isinstance(metric, str) else metric) if m != 'segm']
    empty = [[np.zeros((0, 5), np.float32)] * len(val.CLASSES)] * len(val)
    out = val.evaluate(empty, metric, 'silent', **settings)
    assert out and all(v in (0, -1) for v in out.values() if not isinstance(v, str)), out


def test_custom_xml_sample():
    "Pictures and XML files in one folder, classes by name; boxes of others are left out"
    folder = sample('formats', 'voc_coco_custom', 'custom_dataset')
    cfg = dict(type='XMLDataset', ann_file='trainval.txt', data_root=str(folder), img_prefix='', img_subdir='images', ann_subdir='images',
               pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)])
    data = build_dataset(dict(cfg, classes=('person', 'dog')))
    got = data[0]
    assert got['gt_labels'].tolist() and set(got['gt_labels'].tolist()) <= {0, 1} and got['img'].ndim == 3
    assert 'boxes of other classes left out: 1 dog' in str(build_dataset(dict(cfg, classes=('person',))))
    perfect = [[np.hstack([got['gt_bboxes'][got['gt_labels'] == c], np.ones(((got['gt_labels'] == c).sum(), 1))]) for c in range(2)]]
    assert data.evaluate(perfect, logger='silent')['mAP'] == 1


def test_C3_cityscapes_from_the_command_line(tmp_path, capsys):
    "detnb test with --eval cityscapes and --out results.json; the saved results give the same figures"
    import torch
    from detnb.cli.main import main
    from detnb.evaluation.saved_results import load_results
    from detnb.models import build_detector
    from test_guides_train import MASKED
    make_streets(tmp_path/'cityscapes', val=2)
    cityscapes_to_coco(tmp_path/'cityscapes', out_dir=tmp_path/'cityscapes'/'annotations')
    (tmp_path/'masked.py').write_text(MASKED.format(root=str(tmp_path)))
    ann_file = next((tmp_path/'cityscapes'/'annotations').glob('*val*.json'))
    (tmp_path/'streets.py').write_text(f"""_base_ = './masked.py'
data = dict(test=dict(type='CityscapesDataset', ann_file={str(ann_file)!r}, img_prefix={str(tmp_path/'cityscapes'/'leftImg8bit'/'val')!r},
                      classes=('person', 'car', 'truck', 'bus', 'bicycle')))
model = dict(test_cfg=dict(rcnn=dict(score_thr=0.)))
""")
    torch.manual_seed(0)
    torch.save(dict(state_dict=build_detector(Config.fromfile(tmp_path/'streets.py').model).state_dict(), meta={}), tmp_path/'a.pth')
    code = main(['test', str(tmp_path/'streets.py'), str(tmp_path/'a.pth'), '--eval', 'cityscapes', 'segm', '--out', str(tmp_path/'r.json'), '--eval-options', f'outfile_prefix={tmp_path}/out'])
    said = capsys.readouterr().out
    assert code == 0 and 'AP@50' in said and 'segm_mAP' in said
    results = load_results(tmp_path/'r.json')
    assert len(results) == 2 and sum(len(b) for b in results[0][0]) > 0 and list((tmp_path/'out').glob('*_pred.txt'))
    data = build_dataset(Config.fromfile(tmp_path/'streets.py').data.test, dict(test_mode=True))
    out = data.evaluate(results, 'cityscapes', 'silent')
    assert set(out) == {'mAP', 'AP@50'} and 0 <= out['mAP'] < .5
