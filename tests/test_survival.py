"Killed at any moment, out of disk, for days on end: what a run has is never lost, and it ends as if nothing had happened"
import errno, json, os, random, signal, subprocess, sys, time, warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fresh_process import run
from detnb.foundation.config import Config
from detnb.foundation.files import DiskFull, atomic_write, dump

linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='needs fork, /proc and limits')
root = Path(__file__).resolve().parent.parent


# SIGKILL. A server imports everything once; each run is a fork of it, so that sixty of them cost seconds.

SERVER = '''
import os, sys
sys.path.insert(0, {tests!r}); sys.path.insert(0, {root!r})
from test_survival import survivor
import detnb.datasets.loader, detnb.training
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        code = 1
        try: survivor(line.strip()); code = 0
        except BaseException:
            import traceback; traceback.print_exc()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
'''


class Model(nn.Module):
    "Takes long enough to write that a kill often comes in the middle"
    def __init__(self):
        super().__init__()
        self.w, self.norm, self.drop, self.ballast = nn.Parameter(torch.zeros(8)), nn.BatchNorm1d(8), nn.Dropout(.3), nn.Parameter(torch.zeros(300_000))
    def train_step(self, data, optimizer=None):
        x = self.drop(self.norm(data[:, None] * torch.randn(len(data), 8))) + np.random.rand() + random.random()
        loss = ((x * self.w).sum(1) - data).square().mean() + self.ballast[:9].square().sum()
        return dict(loss=loss, log_vars=dict(loss=loss.detach()), num_samples=len(data))


def survivor(folder):
    "A run that goes on from whatever is in its folder, or begins"
    from detnb.datasets.loader import build_dataloader
    from detnb.training import build_optimizer, build_runner, find_latest_checkpoint, set_random_seed
    torch.set_num_threads(1)
    set_random_seed(3)
    model = Model()
    runner = build_runner(dict(type='IterBasedRunner' if 'iters' in folder else 'EpochBasedRunner', **({'max_iters': 24} if 'iters' in folder else {'max_epochs': 6})),
                          dict(model=model, optimizer=build_optimizer(model, dict(type='Adam', lr=.02)), work_dir=folder))
    runner.logger.setLevel('ERROR')
    runner.register_training_hooks(dict(policy='poly', power=.9), {}, dict(interval=5 if 'iters' in folder else 1, max_keep_ckpts=2), None,
                                   custom_hooks_config=[dict(type='EMAHook', momentum=.1)])
    latest = find_latest_checkpoint(folder)
    if latest: runner.resume(latest)
    runner.run([build_dataloader(Numbers(), 2, 0, dist=False, seed=11, runner_type=type(runner).__name__, collate_fn=torch.stack)])


class Numbers(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, i): return torch.tensor(float(i + np.random.rand()))


@pytest.fixture(scope='module')
def server():
    code = SERVER.format(tests=str(Path(__file__).parent), root=str(root))
    process = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    def life(folder, kill_after=None):
        "Run until the end (True), or kill it (False)"
        print(folder, file=process.stdin, flush=True)
        pid, begin = int(process.stdout.readline()), time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            try: os.kill(pid, signal.SIGKILL)
            except ProcessLookupError: pass               # it was quicker
        status = int(process.stdout.readline())
        assert status in (0, signal.SIGKILL), status
        life.took = time.monotonic() - begin
        return status == 0
    yield life
    process.stdin.close(); process.wait(30)


@pytest.fixture
def one_thread():
    "As OMP_NUM_THREADS=1 in another process: another number of threads adds in another order"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def everything(folder):
    return torch.load(Path(folder)/'latest.pth', weights_only=True)


def equal(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@linux
@pytest.mark.parametrize('kind', ['epochs', 'iters'])
def test_killed_at_random_moments(server, tmp_path, kind):
    "Ten runs of each kind are killed at a moment of their own, and again while they go on; all end with the weights, averages and moments of one that was not"
    whole = tmp_path/f'{kind}_whole'
    assert server(whole)
    assert server(tmp_path/f'{kind}_timed')
    took, wanted, dice = server.took, everything(whole), random.Random(20 + len(kind))
    killed, found, n = 0, set(), 0
    while n < 10 or killed < 10 and n < 60:             # a run that is quicker than the timed one was ends before its moment
        n += 1; folder = tmp_path/f'{kind}_{n}'
        for life in range(12):
            if server(folder, dice.uniform(.02, .98) * took if life < 2 else None):
                if life == 0: took = min(took, server.took)
                break
            killed += 1
            for path in folder.glob('*.pth'):            # whatever has its name is whole
                found.add(torch.load(path, weights_only=True)['meta']['iter'])
        assert not [p.name for p in folder.glob('.*')], 'leftovers are swept'
        ours = everything(folder)
        assert all(equal(ours[k], wanted[k]) for k in ('state_dict', 'optimizer', 'random_state'))
        assert ours['meta']['iter'] == 24
    assert killed >= 10 and len(found) >= 2, (took, killed, found)


STANDS_STILL = '''
import signal
from detnb.training import HOOKS, Hook
@HOOKS.register_module()
class StandsStill(Hook):
    def after_train_iter(self, runner):
        if runner.iter == 5: print('stands still', flush=True); signal.pause()       # in the second epoch, so that the kill comes there
'''


@linux
def test_a_killed_detector_goes_on_with_auto_resume(tmp_path, one_thread):
    "Through the command line, workers and all: SIGKILL, then --auto-resume"
    from detnb.datasets.shapes import make_shapes
    from test_distributed import CONFIG as TINY
    make_shapes(tmp_path, 8, (96, 64), name='train', empty=0.); make_shapes(tmp_path, 2, (96, 64), name='val', empty=0.)
    (tmp_path/'tiny.py').write_text(TINY.format(root=str(tmp_path)) + 'runner = dict(max_epochs=3)\n')
    (tmp_path/'stands_still.py').write_text(STANDS_STILL)
    (tmp_path/'still.py').write_text(f"_base_ = 'tiny.py'\ncustom_imports = dict(imports=['stands_still'])\ncustom_hooks = [dict(type='StandsStill')]\n")
    def command(folder, config='tiny.py'): return [sys.executable, '-m', 'detnb.cli.main', 'train', str(tmp_path/config), '--work-dir', str(folder), '--seed', '0', '--no-validate',
                                 '--auto-resume', '--cfg-options', 'data.workers_per_gpu=1', 'checkpoint_config.interval=1']
    from detnb.cli.main import main
    assert main(command(tmp_path/'whole')[3:]) == 0
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': f'{root}{os.pathsep}{tmp_path}'}
    process = subprocess.Popen(command(tmp_path/'cut', 'still.py'), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if 'stands still' in line: break
    else: pytest.fail('the run ended by itself')
    process.kill(); process.wait()
    assert (tmp_path/'cut'/'epoch_1.pth').exists() and not (tmp_path/'cut'/'epoch_3.pth').exists()
    assert main(command(tmp_path/'cut')[3:]) == 0
    assert all(equal(everything(tmp_path/'cut')[k], everything(tmp_path/'whole')[k]) for k in ('state_dict', 'optimizer'))


# a full disk

def until_full(folder, room):
    "Three epochs are written, then no file may be larger than `room` bytes; the error names the newest whole checkpoint and how to go on"
    import resource
    from detnb.training import checkpoints
    real, count = checkpoints.CheckpointHook.save, []
    def save(hook, runner):
        count.append(1)
        if len(count) == 4: resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        real(hook, runner)
    checkpoints.CheckpointHook.save = save
    try: survivor(folder)
    except DiskFull as e:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        said = '\n'.join([str(e), *getattr(e, '__notes__', ())])
        assert 'no room to write' in said and 'epoch_4.pth' in said and 'latest.pth; to go on' in said and '--resume-from' in said, said
    else: raise AssertionError('it went well')


@linux
def test_a_full_disk_loses_nothing_that_was_there(tmp_path):
    "No file may be larger than half a checkpoint when the fourth is written"
    whole, cut = tmp_path/'whole', tmp_path/'run'
    def well(function, *args):                             # in a process of its own, which may run backward whatever ran here
        good, text = run(function, *args)
        assert good, text
    well(survivor, str(whole))
    size = (whole/'epoch_6.pth').stat().st_size
    well(until_full, str(cut), size // 2)
    assert sorted(p.name for p in cut.iterdir()) == ['epoch_2.pth', 'epoch_3.pth', 'latest.pth']       # nothing half, nothing gone
    assert everything(cut)['meta']['epoch'] == 3
    well(survivor, str(cut))
    assert all(equal(everything(cut)[k], everything(whole)[k]) for k in ('state_dict', 'optimizer'))


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_other_files_survive_a_full_disk(tmp_path, code):
    path = tmp_path/'results.json'
    dump([1, 2], path)
    with pytest.raises(DiskFull, match='results.json'):
        with atomic_write(path) as f:
            f.write('[')
            raise OSError(code, os.strerror(code))
    assert json.loads(path.read_text()) == [1, 2] and [p.name for p in tmp_path.iterdir()] == ['results.json']
    with pytest.raises(PermissionError):                  # other errors stay what they are
        with atomic_write(path) as f: raise PermissionError(errno.EACCES, 'no')


def test_a_link_left_by_a_killed_process_is_not_written_through(tmp_path):
    "Once its name was made of the process number, which comes again in containers"
    from detnb.training.state import point_latest
    for n in (1, 2): (tmp_path/f'epoch_{n}.pth').write_text(f'weights {n}')
    (tmp_path/f'.latest.pth.{os.getpid()}').symlink_to('epoch_1.pth')
    point_latest(tmp_path/'epoch_2.pth')
    assert (tmp_path/'epoch_1.pth').read_text() == 'weights 1' and (tmp_path/'latest.pth').read_text() == 'weights 2'


# memory

def private_kb(pid):
    "What a process shares with no other (kB)"
    fields = dict(line.split(':', 1) for line in open(f'/proc/{pid}/smaps_rollup') if ':' in line and 'kB' in line)
    return sum(int(fields[k].split()[0]) for k in ('Private_Clean', 'Private_Dirty'))


def growth(dataset, epochs=5, batches=None):
    "Private memory of four workers after each epoch (MB). With `batches`, an epoch is the next so many batches of 500, all of images not read before"
    from detnb.datasets.loader import build_dataloader
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                    # more workers than cores
        loader = build_dataloader(dataset, 500, 4, dist=False, shuffle=False, seed=0, persistent_workers=True, collate_fn=len)
        used = []
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            if batches: loader.skip(epoch * batches)
            it = iter(loader)
            assert sum(islice(it, batches)) == (batches * 500 if batches else len(dataset))
            used.append(sum(private_kb(w.pid) for w in loader._iterator._workers) / 1024)
        loader._iterator._shutdown_workers()
    return used


class Listed(torch.utils.data.Dataset):
    "The same annotations as a list of dicts: reading them counts references, which copies page after page into each worker"
    def __init__(self, data, n): self.items = [(data.data_infos[i], data.get_ann_info(i)) for i in range(n)]
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]


@linux
def test_memory_of_workers_does_not_grow(tmp_path):
    "100 000 images, 300 000 boxes, 4 workers, 5 epochs of a tenth each (DETNB_SLOW=1: of all); a plain list of the same grows with each"
    from detnb.datasets import build_dataset
    rng, n = np.random.default_rng(0), 100_000
    boxes = np.concatenate([rng.integers(0, 300, (3 * n, 2)), rng.integers(8, 99, (3 * n, 2))], 1).tolist()
    dump(dict(images=[dict(id=i, file_name=f'{i:012}.jpg', width=480, height=400) for i in range(n)],
              annotations=[dict(id=k + 1, image_id=k // 3, category_id=1 + k % 80, bbox=b, area=b[2] * b[3], iscrowd=0) for k, b in enumerate(boxes)],
              categories=[dict(id=c + 1, name=f'class {c}') for c in range(80)]), tmp_path/'large.json')
    data = build_dataset(dict(type='CocoDataset', ann_file=str(tmp_path/'large.json'), classes=[f'class {c}' for c in range(80)], filter_empty_gt=False,
                              pipeline=[dict(type='Collect', keys=['ann_info'], meta_keys=())]))
    del boxes
    used = growth(data, batches=None if os.environ.get('DETNB_SLOW') else 20)
    plain = growth(Listed(data, 30_000), 3, batches=20)
    print('MB after each epoch:', [round(u) for u in used], 'as a list:', [round(u) for u in plain])
    assert used[-1] - used[1] < 4, used                    # MB, of four workers together; the first epoch warms them up
    assert plain[2] - plain[0] > 6, plain                  # what the bound would catch


# what to do next

def test_no_data_at_the_path_names_the_command_that_fetches_it(tmp_path, monkeypatch, capsys):
    from detnb.cli.main import main
    monkeypatch.chdir(tmp_path)
    for config, command in (('retinanet/retinanet_r18_fpn_1x_coco.py', '--dataset-name coco2017 --save-dir data/coco'),
                            ('pascal_voc/faster_rcnn_r50_fpn_1x_voc0712.py', '--dataset-name voc2007 --save-dir data'),
                            ('cityscapes/faster_rcnn_r50_fpn_1x_cityscapes.py', 'detnb convert cityscapes data/cityscapes')):
        assert main(['train', config, '--cfg-options', 'model.backbone.init_cfg=None']) == 1
        said = capsys.readouterr().err
        assert 'does not exist' in said and command in said and 'MMDET_DATASETS' in said and 'Traceback' not in said, said


def test_a_missing_package_is_told_with_the_line_that_installs_it(tmp_path, monkeypatch, capsys):
    from detnb.cli import train
    from detnb.cli.main import main
    from detnb.foundation.missing import MissingExtra, require
    with pytest.raises(MissingExtra, match='Odd pictures needs not_there, which is not installed: pip install not-there'): require('not_there', 'Odd pictures', 'not-there')
    (tmp_path/'half.py').write_text('import not_there_either')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtra, match='half, which is there and cannot be imported .*not_there_either'): require('half', 'x')
    monkeypatch.setattr(train, 'run', lambda args: require('not_there', 'Odd pictures', 'not-there'))
    assert main(['train', 'a.py']) == 1
    said = capsys.readouterr().err
    assert 'pip install not-there' in said and 'Traceback' not in said
