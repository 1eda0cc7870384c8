"YOLOX from the config to the last epoch: pipelines, mixing, mode switch, averaged weights, resume"
from pathlib import Path

import numpy as np, pytest, torch

from detnb import Config
from detnb.apis import train_detector
from detnb.datasets import build_dataloader, build_dataset, make_shapes
from detnb.datasets.shapes import CLASSES, shapes_sample
from detnb.datasets.transforms import Compose, seeded
from detnb.foundation.config_dict import ConfigDict
from detnb.models import build_detector
from detnb.training import HOOKS, Hook
from golden import configs

MIXING = sorted(p.relative_to(configs).as_posix() for f in ('yolox', 'simple_copy_paste', 'strong_baselines') for p in (configs/f).glob('*.py'))


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes')
    make_shapes(folder, 12, (160, 120), seed=1, empty=.1)
    return folder


def on_shapes(data, folder):
    "A dataset's config, with the shapes for COCO's files"
    data = ConfigDict(data)
    at = data
    while 'dataset' in at: at = at.dataset
    at.update(ann_file=str(folder/'train.json'), img_prefix=str(folder/'train'), classes=CLASSES)
    return data


def smaller(cfg, old, new):
    "Every size in the pipelines that is `old`, as `new`: the full ones are slow to draw"
    def visit(o):
        if isinstance(o, dict): return {k: visit(v) for k, v in o.items()}
        if isinstance(o, tuple) and set(o) == {old}: return (new, new)
        if isinstance(o, tuple) and set(o) == {-old // 2}: return (-new // 2, -new // 2)
        return type(o)(visit(v) for v in o) if isinstance(o, (list, tuple)) else o
    return visit(cfg)


@pytest.mark.parametrize('path', MIXING)
def test_pipelines_run(path, shapes):
    "Training and test pipelines of every config, two images each, at a quarter of their size"
    cfg = Config.fromfile(path)
    big = 640 if path.startswith('yolox') else 1024
    dataset = build_dataset(on_shapes(smaller(cfg.data.train, big, big // 4), shapes))
    for i in (0, 5):
        with seeded(i): sample = dataset[i]
        assert sample['img'].shape == (3, big // 4, big // 4) and sample['img'].dtype == torch.float32
        assert len(sample['gt_bboxes']) == len(sample['gt_labels']) == len(sample.get('gt_masks', sample['gt_labels']))
        assert (sample['gt_bboxes'] >= 0).all() and (sample['gt_bboxes'] <= big // 4).all()
    batch = next(iter(build_dataloader(dataset, 2, 0, dist=False, seed=0)))
    assert batch['img'].shape == (2, 3, big // 4, big // 4)
    test = build_dataset(on_shapes(cfg.data.test, shapes), dict(test_mode=True))[0]
    assert len(test['img']) == len(test['img_metas']) == 1 and test['img'][0].shape[0] == 3


def tiny(folder, work_dir, epochs=3):
    "A YOLOX of a few thousand weights on the shapes, as its configs are made"
    cfg = Config.fromfile('yolox/yolox_tiny_8x8_300e_coco.py')
    cfg.model = ConfigDict(cfg.model, backbone=dict(cfg.model.backbone, widen_factor=.125), input_size=(64, 64), random_size_range=(1, 3), random_size_interval=2,
                           neck=dict(cfg.model.neck, in_channels=[32, 64, 128], out_channels=32),
                           bbox_head=dict(cfg.model.bbox_head, num_classes=5, in_channels=32, feat_channels=32))
    data = ConfigDict(smaller(cfg.data, 640, 64))
    for part in ('train', 'val', 'test'): data[part] = on_shapes(data[part], folder)
    data.update(samples_per_gpu=4, workers_per_gpu=0, persistent_workers=False)
    cfg.data, cfg.work_dir, cfg.seed, cfg.runner.max_epochs = data, str(work_dir), 3, epochs
    cfg.lr_config.update(num_last_epochs=1, warmup_iters=1)
    cfg.checkpoint_config = dict(interval=1)
    cfg.custom_hooks = [dict(h, num_last_epochs=1) if 'num_last_epochs' in h else dict(h) for h in cfg.custom_hooks]
    cfg.optimizer.lr, cfg.log_config.interval, cfg.device = .001, 1, 'cpu'
    return cfg


@HOOKS.register_module(force=True)
class StopAfter(Hook):
    def __init__(self, iters): self.iters = iters
    def after_train_iter(self, runner):
        if runner.iter + 1 == self.iters: runner.stop()


def train(cfg):
    from detnb.training import set_random_seed
    set_random_seed(cfg.seed)
    model = build_detector(cfg.model)
    model.init_weights()
    dataset = build_dataset(cfg.data.train)
    model.CLASSES = dataset.CLASSES
    return train_detector(model, dataset, cfg)


def test_end_to_end(shapes, tmp_path):
    "Losses are finite, mixing ends and L1 begins, a checkpoint holds the averages, and a run that goes on ends like one that never stopped"
    whole = train(tiny(shapes, tmp_path/'whole'))
    records = [r for r in whole.log if 'loss' in r]
    assert all(np.isfinite(r['loss']) for r in records)
    assert [('loss_l1' in r) for r in records if r['epoch'] == 1] == [False] * 3 and all('loss_l1' in r for r in records if r['epoch'] > 1)
    assert whole.data_loader.dataset._skip_type_keys == ['Mosaic', 'RandomAffine', 'MixUp']
    want = whole.model.state_dict()
    assert any((want[k] != want['ema_' + k.replace('.', '_')]).any() for k in want if k.startswith('bbox_head') and k.endswith('weight'))

    later = tiny(shapes, tmp_path/'later'); later.resume_from = str(tmp_path/'whole'/'epoch_2.pth')
    first = tiny(shapes, tmp_path/'first'); first.custom_hooks = [*first.custom_hooks, dict(type='StopAfter', iters=5)]
    train(first)
    midway = tiny(shapes, tmp_path/'midway'); midway.resume_from = str(tmp_path/'first'/'interrupted.pth')
    for cfg in (later, midway):
        got = train(cfg).model.state_dict()
        assert got.keys() == want.keys()
        assert not [k for k in want if not torch.equal(got[k], want[k])], cfg.work_dir


def test_training_step_leaves_the_batch_alone():
    "Boxes and pictures of the caller stay, an empty image and one box train, at any size"
    model = build_detector(tiny(Path('none'), 'none').model)
    model.init_weights()
    img, metas = torch.rand(3, 3, 64, 64) * 255, [dict(img_shape=(64, 64, 3), scale_factor=1.) for _ in range(3)]
    boxes, labels = [torch.tensor([[5., 5, 30, 40]]), torch.zeros(0, 4), torch.rand(6, 4) * 30 + torch.tensor([0., 0, 31, 31])], [torch.zeros(n, dtype=torch.long) for n in (1, 0, 6)]
    before = img.clone(), [b.clone() for b in boxes]
    for size in (32, 64, 96):
        model._input_size = (size, size)
        out = model.train_step(dict(img=img, img_metas=metas, gt_bboxes=boxes, gt_labels=labels))
        out['loss'].backward()
        assert torch.isfinite(out['loss']) and all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert torch.equal(img, before[0]) and all(torch.equal(a, b) for a, b in zip(boxes, before[1]))


def test_masks_follow_random_affine_and_stay_out_of_mosaic():
    with seeded(0): out = Compose([dict(type='RandomAffine', max_rotate_degree=0, max_shear_degree=0)])(shapes_sample(2))
    assert len(out['gt_masks']) == len(out['gt_bboxes'])
    with pytest.raises(NotImplementedError, match='gt_masks'):
        Compose([dict(type='Mosaic', img_scale=(64, 64))])(dict(shapes_sample(2), mix_results=[shapes_sample(i) for i in range(3)]))


def test_no_partner_to_be_found(shapes):
    "The error says which transform wanted partners"
    data = on_shapes(Config.fromfile(next(p for p in MIXING if 'ssj_scp' in p)).data.train, shapes)
    data.dataset.pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
    with pytest.raises(KeyError, match='no gt_masks') as e: build_dataset(data)[0]
    assert 'CopyPaste, step 1 of 4' in ''.join(getattr(e.value, '__notes__', [str(e.value)]))


def in_two_processes(folder):
    import random
    from types import SimpleNamespace
    from torch import distributed as dist, nn
    rank = dist.get_rank()
    random.seed(rank)
    model = build_detector(tiny(folder, folder/'none').model)
    sizes = [model._random_resize() for _ in range(6)]
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(2))
    net[0].weight.data.fill_(rank); net[1].running_mean.fill_(rank); net[1].num_batches_tracked.fill_(4 * rank)
    runner, hook = SimpleNamespace(model=net, epoch=0, max_epochs=9), HOOKS.build(dict(type='SyncNormHook', num_last_epochs=2, interval=5))
    seen = []
    for runner.epoch in (0, 6):                    # neither a fifth epoch; the second is one of the last
        hook.before_train_epoch(runner); hook.after_train_epoch(runner)
        seen.append([net[0].weight.item(), net[1].running_mean[0].item(), net[1].num_batches_tracked.item()])
    return sizes, seen


def test_two_processes_agree(shapes):
    "On the next size of the pictures, though each has its own dice, and on the norms in the last epochs"
    from detnb.training.launch import launch
    (sizes, first), (others, second) = launch(in_two_processes, 2, shapes)
    assert sizes == others and len({tuple(s) for s in sizes}) > 1
    assert first == [[0, 0, 0], [0, .5, 2]] and second == [[1, 1, 4], [1, .5, 2]]
