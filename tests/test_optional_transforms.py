"Steps that stand on optional packages: the configs that name them build their pipelines and run, where the packages are installed"
import numpy as np
import pytest

from detnb import Config
from detnb.datasets.builder import PIPELINES
from detnb.datasets.shapes import make_shapes
from detnb.datasets.transforms import Compose
from detnb.datasets.transforms.compose import seeded


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    from detnb.datasets import build_dataset
    root = tmp_path_factory.mktemp('shapes')
    file = make_shapes(root, 6, (160, 120), name='train', max_objects=4, empty=0.)
    from detnb.datasets.shapes import CLASSES
    return build_dataset(dict(type='CocoDataset', ann_file=str(file), img_prefix=str(file.with_suffix('')), classes=CLASSES, pipeline=[]))


def raw(data, i):
    results = dict(img_info=data.data_infos[i], ann_info=data.get_ann_info(i)); data.pre_pipeline(results)
    return results


def test_missing_package_is_named():
    for name, package in (('Albu', 'albumentations'), ('InstaBoost', 'instaboostfast')):
        try: __import__(package)
        except ImportError:
            with pytest.raises(ImportError, match=f'pip install {package}'): PIPELINES.build(dict(type=name, **(dict(transforms=[]) if name == 'Albu' else {})))


def test_albu_config(shapes):
    pytest.importorskip('albumentations')
    cfg = Config.fromfile('albu_example/mask_rcnn_r50_fpn_albu_1x_coco.py')
    steps = cfg.data.train.pipeline
    next(s for s in steps if s.type == 'Resize').img_scale = (160, 120)
    pipeline = Compose(steps)
    for i in range(len(shapes)):
        with seeded(i): a = pipeline(raw(shapes, i))
        with seeded(i): b = pipeline(raw(shapes, i))
        assert np.array_equal(a['img'], b['img'])                # the package's own generator follows our seed
        assert len(a['gt_bboxes']) == len(a['gt_labels']) == len(a['gt_masks']) and a['img_metas']['ori_shape'] == (120, 160, 3)


@pytest.mark.parametrize('albu,moved', [(dict(type='HorizontalFlip', p=1.), True), (dict(type='Blur', blur_limit=3, p=1.), False)])
def test_albu_boxes_and_masks_move_together(shapes, albu, moved):
    pytest.importorskip('albumentations')
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_mask=True)]
    step = dict(type='Albu', transforms=[albu], bbox_params=dict(type='BboxParams', format='pascal_voc', label_fields=['gt_labels'], min_visibility=0.0, filter_lost_elements=True))
    for i in range(len(shapes)):
        plain, out = Compose(load)(raw(shapes, i)), Compose([*load, step])(raw(shapes, i))
        expected, masks = plain['gt_bboxes'].copy(), plain['gt_masks'].masks
        if moved: expected[:, [0, 2]], masks = 160 - expected[:, [2, 0]], masks[..., ::-1]
        assert np.allclose(out['gt_bboxes'], expected, atol=.01) and np.array_equal(out['gt_labels'], plain['gt_labels']) and np.array_equal(out['gt_masks'].masks, masks)
        assert out['gt_bboxes'].dtype == np.float32 and out['gt_labels'].dtype == np.int64 and not np.array_equal(out['img'], plain['img'])


def test_albu_lost_objects(shapes):
    pytest.importorskip('albumentations')
    step = dict(type='Albu', transforms=[dict(type='Crop', x_min=0, y_min=0, x_max=8, y_max=8, p=1.)], update_pad_shape=True, skip_img_without_anno=False,
                bbox_params=dict(type='BboxParams', format='pascal_voc', label_fields=['gt_labels'], filter_lost_elements=True))
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_mask=True)]
    kept = 0
    for i in range(len(shapes)):
        sample = raw(shapes, i); sample['ann_info']['bboxes'][0] = (20, 20, 40, 40)
        out = Compose([*load, step])(sample); kept += len(out['gt_bboxes'])
        assert out['pad_shape'] == out['img_shape'] == (8, 8, 3) and len(out['gt_masks']) == len(out['gt_bboxes']) == len(out['gt_labels'])
        empty = raw(shapes, i); empty['ann_info']['bboxes'][:] = (20, 20, 40, 40)
        assert Compose([*load, dict(step, skip_img_without_anno=True)])(empty) is None


def test_instaboost_config(shapes):
    pytest.importorskip('instaboostfast')
    steps = Config.fromfile('instaboost/mask_rcnn_r50_fpn_instaboost_4x_coco.py').data.train.pipeline
    assert steps[1].type == 'InstaBoost'
    steps[1].aug_ratio = 1.; next(s for s in steps if s.type == 'Resize').img_scale = (160, 120)
    pipeline, changed = Compose(steps), 0
    plain = Compose([s for s in steps if s.type != 'InstaBoost'])
    for i in range(len(shapes)):
        with seeded(i): out = pipeline(raw(shapes, i))
        assert len(out['gt_bboxes']) == len(out['gt_labels']) == len(out['gt_masks'])
        assert out['gt_bboxes'].dtype.is_floating_point and out['gt_labels'].dtype.is_signed and np.isfinite(out['gt_bboxes'].numpy()).all()
        with seeded(i): changed += out['img'].shape != (same := plain(raw(shapes, i))['img']).shape or bool((out['img'] != same).any())
    assert changed
