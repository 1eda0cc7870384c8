"Runner, schedules, optimizers, resume and failures, on models small enough to train in a moment"
import gzip, json, math, os, random, signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from detnb.foundation.config import Config
from detnb.training import (HOOKS, EpochBasedRunner, EvalHook, Hook, InvalidLossError, IterBasedRunner, build_optimizer, build_runner,
                            find_latest_checkpoint, set_random_seed)
from detnb.training.schedule_hooks import _Counters, _Groups

FIGURES = Path(__file__).parent/'figures'


def figures(name):
    with gzip.open(FIGURES/f'{name}.json.gz') as f: return json.load(f)


# schedules

def lr_at(entry, by_iteration_where_unsaid):
    "Learning rates at the figure's iterations, from the hook that the runner would register"
    from detnb.training.hook_keeping import hook_config
    config, runner = dict(entry['lr_config']), entry['runner']
    if by_iteration_where_unsaid: config.setdefault('by_epoch', False)
    hook, groups = HOOKS.build(hook_config(config, 'LrUpdaterHook')), _Groups(lr=entry['base_lr'])
    length = entry['iters_per_epoch']
    at = _Counters(groups, runner.get('max_epochs', 1), length or runner['max_iters'])
    hook.before_run(at)
    values, wanted, epoch = [], [i for i, _ in entry['points']], -1
    for at.iter in range(at.max_iters) if length else wanted:
        if length and at.iter // length != epoch:
            epoch = at.epoch = at.iter // length
            hook.before_train_epoch(at)
        hook.before_train_iter(at)
        if at.iter in wanted: values.append(groups.param_groups[0]['lr'])
    return values


@pytest.mark.parametrize('entry', figures('lr_schedules'), ids=lambda e: e['example'])
def test_schedule_equals_mmdetection(entry):
    np.testing.assert_allclose(lr_at(entry, False), [v for _, v in entry['points']], rtol=2e-6)


def test_iteration_runner_counts_iterations_where_the_config_does_not_say():
    "The figures of such configs were taken from the hook alone (flat); through register_training_hooks it warms up and steps"
    entry = next(e for e in figures('lr_schedules') if e['example'].startswith('faster_rcnn/faster_rcnn_r50_caffe_fpn_90k'))
    lr = dict(zip([i for i, _ in entry['points']], lr_at(entry, True)))
    assert lr[0] == pytest.approx(2e-5) and lr[500] == pytest.approx(.02) and lr[60750] == pytest.approx(.002) and lr[89999] == pytest.approx(2e-4)
    runner = IterBasedRunner(Line(), torch.optim.SGD([torch.zeros(1)], lr=1.), max_iters=5)
    runner.register_training_hooks(dict(policy='step', step=[3]), {}, dict(interval=1), dict(interval=1, hooks=[dict(type='TextLoggerHook')]))
    assert [h.by_epoch for h in runner.hooks if hasattr(h, 'by_epoch')] == [False] * 3


# optimizers

def built(name):
    from detnb.models import build_detector
    cfg = Config.fromfile(name)
    with torch.device('meta'): return cfg, build_detector(cfg.model, cfg.get('train_cfg'), cfg.get('test_cfg'))


def stand_in(structure, names, kind):
    "A module with the parameters of a detector that is not here yet: names, shapes, which are frozen, which belong to norm layers"
    shapes, model = dict(structure['state_dict']), nn.Module()
    model.backbone = type(kind, (nn.Module,), {})()
    for name in names:
        at, (*way, leaf) = model, name.split('.')
        norm = leaf in ('weight', 'bias') and len(shapes['.'.join([*way, 'weight'])]) == 1
        for i, part in enumerate(way):
            layer = nn.LayerNorm(1, elementwise_affine=False) if norm and i + 1 == len(way) else nn.Module()
            if part == 'conv_offset': at.__class__ = type('ModulatedDeformConv2d', (nn.Module,), {})
            if part not in at._modules: at.add_module(part, layer)
            at = at._modules[part]
        setattr(at, leaf, nn.Parameter(torch.empty(shapes[name], device='meta'), name not in structure['frozen']))
    return model


@pytest.mark.parametrize('entry', figures('param_groups'), ids=lambda e: e['config'])
def test_parameter_groups_equal_mmdetection(entry):
    structures = figures('structures_to_come')
    try: cfg, model = built(entry['config'])
    except (FileNotFoundError, KeyError):
        backbone = 'ConvNeXt' if entry['config'].startswith('convnext') else 'Backbone'
        model = stand_in(structures[entry['config']], [n for g in entry['groups'] for n in g['params']], backbone)
    optimizer = build_optimizer(model, {**entry['optimizer']})
    names = {id(p): n for n, p in model.named_parameters()}
    groups = lambda gs: {(f'{lr:.6g}', f'{wd:.6g}'): sorted(ps) for lr, wd, ps in gs}
    ours = {}
    for g in optimizer.param_groups: ours.setdefault((g['lr'], g['weight_decay']), []).extend(names[id(p)] for p in g['params'])
    assert groups((*k, v) for k, v in ours.items()) == groups((g['lr'], g['weight_decay'], g['params']) for g in entry['groups'])


def test_stand_ins_are_like_the_detectors():
    "For a detector that is here, its stand-in gets the same groups: names and shapes tell which layers are norms"
    entry = next(e for e in figures('param_groups') if e['config'].startswith('yolox'))
    model = built(entry['config'])[1]
    structure = dict(state_dict=[[k, list(v.shape)] for k, v in model.state_dict().items()], frozen=[])
    twin = stand_in(structure, [n for n, _ in model.named_parameters()], 'Backbone')
    def groups(m):
        names = {id(p): n for n, p in m.named_parameters()}
        return sorted((g['lr'], g['weight_decay'], sorted(names[id(p)] for p in g['params'])) for g in build_optimizer(m, {**entry['optimizer']}).param_groups)
    assert groups(model) == groups(twin)


class DeformConv2d(nn.Module):
    def __init__(self): super().__init__(); self.weight, self.conv_offset = nn.Parameter(torch.zeros(4, 4, 3, 3)), nn.Conv2d(4, 18, 3)


def test_rules_of_layers():
    net = nn.Module()
    net.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), DeformConv2d())
    net.head = nn.Conv2d(4, 4, 3, groups=4)
    rules = dict(bias_lr_mult=2., bias_decay_mult=0., norm_decay_mult=.5, dwconv_decay_mult=.25, dcn_offset_lr_mult=.1,
                 custom_keys={'backbone.0': dict(lr_mult=3.), 'backbone': dict(lr_mult=5., decay_mult=7.)})
    def settings(**kw):
        opt = build_optimizer(net, dict(type='SGD', lr=1., weight_decay=1., paramwise_cfg=kw))
        found = {id(p): (g['lr'], g['weight_decay']) for g in opt.param_groups for p in g['params']}
        return {n: found[id(p)] for n, p in net.named_parameters()}
    custom = rules.pop('custom_keys')
    plain = settings(**rules)
    assert plain == {'backbone.0.weight': (1, 1), 'backbone.0.bias': (2, 0), 'backbone.1.weight': (1, .5), 'backbone.1.bias': (1, .5),
                     'backbone.2.weight': (1, 1), 'backbone.2.conv_offset.weight': (.1, 1), 'backbone.2.conv_offset.bias': (.1, 1),
                     'head.weight': (1, .25), 'head.bias': (2, .25)}
    with_custom = settings(**rules, custom_keys=custom)
    assert with_custom['backbone.0.bias'] == (3, 1) and with_custom['backbone.2.conv_offset.weight'] == (5, 7)
    assert with_custom['head.bias'] == (2, .25)


# a whole run in miniature

class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.norm = nn.Parameter(torch.zeros(4)), nn.BatchNorm1d(1)
    def train_step(self, data, optimizer=None):
        x = self.norm(data['x'].float()[:, None])[:, 0] + torch.randn(()) * .1 + random.random() * .1 + np.random.rand() * .1
        loss = (self.w.sum() * x - data['y']).square().mean()
        return dict(loss=loss, log_vars=dict(loss_fit=loss.detach(), loss=loss.detach()), num_samples=len(data['x']))
    val_step = train_step


class Points(list):
    CLASSES = None
    def evaluate(self, results, logger=None, **kw): np.random.rand(); return dict(mAP=len(results) / 100)


def points(n=12): return Points(dict(x=float(i), y=2. * i + random.random(), img_metas=dict(filename=f'{i}.jpg')) for i in range(n))


def keep_metas(samples):
    batch = torch.utils.data.default_collate([{k: s[k] for k in 'xy'} for s in samples])
    return {**batch, 'img_metas': [s['img_metas'] for s in samples]}


def run(folder, kind='EpochBasedRunner', hooks=(), seed=1, workers=0, resume=None, evaluate=True, data=None, step=None, **kw):
    set_random_seed(0)
    data = data if data is not None else points()
    set_random_seed(seed)
    model = Line()
    optimizer = build_optimizer(model, dict(type='Adam', lr=.05, weight_decay=.01, paramwise_cfg=dict(norm_decay_mult=0.)))
    runner = build_runner(dict(type=kind, **(kw or dict(max_epochs=4))), dict(model=model, optimizer=optimizer, work_dir=str(folder)))
    runner.register_training_hooks(dict(policy='poly', power=.9, warmup='linear', warmup_iters=5, warmup_ratio=.1),
                                   step or dict(grad_clip=dict(max_norm=5.)), dict(interval=1), dict(interval=2, hooks=[dict(type='TextLoggerHook')]),
                                   dict(policy='CosineAnnealing', min_momentum=.5), custom_hooks_config=list(hooks))
    if evaluate:
        runner.register_hook(EvalHook(DataLoader(data), by_epoch=kind[0] == 'E', interval=1 if kind[0] == 'E' else 3, save_best='mAP',
                                      test_fn=lambda m, loader: [np.random.rand() for _ in loader]), 'LOW')
    if resume: runner.resume(str(resume))
    runner.run([DataLoader(data, 2, shuffle=True, num_workers=workers, collate_fn=keep_metas)])
    return runner


def same(a, b):
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())
    for p, q in zip(a.model.parameters(), b.model.parameters()):
        for k, v in a.optimizer.state[p].items(): assert torch.equal(torch.as_tensor(v), torch.as_tensor(b.optimizer.state[q][k])), k


class StopAfter(Hook):
    def __init__(self, n, how): self.n, self.how = n, how
    def after_train_iter(self, runner):
        if runner.iter + 1 == self.n: self.how(runner)


def test_files_of_a_run(tmp_path):
    runner = run(tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    stamp = runner.timestamp
    assert names == [f'{stamp}.log.json', 'best_mAP_epoch_1.pth', 'epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth', 'epoch_4.pth', 'latest.pth']
    assert (tmp_path/'latest.pth').resolve().name == 'epoch_4.pth'
    ckpt = torch.load(tmp_path/'epoch_2.pth', weights_only=True)
    assert ckpt['meta']['epoch'] == 2 and ckpt['meta']['iter'] == 12 and set(ckpt) >= {'meta', 'state_dict', 'optimizer'}
    lines = [json.loads(line) for line in open(tmp_path/f'{stamp}.log.json')][1:]
    assert [r['mode'] for r in lines] == ['train'] * 3 + ['val'] + (['train'] * 3 + ['val']) * 3
    assert set(lines[0]) >= {'mode', 'epoch', 'iter', 'lr', 'data_time', 'time', 'loss', 'loss_fit', 'grad_norm'}
    assert lines[0]['epoch'] == 1 and lines[0]['iter'] == 2 and lines[3]['mAP'] == .12 and lines == runner.log


@pytest.mark.parametrize('n', [1, 6, 9, 17])
@pytest.mark.parametrize('workers', [0, 1])
def test_resume_after_a_stop_gives_the_same_weights(tmp_path, n, workers):
    if workers and n != 9: pytest.skip('one such case is enough')
    whole = run(tmp_path/'a', workers=workers)
    run(tmp_path/'b', workers=workers, hooks=[StopAfter(n, lambda r: r.stop())])
    resumed = run(tmp_path/'b', workers=workers, seed=99, resume=find_latest_checkpoint(tmp_path/'b'))
    same(whole, resumed)


def test_resume_from_an_epoch_and_without_evaluation(tmp_path):
    whole = run(tmp_path/'a')
    same(whole, run(tmp_path/'b', seed=5, resume=tmp_path/'a'/'epoch_2.pth'))
    same(whole, run(tmp_path/'c', evaluate=False))        # evaluation leaves no trace in the weights


@pytest.mark.parametrize('n', [4, 8, 14])
def test_resume_by_iteration(tmp_path, n):
    whole = run(tmp_path/'a', 'IterBasedRunner', max_iters=15)
    run(tmp_path/'b', 'IterBasedRunner', hooks=[StopAfter(n, lambda r: r.stop())], max_iters=15)
    same(whole, run(tmp_path/'b', 'IterBasedRunner', seed=99, resume=tmp_path/'b'/'latest.pth', max_iters=15))
    assert [r['iter'] for r in whole.log if r['mode'] == 'val'] == [12] * 5         # batches of the evaluation


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    with pytest.raises(KeyboardInterrupt, match='resume_from=.*interrupted.pth'):
        run(tmp_path, hooks=[StopAfter(8, lambda r: os.kill(os.getpid(), signal.SIGINT))])
    meta = torch.load(tmp_path/'latest.pth', weights_only=True)['meta']
    assert (meta['epoch'], meta['iter'], meta['inner_iter']) == (1, 8, 2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_an_evaluation_loses_no_epoch(tmp_path):
    class Stop(Hook):
        def before_run(self, runner):
            hook = next(h for h in runner.hooks if isinstance(h, EvalHook))
            hook.test_fn = lambda m, loader: os.kill(os.getpid(), signal.SIGINT) or [signal.pause()]
    with pytest.raises(KeyboardInterrupt): run(tmp_path, hooks=[Stop()])
    meta = torch.load(tmp_path/'latest.pth', weights_only=True)['meta']
    assert (meta['epoch'], meta['iter'], meta['inner_iter']) == (1, 6, 0)
    same(run(tmp_path/'a'), run(tmp_path/'b', seed=3, resume=tmp_path/'latest.pth'))


def test_a_stop_in_the_last_iteration_of_an_epoch_does_not_wait_for_its_evaluation(tmp_path):
    runner = run(tmp_path, hooks=[StopAfter(12, lambda r: r.stop())])
    assert [r['mode'] for r in runner.log].count('val') == 1
    meta = torch.load(tmp_path/'latest.pth', weights_only=True)['meta']
    assert (meta['epoch'], meta['iter'], meta['inner_iter']) == (2, 12, 0)


def test_nan_loss_stops_and_names_loss_and_images(tmp_path):
    data = points()
    data[7]['y'] = math.nan
    with pytest.raises(InvalidLossError, match=r'loss_fit is nan in iteration \d+; images: .*7\.jpg'): run(tmp_path, data=data)
    weights = [torch.load(p, weights_only=True)['state_dict'] for p in tmp_path.glob('*.pth')]
    assert all(v.isfinite().all() for w in weights for v in w.values())


def test_errors_carry_hook_and_images(tmp_path):
    class Broken(Hook):
        def after_train_iter(self, runner): raise RuntimeError('boom')
    with pytest.raises(RuntimeError, match='boom') as e: run(tmp_path, hooks=[Broken()])
    assert 'Broken.after_train_iter' in '\n'.join(getattr(e.value, '__notes__', [str(e.value)]))

    class Fails(Line):
        def train_step(self, data, optimizer): raise RuntimeError('shapes')
    runner = EpochBasedRunner(Fails(), None, max_epochs=1)
    with pytest.raises(RuntimeError) as e: runner.run([DataLoader(points(), 2, collate_fn=keep_metas)])
    assert '0.jpg, 1.jpg' in '\n'.join(getattr(e.value, '__notes__', [str(e.value)]))


def test_order_of_hooks(tmp_path):
    order = []
    class Watch(Hook):
        def __init__(self, name): self.name = name
        def __getattribute__(self, k):
            if k.startswith(('before_', 'after_')): return lambda runner: order.append((self.name, k))
            return object.__getattribute__(self, k)
    runner = EpochBasedRunner(Line(), None, max_epochs=1)
    for name, p in (('late', 'LOW'), ('soon', 'HIGH')): runner.register_hook(Watch(name), p)
    runner.run([DataLoader(points(4), 2, collate_fn=keep_metas)] * 2, [('train', 1), ('val', 1)])
    places = [k for name, k in order if name == 'soon']
    iters = ['before_train_iter', 'after_train_iter'] * 2
    vals = ['before_val_iter', 'after_val_iter'] * 2
    assert places == ['before_run', 'before_train_epoch', *iters, 'after_train_epoch', 'before_val_epoch', *vals, 'after_val_epoch', 'after_run']
    assert [name for name, _ in order] == ['soon', 'late'] * len(places)


def test_optimizer_state_of_one_group_a_parameter(tmp_path):
    "MMDetection makes a group for each parameter where there are rules; such a state is renumbered"
    whole = run(tmp_path/'a')
    ckpt = torch.load(tmp_path/'a'/'epoch_2.pth', weights_only=True)
    place = {id(p): i for i, p in enumerate(whole.model.parameters())}
    order = [place[id(p)] for g in whole.optimizer.param_groups for p in g['params']]
    ours, groups = ckpt['optimizer'], {}
    for g in ours['param_groups']:
        for i in g['params']: groups[order[i]] = {**g, 'params': [order[i]]}
    ckpt['optimizer'] = dict(state={order[i]: v for i, v in ours['state'].items()}, param_groups=[groups[i] for i in sorted(groups)])
    torch.save(ckpt, tmp_path/'theirs.pth')
    same(whole, run(tmp_path/'b', seed=9, resume=tmp_path/'theirs.pth'))


def test_fp16_config_trains_on_the_cpu(tmp_path):
    for dtype in ('auto', 'bfloat16'):
        runner = EpochBasedRunner(Line(), torch.optim.SGD(Line().parameters(), lr=.01), max_epochs=1, work_dir=str(tmp_path))
        runner.optimizer = torch.optim.SGD(runner.model.parameters(), lr=.01)
        runner.register_training_hooks(None, dict(type='Fp16OptimizerHook', loss_scale=512., dtype=dtype))
        runner.run([DataLoader(points(), 2, collate_fn=keep_metas)])
        assert runner.model.w.abs().sum() > 0 and runner.model.w.dtype == torch.float32


def test_wrong_names_are_told():
    runner = EpochBasedRunner(Line(), None, max_epochs=1)
    with pytest.raises(KeyError, match='StepLrUpdaterHook'): runner.register_lr_hook(dict(policy='stepp', step=[1]))
    with pytest.raises(KeyError, match='EpochBasedRunner'): build_runner(dict(type='EpochBaseRunner', max_epochs=1), dict(model=Line()))
    with pytest.raises(TypeError, match='max_keep_ckpts'): runner.register_checkpoint_hook(dict(interval=1, max_keep_ckpt=2))


class Judged(Points):
    "Points whose evaluations give one score after the other, and are counted"
    def __init__(self, samples, scores): super().__init__(samples); self.scores, self.asked = list(scores), 0
    def evaluate(self, results, logger=None, **kw): self.asked += 1; return dict(mAP=self.scores.pop(0))


class KillBefore(Hook):
    "The power goes: an error after the checkpoint, before or after the evaluation"
    def __init__(self, at, priority): self.at, self.priority = at, priority
    def after_train_iter(self, runner):
        if runner.max_epochs is None and runner.iter + 1 == self.at: raise OSError('no power')
    def after_train_epoch(self, runner):
        if runner.max_epochs and runner.epoch + 1 == self.at: raise OSError('no power')


@pytest.mark.parametrize('kind, end, at', [('EpochBasedRunner', dict(max_epochs=4), 2), ('EpochBasedRunner', dict(max_epochs=4), 4),
                                           ('IterBasedRunner', dict(max_iters=12), 6), ('IterBasedRunner', dict(max_iters=12), 12)])
@pytest.mark.parametrize('evaluated', [False, True])
def test_a_kill_around_an_evaluation_loses_no_best_mark(tmp_path, kind, end, at, evaluated):
    "An evaluation that the kill came before is made up for; one that the log tells of is not made twice; the best weights are those of a whole run"
    scores = [.1, .5, .3, .4] if at in (2, 6) else [.1, .2, .3, .5]         # the killed one is the best
    step, unit = (1, 'epoch') if kind[0] == 'E' else (3, 'iter')
    n, samples = at // step, points()
    whole = run(tmp_path/'a', kind, data=Judged(samples, scores), **end)
    with pytest.raises(OSError, match='no power'):
        run(tmp_path/'b', kind, hooks=[KillBefore(at, 'LOWEST' if evaluated else 'BELOW_NORMAL')],
            data=Judged(samples, scores), **end)
    rest = Judged(samples, scores[n - (not evaluated):])
    resumed = run(tmp_path/'b', kind, seed=99, resume=find_latest_checkpoint(tmp_path/'b'), data=rest, **end)
    assert rest.asked == 4 - n + (not evaluated)
    best = resumed.meta['hook_msgs']
    assert best['best_score'] == .5 == whole.meta['hook_msgs']['best_score'] and Path(best['best_ckpt']).name == f'best_mAP_{unit}_{at}.pth'
    weights = [torch.load(tmp_path/x/f'best_mAP_{unit}_{at}.pth', weights_only=True)['state_dict'] for x in 'ab']
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
    same(whole, resumed)
    told = [r['mAP'] for log in sorted((tmp_path/'b').glob('*.log.json')) for r in map(json.loads, log.read_text().splitlines()) if r.get('mode') == 'val']
    assert sorted(told) == sorted(scores)


def test_a_log_of_an_older_run_does_not_count(tmp_path):
    "A run anew in the same folder, killed before its second evaluation: the old run's figure of that epoch is not its own"
    run(tmp_path, data=Judged(points(), [.9, .9, .9, .9]), max_epochs=4)
    for log in tmp_path.glob('*.log.json'): os.utime(log.rename(tmp_path/'old.log.json'), (1e9, 1e9))
    with pytest.raises(OSError): run(tmp_path, hooks=[KillBefore(2, 'BELOW_NORMAL')], data=Judged(points(), [.1, .2]), max_epochs=4)
    new = max(tmp_path.glob('*.log.json'), key=lambda p: p.stat().st_mtime)
    rest = Judged(points(), [.2, .3, .4])
    resumed = run(tmp_path, resume=tmp_path/'epoch_2.pth', data=rest, max_epochs=4)
    assert rest.asked == 3 and resumed.meta['hook_msgs']['best_score'] == .4 and new.exists()


@pytest.mark.parametrize('kind, end', [('EpochBasedRunner', dict(max_epochs=2)), ('IterBasedRunner', dict(max_iters=6))])
def test_the_evaluation_before_training_is_in_the_log(tmp_path, kind, end):
    "start=0: its line comes first, once, also where validation losses are measured; a resumed run does not repeat it"
    data = Judged(points(), [.1, .2, .3])
    def again(seed, resume=None):
        set_random_seed(seed)
        runner = build_runner(dict(type=kind, **end), dict(model=(model := Line()), optimizer=build_optimizer(model, dict(type='SGD', lr=.01)), work_dir=str(tmp_path)))
        runner.register_training_hooks(None, {}, dict(interval=1), dict(interval=3, hooks=[dict(type='TextLoggerHook')]))
        runner.register_hook(EvalHook(DataLoader(data), start=0, interval=1 if kind[0] == 'E' else 3, by_epoch=kind[0] == 'E', save_best='mAP', test_fn=lambda m, loader: []), 'LOW')
        if resume: runner.resume(str(resume))
        runner.run([DataLoader(data, 2, collate_fn=keep_metas)])
        return runner
    first = again(0)
    assert [(r['mode'], r['epoch'], r.get('mAP')) for r in first.log[:2]] == [('val', 0, .1), ('train', 1, None)]
    assert data.asked == 3 and [r['mAP'] for r in first.log if r['mode'] == 'val'] == [.1, .2, .3]
    data.scores = [.4] * 9
    assert [r.get('mAP') for r in again(0, tmp_path/('epoch_1.pth' if kind[0] == 'E' else 'iter_3.pth')).log if r['mode'] == 'val'] == [.4] and data.asked == 4


@pytest.mark.parametrize('kind, step, end', [('EpochBasedRunner', 1, dict(max_epochs=6)), ('IterBasedRunner', 3, dict(max_iters=18))])
@pytest.mark.parametrize('evaluated', [False, True])
def test_early_stopping_judges_an_evaluation_that_a_kill_hid(tmp_path, kind, step, end, evaluated):
    "The fourth ends the run; the kill came before it, or before a checkpoint knew of it"
    scores, stop, samples = [.5, .1, .1, .1, .9, .9], dict(type='EarlyStoppingHook', monitor='mAP', patience=3), points()
    whole = run(tmp_path/'a', kind, hooks=[stop], data=Judged(samples, scores), **end)
    assert whole.iter == 4 * (6 if kind[0] == 'E' else 3)
    with pytest.raises(OSError):
        run(tmp_path/'b', kind, hooks=[KillBefore(4 * step, 'LOWEST' if evaluated else 'BELOW_NORMAL'), stop], data=Judged(samples, scores), **end)
    resumed = run(tmp_path/'b', kind, hooks=[stop], seed=9, resume=find_latest_checkpoint(tmp_path/'b'), data=Judged(samples, scores[4 - (not evaluated):]), **end)
    same(whole, resumed)
    assert resumed.iter == whole.iter and resumed.meta['hook_msgs']['early_stopping'] == whole.meta['hook_msgs']['early_stopping'] == dict(best=.5, waited=3, last=4 * step)
    if kind[0] == 'E': assert run(tmp_path/'b', kind, hooks=[stop], resume=tmp_path/'b'/'latest.pth', data=Judged(samples, []), **end).iter == whole.iter


def test_after_an_error_hooks_put_away_what_is_open(tmp_path, monkeypatch):
    "A bar lets the log speak again, a profiler ends, a tracker's run is marked as failed; a hook that fails there too is told in a note"
    from detnb.foundation.logging import CellHandler
    from detnb.training import ProgressHook
    from detnb.training.trackers import TrackerHook
    ends = []
    class Tracked(TrackerHook):
        package = 'json'
        def connect(self, runner): ends.append('begun')
        def close(self, runner): ends.append('closed')
        def abandon(self, runner): ends.append('failed')
    class Broken(Hook):
        def after_train_iter(self, runner): raise RuntimeError('boom')
        def after_failure(self, runner): raise OSError('and again')
    class Early(Hook):
        def before_run(self, runner): raise RuntimeError('too early')
    def begin(*hooks):
        runner = build_runner(dict(type='EpochBasedRunner', max_epochs=1), dict(model=Line(), optimizer=None, work_dir=str(tmp_path)))
        runner.logger.addHandler(cell)
        for h in hooks: runner.register_hook(h)
        try: runner.run([DataLoader(points(4), 2, collate_fn=keep_metas)])
        finally: runner.logger.removeHandler(cell)
    cell = CellHandler()
    profiler = HOOKS.build(dict(type='ProfilerHook', activities=['cpu']))
    with pytest.raises(RuntimeError, match='boom') as e: begin(ProgressHook(), profiler, Tracked(), Broken())
    assert 'then in Broken.after_failure: OSError' in '\n'.join(getattr(e.value, '__notes__', [str(e.value)]))
    assert ends == ['begun', 'failed'] and cell.filters == [] and profiler.profile.profiler is not None and not torch.autograd._profiler_enabled()
    with pytest.raises(RuntimeError, match='too early'): begin(Early(), ProgressHook(), Tracked())
    assert ends == ['begun', 'failed']                                    # it had not begun
    begin(ProgressHook(), Tracked())
    assert ends[2:] == ['begun', 'closed']
