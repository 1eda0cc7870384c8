"The guides' workflows as they are told, each step by its letter; F: your own model (a neck of your own in Cascade Mask R-CNN, on Cityscapes)"
import json, os, shutil, sys
from pathlib import Path

import numpy as np
import pytest
import torch

NECK = '''
import torch.nn as nn
from {builder} import NECKS

@NECKS.register_module()
class AugFPN(nn.Module):

    def __init__(self,
                in_channels,
                out_channels,
                num_outs,
                start_level=0,
                end_level=-1,
                add_extra_convs=False):
        super().__init__()
        self.num_outs = num_outs
        self.convs = nn.ModuleList([nn.Conv2d(c, out_channels, 1) for c in in_channels])

    def forward(self, inputs):
        outs = [conv(x) for conv, x in zip(self.convs, inputs)]
        while len(outs) < self.num_outs: outs.append(nn.functional.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)
'''

# the guide's file, but for `root` and where a line says so
CONFIG = '''
_base_ = [
    '../_base_/models/cascade_mask_rcnn_r50_fpn.py',
    '../_base_/datasets/cityscapes_instance.py', '../_base_/default_runtime.py'
]
{imports}
model = dict(
    backbone=dict(init_cfg=None),
    neck=dict(type='AugFPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5),
    roi_head=dict(
        bbox_head=[
            dict(type='Shared2FCBBoxHead', in_channels=256, fc_out_channels=1024, roi_feat_size=7, num_classes=8,
                 bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds=[0.1, 0.1, 0.2, 0.2]),
                 reg_class_agnostic=True,
                 loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                 loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0)),
            dict(type='Shared2FCBBoxHead', in_channels=256, fc_out_channels=1024, roi_feat_size=7, num_classes=8,
                 bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds=[0.05, 0.05, 0.1, 0.1]),
                 reg_class_agnostic=True,
                 loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                 loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0)),
            dict(type='Shared2FCBBoxHead', in_channels=256, fc_out_channels=1024, roi_feat_size=7, num_classes=8,
                 bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds=[0.033, 0.033, 0.067, 0.067]),
                 reg_class_agnostic=True,
                 loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                 loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0))
        ],
        mask_head=dict(type='FCNMaskHead', num_convs=4, in_channels=256, conv_out_channels=256, num_classes=8,
                       loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0))))

img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='AutoAugment',
        policies=[
            [dict(type='Rotate', level=5, img_fill_val=(124, 116, 104), prob=0.5, scale=1)],
            [dict(type='Rotate', level=7, img_fill_val=(124, 116, 104)),
             dict(type='Translate', level=5, prob=0.5, img_fill_val=(124, 116, 104))],
        ]),
    dict(type='Resize', img_scale={scale}, keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks']),
]
data = dict(samples_per_gpu=1, workers_per_gpu=3, train=dict(dataset=dict(pipeline=train_pipeline)))
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='step', warmup='linear', warmup_iters=500, warmup_ratio=0.001, step=[8])
runner = dict(type='EpochBasedRunner', max_epochs=10)
load_from = {load_from!r}
'''

# what makes it small enough for a processor
SMALL = '''
_base_ = './cascade_mask_rcnn_r50_augfpn_autoaug_10e_cityscapes.py'
small = dict(in_channels=8, fc_out_channels=16)
model = dict(
    backbone=dict(depth=18, base_channels=16, frozen_stages=-1),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=8),
    rpn_head=dict(in_channels=8, feat_channels=8),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=8), mask_roi_extractor=dict(out_channels=8), mask_head=dict(in_channels=8, conv_out_channels=8, num_convs=1),
                  bbox_head=[dict(small, type='Shared2FCBBoxHead', roi_feat_size=7, num_classes=8, reg_class_agnostic=True,
                                  bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.] * 4, target_stds=[s, s, 2 * s, 2 * s]),
                                  loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                                  loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0)) for s in (.1, .05, .033)]))
root = {root!r}
data = dict(workers_per_gpu=0,
            train=dict(times=1, dataset=dict(ann_file=root + 'annotations/instancesonly_filtered_gtFine_train.json', img_prefix=root + 'leftImg8bit/train/')),
            **{{part: dict(ann_file=root + 'annotations/instancesonly_filtered_gtFine_val.json', img_prefix=root + 'leftImg8bit/val/',
                          pipeline=[dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', img_scale=(128, 64), flip=False, transforms=[
                              dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), dict(type='Normalize', **{{{{_base_.img_norm_cfg}}}}), dict(type='Pad', size_divisor=32),
                              dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])])]) for part in ('val', 'test')}})
runner = dict(max_epochs=2)
lr_config = dict(warmup_iters=2)
log_config = dict(interval=1)
device = 'cpu'
'''


def city_layout(root, **num):
    "Shapes in the folders, names and classes of Cityscapes"
    from detnb.datasets.cityscapes import CLASS_IDS
    from detnb.datasets.shapes import make_shapes
    names = dict(zip(range(1, 6), ('person', 'car', 'truck', 'bus', 'bicycle')))
    (root/'annotations').mkdir(parents=True)
    for seed, (part, n) in enumerate(num.items()):
        data = json.loads(make_shapes(root, n, (128, 64), seed=seed, name=part, max_objects=4, empty=0.).read_text())
        city = root/'leftImg8bit'/part/'aachen'; city.mkdir(parents=True)
        for img in data['images']:
            name = f'aachen_{img["id"]:06}_000019_leftImg8bit.jpg'
            shutil.move(root/part/img['file_name'], city/name); img['file_name'] = f'aachen/{name}'
        for a in data['annotations']: a['category_id'] = CLASS_IDS[names[a['category_id']]]
        data['categories'] = [dict(id=i, name=c) for c, i in CLASS_IDS.items()]
        (root/'annotations'/f'instancesonly_filtered_gtFine_{part}.json').write_text(json.dumps(data))
    return str(root) + '/'


@pytest.fixture
def registry():
    "The table of necks, which is put back as it was"
    from detnb.models import NECKS
    before, modules = dict(NECKS.module_dict), set(sys.modules)
    yield NECKS
    NECKS.module_dict.clear(); NECKS.module_dict.update(before)
    for name in set(sys.modules) - modules:
        if name.split('.')[0] == 'my_parts': del sys.modules[name]


@pytest.fixture
def place(tmp_path, monkeypatch, registry):
    "A user's folder: a package with the neck, and the guide's config"
    (tmp_path/'my_parts').mkdir(); (tmp_path/'my_parts'/'__init__.py').write_text('')
    (tmp_path/'my_parts'/'augfpn.py').write_text(NECK.format(builder='detnb.models.builder'))
    (tmp_path/'configs'/'cityscapes').mkdir(parents=True)
    monkeypatch.chdir(tmp_path); monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write_config(place, scale=[(2048, 800), (2048, 1024)], load_from=None, imports="custom_imports = dict(imports=['my_parts.augfpn'], allow_failed_imports=False)"):
    path = place/'configs'/'cityscapes'/'cascade_mask_rcnn_r50_augfpn_autoaug_10e_cityscapes.py'
    path.write_text(CONFIG.format(imports=imports, scale=scale, load_from=load_from))
    return path


def test_F1_a_neck_from_a_notebook(place, registry):
    "A cell registers it, runs again, and is what a config builds; the library's own part of that name steps back"
    from detnb.models import build_neck
    library = registry.get('AugFPN')
    for _ in range(2):
        cell = dict(__name__='__main__'); exec(NECK.format(builder='detnb.models'), cell)
        cfg = dict(type='AugFPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5)
        neck = build_neck(cfg)
        assert type(neck) is cell['AugFPN'] is not library
    assert [tuple(x.shape) for x in neck([torch.zeros(1, c, 64 // c, 64 // c) for c in (8, 16, 32, 64)])] == [(1, 8, s, s) for s in (8, 4, 2, 1, 1)]


@pytest.mark.parametrize('first', ['my_parts.augfpn', 'detnb.models'])
def test_F1_a_neck_through_custom_imports(place, registry, first):
    import importlib
    from detnb import Config
    importlib.import_module(first)
    cfg = Config.fromfile(str(write_config(place)))
    assert 'my_parts.augfpn' in sys.modules and registry.get(cfg.model.neck.type).__module__ == 'my_parts.augfpn'
    with pytest.raises(ImportError, match='my_parts.augfnp'):
        Config.fromfile(str(write_config(place, imports="custom_imports = dict(imports=['my_parts.augfnp'], allow_failed_imports=False)")))


def test_F2_into_cascade_mask_rcnn_by_config_alone(place):
    from detnb import Config
    from detnb.models import build_detector
    cfg = Config.fromfile(str(write_config(place)))
    with torch.device('meta'): model = build_detector(cfg.model)
    assert type(model).__name__ == 'CascadeRCNN' and type(model.neck).__module__ == 'my_parts.augfpn' and cfg.model.backbone.init_cfg is None
    assert [type(h).__name__ for h in model.roi_head.bbox_head] == ['Shared2FCBBoxHead'] * 3
    assert [(h.num_classes, h.fc_cls.out_features, h.fc_reg.out_features) for h in model.roi_head.bbox_head] == [(8, 9, 4)] * 3
    assert [h.bbox_coder.stds[0] for h in model.roi_head.bbox_head] == [.1, .05, .033]
    assert [h.conv_logits.out_channels for h in model.roi_head.mask_head] == [8] * 3
    assert 'neck.convs.3.weight' in model.state_dict() and cfg.data.train.type == 'RepeatDataset' and cfg.data.train.dataset.type == 'CityscapesDataset'


def test_F3_auto_augment(place):
    "One of two policies an image; what is uncovered is filled, masks and boxes move along"
    from detnb import Config
    from detnb.datasets import build_dataset
    root = city_layout(place/'cityscapes', train=3)
    cfg = Config.fromfile(str(write_config(place, scale=[(256, 100), (256, 128)])))
    part = cfg.data.train.dataset
    part.update(ann_file=root + 'annotations/instancesonly_filtered_gtFine_train.json', img_prefix=root + 'leftImg8bit/train/')
    augment = cfg.train_pipeline[2]
    assert [[t.type for t in p] for p in augment.policies] == [['Rotate'], ['Rotate', 'Translate']] and augment.policies[0][0].img_fill_val == (124, 116, 104)
    np.random.seed(0); torch.manual_seed(0)
    data = build_dataset(dict(part, pipeline=cfg.train_pipeline[:3]))
    plain = build_dataset(dict(part, pipeline=cfg.train_pipeline[:2]))[0]['img']
    seen = [data[0] for _ in range(24)]
    still = sum(np.array_equal(s['img'], plain) for s in seen)
    assert 0 < still < 16 and len({s['img'].tobytes() for s in seen}) >= 5          # untouched, two rotations, with and without a shift
    filled = [(s['img'] == np.array([124, 116, 104])).all(-1).mean() for s in seen]
    assert max(filled) > .05
    for s in seen:
        for box, mask in zip(s['gt_bboxes'], s['gt_masks'].masks):
            y, x = np.nonzero(mask)
            if len(x): assert x.min() >= box[0] - 1.5 and x.max() <= box[2] + 1.5 and y.min() >= box[1] - 1.5 and y.max() <= box[3] + 1.5
    np.random.seed(1)
    whole = build_dataset(part)
    sides = {max(whole[i % 3]['img'].shape[1:]) for i in range(12)}
    assert len(sides) > 1 and all(side % 32 == 0 for side in sides)                    # several scales, padded


def test_F4_train_and_test(place):
    "From a COCO Cascade Mask R-CNN's weights; the schedule's numbers; both metrics printed"
    from detnb import Config
    from detnb.cli.main import main
    from detnb.models import build_detector
    root = city_layout(place/'cityscapes', train=4, val=2)
    small = place/'configs'/'cityscapes'/'small.py'
    write_config(place, scale=[(128, 48), (128, 64)]); small.write_text(SMALL.format(root=root))
    coco = Config.fromfile(str(small)).model.copy()
    coco['neck'] = dict(coco['neck'], type='FPN')
    torch.manual_seed(0)
    parent = build_detector(coco); parent.init_weights()
    torch.save(dict(state_dict=parent.state_dict(), meta={}), place/'coco.pth')
    cfg = Config.fromfile(str(write_config(place, scale=[(128, 48), (128, 64)], load_from=str(place/'coco.pth'))))
    assert (cfg.data.samples_per_gpu, cfg.data.workers_per_gpu, cfg.optimizer.lr, cfg.optimizer_config.grad_clip, cfg.runner.max_epochs) == (1, 3, .01, None, 10)
    assert cfg.lr_config == dict(policy='step', warmup='linear', warmup_iters=500, warmup_ratio=.001, step=[8])
    assert main(['train', str(small), '--work-dir', str(place/'run'), '--seed', '0']) == 0
    log = [json.loads(line) for f in (place/'run').glob('*.log.json') for line in open(f)]
    trained = [r for r in log if r.get('mode') == 'train']
    assert len(trained) == 8 and all(np.isfinite(r[k]) for r in trained for k in ('loss', 's0.loss_cls', 's2.loss_bbox', 's1.loss_mask'))
    assert {'bbox_mAP', 'segm_mAP'} <= set([r for r in log if r.get('mode') == 'val'][-1])
    state = torch.load(place/'run'/'latest.pth', weights_only=True)
    assert 'neck.convs.0.weight' in state['state_dict'] and len(state['meta']['CLASSES']) == 8
    assert main(['test', str(small), str(place/'run'/'latest.pth'), '--eval', 'bbox', 'segm', '--out', str(place/'results.pkl'), '--work-dir', str(place/'tested')]) == 0
    figures = json.loads(next((place/'tested').glob('eval_*.json')).read_text())['metric']
    assert {'bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_s'} <= set(figures)
    assert main(['test', str(small), str(place/'run'/'latest.pth'), '--format-only', '--options', f'txtfile_prefix={place}/server']) == 0
    assert len(list((place/'server').glob('*_pred.txt'))) == 2


def test_F2_all_three_parts_of_the_paper(place):
    "The library's AugFPN with soft RoI selection and consistent supervision: named in a config, trained a step, tested"
    from detnb import Config
    from detnb.datasets.shapes import shapes_batch
    from detnb.models import build_detector
    cfg = Config.fromfile('cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py').model
    cfg.backbone.update(depth=18, base_channels=16, init_cfg=None, frozen_stages=-1)
    cfg.neck.update(type='AugFPN', in_channels=[16, 32, 64, 128], out_channels=8)
    cfg.rpn_head.update(in_channels=8, feat_channels=8)
    roi = cfg.roi_head
    roi.update(type='ConsistentCascadeRoIHead', lateral_weight=.5)
    for extractor in (roi.bbox_roi_extractor, roi.mask_roi_extractor): extractor.update(type='SoftRoIExtractor', out_channels=8)
    for head in roi.bbox_head: head.update(in_channels=8, fc_out_channels=16, num_classes=5)
    roi.mask_head.update(in_channels=8, conv_out_channels=8, num_convs=1, num_classes=5)
    torch.manual_seed(0)
    model = build_detector(cfg).train(); model.init_weights()
    batch = shapes_batch(2, (128, 96), masks=True)
    batch['gt_bboxes'][1], batch['gt_labels'][1], batch['gt_masks'][1] = batch['gt_bboxes'][1][:0], batch['gt_labels'][1][:0], batch['gt_masks'][1][[]]
    losses = model.forward_train(**batch)
    assert {f's{i}.loss_{w}_lateral' for i in range(3) for w in ('cls', 'bbox')} <= set(losses)
    model._parse_losses(losses)[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters()) and sum(float(c.weight.grad.abs().sum()) for c in model.neck.context_convs) > 0
    model.eval()
    with torch.inference_mode():
        both = model.simple_test(batch['img'], batch['img_metas'], rescale=True)
        alone = [model.simple_test(batch['img'][i:i + 1], batch['img_metas'][i:i + 1], rescale=True)[0] for i in range(2)]
        assert all(np.allclose(a, b, atol=1e-3) for x, y in zip(both, alone) for a, b in zip(x[0], y[0]) if a.shape == b.shape)
        assert len(model.aug_test([batch['img'][:1]] * 2, [batch['img_metas'][:1]] * 2, rescale=True)[0]) == 2


# C2, D5, D6, D7: many GPUs (here processes on the CPU), many machines, Slurm

@pytest.fixture(scope='module')
def shapes_run(tmp_path_factory):
    "A tiny RetinaNet on synthetic shapes, its weights, and an environment for commands"
    from test_distributed import CONFIG as TINY, root as project
    from detnb.cli.main import main
    from detnb.datasets.shapes import make_shapes
    folder = tmp_path_factory.mktemp('many')
    for seed, (name, n) in enumerate((('train', 8), ('val', 5))): make_shapes(folder, n, (96, 64), seed=seed, name=name, empty=0.)
    (folder/'tiny.py').write_text(TINY.format(root=str(folder)) + "runner = dict(max_epochs=1)\n")
    assert main(['train', str(folder/'tiny.py'), '--work-dir', str(folder/'one'), '--seed', '0', '--cfg-options', 'data.samples_per_gpu=4']) == 0
    env = {k: v for k, v in os.environ.items() if k not in ('NNODES', 'NODE_RANK', 'PORT', 'MASTER_ADDR', 'MASTER_PORT', 'GPUS', 'SRUN_ARGS')}
    return folder, {**env, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '-1', 'PYTHONPATH': f'{project}{os.pathsep}{env.get("PYTHONPATH", "")}',
                    'PATH': f'{Path(sys.executable).parent}{os.pathsep}{env["PATH"]}'}


def started(env, *command, **more):
    "A process that writes to a file: one that waits for its pipe to be read would keep another waiting"
    import subprocess, tempfile
    said = tempfile.TemporaryFile('w+')
    process = subprocess.Popen([str(c) for c in command], env={**env, **more}, stdout=said, stderr=subprocess.STDOUT, text=True)
    process.said = said
    return process


def ended(*processes):
    "What they said, when all have ended well; none goes on after a failure"
    import subprocess, time
    until = time.monotonic() + 500
    try:
        for p in processes: p.wait(max(1., until - time.monotonic()))
    except subprocess.TimeoutExpired: pass                      # told below
    finally:
        for p in processes: p.kill()
    for p in processes: p.wait(); p.said.seek(0)
    said = [p.said.read() for p in processes]
    assert [p.returncode for p in processes] == [0] * len(processes), '\n\n'.join(s[-4000:] for p, s in zip(processes, said) if p.returncode)
    return said


def trained_alike(a, b):
    "Two processes with two images train as one with four"
    ours, theirs = (torch.load(p/'latest.pth', weights_only=True)['state_dict'] for p in (a, b))
    assert all(torch.allclose(v.float(), theirs[k].float(), atol=2e-5) for k, v in ours.items())


detnb_command = (sys.executable, '-m', 'detnb.cli.main')


def test_C2_test_on_several_gpus(shapes_run, tmp_path):
    "dist_test.sh CONFIG CHECKPOINT GPUS; five images for two processes"
    import pickle
    from detnb.cli.main import main
    from detnb.foundation.distributed import free_port
    folder, env = shapes_run
    args = [folder/'tiny.py', folder/'one'/'latest.pth']
    ended(started(env, *detnb_command, 'dist', 'test', *args, 2, '--eval', 'bbox', '--out', tmp_path/'two.pkl', '--work-dir', tmp_path, PORT=str(free_port())))
    assert main(['test', *map(str, args), '--eval', 'bbox', '--out', str(tmp_path/'one.pkl'), '--work-dir', str(tmp_path/'alone')]) == 0
    one, two = (pickle.loads((tmp_path/f'{n}.pkl').read_bytes()) for n in ('one', 'two'))
    assert len(one) == len(two) == 5 and all(np.allclose(x, y, atol=1e-4) for a, b in zip(one, two) for x, y in zip(a, b))
    metrics = [json.loads(next(p.glob('eval_*.json')).read_text())['metric'] for p in (tmp_path, tmp_path/'alone')]
    assert metrics[0] == metrics[1] and 'bbox_mAP' in metrics[0]


def test_D5_two_jobs_on_one_machine(shapes_run, tmp_path):
    "dist_train.sh CONFIG GPUS, twice, with two ports; torchrun itself is the same"
    from detnb.foundation.distributed import free_port
    folder, env = shapes_run
    options = ['--work-dir', tmp_path/'a', '--no-validate']
    a = started(env, *detnb_command, 'dist', 'train', folder/'tiny.py', 2, *options, PORT=str(free_port()))
    b = started(env, sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={free_port()}', '-m', 'detnb.cli.main', 'train',
                folder/'tiny.py', '--seed', 0, '--launcher', 'pytorch', '--work-dir', tmp_path/'b')
    ended(a, b)
    for run in 'ab': trained_alike(tmp_path/run, folder/'one')
    logs = [json.loads(line) for f in (tmp_path/'b').glob('*.log.json') for line in open(f)]
    assert len(list((tmp_path/'b').glob('*.log'))) == 1 and 'bbox_mAP' in logs[-1]         # one process writes


LAST_WORDS = '''
import atexit, pathlib
atexit.register(lambda: print('threads while Python ends:', sorted((t/'comm').read_text().strip() for t in pathlib.Path('/proc/self/task').iterdir())))
'''


def test_D6_two_machines(shapes_run, tmp_path):
    "NNODES=2 NODE_RANK=0|1 PORT=... MASTER_ADDR=... dist_train.sh CONFIG GPUS, both on this machine; no thread of gloo outlives the run: it could abort Python's end"
    from detnb.foundation.distributed import free_port
    folder, env = shapes_run
    (tmp_path/'last_words.py').write_text(LAST_WORDS)
    (tmp_path/'tiny.py').write_text(f"_base_ = {str(folder/'tiny.py')!r}\ncustom_imports = dict(imports=['last_words'])\n")
    where = dict(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=str(free_port()), PYTHONPATH=f'{tmp_path}{os.pathsep}{env["PYTHONPATH"]}')
    said = ended(*[started(env, *detnb_command, 'dist', 'train', tmp_path/'tiny.py', 1, '--work-dir', tmp_path/'run', '--no-validate', **where, NODE_RANK=str(n)) for n in range(2)])
    trained_alike(tmp_path/'run', folder/'one')
    if Path('/proc/self/task').exists():
        for s in said: assert 'threads while Python ends: ' in s and 'gloo' not in s.split('threads while Python ends: ')[1].splitlines()[0], s[-2000:]


SRUN = '''#!/usr/bin/env bash
# stands for srun: two tasks on this machine
while [[ $1 == -* ]]; do shift; done
export SLURM_NTASKS=2 SLURM_NODELIST=localhost
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@"; wait $first
'''


def test_D7_slurm(shapes_run, tmp_path):
    "GPUS=2 slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR, with a port; what sbatch would run, run by bash with a stand-in for srun"
    from detnb.foundation.distributed import free_port
    folder, env = shapes_run
    (tmp_path/'srun').write_text(SRUN); (tmp_path/'srun').chmod(0o755)
    ended(started(env, *detnb_command, 'slurm', 'train', 'gpu', 'tiny_job', folder/'tiny.py', tmp_path/'run', '--seed', 0, '--no-validate',
                  '--cfg-options', f'dist_params.port={free_port()}', GPUS='2', SRUN_ARGS='--time=1:00:00'))
    script = tmp_path/'run'/'tiny_job.sbatch'
    lines = script.read_text().splitlines()
    assert {f'#SBATCH --{x}' for x in ('partition=gpu', 'job-name=tiny_job', 'ntasks=2', 'ntasks-per-node=2', 'gres=gpu:2', 'cpus-per-task=5', 'time=1:00:00')} <= set(lines)
    ended(started({**env, 'PATH': f'{tmp_path}:{env["PATH"]}'}, 'bash', script, SLURM_JOB_ID='77'))
    trained_alike(tmp_path/'run', folder/'one')
