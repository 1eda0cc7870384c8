"The commands, called as a shell calls them, on the synthetic shapes with a detector that trains in seconds"
import json, os, pickle, signal, subprocess, sys, time, warnings

import numpy as np
import pytest
import torch

from detnb.cli.main import COMMANDS, main

# Backbones that train have 16 channels or more: in PyTorch 2.14 the backward pass of a 1x1 convolution with stride 2 and less than 16
# input channels (channels last, AVX-512) reaches outside of its memory and may end the process.
CONFIG = '''
_base_ = ['retinanet/retinanet_r18_fpn_1x_coco.py']
root = {root!r}
classes = ('ball', 'box', 'triangle', 'star', 'ring')
norm = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), dict(type='Resize', img_scale=(96, 64)),
                  dict(type='RandomFlip', flip_ratio=.5), dict(type='Normalize', **norm), dict(type='Pad', size_divisor=32),
                  dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'])]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', img_scale=(96, 64), flip=False, transforms=[
                  dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), dict(type='Normalize', **norm), dict(type='Pad', size_divisor=32),
                  dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])])]
model = dict(backbone=dict(init_cfg=None, frozen_stages=-1, base_channels=16, norm_eval=False),
             neck=dict(in_channels=[16, 32, 64, 128], out_channels=8),
             bbox_head=dict(num_classes=5, in_channels=8, feat_channels=8, stacked_convs=1))
train = dict(_delete_=True, type='CocoDataset', ann_file=root + '/train.json', img_prefix=root + '/train', classes=classes, pipeline=train_pipeline)
val = dict(_delete_=True, type='CocoDataset', ann_file=root + '/val.json', img_prefix=root + '/val', classes=classes, pipeline=test_pipeline)
data = dict(samples_per_gpu=2, workers_per_gpu=0, train=train, val=val, test=val)
lr_config = dict(warmup_iters=3)
optimizer_config = dict(_delete_=True, grad_clip=dict(max_norm=10))
runner = dict(max_epochs=2)
log_config = dict(interval=2)
device = 'cpu'
'''


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    from detnb.datasets.shapes import make_shapes
    root = tmp_path_factory.mktemp('shapes')
    for seed, (name, n) in enumerate((('train', 8), ('val', 3))): make_shapes(root, n, (96, 64), seed=seed, name=name)
    (root/'tiny.py').write_text(CONFIG.format(root=str(root)))
    return root


@pytest.fixture(scope='module')
def trained(place):
    assert main(['train', str(place/'tiny.py'), '--work-dir', str(place/'run'), '--seed', '0']) == 0
    return place


def test_results_that_could_not_be_written_stop_a_test_before_it_begins(place, capsys):
    (place/'taken.pkl').mkdir(exist_ok=True)
    assert main(['test', str(place/'tiny.py'), 'none.pth', '--out', str(place/'taken.pkl')]) == 1
    said = capsys.readouterr().err
    assert 'taken.pkl' in said and 'it is a folder' in said and 'none.pth' not in said


def records(folder):
    files = sorted(folder.glob('*.log.json'))
    return [json.loads(line) for f in files for line in open(f)]


def weights(path): return torch.load(path, weights_only=True)['state_dict']


def test_train_leaves_what_it_promises(trained):
    run = trained/'run'
    names = {p.name for p in run.iterdir()}
    assert {'tiny.py', 'epoch_1.pth', 'epoch_2.pth', 'latest.pth'} <= names and any(n.endswith('.log') for n in names)
    log = records(run)
    assert log[0]['seed'] == 0 and 'config' in log[0]
    assert [r['mode'] for r in log[1:]].count('val') == 2 and 'bbox_mAP' in log[-1]
    assert all(np.isfinite(r['loss']) for r in log if r.get('mode') == 'train')
    meta = torch.load(run/'latest.pth', weights_only=True)['meta']
    assert meta['CLASSES'] == ('ball', 'box', 'triangle', 'star', 'ring') and meta['epoch'] == 2


def test_the_written_config_repeats_the_run(trained, tmp_path):
    assert main(['train', str(trained/'run'/'tiny.py'), '--work-dir', str(tmp_path), '--no-validate']) == 0
    ours, theirs = weights(trained/'run'/'latest.pth'), weights(tmp_path/'latest.pth')
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_resume_from_and_auto_resume(trained, tmp_path):
    args = ['train', str(trained/'tiny.py'), '--work-dir', str(tmp_path), '--seed', '0', '--no-validate']
    assert main([*args, '--cfg-options', 'runner.max_epochs=1']) == 0
    assert main([*args, '--auto-resume']) == 0
    assert main(['train', str(trained/'tiny.py'), '--work-dir', str(tmp_path/'b'), '--resume-from', str(tmp_path/'epoch_1.pth')]) == 0
    ours = weights(trained/'run'/'latest.pth')
    for other in (weights(tmp_path/'latest.pth'), weights(tmp_path/'b'/'latest.pth')): assert all(torch.equal(v, other[k]) for k, v in ours.items())


def test_iterations_with_validation_losses_and_mixed_precision(trained, tmp_path):
    options = ['runner.type=IterBasedRunner', 'workflow=[(train,3),(val,1)]', 'evaluation.interval=6', 'checkpoint_config.interval=2', 'fp16.loss_scale=512.',
               'log_config.interval=1']
    config = tmp_path/'iters.py'
    config.write_text((trained/'tiny.py').read_text().replace('runner = dict(max_epochs=2)', 'runner = dict(_delete_=True, max_iters=6)') + 'fp16 = dict()\n')
    args = ['train', str(config), '--seed', '0', '--cfg-options', *options]
    assert main([*args, '--work-dir', str(tmp_path/'a')]) == 0
    assert {'iter_2.pth', 'iter_4.pth', 'iter_6.pth'} <= {p.name for p in (tmp_path/'a').iterdir()}
    assert main([*args, '--work-dir', str(tmp_path/'b'), '--resume-from', str(tmp_path/'a'/'iter_4.pth')]) == 0
    ours, theirs = weights(tmp_path/'a'/'iter_6.pth'), weights(tmp_path/'b'/'iter_6.pth')
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_interrupt_says_how_to_go_on(trained, tmp_path):
    command = [sys.executable, '-m', 'detnb.cli.main', 'train', str(trained/'tiny.py'), '--work-dir', str(tmp_path), '--seed', '0',
               '--cfg-options', 'runner.max_epochs=500', 'checkpoint_config.interval=100', 'evaluation.interval=1000']
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if 'Epoch [2]' in line: break
    process.send_signal(signal.SIGINT)
    lines.append(process.communicate(timeout=120)[0])
    said = ''.join(lines)
    assert process.returncode == 130, said
    assert 'Stopped after' in said and '--resume-from' in said and 'Traceback' not in said
    meta = torch.load(tmp_path/'interrupted.pth', weights_only=True)['meta']
    assert meta['iter'] > 4 and (tmp_path/'latest.pth').exists()


def test_evaluate_write_and_draw(trained, tmp_path, capsys):
    code = main(['test', str(trained/'tiny.py'), str(trained/'run'/'latest.pth'), '--eval', 'bbox', '--out', str(tmp_path/'r.pkl'), '--work-dir', str(tmp_path),
                 '--show-dir', str(tmp_path/'pictures'), '--show-score-thr', '0', '--eval-options', 'classwise=True', '--device', 'cpu',
                 '--cfg-options', 'data.test.samples_per_gpu=2'])
    assert code == 0
    out = capsys.readouterr().out
    assert 'bbox_mAP' in out and 'triangle' in out
    results = pickle.loads((tmp_path/'r.pkl').read_bytes())
    assert len(results) == 3 and len(results[0]) == 5 and results[0][0].shape[1] == 5 and type(results[0]) is list
    assert len(list((tmp_path/'pictures').iterdir())) == 3
    found = json.loads(next(tmp_path.glob('eval_*.json')).read_text())
    assert set(found['metric']) >= {'bbox_mAP', 'bbox_mAP_50'}
    last = next(r for r in reversed(records(trained/'run')) if 'bbox_mAP' in r)
    assert found['metric']['bbox_mAP'] == pytest.approx(last['bbox_mAP'], abs=.01)       # the same weights, in batches of two


def test_format_only(trained, tmp_path):
    assert main(['test', str(trained/'tiny.py'), str(trained/'run'/'latest.pth'), '--format-only', '--eval-options', f'jsonfile_prefix={tmp_path}/sent']) == 0
    assert isinstance(json.loads((tmp_path/'sent.bbox.json').read_text()), list)


@pytest.mark.parametrize('options, said', [
    (['--format-only'], '--eval-options jsonfile_prefix='), (['--format-only', '--eval-options', 'txtfile_prefix=a'], 'jsonfile_prefix=./for_the_server, not txtfile_prefix'),
    (['--eval', 'mAP'], "--eval: CocoDataset does not know the metric 'mAP'; it has bbox, segm")])
def test_what_cannot_be_evaluated_is_told_before_the_test(trained, options, said, capsys, monkeypatch):
    from detnb.cli import test
    monkeypatch.setattr(test, 'load_model', lambda *args: pytest.fail('the detector was loaded'))
    assert main(['test', str(trained/'tiny.py'), str(trained/'run'/'latest.pth'), *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize('argv, code, said', [
    (['test', 'a.py', 'a.pth'], 2, '--eval METRIC'),
    (['test', 'a.py', 'a.pth', '--eval', 'bbox', '--format-only'], 2, 'exclude'),
    (['test', 'a.py', 'a.pth', '--out', 'r.txt'], 2, '.pkl'),
    (['train', 'no_such_config.py'], 1, 'no_such_config.py'),
    (['train', 'x.py', '--cfg-options', 'oops'], 2, 'key=value'),
    (['nothing'], 2, 'invalid choice'),
])
def test_wrong_arguments(argv, code, said, capsys):
    assert main(argv) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize('content,told', [(b'broken', 'it is no checkpoint'), (b'PK' + bytes(200), 'cannot read'), (b'', 'cannot read')])
def test_a_file_that_is_no_checkpoint_is_told_in_a_line(place, tmp_path, capsys, content, told):
    (tmp_path/'x.pth').write_bytes(content)
    picture = next((place/'val').glob('*.jpg'))
    assert main(['image', str(picture), str(place/'tiny.py'), str(tmp_path/'x.pth'), '--device', 'cpu', '--out-file', str(tmp_path/'o.jpg')]) == 1
    said = capsys.readouterr().err
    assert told in said and 'x.pth' in said and 'Traceback' not in said, said


def test_slips_in_a_config_are_told_before_training(place, tmp_path, capsys):
    config = ['train', str(place/'tiny.py'), '--work-dir', str(tmp_path), '--cfg-options']
    assert main([*config, 'data.train.type=CocoDatset']) == 1
    err = capsys.readouterr().err
    assert 'CocoDataset' in err and 'Traceback' not in err
    assert main([*config, 'data.sample_per_gpu=4']) == 1
    assert "did you mean 'samples_per_gpu'" in capsys.readouterr().err
    assert main([*config, 'model.bbox_head.num_classes=80']) == 1
    assert 'model.bbox_head.num_classes is 80 (--cfg-options)' in capsys.readouterr().err
    assert main([*config, 'optimizer.lrr=1']) == 1
    assert "SGD takes no argument 'lrr'" in capsys.readouterr().err
    assert main([*config, 'load_from=no_such.pth']) == 1
    assert 'no_such.pth' in capsys.readouterr().err


@pytest.mark.parametrize('argv, said', [
    (['train', 'x.py', '--work-dri', 'a'], "unrecognized arguments: --work-dri a; did you mean '--work-dir'?"),
    (['analyze', 'tide', 'x.py', 'r.pkl', '--oot', 'a.png'], "did you mean '--out'?"), (['prin-config'], "did you mean 'print-config'?"),
    (['image', 'a.jpg', 'x.py', 'none', '--device', 'gpu'], "'gpu' is no device"), (['image', 'a.jpg', 'x.py', 'none', '--out-file', 'a.xyz'], 'must end in one of .jpg'),
    ([], 'usage: detnb')])
def test_a_misspelt_option_is_recognised(argv, said, capsys):
    assert main(argv) == 2 and said in capsys.readouterr().err


def test_a_warning_is_told_without_its_place_in_the_code():
    from detnb.cli import main as module
    usual = warnings.formatwarning
    with module.short_warnings():
        assert warnings.formatwarning('no GPU', UserWarning, module.__file__, 7, '') == 'detnb: no GPU\n'
        assert 'UserWarning: old' in warnings.formatwarning('old', UserWarning, json.__file__, 7, '')
    assert warnings.formatwarning is usual


def test_results_of_pictures_that_cannot_be_written_as_such(tmp_path):
    from detnb.cli.image import pictures_of
    for name in ('a.bmp', 'b.png'): (tmp_path/name).write_bytes(b'')
    assert [out for _, out in pictures_of(str(tmp_path), 'found')] == ['found/a.bmp.jpg', 'found/b.png']
    assert pictures_of('x/a.bmp', str(tmp_path)) == [('x/a.bmp', str(tmp_path/'a.bmp.jpg'))]


@pytest.mark.parametrize('launcher, word', [('pytorch', 'detnb dist train CONFIG N'), ('slurm', 'detnb slurm'), ('mpi', 'mpirun')])
def test_a_launcher_that_did_not_launch(place, tmp_path, launcher, word, capsys, monkeypatch):
    for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'): monkeypatch.delenv(name, raising=False)
    assert main(['train', str(place/'tiny.py'), '--work-dir', str(tmp_path), '--launcher', launcher]) == 1
    said = capsys.readouterr().err
    assert word in said and 'leave the launcher out' in said and 'Traceback' not in said


def test_what_is_left_out_is_told_in_a_line(place, tmp_path, capsys):
    assert main(['train', str(place/'tiny.py'), '--work-dir', str(tmp_path), '--cfg-options', 'runner.type=IPUEpochBasedRunner']) == 1
    said = capsys.readouterr().err
    assert 'IPUEpochBasedRunner is not in detnb' in said and 'put EpochBasedRunner in its place' in said and 'Traceback' not in said


@pytest.mark.parametrize('argv, said', [
    (['convert', 'via', 'data/balloon/train/via.json', 'o.json', 'p'], '`detnb download --dataset-name balloon --save-dir data/balloon --unzip` fetches it'),
    (['convert', 'image-metas', 'retinanet/retinanet_r50_fpn_1x_coco.py'], '`detnb download --dataset-name coco2017 --save-dir data/coco --unzip` fetches it'),
    (['convert', 'cityscapes', 'data/cityscapes'], 'https://www.cityscapes-dataset.com'),
    (['train', 'retinanet/retinanet_r50_fpn_1x_coco.py', '--device', 'cpu'], '`detnb download --dataset-name coco2017 --save-dir data/coco --unzip` fetches it'),
    (['test', 'pascal_voc/ssd300_voc0712.py', 'w.pth', '--eval', 'mAP'], '`detnb download --dataset-name voc2007 --save-dir data --unzip` fetches it'),
    (['analyze', 'results', 'retinanet/retinanet_r50_fpn_1x_coco.py', 'r.pkl', 'o'], '`detnb download --dataset-name coco2017'),
    (['analyze', 'logs', 'plot_curve', 'a.log.json'], 'training writes <work_dir>/<time>.log.json'),
    (['torchserve', 'retinanet/retinanet_r50_fpn_1x_coco.py', 'w.pth', '--output-folder', 's'], 'DETNB_CHECKPOINTS')])
def test_missing_files_are_told_with_what_to_do_next(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); monkeypatch.delenv('MMDET_DATASETS', raising=False)
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert said in err and 'Traceback' not in err and err.startswith('detnb: ')


def test_help_of_each_command(capsys):
    for command in COMMANDS:
        assert main([command, '--help']) == 0
        assert f'detnb {command}' in capsys.readouterr().out
