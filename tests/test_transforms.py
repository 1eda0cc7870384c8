"The transforms against MMDetection's figures, and against what users really feed them"
import json
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image

from detnb.datasets.builder import PIPELINES
from detnb.datasets.shapes import CLASSES, make_shapes, shapes_sample
from detnb.datasets.transforms import Compose, LoadAnnotations, LoadImageFromFile, seeded
from detnb.foundation.environment import data_root
from detnb.foundation.images import imread
from detnb.structures.masks import BitmapMasks
from detnb.structures.polygons import PolygonMasks

figures = json.loads((Path(__file__).parent/'figures'/'pipelines.json').read_text())
demo = data_root() and data_root()/'demo'/'demo.jpg'
needs_demo = pytest.mark.skipif(not (demo and demo.exists()), reason='needs demo/demo.jpg of the data folder')


def sampled(a, n=64): return np.asarray(a).reshape(-1)[np.unique(np.linspace(0, a.size - 1, n).astype(int))]


def demo_sample():
    img, boxes = imread(demo), np.float32(figures['input']['boxes'])
    masks = np.zeros((len(boxes), *img.shape[:2]), np.uint8)
    for m, (x1, y1, x2, y2) in zip(masks, boxes.astype(int)): m[y1:y2, x1:x2] = 1
    return dict(img=img, img_shape=img.shape, ori_shape=img.shape, pad_shape=img.shape, scale_factor=1., img_fields=['img'], bbox_fields=['gt_bboxes'],
                mask_fields=['gt_masks'], seg_fields=[], gt_bboxes=boxes, gt_labels=np.arange(len(boxes)), gt_masks=BitmapMasks(masks, *img.shape[:2]))


@needs_demo
def test_decoding_equals_the_reference():
    assert np.abs(sampled(imread(demo)) - np.array(figures['input']['decoded_bgr']['val'])).max() <= 2


@needs_demo
@pytest.mark.parametrize('case', figures['cases'], ids=lambda c: c['name'])
def test_pipeline_equals_the_reference(case):
    steps = [{k: tuple(v) if k in ('img_scale', 'img_fill_val') else v for k, v in step.items()} for step in case['pipeline']]
    out = Compose(steps)(demo_sample())
    assert list(out['img'].shape) == case['img']['shape']
    off = np.abs(sampled(out['img']) - np.array(case['img']['val'], np.float64))
    if out['img'].dtype == np.float32: off = off * 57          # normalised: back to grey levels
    assert (off <= 2).mean() >= .95
    np.testing.assert_allclose(out['gt_bboxes'], case['boxes'], atol=.01)
    assert out['gt_labels'].tolist() == case['labels']
    np.testing.assert_allclose(out['gt_masks'].areas, case['mask_areas'], rtol=.005)
    assert list(out['img_shape']) == case['img_shape'] and list(out['pad_shape']) == case['pad_shape']
    assert np.array(out['scale_factor']).tolist() == case['scale_factor']


@needs_demo
def test_resize_is_bilinear_with_half_pixel_centres():
    "Without a preset factor, against plain NumPy"
    img = imread(demo)
    out = Compose([dict(type='Resize', img_scale=(200, 300), keep_ratio=False)])(dict(img=img, img_fields=['img']))['img']
    def weights(n, n0):
        at = ((np.arange(n) + .5) * n0 / n - .5).clip(0, n0 - 1)
        lo = np.floor(at).astype(int)
        return lo, np.minimum(lo + 1, n0 - 1), at - lo
    (t, b, fy), (l, r, fx) = weights(300, img.shape[0]), weights(200, img.shape[1])
    fy, fx, x = fy[:, None, None], fx[None, :, None], img.astype(float)
    want = (1 - fy) * ((1 - fx) * x[t][:, l] + fx * x[t][:, r]) + fy * ((1 - fx) * x[b][:, l] + fx * x[b][:, r])
    assert np.abs(out - want).max() <= 2


# bad input

def load(name, folder): return Compose([dict(type='LoadImageFromFile')])(dict(img_info=dict(filename=name), img_prefix=str(folder)))


def test_missing_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.jpg') as e: load('nowhere.jpg', tmp_path)
    if hasattr(e.value, '__notes__'): assert 'LoadImageFromFile, step 1 of 1' in e.value.__notes__[0]


@pytest.mark.parametrize('content', [b'', b'not an image at all', 'cut'], ids=['empty', 'text', 'cut short'])
def test_corrupt_image_is_named(tmp_path, content):
    if content == 'cut':
        Image.fromarray(shapes_sample(0)['img']).save(tmp_path/'whole.jpg')
        content = (tmp_path/'whole.jpg').read_bytes()[:700]
    (tmp_path/'bad.jpg').write_bytes(content)
    with pytest.raises(OSError, match='bad.jpg'): load('bad.jpg', tmp_path)


def test_error_in_a_later_step_names_step_and_image():
    pipeline = Compose([dict(type='RandomFlip', flip_ratio=0.), dict(type='Resize')])
    with pytest.raises(ValueError, match='no img_scale') as e: pipeline(shapes_sample(4))
    notes = '\n'.join(getattr(e.value, '__notes__', [str(e.value)]))
    assert 'Resize, step 2 of 2' in notes and 'shapes-4.jpg' in notes


def test_unknown_transform_and_argument():
    with pytest.raises(KeyError, match="did you mean 'Resize'"): Compose([dict(type='Rezise')])
    with pytest.raises(TypeError, match="no argument 'keep_ration'"): Compose([dict(type='Resize', keep_ration=True)])
    with pytest.raises(TypeError, match='callable or a dict'): Compose(['Resize'])


def test_missing_key_is_named():
    with pytest.raises(KeyError, match='gt_masks.*with_mask'): Compose([dict(type='Collect', keys=['gt_masks'])])(dict(img=1))


@pytest.mark.parametrize('bad', [
    dict(type='Resize', img_scale=[(1, 2), (3, 4), (5, 6)]), dict(type='Resize', img_scale=(4, 4), multiscale_mode='all'),
    dict(type='RandomFlip', flip_ratio=2.), dict(type='RandomFlip', flip_ratio=.5, direction='left'), dict(type='Pad'),
    dict(type='Normalize', mean=[0, 0, 0], std=[1, 0, 1]), dict(type='RandomCrop', crop_size=(0, 5)),
    dict(type='MultiScaleFlipAug', transforms=[]), dict(type='FilterAnnotations', by_box=False), dict(type='LoadImageFromFile', file_client_args=dict(backend='ceph'))],
    ids=lambda b: b['type'])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError): PIPELINES.build(bad)


# what must hold for random transforms

AUGMENTS = [dict(type='Expand', ratio_range=(1, 3), prob=1.), dict(type='MinIoURandomCrop'), dict(type='RandomCrop', crop_size=(.6, .6), crop_type='relative_range'),
            dict(type='Resize', img_scale=[(200, 100), (300, 200)], multiscale_mode='range'), dict(type='RandomFlip', flip_ratio=[.3, .3, .3],
            direction=['horizontal', 'vertical', 'diagonal']), dict(type='RandomShift', shift_ratio=1.), dict(type='PhotoMetricDistortion'), dict(type='Pad', size_divisor=32)]
POLICIES = [[dict(type='Rotate', level=6), dict(type='ColorTransform', level=8)], [dict(type='Shear', level=6), dict(type='EqualizeTransform')],
            [dict(type='Translate', level=1, direction='vertical'), dict(type='ContrastTransform', level=2), dict(type='BrightnessTransform', level=8)]]


@pytest.mark.parametrize('steps', [AUGMENTS, [dict(type='AutoAugment', policies=POLICIES), *AUGMENTS[3:]]], ids=['ssd', 'auto'])
def test_boxes_labels_and_masks_stay_together(steps):
    pipeline, kept = Compose(steps), 0
    for seed in range(40):
        with seeded(seed): out = pipeline(shapes_sample(seed))
        if out is None: continue
        boxes, (h, w) = out['gt_bboxes'], out['img_shape'][:2]
        assert len(boxes) == len(out['gt_labels']) == len(out['gt_masks']) > 0
        assert (boxes[:, 2:] > boxes[:, :2]).all() and boxes.min() >= 0 and (boxes <= [w, h, w, h]).all()
        assert out['img'].shape[:2] == out['gt_masks'].masks.shape[1:] == tuple(out['pad_shape'][:2])
        tight = out['gt_masks'].get_bboxes()
        seen = out['gt_masks'].areas > 0
        assert (tight[seen, :2] >= boxes[seen, :2] - 2).all() and (tight[seen, 2:] <= boxes[seen, 2:] + 2).all()
        kept += 1
    assert kept > 20


def test_polygons_follow_like_bitmaps():
    pipeline = Compose([s for s in AUGMENTS if s['type'] != 'RandomShift'])
    for seed in range(20):
        boxes = shapes_sample(seed)['gt_bboxes']
        polygons = PolygonMasks([[b[[0, 1, 2, 1, 2, 3, 0, 3]]] for b in boxes], 120, 160)
        outs = []
        for masks in (polygons, polygons.to_bitmap()):
            with seeded(seed): outs.append(pipeline(dict(shapes_sample(seed), gt_masks=masks)))
        if outs[0] is None: continue
        a, b = (o['gt_masks'].to_ndarray() for o in outs)
        assert a.shape == b.shape and isinstance(outs[0]['gt_masks'], PolygonMasks)
        assert (a != b).mean() < .02          # bitmaps are resized by the nearest pixel, polygons exactly


def test_same_seed_same_result():
    outs = []
    for _ in range(2):
        with seeded(3): outs.append(Compose(AUGMENTS)(shapes_sample(3)))
    np.testing.assert_array_equal(outs[0]['img'], outs[1]['img'])


def test_images_without_objects_pass():
    steps = [s for s in AUGMENTS if s['type'] not in ('RandomCrop', 'RandomShift')]
    tail = [dict(type='Normalize', mean=[0, 0, 0], std=[1, 1, 1]), dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks'])]
    out = Compose(steps + tail)(shapes_sample(0, empty=1.))
    assert out['gt_bboxes'].shape == (0, 4) and out['gt_labels'].dtype == torch.int64 and len(out['gt_masks']) == 0


def test_exif_orientation_is_applied(tmp_path):
    img = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    exif = img.getexif()
    exif[0x0112] = 6
    img.save(tmp_path/'turned.png', exif=exif)
    results = lambda: dict(img_info=dict(filename='turned.png'), img_prefix=str(tmp_path))
    assert LoadImageFromFile()(results())['img_shape'] == (5, 4, 3)
    assert LoadImageFromFile(color_type='color_ignore_orientation')(results())['img_shape'] == (4, 5, 3)


def test_shapes_on_disk_load_as_in_memory_truth(tmp_path):
    content = json.loads(make_shapes(tmp_path, 6, (120, 90), seed=2, empty=.3).read_text())
    assert [c['name'] for c in content['categories']] == list(CLASSES)
    for info in content['images']:
        anns = [a for a in content['annotations'] if a['image_id'] == info['id']]
        sample = dict(img_info=dict(info, filename=info['file_name']), img_prefix=str(tmp_path/'train'),
                      ann_info=dict(bboxes=np.float32([a['bbox'] for a in anns]).reshape(-1, 4), labels=np.array([a['category_id'] - 1 for a in anns], int),
                                    masks=[a['segmentation'] for a in anns]))
        out = Compose([LoadImageFromFile(), LoadAnnotations(with_mask=True)])(sample)
        assert out['img_shape'] == (90, 120, 3)
        np.testing.assert_allclose(out['gt_masks'].areas, [a['area'] for a in anns], atol=4)
    assert json.loads(make_shapes(tmp_path/'again', 3, (120, 90), seed=2, empty=.3).read_text())['annotations'] == [
        a for a in content['annotations'] if a['image_id'] < 3]
