"The guides' steps E1 to E3: balloons outlined with VIA become COCO, a config of a few lines, training and testing with boxes and masks"
import json, os, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from detnb import Config
from detnb.datasets import build_dataset
from detnb.datasets.converters import convert_balloon_to_coco
from detnb.foundation.environment import data_root

# the guide's file, but for `root`; the second half makes it small enough for a test
CONFIG = '''
_base_ = 'mask_rcnn/mask_rcnn_r50_caffe_fpn_mstrain-poly_1x_coco.py'
model = dict(roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)))
classes = ('balloon',)
data = dict(
    train=dict(img_prefix='{root}/train/', classes=classes, ann_file='{root}/train/annotation_coco.json'),
    val=dict(img_prefix='{root}/val/', classes=classes, ann_file='{root}/val/annotation_coco.json'),
    test=dict(img_prefix='{root}/val/', classes=classes, ann_file='{root}/val/annotation_coco.json'))
load_from = {load_from}
'''
SMALL = ['model.backbone.init_cfg=None', 'model.backbone.depth=18', 'model.backbone.base_channels=16', 'model.neck.in_channels=[16,32,64,128]',
         'data.workers_per_gpu=0', 'runner.max_epochs=1', 'log_config.interval=1', 'optimizer.lr=0.001', 'data.val.pipeline.1.img_scale=(96,96)',
         'data.test.pipeline.1.img_scale=(96,96)', 'data.train.pipeline.2.img_scale=[(96,96)]']


@pytest.fixture
def party(tmp_path):
    "Two pictures each for training and validation in VIA's format, VIA 1 there and VIA 2 here"
    for part in ('train', 'val'):
        (tmp_path/part).mkdir(); entries = {}
        for i in range(2):
            name, img = f'{i}.jpg', Image.new('RGB', (96, 80), (90, 150, 220))
            x, y = [20 + 10 * i, 60, 50, 25], [15, 12, 55, 60]
            ImageDraw.Draw(img).polygon(list(zip(x, y)), fill=(230, 40, 30))
            img.save(tmp_path/part/name)
            region = dict(shape_attributes=dict(name='polygon', all_points_x=x, all_points_y=y), region_attributes={})
            entries[name + '99'] = dict(filename=name, size=99, regions={'0': region} if part == 'train' else [region])
        (tmp_path/part/'via_region_data.json').write_text(json.dumps(entries))
        convert_balloon_to_coco(str(tmp_path/part/'via_region_data.json'), str(tmp_path/part/'annotation_coco.json'), str(tmp_path/part))
    return tmp_path


def test_E1_via_to_coco(party):
    for part in ('train', 'val'):
        coco = json.loads((party/part/'annotation_coco.json').read_text())
        assert coco['categories'] == [dict(id=0, name='balloon')]
        assert coco['images'][1] == dict(id=1, file_name='1.jpg', height=80, width=96)
        assert coco['annotations'][1] == dict(id=1, image_id=1, category_id=0, iscrowd=0, bbox=[25, 12, 35, 48], area=35 * 48,
                                              segmentation=[[30.5, 15.5, 60.5, 12.5, 50.5, 55.5, 25.5, 60.5]])


def test_E1_balloon_set(tmp_path):
    "The real set: every region arrives, boxes hold their outlines, sizes are those of the pictures"
    root = data_root()
    if root is None or not (root/'balloon').is_dir(): pytest.skip('no data/balloon at hand')
    regions = 0
    for part, images in (('train', 61), ('val', 13)):
        coco = convert_balloon_to_coco(str(root/'balloon'/part/'via_region_data.json'), str(tmp_path/f'{part}.json'), str(root/'balloon'/part))
        assert len(coco['images']) == images
        for ann in coco['annotations']:
            points, (x, y, w, h) = np.reshape(ann['segmentation'][0], (-1, 2)) - .5, ann['bbox']
            assert np.allclose([*points.min(0), *points.max(0)], [x, y, x + w, y + h])
        assert all(Image.open(root/'balloon'/part/i['file_name']).size == (i['width'], i['height']) for i in coco['images'][:5])
        regions += len(coco['annotations'])
    assert regions == 305


def test_E2_config(party):
    (party/'balloon.py').write_text(CONFIG.format(root=party, load_from=None))
    cfg = Config.fromfile(party/'balloon.py')
    assert (cfg.model.roi_head.bbox_head.num_classes, cfg.model.roi_head.mask_head.num_classes) == (1, 1)
    sample = build_dataset(cfg.data.train)[0]
    assert len(sample['gt_masks']) == len(sample['gt_bboxes']) == 1 and sample['gt_labels'].tolist() == [0]


def test_E3_train_and_test(party):
    "Training writes latest.pth, and testing it gives figures of boxes and masks"
    (party/'balloon.py').write_text(CONFIG.format(root=party, load_from=None))
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parent.parent)}     # this checkout, installed or not
    def detnb(*args):
        command = [sys.executable, '-m', 'detnb.cli.main', *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=party, env=env, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr
    out = detnb('train', party/'balloon.py', '--work-dir', 'run', '--cfg-options', *SMALL)
    assert 'loss_mask' in out and 'segm_mAP' in out and Path(party/'run/latest.pth').exists()
    out = detnb('test', party/'balloon.py', 'run/latest.pth', '--eval', 'bbox', 'segm', '--cfg-options', *SMALL)
    assert 'bbox_mAP' in out and 'segm_mAP' in out


def test_demo_config_trains_on_balloons(party, monkeypatch):
    "The shipped demo config builds its data and its network, and a step with masks gives finite losses"
    import torch
    from detnb.datasets import build_dataloader
    from detnb.models import build_detector
    (party/'balloon').mkdir()
    for part in ('train', 'val'): (party/part).rename(party/'balloon'/part)
    monkeypatch.setenv('DETNB_DATA', str(party))
    cfg = Config.fromfile('demo/mask_rcnn_r18_balloon.py')
    loader = build_dataloader(build_dataset(cfg.data.train), samples_per_gpu=2, workers_per_gpu=0, dist=False, seed=0)
    model = build_detector(cfg.model); model.train()
    loss = model.train_step(next(iter(loader)), None)
    loss['loss'].backward()
    assert torch.isfinite(loss['loss']) and 'loss_mask' in loss['log_vars'] and len(build_dataset(cfg.data.test, dict(test_mode=True))) == 2
