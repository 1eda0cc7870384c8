"Datasets: real files, wrong files, what is left out, wrappers, and the checks before training"
import gzip, json, pickle, warnings
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from detnb.datasets import (DATASETS, ClassBalancedDataset, CocoDataset, ConcatDataset, CustomDataset, RepeatDataset, VOCDataset, XMLDataset,
                            build_dataset, check_classes)
from detnb.foundation.environment import data_root
from detnb.foundation.files import dump

PETS = ('dog', 'cat')
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), dict(type='DefaultFormatBundle'),
        dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'], meta_keys=('filename', 'ori_shape'))]


def data(*parts):
    root = data_root()
    if root is None or not (root.joinpath(*parts)).exists(): pytest.skip(f'needs {"/".join(parts)} (DETNB_DATA)')
    return str(root.joinpath(*parts))


def coco_file(path, **changes):
    "A COCO JSON of two classes on three images, the last one empty"
    ann = lambda i, image, cat, *box: dict(id=i, image_id=image, category_id=cat, bbox=list(box), area=box[2] * box[3], iscrowd=0, segmentation=[])
    content = dict(images=[dict(id=i, file_name=f'{i}.jpg', width=100, height=80) for i in (11, 12, 13)],
                   categories=[dict(id=3, name='dog'), dict(id=5, name='cat')],
                   annotations=[ann(1, 11, 3, 10, 10, 30, 40), ann(2, 11, 5, 50, 5, 40, 50), ann(3, 12, 5, 5, 5, 25, 25)])
    content.update(changes)
    path.write_text(json.dumps(content))
    return str(path)


# --- files that are not right

@pytest.mark.parametrize('text, complaint', [
    ('{', 'is not JSON'), ('[1]', 'holds a list'), ('{"images": [], "annotations": []}', 'lacks the list categories'),
    ('{"images": [], "categories": []}', 'lacks the list annotations')])
def test_malformed_coco_file(tmp_path, text, complaint):
    (tmp_path / 'broken.json').write_text(text)
    with pytest.raises(ValueError, match=f'broken.json.*{complaint}'): CocoDataset(str(tmp_path / 'broken.json'), [], ())


@pytest.mark.parametrize('change, complaint', [
    (dict(bbox=[500, 10, 20, 20]), r'image 11 \(11.jpg\), annotation 1: .* lies outside the image of 100x80'),
    (dict(bbox=[10, 10, -5, 20]), 'annotation 1: .* right or lower edge before'),
    (dict(bbox=[10, float('nan'), 5, 20]), 'annotation 1: .* is not finite'),
    (dict(bbox=[10, 10, 5]), r'annotation 1 in .* has the bbox \[10, 10, 5\]'),
    (dict(bbox=['a', 1, 5, 5]), r"annotation 1 in .* has the bbox \['a', 1, 5, 5\]; four numbers"),
    (dict(segmentation=[1, 1, 5, 5, 9, 1]), 'annotation 1 in .* has the segmentation .*a list of polygons'),
    (dict(id=2), 'ids of annotations .* not unique: 2 is there 2 times')])
def test_annotations_beyond_repair(tmp_path, change, complaint):
    content = json.load(open(coco_file(tmp_path / 'a.json')))
    content['annotations'][0].update(change)
    with pytest.raises(ValueError, match=complaint): CocoDataset(coco_file(tmp_path / 'a.json', **content), [], PETS)


def test_fractions_instead_of_pixels(tmp_path):
    content = json.load(open(coco_file(tmp_path / 'a.json')))
    for a in content['annotations']: a['bbox'] = [v / 100 for v in a['bbox']]
    with pytest.raises(ValueError, match='fractions of the image'): CocoDataset(coco_file(tmp_path / 'a.json', **content), [], PETS)


def test_boxes_that_are_left_out_are_counted(tmp_path):
    content = json.load(open(coco_file(tmp_path / 'a.json')))
    content['annotations'][0]['bbox'] = [10, 10, .5, 40]
    content['annotations'][1]['bbox'] = [60, 60, 80, 80]                  # sticks out: stays as it is
    content['annotations'][2]['iscrowd'] = 1
    content['annotations'].append(dict(content['annotations'][2], id=4, image_id=99))
    with pytest.warns(UserWarning, match='1 of 2 classes have no box in .*: dog'):
        ds = CocoDataset(coco_file(tmp_path / 'a.json', **content), [], PETS)
    assert '1 boxes without area or thinner than a pixel left out' in str(ds) and '1 boxes of images it does not list (annotation 4: image_id 99) left out' in str(ds)
    assert ds.get_ann_info(0)['bboxes'].tolist() == [[60, 60, 140, 140]]
    assert len(ds) == 2 and len(ds.get_ann_info(1)['bboxes']) == 0 and ds.get_ann_info(1)['bboxes_ignore'].tolist() == [[5, 5, 30, 30]]


@pytest.mark.parametrize('categories, complaint', [
    ([dict(id=3, name='dog'), dict(id=3, name='cat')], 'ids of categories .* not unique: 3'), ([dict(name='dog')], "categories .* lacks 'id'"),
    ([dict(id=3, name='dog'), dict(id=5, name='cat'), dict(id=7, name='cat')], "2 categories called 'cat'"), (['dog'], "categories .* lacks 'id'")])
def test_categories_beyond_repair(tmp_path, categories, complaint):
    "Each would give boxes a wrong label, or none"
    with pytest.raises(ValueError, match=complaint): CocoDataset(coco_file(tmp_path / 'a.json', categories=categories), [], PETS)


def test_boxes_of_no_category_are_counted(tmp_path):
    content = json.load(open(coco_file(tmp_path / 'a.json')))
    for a in content['annotations']: a['category_id'] = 1
    with pytest.raises(ValueError, match=r'3 boxes of categories it does not list \(annotation 1: category_id 1\) left out'):
        CocoDataset(coco_file(tmp_path / 'a.json', **content), [], PETS)


@pytest.mark.parametrize('segmentation, complaint', [(None, 'segmentation None; masks need'), ([[1, 1, 5, 5]], 'three corners or more'),
                                                     (dict(counts='1'), 'size and counts')])
def test_masks_that_are_none(tmp_path, segmentation, complaint):
    Image.new('RGB', (100, 80)).save(tmp_path / '11.jpg')
    content = json.load(open(coco_file(tmp_path / 'a.json')))
    content['annotations'][0]['segmentation'] = segmentation
    ds = CocoDataset(coco_file(tmp_path / 'a.json', **content), [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_mask=True)],
                     PETS, img_prefix=str(tmp_path))
    with pytest.raises(ValueError, match=complaint) as e: ds[0]
    assert any('11.jpg' in note for note in e.value.__notes__)


@pytest.mark.parametrize('change, complaint', [
    (dict(ann=None), "1.jpg in .* has no annotations: its entry lacks 'ann'"), (dict(ann=[1]), 'ann of entry 0 .* must be a dict'),
    (dict(width=None), "lacks 'width' and 'height'.*None and 80"), (dict(ann=dict(bboxes=[['a', 1, 5, 5]], labels=[0])), r'bboxes of entry 0'),
    (dict(ann=dict(bboxes=[[1, 1, 5], [1, 1, 5, 5]], labels=[0, 1])), 'bboxes of entry 0'),
    (dict(ann=dict(bboxes=[[1, 1, 50, 50]], labels=[.7])), r'labels of entry 0 .* whole numbers')])
def test_entries_of_the_middle_format_that_are_wrong(tmp_path, change, complaint):
    dump([{**dict(filename='1.jpg', width=100, height=80, ann=dict(bboxes=[[1, 1, 50, 50]], labels=[0])), **change}], str(tmp_path / 'a.pkl'))
    with pytest.raises(ValueError, match=complaint): CustomDataset(str(tmp_path / 'a.pkl'), [], PETS)


def test_without_class_names_labels_are_counted(tmp_path):
    dump([dict(filename='1.jpg', width=100, height=80, ann=dict(bboxes=[[1, 1, 50, 50]], labels=[2]))], str(tmp_path / 'a.pkl'))
    assert CustomDataset(str(tmp_path / 'a.pkl'), []).summary().boxes.tolist() == [0, 0, 1]
    dump([dict(filename='1.jpg', width=100, height=80)], str(tmp_path / 'b.pkl'))
    assert CustomDataset(str(tmp_path / 'b.pkl'), [], PETS, test_mode=True).summary().boxes.tolist() == [0, 0]


def test_official_malformed_sample():
    with pytest.raises(ValueError, match='coco_wrong_format_sample.json are not unique: 1'):
        CocoDataset(data('formats', 'coco_wrong_format_sample.json'), [], ('car',))


def test_missing_files(tmp_path):
    for kind in (CocoDataset, CustomDataset, VOCDataset):
        with pytest.raises(FileNotFoundError, match='nowhere'): kind(ann_file=str(tmp_path / 'nowhere.json'), pipeline=[], classes=PETS)


# --- classes

def test_class_names(tmp_path):
    path = coco_file(tmp_path / 'a.json')
    with pytest.raises(ValueError, match="'Dog': did you mean 'dog'.*It has 'dog', 'cat'"): CocoDataset(path, [], ('Dog', 'cat'))
    with pytest.raises(ValueError, match=r'\(79 of 80\).*and 74 more') as e:
        CocoDataset(coco_file(tmp_path / 'b.json', categories=[dict(id=3, name='dog'), dict(id=5, name='kitten')]), [])
    with pytest.raises(ValueError, match='a comma'): CocoDataset(path, [], 'dog')
    with pytest.raises(ValueError, match="name 'cat' twice"): CocoDataset(path, [], ('cat', 'cat'))
    (tmp_path / 'names.txt').write_bytes('\ufeffcat\r\n\n'.encode())              # as Windows editors leave it
    assert CocoDataset(path, [], tmp_path / 'names.txt').CLASSES == ['cat']
    assert CocoDataset(path, [], str(tmp_path / 'names.txt')).CLASSES == ['cat']
    with pytest.raises(ValueError, match='not int'): CocoDataset(path, [], 80)


def test_labels_follow_classes_and_the_difference_is_told(tmp_path):
    path = coco_file(tmp_path / 'a.json')
    with pytest.warns(UserWarning, match="another order than classes: label 0 is 'cat' here, but would be 'dog'"):
        ds = CocoDataset(path, [], ('cat', 'dog'))
    assert ds.get_ann_info(0)['labels'].tolist() == [1, 0] and ds.cat_ids == [5, 3]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        CocoDataset(path, [], PETS)


class Head(nn.Module):
    def __init__(self, n): super().__init__(); self.num_classes = n


def test_num_classes_must_agree(tmp_path):
    ds = CocoDataset(coco_file(tmp_path / 'a.json'), [], PETS)
    model = nn.Module(); model.backbone, model.rpn_head, model.roi_head = Head(1000), Head(1), nn.Module()
    model.roi_head.bbox_head = nn.ModuleList([Head(2), Head(80)])

    class Where:
        def where(self, key): return f'faster.py:7 of {key}'
    with pytest.raises(ValueError, match=r'2 classes \(dog, cat\), but\n  model.roi_head.bbox_head.1.num_classes is 80 \(faster.py:7') as e:
        check_classes(model, RepeatDataset(ds, 2), Where())
    assert 'bbox_head.0' not in str(e.value) and 'rpn_head' not in str(e.value) and 'backbone' not in str(e.value)
    model.roi_head.bbox_head[1].num_classes = 2
    check_classes(model, ds)


# --- samples

def test_samples_proposals_and_workers(tmp_path):
    for i in (11, 12, 13): Image.new('RGB', (100, 80), (i, 0, 0)).save(tmp_path / f'{i}.jpg')
    dump([np.full((2, 5), i, np.float32) for i in range(3)], str(tmp_path / 'p.pkl'))
    cfg = dict(type='CocoDataset', ann_file=coco_file(tmp_path / 'a.json'), img_prefix=str(tmp_path), classes=PETS, pipeline=LOAD,
               proposal_file=str(tmp_path / 'p.pkl'))
    ds = build_dataset(cfg)
    assert len(ds.proposals) == 2 and ds.proposals[1][0, 0] == 1
    again = pickle.loads(pickle.dumps(ds))
    assert ds.coco.get_img_ids() and again._coco is None
    for one in (ds, again):
        sample = one[0]
        assert sample['gt_labels'].tolist() == [0, 1] and tuple(sample['img'].shape) == (3, 80, 100)
    loaded = list(torch.utils.data.DataLoader(again, batch_size=None, num_workers=2))
    assert [s['gt_labels'].tolist() for s in loaded] == [[0, 1], [1]]
    dump([np.zeros((2, 5), np.float32)], str(tmp_path / 'p.pkl'))
    with pytest.raises(ValueError, match='proposals of 1 images'): build_dataset(cfg)


def test_a_missing_image_is_named(tmp_path):
    ds = CocoDataset(coco_file(tmp_path / 'a.json'), LOAD, PETS, img_prefix=str(tmp_path))
    with pytest.raises(FileNotFoundError) as e: ds[1]
    assert '12.jpg' in str(e.value) + ' '.join(getattr(e.value, '__notes__', []))


@pytest.mark.filterwarnings('ignore:.*have no box')
def test_filters(tmp_path):
    path = coco_file(tmp_path / 'a.json', images=[dict(id=11, file_name='a', width=100, height=31), dict(id=12, file_name='b', width=80, height=100),
                                                  dict(id=13, file_name='c', width=100, height=80)])
    sizes = {kw: len(CocoDataset(path, [], PETS, **dict(kw))) for kw in [(), (('filter_empty_gt', False),), (('test_mode', True),)]}
    assert list(sizes.values()) == [1, 2, 3]
    ds = CocoDataset(path, [], PETS, filter_empty_gt=False)
    assert ds.flag.tolist() == [0, 1] and ds.img_ids == [12, 13]
    with pytest.raises(ValueError, match='no image is left to train on'): CocoDataset(coco_file(tmp_path / 'b.json', annotations=[]), [], PETS)
    assert len(CocoDataset(coco_file(tmp_path / 'b.json', annotations=[]), [], PETS, test_mode=True)) == 3


def test_test_set_without_annotations(tmp_path):
    content = json.load(open(coco_file(tmp_path / 'a.json'))); content.pop('annotations')
    (tmp_path / 'test.json').write_text(json.dumps(content))
    ds = CocoDataset(str(tmp_path / 'test.json'), [], PETS, test_mode=True)
    assert len(ds) == 3
    files, _ = ds.format_results([[np.array([[1, 2, 4, 6, .5]], np.float32), np.zeros((0, 5))]] * 3, str(tmp_path / 'run'))
    assert json.load(open(files['bbox']))[2] == dict(image_id=13, bbox=[1, 2, 3, 4], score=.5, category_id=3)


# --- the middle format

MIDDLE = [dict(filename='a.jpg', width=100, height=60, ann=dict(bboxes=[[10, 10, 40, 50], [50, 5, 90, 55]], labels=[0, 1])),
          dict(filename='b.jpg', width=60, height=100, ann=dict(bboxes=[[5, 5, 30, 30]], labels=[1]))]


@pytest.mark.parametrize('suffix', ['json', 'pkl', 'yaml'])
def test_middle_format_files(tmp_path, suffix):
    dump(MIDDLE, str(tmp_path / f'list.{suffix}'))
    ds = CustomDataset(f'list.{suffix}', [], PETS, data_root=str(tmp_path))
    ann = ds.get_ann_info(0)
    assert ann['bboxes'].dtype == np.float32 and ann['labels'].dtype == np.int64 and ann['bboxes_ignore'].shape == (0, 4)


def test_a_subclass_as_in_the_tutorial(tmp_path):
    "KITTI in twenty lines, with its names misspelt and with DontCare areas"
    class Kitti(CustomDataset):
        CLASSES = ('Car', 'Pedestrian', 'Cyclist')
        def load_annotations(self, ann_file):
            infos, label = [], {k: i for i, k in enumerate(self.CLASSES)}
            for name in open(ann_file).read().split():
                rows = [line.split() for line in open(f'{self.img_prefix.replace("image_2", "label_2")}/{name}.txt')]
                with Image.open(f'{self.img_prefix}/{name}.jpeg') as img: width, height = img.size
                boxes = np.array([r[4:8] for r in rows], np.float32).reshape(-1, 4)
                known = np.array([r[0] in label for r in rows], bool)
                infos.append(dict(filename=f'{name}.jpeg', width=width, height=height, ann=dict(
                    bboxes=boxes[known], labels=np.array([label[r[0]] for r in rows if r[0] in label], np.int64),
                    bboxes_ignore=boxes[~known], labels_ignore=np.full((~known).sum(), -1))))
            return infos
    root = data('kitti_tiny')
    ds = Kitti('train.txt', [], data_root=root, img_prefix='training/image_2')
    assert sum(len(ds.get_ann_info(i)['labels']) for i in range(len(ds))) > 100 and 'Pedestrian' in ds._repr_html_()
    perfect = [[np.hstack([a['bboxes'][a['labels'] == c], np.ones(((a['labels'] == c).sum(), 1))]) for c in range(3)]
               for a in map(ds.get_ann_info, range(len(ds)))]
    assert ds.evaluate(perfect, logger='silent')['mAP'] == 1


# --- VOC

@pytest.mark.parametrize('split, images', [('train', 205), ('val', 87)])
def test_blood_cells(split, images):
    root = data('bccd')
    cfg = dict(type='VOCDataset', ann_file=f'{root}/ImageSets/Main/{split}.txt', img_prefix=root, pipeline=[], classes=('RBC', 'WBC', 'Platelets'))
    ds = build_dataset(cfg)
    assert len(ds) == images and ds.get_ann_info(0)['bboxes'].dtype == np.float32
    counts = dict(train=[2381, 214, 209], val=[967, 87, 83])[split]       # one cell in each is a pixel wide, which only testing keeps
    test_set = build_dataset(cfg, dict(test_mode=True))
    assert ds.summary().boxes.tolist() == counts and test_set.summary().boxes.tolist() == [counts[0] + 1, *counts[1:]]
    assert '1 boxes thinner than a pixel left out' in str(ds) and not test_set.notes
    with pytest.raises(ValueError, match="'Platelet': did you mean 'Platelets'"): build_dataset(dict(cfg, classes=('RBC', 'WBC', 'Platelet')))
    with pytest.raises(ValueError, match='20 of 20'): build_dataset({k: v for k, v in cfg.items() if k != 'classes'})


def test_blood_cells_give_mmdetections_figures():
    "From the XML files through the dataset: the same numbers of boxes and (but for equal scores) the same AP"
    root, d = data('bccd'), json.load(gzip.open(Path(__file__).parent / 'figures/eval_voc.json.gz'))
    ds = XMLDataset(ann_file=f'{root}/ImageSets/Main/val.txt', img_prefix=root, pipeline=[], classes=tuple(d['classes']), test_mode=True)
    rows = np.array(d['dets'])
    results = [[rows[(rows[:, 0] == i) & (rows[:, 1] == c), 2:].astype(np.float32) for c in range(3)] for i in range(len(ds))]
    got = ds.evaluate(results, iou_thr=[.5, .75], logger='silent')
    assert got['AP50'] == pytest.approx(d['expected']['area@0.5']['mAP'], abs=1e-3)
    assert got['AP75'] == pytest.approx(d['expected']['area@0.75']['mAP'], abs=1e-3)
    assert [len(ds.get_ann_info(i)['labels']) for i in range(len(ds))] == [len(g) for g in d['gts']]


def xml_folder(path, **sizes):
    (path / 'Annotations').mkdir(parents=True, exist_ok=True)
    for name, (w, h) in sizes.items():
        box = ''.join(f'<{k}>{v}</{k}>' for k, v in (('xmin', 11), ('ymin', 11), ('xmax', 40), ('ymax', 40)))
        (path / 'Annotations' / f'{name}.xml').write_text(
            f'<annotation><size><width>{w}</width><height>{h}</height></size><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>')
    (path / 'list.txt').write_text('\n'.join(sizes))
    return dict(ann_file=str(path / 'list.txt'), img_prefix=str(path), pipeline=[], classes=('cat',))


def test_broken_xml(tmp_path):
    cfg = xml_folder(tmp_path, a=(100, 100))
    (tmp_path / 'Annotations/a.xml').write_text('<annotation><object>')
    with pytest.raises(ValueError, match='a.xml.* is not XML'): XMLDataset(**cfg)
    (tmp_path / 'Annotations/a.xml').write_text('<annotation><object><name>cat</name><bndbox><xmin>3</xmin></bndbox></object></annotation>')
    with pytest.raises(ValueError, match='object 0 in .*a.xml.* needs a bndbox'): XMLDataset(**cfg)


def test_two_years_as_one_and_apart(tmp_path, capsys):
    parts = [xml_folder(tmp_path / year, **sizes) for year, sizes in (('VOC2007', dict(a=(100, 90))), ('VOC2012', dict(b=(90, 100), c=(100, 90))))]
    cfg = dict(type='VOCDataset', ann_file=[p['ann_file'] for p in parts], img_prefix=[p['img_prefix'] for p in parts], classes=('cat',), pipeline=[])
    both = build_dataset(dict(type='RepeatDataset', times=3, dataset=cfg))
    assert capsys.readouterr().out.count('VOCDataset (train)') == 2
    assert len(both) == 9 and both.CLASSES == ('cat',) and both.flag.tolist() == [1, 0, 1] * 3
    hit, miss = ([np.array([[10, 10, 39, 39, s]], np.float32)] for s in (.9, .8)); miss[0][:, :4] += 30
    apart = build_dataset(cfg, dict(test_mode=True)).evaluate([hit, hit, miss], logger='silent')
    assert apart == {'0_mAP': 1, '0_AP50': 1, '1_mAP': .5, '1_AP50': .5}
    joined = build_dataset(dict(cfg, separate_eval=False), dict(test_mode=True))
    assert [d.year for d in joined.datasets] == [2007, 2012] and all(d.test_mode for d in joined.datasets)
    assert joined.evaluate([hit, hit, miss], logger='silent')['mAP'] == pytest.approx(7 / 11)       # 2/3 recall: 7 of 11 points
    with pytest.raises(ValueError, match='img_prefix lists 1 entries for 2'): build_dataset(dict(cfg, img_prefix=['x']))


# --- wrappers

def test_wrappers_over_coco(tmp_path):
    ds = CocoDataset(coco_file(tmp_path / 'a.json'), [], PETS, filter_empty_gt=False)
    balanced = ClassBalancedDataset(ds, .6)
    assert balanced.repeat_factors == pytest.approx([(.6 * 3) ** .5, 1, 1]) and balanced.indices.tolist() == [0, 0, 1, 2]
    assert ClassBalancedDataset(ds, .6, filter_empty_gt=False).indices.tolist() == [0, 0, 1, 2, 2]
    with pytest.raises(NotImplementedError, match='separate_eval=True'): ConcatDataset([ds, ds], separate_eval=False)
    assert ConcatDataset([ds, balanced]).get_cat_ids(4) == ds.get_cat_ids(0)
    assert build_dataset([dict(type='CocoDataset', ann_file=ds.ann_file, pipeline=[], classes=PETS)] * 2).get_ann_info(3)['labels'].tolist() == [1]


def test_unknown_type_and_argument(tmp_path):
    cfg = dict(type='CocoDataset', ann_file=coco_file(tmp_path / 'a.json'), pipeline=[], classes=PETS)
    with pytest.raises(KeyError, match="did you mean 'CocoDataset'"): build_dataset(dict(cfg, type='CocoDatset'))
    with pytest.raises(TypeError, match="takes no argument 'img_prefx'"): build_dataset(dict(cfg, img_prefx='x'))
    assert 'CustomDataset' in DATASETS


def test_num_classes_of_real_detectors(tmp_path):
    "A Faster R-CNN with COCO's 80 classes on two classes: file and line are told; an RPN knows one class and passes"
    from detnb import Config
    from detnb.models import build_detector
    ds = CocoDataset(coco_file(tmp_path / 'a.json'), [], PETS)
    with torch.device('meta'):
        cfg = Config.fromfile('faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py')
        with pytest.raises(ValueError, match=r'model.roi_head.bbox_head.num_classes is 80 \(.*faster_rcnn_r50_fpn.py:\d+\)'):
            check_classes(build_detector(cfg.model), ds, cfg)
        cfg.model.roi_head.bbox_head.num_classes = 2
        check_classes(build_detector(cfg.model), ds, cfg)
        check_classes(build_detector(Config.fromfile('rpn/rpn_r50_fpn_1x_coco.py').model), ds)


def test_an_annotation_with_id_0_is_told(tmp_path):
    "pycocotools takes its number for 'no match'; ours counts it, and the summary says that figures will differ"
    import json
    from detnb.datasets import CocoDataset
    def of(first):
        data = dict(images=[dict(id=1, file_name='a.jpg', width=40, height=30)], categories=[dict(id=1, name='a')],
                    annotations=[dict(id=first + i, image_id=1, category_id=1, bbox=[2 + 12 * i, 2, 10, 10], area=100, iscrowd=0) for i in range(2)])
        (tmp_path/f'{first}.json').write_text(json.dumps(data))
        return CocoDataset(str(tmp_path/f'{first}.json'), [], classes=('a',), test_mode=True)
    found = [[np.array([[2, 2, 12, 12, .9], [14, 2, 24, 12, .8]], np.float32)]]
    assert 'id 0' in ' '.join(of(0).notes) and not of(1).notes
    assert of(0).evaluate(found, logger='silent')['bbox_mAP'] == of(1).evaluate(found, logger='silent')['bbox_mAP'] == 1
