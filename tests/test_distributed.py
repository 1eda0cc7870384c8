"Several processes on the CPU (gloo): the same course as one process, no image lost or doubled, and errors that say what to do next"
import json, os, random, signal, socket, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist, nn

from fresh_process import run
from detnb.foundation.config import Config
from detnb.foundation.missing import PortInUse
from detnb.foundation.distributed import free_port, get_dist_info
from detnb.training.launch import launch
from test_cli import CONFIG as CLI_CONFIG

linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='functions of a test file are forked')
root = Path(__file__).resolve().parent.parent

# a process' batch statistics are its own, so they stay as they are; every iteration is told
CONFIG = CLI_CONFIG.replace('norm_eval=False', 'norm_eval=True').replace('log_config = dict(interval=2)', 'log_config = dict(interval=1)') + \
    "dist_params = dict(backend='nccl')\n"


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    from detnb.datasets.shapes import make_shapes
    folder = tmp_path_factory.mktemp('shapes')
    for seed, (name, n) in enumerate((('train', 14), ('val', 7))): make_shapes(folder, n, (96, 64), seed=seed, name=name, empty=.15)
    (folder/'tiny.py').write_text(CONFIG.format(root=str(folder)))
    return folder


def train(config, folder, per_process, validate=False, options=None, seed=0):
    "What `detnb train` does, in this process, for a dataset of any size"
    from detnb.apis.train import train_detector
    from detnb.datasets import build_dataset
    from detnb.models import build_detector
    from detnb.training import set_random_seed
    torch.set_num_threads(1)
    cfg = Config.fromfile(str(config))
    cfg.merge_from_dict({'data.samples_per_gpu': per_process, **(options or {})})
    cfg.work_dir, cfg.seed, cfg.log_level = str(folder), seed, 'ERROR'
    set_random_seed(seed)
    dataset, model = build_dataset(cfg.data.train), build_detector(cfg.model)
    model.CLASSES = dataset.CLASSES
    model.init_weights()
    train_detector(model, dataset, cfg, distributed=get_dist_info()[1] > 1, validate=validate)


def weights(path): return torch.load(path, weights_only=True)['state_dict']
def records(folder): return [json.loads(line) for f in sorted(Path(folder).glob('*.log.json')) for line in open(f)][1:]


@linux
@pytest.mark.parametrize('kind', ['epochs', 'iterations'])
def test_two_processes_with_two_images_train_as_one_with_four(place, tmp_path, kind):
    "Weights and losses to float accuracy; images of both groups, some without objects"
    info = json.loads((place/'train.json').read_text())
    for i in info['images'][:5]: i['height'] = 96                                        # not wide, says the group sampler
    (place/'groups.json').write_text(json.dumps(info))
    options = {'data.train.ann_file': str(place/'groups.json')}
    if kind == 'iterations': options['runner'] = dict(type='IterBasedRunner', max_iters=5, _delete_=True)
    last = 'epoch_2.pth' if kind == 'epochs' else 'iter_5.pth'
    if kind == 'iterations': options['checkpoint_config.interval'] = 5
    train(place/'tiny.py', tmp_path/'one', 4, options=options)
    launch(train, 2, place/'tiny.py', tmp_path/'two', 2, options=options)
    one, two = weights(tmp_path/'one'/last), weights(tmp_path/'two'/last)
    start = max((one[k] - two[k]).abs().max().item() for k in one if one[k].is_floating_point())
    moved = max(v.abs().max().item() for v in one.values() if v.is_floating_point())
    assert start < 2e-5 * max(1., moved), start
    a, b = records(tmp_path/'one'), records(tmp_path/'two')
    assert len(a) == len(b) >= 4 and len({r['loss'] for r in a}) > 1
    for x, y in zip(a, b): np.testing.assert_allclose([x[k] for k in ('loss', 'loss_cls', 'loss_bbox')], [y[k] for k in ('loss', 'loss_cls', 'loss_bbox')], rtol=1e-4, atol=1e-5)


def draws(dataset, workers, **kw):
    from detnb.datasets import build_dataloader
    loader = build_dataloader(dataset, 2, workers, dist=False, seed=3, **kw)
    return [b['img'].float().mean(dim=(1, 2, 3)).tolist() for _ in range(2) for b in loader]


def test_sampling_does_not_depend_on_the_number_of_workers(place):
    from detnb.datasets import build_dataset
    cfg = Config.fromfile(str(place/'tiny.py'))
    data = build_dataset(cfg.data.train)
    alone = draws(data, 0)
    half = -(-len(data) // 2)
    assert len(alone) == 2 * half >= 8 and alone[:half] != alone[half:]
    for workers in (1, 3): assert draws(data, workers) == alone


# evaluation

class Numbered(torch.utils.data.Dataset):
    CLASSES = ('thing',)
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i): return dict(img=[torch.full((3, 4, 4), float(i))], img_metas=[dict(ori_filename=f'{i}.jpg', id=i)])


class Echo(nn.Module):
    def forward(self, img, img_metas, return_loss, rescale): return [[np.array([[0, 0, 1, 1, m['id']]], np.float32)] for m in img_metas[0]]


def test_all(sizes, folder):
    from detnb.apis import multi_gpu_test
    from detnb.datasets import build_dataloader
    found = {}
    for n in sizes:
        for batch in (1, 3):
            for way, how in dict(gather={}, gpu=dict(gpu_collect=True, tmpdir=folder), files=dict(tmpdir=folder)).items():
                collate = lambda samples: dict(img=[torch.stack([s['img'][0] for s in samples])], img_metas=[[s['img_metas'][0] for s in samples]])
                loader = build_dataloader(Numbered(n), batch, 0, dist=True, shuffle=False, collate_fn=collate)
                results = multi_gpu_test(Echo(), loader, **how)
                found[n, batch, way] = None if results is None else [int(r[0][0, 4]) for r in results]
    return found
test_all.__test__ = False


@linux
def test_four_processes_lose_and_double_no_image(tmp_path):
    "Set sizes that four does not divide, smaller than four as well"
    first, *others = launch(test_all, 4, (1, 3, 6, 13), str(tmp_path))
    assert all(got == list(range(n)) for (n, _, _), got in first.items()) and len(first) == 24
    assert all(r is None for o in others for r in o.values())
    assert not list(tmp_path.iterdir())


def evaluate_in(config, checkpoint):
    from detnb.apis import multi_gpu_test, single_gpu_test
    from detnb.apis.inference import prepare_model
    from detnb.datasets import build_dataloader, build_dataset
    from detnb.foundation.checkpoint import load_checkpoint
    from detnb.models import build_detector
    torch.set_num_threads(1)
    cfg = Config.fromfile(str(config))
    data, model = build_dataset(cfg.data.test, dict(test_mode=True)), build_detector(cfg.model)
    load_checkpoint(model, str(checkpoint))
    model = prepare_model(model, torch.device('cpu'))
    world = get_dist_info()[1]
    loader = build_dataloader(data, 1, 0, dist=world > 1, shuffle=False)
    results = multi_gpu_test(model, loader) if world > 1 else single_gpu_test(model, loader, progress=False)
    return None if results is None else (results, dict(data.evaluate(results, metric='bbox')))


@linux
def test_four_processes_evaluate_seven_images_as_one_does(place, tmp_path):
    train(place/'tiny.py', tmp_path, 4, options={'runner.max_epochs': 1})
    one, metrics = evaluate_in(place/'tiny.py', tmp_path/'latest.pth')
    (four, shared), *rest = launch(evaluate_in, 4, place/'tiny.py', tmp_path/'latest.pth')
    assert rest == [None] * 3 and len(four) == len(one) == 7 and metrics == shared
    for a, b in zip(one, four):
        for x, y in zip(a, b): np.testing.assert_allclose(x, y, atol=1e-5)


class Drifting(nn.Module):
    "Its running mean is another one in each process"
    def __init__(self):
        super().__init__()
        self.norm, self.CLASSES = nn.BatchNorm1d(1), None
        self.norm.running_mean.fill_(1. + get_dist_info()[0])


def evaluate_drifting(broadcast):
    from types import SimpleNamespace
    from torch.utils.data import DataLoader
    from detnb.training import DistEvalHook
    hook = DistEvalHook(DataLoader([1]), broadcast_bn_buffer=broadcast, test_fn=lambda model, loader: model.norm.running_mean.item())
    return hook.run(Drifting())


@linux
def test_evaluation_takes_the_running_means_that_are_saved():
    assert launch(evaluate_drifting, 2, True) == [1., 1.] and launch(evaluate_drifting, 2, False) == [1., 2.]


# resuming in several processes, each with dice of its own

class Noisy(nn.Module):
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(3))
    def forward(self, x): return ((self.w + torch.randn(3) + random.random() + np.random.rand()) * x[:, None]).square().mean()


class NoisyShared(nn.parallel.DistributedDataParallel):
    def train_step(self, data, optimizer=None):
        loss = self(data)
        return dict(loss=loss, log_vars=dict(loss=loss.detach()), num_samples=len(data))


def noisy(folder, resume=None, stop=None):
    from torch.utils.data import DataLoader
    from detnb.training import EpochBasedRunner, Hook, set_random_seed
    set_random_seed((77 if resume else 5) + get_dist_info()[0])
    model = NoisyShared(Noisy())
    runner = EpochBasedRunner(model, torch.optim.SGD(model.parameters(), lr=.05, momentum=.9), work_dir=str(folder), max_epochs=3)
    runner.register_training_hooks(None, {}, dict(interval=1))
    class Stop(Hook):
        def after_train_iter(self, runner):
            if stop and runner.iter + 1 == stop and runner.rank == 1: runner.stop()          # one alone is asked
    runner.register_hook(Stop())
    if resume: runner.resume(str(resume))
    runner.run([DataLoader(torch.arange(1., 9.), 2)])
    return runner.iter, model.module.w.tolist()


@linux
@pytest.mark.parametrize('stop', [6, 8])
def test_a_resume_gives_each_process_its_own_dice(tmp_path, stop):
    "And all processes stop after the same iteration, though only one is asked to"
    whole = launch(noisy, 2, tmp_path/'whole')
    assert whole[0] == whole[1] and whole[0][0] == 12
    assert [n for n, _ in launch(noisy, 2, tmp_path/'cut', None, stop)] == [stop] * 2
    assert launch(noisy, 2, tmp_path/'cut', tmp_path/'cut'/'latest.pth') == whole
    assert launch(noisy, 2, tmp_path/'again', tmp_path/'whole'/'epoch_1.pth') == whole


# errors

def with_unused(place, folder, allow):
    from detnb.models import NECKS
    from detnb.models.necks.fpn import FPN
    @NECKS.register_module(name='FPNWithASpare', force=True)
    class Spare(FPN):
        def __init__(self, **kw): super().__init__(**kw); self.spare = nn.Linear(2, 2)
    train(place/'tiny.py', folder, 2, options={'model.neck.type': 'FPNWithASpare', 'find_unused_parameters': allow})


@linux
def test_parameters_without_gradient_are_named(place, tmp_path):
    with pytest.raises(RuntimeError, match=r'neck\.spare\.weight, neck\.spare\.bias.*find_unused_parameters=True'):
        launch(with_unused, 2, place, tmp_path/'a', False)
    launch(with_unused, 2, place, tmp_path/'b', True)
    assert (tmp_path/'b'/'epoch_2.pth').exists()


class Special(ValueError):
    def __init__(self, a, b): super().__init__(f'{a} and {b}')       # a pickle of it cannot be read


def fails(how):
    dist.barrier()
    if get_dist_info()[0] == 0: time.sleep(60)                        # must not be waited for
    if how == 'plain': raise KeyError('the key')
    if how == 'special': raise Special(1, 2)
    if how == 'killed': os.kill(os.getpid(), signal.SIGKILL)
    if how == 'result': return lambda: None


@linux
@pytest.mark.parametrize('how,kind,said', [('plain', KeyError, 'the key'), ('special', RuntimeError, 'Special: 1 and 2'),
                                           ('killed', RuntimeError, 'process 1 of 2 was killed by signal 9'), ('result', Exception, 'lambda')])
def test_an_error_reaches_the_caller_with_its_frames(how, kind, said):
    with pytest.raises(kind, match=said) as e: launch(fails, 2, how)
    if how in ('plain', 'special'):
        assert 'in process 1 of 2' in '\n'.join(getattr(e.value, '__notes__', [str(e.value)]))
        assert 'in fails' in str(e.value.__cause__) and 'raise' in str(e.value.__cause__)


def bars():
    from detnb.training.progress import track
    for _ in track(range(30), label='batches'): pass
    print('from', get_dist_info()[0])
    return get_dist_info(), int(os.environ['WORLD_SIZE'])


@linux
def test_one_bar_and_all_that_is_printed(capfd):
    assert launch(bars, 2) == [((0, 2), 2), ((1, 2), 2)]
    out = capfd.readouterr().out
    assert out.count('batches 30/30') == 1 and 'from 0\n' in out and '[1] from 1\n' in out
    with pytest.raises(ValueError, match='nproc must be at least 1'): launch(bars, 0)


def endless(folder):
    "Trains until somebody stops it"
    from torch.utils.data import DataLoader
    from detnb.training import EpochBasedRunner, Hook
    class Tell(Hook):
        def after_train_iter(self, runner): (Path(folder)/f'trains_{runner.rank}').touch()
    model = NoisyShared(Noisy())
    runner = EpochBasedRunner(model, torch.optim.SGD(model.parameters(), lr=0.), work_dir=str(folder), max_epochs=10**6)
    runner.register_training_hooks(None, {}, None, custom_hooks_config=Tell())
    runner.run([DataLoader(torch.arange(1., 9.), 2)])


@linux
def test_ctrl_c_stops_all_with_everything_saved(tmp_path):
    import threading
    def press():
        while len(list(tmp_path.glob('trains_*'))) < 2: time.sleep(.05)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt, match='resume_from=.*interrupted.pth'): launch(endless, 2, tmp_path)
    ckpt = torch.load(tmp_path/'latest.pth', weights_only=True)
    assert ckpt['meta']['iter'] > 0 and len(ckpt['random_states']) == 2


def machine(node, port, folder):
    found = launch(get_dist_info, 1, nnodes=2, node_rank=node, port=port)
    (Path(folder)/str(node)).write_text(str(found))


@linux
def test_launch_on_two_machines(tmp_path):
    "Both are this one"
    import multiprocessing
    fork, port = multiprocessing.get_context('fork'), free_port()
    both = [fork.Process(target=machine, args=(n, port, tmp_path)) for n in range(2)]
    for p in both: p.start()
    for p in both: p.join(300)
    assert [(tmp_path/str(n)).read_text() for n in range(2)] == ['[(0, 2)]', '[(1, 2)]']


def test_one_gpu_for_all_processes_is_refused(monkeypatch):
    from detnb.apis import train
    monkeypatch.setattr(train, 'get_dist_info', lambda: (0, 2)); monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    with pytest.raises(ValueError, match='all processes on one GPU'): train.pick_device(dict(device='cuda:1'))


# from the shell

def test_a_port_in_use_is_told(capsys, monkeypatch):
    from detnb.cli.main import main
    with socket.socket() as other:
        other.bind(('', 0)); other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv('PORT', str(port))
        assert main(['dist', 'train', 'a.py', '2']) == 1
    said = capsys.readouterr().err
    assert f'port {port}' in said and f'PORT={port + 1} detnb dist train' in said and 'Traceback' not in said


@pytest.mark.parametrize('env,options,said', [
    (dict(NNODES='2'), ['train', 'a.py', '2'], 'MASTER_ADDR'), (dict(NODE_RANK='1'), ['train', 'a.py', '2'], 'numbered from 0 to 0'),
    (dict(PORT='x'), ['train', 'a.py', '2'], 'whole numbers'), ({}, ['test', 'a.py', '2'], 'CONFIG CHECKPOINT PROCESSES'), ({}, ['train'], 'nothing')])
def test_wrong_words_to_dist(env, options, said, capsys, monkeypatch):
    from detnb.cli.main import main
    for name in ('NNODES', 'NODE_RANK', 'PORT', 'MASTER_ADDR'): monkeypatch.delenv(name, raising=False)
    for k, v in env.items(): monkeypatch.setenv(k, v)
    assert main(['dist', *options]) == 2
    assert said in capsys.readouterr().err


def joined(rank, folder, kind, port):
    "One process as Slurm, Open MPI or torchrun would start it"
    from detnb.foundation.distributed import init_dist, leave_group
    for name in list(os.environ):
        if name.startswith(('SLURM_', 'OMPI_', 'MASTER_', 'RANK', 'WORLD', 'LOCAL_RANK')): del os.environ[name]
    env = dict(slurm=dict(SLURM_PROCID=rank, SLURM_NTASKS=2, SLURM_LOCALID=rank, SLURM_NODELIST='localhost'),
               mpi=dict(OMPI_COMM_WORLD_RANK=rank, OMPI_COMM_WORLD_SIZE=2, OMPI_COMM_WORLD_LOCAL_RANK=rank, OMPI_COMM_WORLD_LOCAL_SIZE=2),
               pytorch=dict(RANK=rank, WORLD_SIZE=2, LOCAL_RANK=rank, MASTER_ADDR='127.0.0.1', MASTER_PORT=port))[kind]
    os.environ.update({k: str(v) for k, v in env.items()})
    init_dist(kind, **dict(backend='nccl' if not torch.cuda.is_available() else 'gloo', port=port, timeout=300))
    x = torch.tensor(1. + get_dist_info()[0]); dist.all_reduce(x)
    (Path(folder)/f'{kind}{rank}').write_text(f'{get_dist_info()} {x.item()} {dist.get_backend()} {os.environ["MASTER_PORT"] == str(port)}')
    leave_group()


@linux
@pytest.mark.parametrize('kind', ['slurm', 'mpi', 'pytorch'])
def test_each_launcher_joins_at_the_port_of_dist_params(kind, tmp_path):
    "nccl, which every config names, becomes gloo where there is no GPU"
    import multiprocessing
    fork, port = multiprocessing.get_context('fork'), free_port()
    both = [fork.Process(target=joined, args=(r, tmp_path, kind, port)) for r in range(2)]
    for p in both: p.start()
    for p in both: p.join(300)
    assert [(tmp_path/f'{kind}{r}').read_text() for r in range(2)] == [f'({r}, 2) 3.0 gloo True' for r in range(2)]


def test_a_process_that_has_trained_can_launch():
    "A forked copy could not run backward; a function of a module gets new processes"
    torch.ones((), requires_grad=True).backward()
    assert launch(slope, 2) == [1., 1.]


def slope():
    x = torch.ones((), requires_grad=True)
    x.backward()
    return x.grad.item()


def cell_function(): pass
cell_function.__module__ = '__main__'                                 # as one that stands in a cell


def in_a_notebook_with_gpus(asked):
    "How a function of a cell is started where there are two GPUs"
    from detnb.training.launch import start_method
    if asked: torch.cuda.is_available()
    torch.cuda.device_count = lambda: 2
    if not asked: assert start_method(cell_function) == 'fork' and start_method(dist.get_rank) == 'spawn'
    else:
        with pytest.raises(RuntimeError, match='asked for one.*cell_function stands in it. Restart the kernel'): start_method(cell_function)
        assert start_method(dist.get_rank) == 'spawn'


@linux
@pytest.mark.parametrize('asked', [False, True])
def test_a_notebook_that_asked_for_a_gpu_cannot_be_copied(asked):
    "`launch` itself asks in the way that does no harm"
    good, text = run(in_a_notebook_with_gpus, asked)
    assert good, text


@linux
def test_a_port_in_use_is_told_by_launch():
    with socket.socket() as other:
        other.bind(('', 0)); other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortInUse, match=f'port {port} of 127.0.0.1 is in use.*port={port + 1}'): launch(get_dist_info, 1, nnodes=2, port=port)
