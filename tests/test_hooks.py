"Hooks in whole runs: what a stop and a resume must not change, 16-bit arithmetic in shipped detectors, several processes"
import copy, json

import golden
import numpy as np
import pytest
import torch
from test_training import Line, StopAfter, keep_metas, points, run, same
from torch import nn
from torch.utils.data import DataLoader

from detnb.foundation.config import Config
from detnb.layers.precision import wrap_fp16_model
from detnb.models import build_detector
from detnb.training import EpochBasedRunner, SyncBuffersHook

STEPS = {'several batches': dict(type='GradientCumulativeOptimizerHook', cumulative_iters=4, grad_clip=dict(max_norm=5.)),
         'bfloat16': dict(type='Fp16OptimizerHook', dtype='bfloat16'),
         'float16': dict(type='Fp16OptimizerHook', dtype='float16', loss_scale=dict(init_scale=64., growth_interval=3)),
         'several batches in float16': dict(type='GradientCumulativeFp16OptimizerHook', cumulative_iters=4, dtype='float16', loss_scale='dynamic')}


@pytest.mark.parametrize('kind', ['EpochBasedRunner', 'IterBasedRunner'])
@pytest.mark.parametrize('step', STEPS)
def test_resume_needs_nothing_extra(tmp_path, step, kind):
    "Stopped in the middle of a group of batches, with a scale that grows: the weights of a run never stopped"
    how = dict(step=STEPS[step], hooks=[dict(type='LinearMomentumEMAHook', momentum=.1, priority=49)]) | ({} if kind[0] == 'E' else dict(max_iters=22))
    whole = run(tmp_path/'a', kind, **how)
    for n in (5, 11):
        run(tmp_path/str(n), kind, **{**how, 'hooks': [*how['hooks'], StopAfter(n, lambda r: r.stop())]})
        resumed = run(tmp_path/str(n), kind, seed=99, resume=tmp_path/str(n)/'latest.pth', **how)
        same(whole, resumed)
        assert resumed.meta.get('fp16') == whole.meta.get('fp16')
    if kind[0] == 'E': same(whole, run(tmp_path/'c', seed=99, resume=tmp_path/'a'/'epoch_1.pth', **how))    # after six iterations, in a group of four


def test_the_last_group_may_be_smaller(tmp_path):
    steps = []
    class Count(torch.optim.SGD):
        def step(self, *args, **kw): steps.append([p.grad.clone() for g in self.param_groups for p in g['params'] if p.grad is not None]); return super().step(*args, **kw)
    model = Line()
    runner = EpochBasedRunner(model, Count(model.parameters(), lr=.01), max_epochs=1, work_dir=str(tmp_path))
    runner.register_training_hooks(None, STEPS['several batches'])
    runner.run([DataLoader(points(), 2, collate_fn=keep_metas)])
    assert len(steps) == 2                                        # of four batches, and of two


@pytest.mark.parametrize('scale,after', [(512., 512.), ('dynamic', 32768.)])
def test_overflow_leaves_a_step_out(tmp_path, scale, after):
    class Huge(nn.Module):
        def __init__(self): super().__init__(); self.fc = nn.Linear(1, 1)
        def train_step(self, x, optimizer): return dict(loss=self.fc(x).float().sum() * 1e38, num_samples=1)
    model = Huge(); before = copy.deepcopy(model.state_dict())
    runner = EpochBasedRunner(model, torch.optim.SGD(model.parameters(), lr=1.), max_epochs=1, work_dir=str(tmp_path))
    runner.register_training_hooks(None, dict(type='Fp16OptimizerHook', dtype='float16', loss_scale=scale))
    runner.run([DataLoader([torch.ones(1) * 100])])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert runner.meta['fp16']['loss_scaler']['scale'] == after


def small(path, size=128):
    "A shipped detector with weights by formula, a small picture, and boxes to learn"
    cfg = Config.fromfile(path)
    golden.without_weights(cfg.model); golden.all_samples(cfg.model)
    model = golden.fill(build_detector(cfg.model, cfg.get('train_cfg'), cfg.get('test_cfg'))).eval()
    img, meta = golden.network_input(dict(height=size, width=size, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True))
    boxes = torch.tensor([[8., 8., 60., 70.], [40., 30., 120., 110.]])
    truth = dict(gt_bboxes=[boxes], gt_labels=[torch.tensor([0, 1])])
    if model.with_mask: truth['gt_masks'] = [golden.ellipses(boxes.tolist(), size, size)]
    return model, img, meta, truth


FAMILIES = ['retinanet/retinanet_r18_fpn_1x_coco.py', 'ssd/ssdlite_mobilenetv2_scratch_600e_coco.py', 'yolox/yolox_nano_8x8_300e_coco.py',
            'mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py']


@pytest.mark.parametrize('path', FAMILIES)
def test_losses_in_16_bits(path):
    "Near those of full precision, themselves in float32, with finite gradients in float32"
    model, img, meta, truth = small(path)
    full = model._parse_losses(model.forward_train(img.clone(), [dict(meta)], **truth))[1]
    with torch.autocast('cpu', dtype=torch.bfloat16): terms = model.forward_train(img.clone(), [dict(meta)], **truth)
    flat = {k: v if torch.is_tensor(v) else sum(v) for k, v in terms.items()}
    assert {k: v.dtype for k, v in flat.items() if 'loss' in k} == {k: torch.float32 for k in flat if 'loss' in k}
    drawn = .02 if 'mask' not in path else .06       # rounded proposals are other proposals: the second stage learns from others
    for k, v in flat.items():
        if 'loss' in k: assert float(v) == pytest.approx(full[k], rel=.05, abs=drawn), k
    sum(v.mean() for k, v in flat.items() if 'loss' in k).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)


def test_detections_in_16_bits():
    "A wrapped detector gives float32 boxes near those of full precision"
    model, img, meta, _ = small('mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py')
    with torch.no_grad():
        full = model(img=[img], img_metas=[[dict(meta)]], return_loss=False, rescale=True)[0]
        half = wrap_fp16_model(model)(img=[img], img_metas=[[dict(meta)]], return_loss=False, rescale=True)[0]
    a, b = np.concatenate(full[0]), np.concatenate(half[0])
    assert b.dtype == np.float32 and abs(len(a) - len(b)) <= .1 * len(a) and np.isfinite(b).all()
    assert not np.array_equal(a[:5], b[:5]) and len([m for ms in half[1] for m in ms]) == len(b)


def average_buffers(rank=None):
    import torch.distributed as dist
    model = nn.BatchNorm1d(2)
    model.running_mean.fill_(float(dist.get_rank())); model.num_batches_tracked.fill_(7)
    from types import SimpleNamespace
    SyncBuffersHook().after_train_epoch(SimpleNamespace(model=model))
    return model.running_mean.tolist(), int(model.num_batches_tracked)


def test_buffers_of_two_processes():
    from detnb.training.launch import launch
    assert launch(average_buffers, 2)[0] == ([.5, .5], 7)


@pytest.mark.parametrize('kind', ['HOOKS', 'RUNNERS', 'OPTIMIZERS', 'OPTIMIZER_BUILDERS', 'DATASETS', 'PIPELINES'])
def test_every_name_of_mmdetection_is_there_or_told(kind, project):
    "figures/registered.json has the names; those left out on purpose say why"
    from detnb import datasets, training
    from detnb.foundation.errors import Absent
    from detnb.training.absent import ABSENT
    registry = getattr(training, kind, None) or getattr(datasets, kind)
    names = json.loads((project/'tests'/'figures'/'registered.json').read_text())[kind]
    assert len(names) >= 2 and [n for n in names if n not in registry and n != 'Optimizer'] == []       # torch's base class, of no use
    left_out = [n for n in names if n in ABSENT.get(registry, ())]
    assert left_out == dict(HOOKS=['IPUFp16OptimizerHook', 'RFSearchHook'], RUNNERS=['IPUEpochBasedRunner', 'IPUIterBasedRunner']).get(kind, [])
    for name in left_out:
        with pytest.raises(Absent, match=f'{name} is not in detnb: .{{30}}'): registry.build(dict(type=name))


@pytest.mark.parametrize('wrong', [dict(momentum=0.), dict(momentum=1.), dict(interval=0)])
def test_an_average_that_would_not_move_is_refused(wrong):
    from detnb.training import EMAHook
    with pytest.raises(ValueError, match=f'{next(iter(wrong))} of EMAHook'): EMAHook(**wrong)
