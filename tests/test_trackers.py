"Trackers, profilers and the small hooks: with the real programs where they are installed, in whole runs in miniature"
import json, re, sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from detnb.foundation.logging import get_logger
from detnb.foundation.missing import MissingExtra
from detnb.training import HOOKS, EpochBasedRunner, EvalHook, IterBasedRunner


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def train_step(self, x, optimizer):
        loss = (self.w * x - 3).pow(2).mean()
        return dict(loss=loss, log_vars=dict(loss=loss), num_samples=len(x))


class Exam(list):
    def evaluate(self, results, logger=None): return dict(bbox_mAP=.25, bbox_mAP_copypaste='0.250 0.500')


def runner_with(folder, *hooks, kind=EpochBasedRunner, epochs=2, optimizer_config=None, **how):
    model = Line()
    runner = kind(model, torch.optim.SGD(model.parameters(), lr=.05, momentum=.9), work_dir=str(folder), logger=get_logger('quiet'),
                  **(how or dict(max_epochs=epochs)))
    log = dict(interval=2, hooks=[dict(type='TextLoggerHook'), *hooks])
    runner.register_training_hooks(None, optimizer_config or {}, dict(interval=1), log)
    return runner, DataLoader([torch.ones(1) * i for i in range(1, 9)], 2)


def run(folder, *hooks, resume=None, evaluate=True, **how):
    runner, loader = runner_with(folder, *hooks, **how)
    if evaluate: runner.register_hook(EvalHook(DataLoader(Exam([torch.ones(1)])), test_fn=lambda model, loader: []), 'LOW')
    if resume: runner.resume(str(resume))
    runner.run([loader])
    return runner


def test_tensorboard(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run(tmp_path, dict(type='TensorboardLoggerHook'))
    run(tmp_path, dict(type='TensorboardLoggerHook'), resume=tmp_path/'epoch_1.pth')
    events = EventAccumulator(str(tmp_path/'tf_logs')).Reload()
    assert {'train/loss', 'val/bbox_mAP', 'learning_rate', 'momentum'} <= set(events.Tags()['scalars'])
    assert [e.step for e in events.Scalars('train/loss')] == [2, 4, 6, 8]            # the second epoch once, though it ran twice
    assert [(e.step, e.value) for e in events.Scalars('val/bbox_mAP')] == [(4, .25), (8, .25)]
    assert any('copypaste' in t for t in events.Tags()['tensors'])


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    hook = dict(type='WandbLoggerHook', init_kwargs=dict(project='t', mode='offline'), define_metric_cfg={'val/bbox_mAP': 'max'})
    first = run(tmp_path, hook, epochs=1)
    ident = first.meta['hook_msgs']['WandbLoggerHook']['id']
    again = run(tmp_path, hook, epochs=2, resume=tmp_path/'epoch_1.pth')
    assert ident and again.meta['hook_msgs']['WandbLoggerHook']['id'] == ident
    assert len(list((tmp_path/'wandb').glob(f'offline-run-*{ident}'))) >= 1


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip('mlflow')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    mlflow.set_tracking_uri((tmp_path/'mlruns').as_uri())
    hook = dict(type='MlflowLoggerHook', exp_name='birds', tags=dict(kind='test'), params=dict(lr=.05), log_model=False)
    ident = run(tmp_path, hook, epochs=1).meta['hook_msgs']['MlflowLoggerHook']['id']
    run(tmp_path, hook, epochs=2, resume=tmp_path/'epoch_1.pth')
    found = mlflow.MlflowClient().get_run(ident).data
    assert found.metrics['val/bbox_mAP'] == .25 and found.params['lr'] == '0.05' and found.tags['kind'] == 'test'
    assert [m.step for m in mlflow.MlflowClient().get_metric_history(ident, 'train/loss')] == [2, 4, 6, 8]


@pytest.mark.parametrize('hook,package', [('TensorboardLoggerHook', 'tensorboard'), ('WandbLoggerHook', 'wandb'), ('MlflowLoggerHook', 'mlflow')])
def test_a_missing_package_is_told_before_the_run(hook, package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=f'pip install {package}'): runner_with(tmp_path, dict(type=hook))


def test_wandb_gets_config_checkpoints_and_pictures(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    import numpy as np
    from PIL import Image
    monkeypatch.setenv('WANDB_SILENT', 'true')
    for i in range(3): Image.fromarray(np.full((40, 60, 3), 60 * i, np.uint8)).save(tmp_path/f'{i}.png')

    class Pictures(Exam):
        CLASSES, img_prefix = ('cat', 'dog'), str(tmp_path)
        data_infos = [dict(filename=f'{i}.png') for i in range(3)]
        def get_ann_info(self, i): return dict(bboxes=np.array([[1, 2, 30, 20]]), labels=np.array([i % 2]))

    boxes = [np.array([[1, 2, 29, 21, .8]], np.float32), np.zeros((0, 5), np.float32)]
    mask = np.zeros((40, 60), bool); mask[2:21, 1:29] = True
    hook = dict(type='MMDetWandbHook', init_kwargs=dict(project='t', mode='offline'), log_checkpoint=True, log_checkpoint_metadata=True, num_eval_images=2)
    runner, loader = runner_with(tmp_path/'run', hook, epochs=1)
    runner.meta['config'] = 'optimizer = dict(type="SGD", lr=0.05)\n'
    runner.register_hook(EvalHook(DataLoader(Pictures([torch.ones(1)])), test_fn=lambda model, loader: [(boxes, [[mask], []])] * 3), 'LOW')
    logger = next(h for h in runner.hooks if type(h).__name__ == 'MMDetWandbHook')
    tables, versions, original = [], [], logger.connect
    def connect(r):
        original(r)
        log, version = logger.run.log, logger.run.log_artifact
        monkeypatch.setattr(logger.run, 'log', lambda values, **kw: (tables.append(values.get('val/predictions')), log(values, **kw)))
        monkeypatch.setattr(logger.run, 'log_artifact', lambda a, **kw: (versions.append((a, kw)), version(a, **kw)))
    logger.connect = connect
    runner.run([loader])
    table, = [t for t in tables if t is not None]
    assert [row[0] for row in table.data] == ['0.png', '2.png'] and table.data[0][2] == pytest.approx(.8)
    kinds = {a.type: (a.metadata, kw.get('aliases')) for a, kw in versions}
    assert kinds['model'] == (dict(epoch=1, iter=4, bbox_mAP=.25, bbox_mAP_copypaste='0.250 0.500'), ['latest', 'epoch_1']) and 'logs' in kinds
    assert logger.run.config['optimizer'] == dict(type='SGD', lr=.05)


def test_every_hook_and_builder_of_the_zoo_has_its_name():
    from detnb.training import OPTIMIZER_BUILDERS, RUNNERS
    names = '''CheckpointHook TextLoggerHook EvalHook DistEvalHook StepLrUpdaterHook OptimizerHook NumClassCheckHook Fp16OptimizerHook
        TensorboardLoggerHook CheckInvalidLossHook SetEpochInfoHook ExpMomentumEMAHook SyncNormHook YOLOXLrUpdaterHook YOLOXModeSwitchHook
        CosineAnnealingLrUpdaterHook MMDetWandbHook ClearMLLoggerHook ClosureHook CosineAnnealingMomentumUpdaterHook CosineRestartLrUpdaterHook
        CyclicLrUpdaterHook CyclicMomentumUpdaterHook DistSamplerSeedHook DvcliveLoggerHook EMAHook EmptyCacheHook ExpLrUpdaterHook FixedLrUpdaterHook
        FlatCosineAnnealingLrUpdaterHook GradientCumulativeFp16OptimizerHook GradientCumulativeOptimizerHook InvLrUpdaterHook IterTimerHook
        LinearAnnealingLrUpdaterHook LinearAnnealingMomentumUpdaterHook LinearMomentumEMAHook MemoryProfilerHook MlflowLoggerHook NeptuneLoggerHook
        OneCycleLrUpdaterHook OneCycleMomentumUpdaterHook PaviLoggerHook PolyLrUpdaterHook ProfilerHook SegmindLoggerHook StepMomentumUpdaterHook
        SyncBuffersHook SyncRandomSizeHook WandbLoggerHook EarlyStoppingHook'''.split()
    assert [n for n in names if n not in HOOKS] == []
    assert {'EpochBasedRunner', 'IterBasedRunner', 'Runner'} <= set(RUNNERS)
    assert {'DefaultOptimizerConstructor', 'LearningRateDecayOptimizerConstructor'} <= set(OPTIMIZER_BUILDERS)
