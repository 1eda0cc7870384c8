"After an error: %debug lands in the frame where it broke, the error names the image, and the memory can be had back"
import json, os, re, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
SESSION = '''
import sys
from IPython.core.interactiveshell import InteractiveShell
import json
shell = InteractiveShell.instance(colors='nocolor')
for name, cells, debug in json.loads({jobs!r}):
    print('\\n=====', name, flush=True)
    for cell in cells: shell.run_cell(cell, store_history=True)
    if debug: shell.run_line_magic('debug', '')
'''
BEGIN = '''
import sys, torch
from detnb.apis.demo import shapes_config
from detnb.apis import train_detector
from detnb.datasets import DATASETS, PIPELINES, CocoDataset, build_dataset
from detnb.models import HEADS, RetinaHead, build_detector
from detnb.training import HOOKS, Hook

def train(workers=0, **options):
    cfg = shapes_config('work', num_train=8, num_val=1)
    cfg.merge_from_dict({'model.backbone.base_channels': 16, 'model.neck.in_channels': [32, 64, 128], 'runner.max_epochs': 1,
                         'data.samples_per_gpu': 2, 'data.workers_per_gpu': workers, 'log_level': 'ERROR', **options})
    if 'darken' in options: cfg.data.train.pipeline.insert(3, dict(type='Darken'))
    model = build_detector(cfg.model)
    model.init_weights()
    data = build_dataset(cfg.data.train)
    model.CLASSES = data.CLASSES
    train_detector(model, data, cfg)

@DATASETS.register_module()
class Birds(CocoDataset):
    def get_ann_info(self, idx):
        bird = f'bird {idx}'
        if idx == 5: raise LookupError(f'no label for {bird}')
        return super().get_ann_info(idx)

@PIPELINES.register_module()
class Darken:
    def __call__(self, results):
        half = results['img'] // 2
        if results['ori_filename'] == '000003.jpg': raise ArithmeticError('too dark')
        return {**results, 'img': half}

@HEADS.register_module()
class Forgetful(RetinaHead):
    def loss(self, cls_scores, *args, **kw):
        levels = len(cls_scores)
        return cls_scores[levels]

@HOOKS.register_module()
class Greedy(Hook):
    def after_train_iter(self, runner):
        wanted = runner.iter + 40
        if runner.iter == 1: runner.wealth -= wanted
'''
CASES = {'dataset': ("train(**{'data.train.type': 'Birds'})", ['p f"bird is {bird}"', 'p f"idx is {idx}"', 'up', 'where', 'q']),
         'transform': ("train(darken=True)", ['p f"shape is {half.shape}"', 'p f"file is {results[\'ori_filename\']}"', 'where', 'q']),
         'transform with workers': ("train(workers=2, darken=True)", ['p f"shape is {half.shape}"', 'p f"file is {results[\'ori_filename\']}"', 'where', 'q']),
         'head': ("train(**{'model.bbox_head.type': 'Forgetful'})", ['p f"levels is {levels}"', 'p f"head is {type(self).__name__}"', 'where', 'q']),
         'hook': ("train(custom_hooks=[dict(type='Greedy')])", ['p f"wanted is {wanted}"', 'p f"model is {runner.model_name}"', 'where', 'q'])}
MEMORY = ['''
import detnb, weakref
detnb.free_memory()
class Doomed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.big = torch.nn.Parameter(torch.zeros(1000, 1000))
    def forward(self, x):
        hidden = x * self.big
        raise MemoryError('no room')

def fail():
    model = Doomed()
    watched.append(weakref.ref(model))
    model(torch.zeros(1000, 1000))
watched = []
kept = torch.zeros(500)
''', 'kept + 1', '"a text"', 'fail()', "print('held:', watched[0]() is not None, len(Out))",
'freed = detnb.free_memory()', "print('held:', watched[0]() is not None, sorted(Out.values(), key=str), freed, kept.sum().item(), hasattr(sys, 'last_value'))"]


@pytest.fixture(scope='module')
def session(tmp_path_factory):
    "What an IPython says to all these errors, and what its debugger answers"
    folder = tmp_path_factory.mktemp('session')
    (folder/'lines.py').write_text(BEGIN)           # a file, as pdb shows lines of
    jobs = [('begin', ['%run -i lines.py'], False), *((name, [cell], True) for name, (cell, _) in CASES.items()), ('memory', MEMORY, False)]
    lines = '\n'.join(line for _, commands in CASES.values() for line in commands) + '\n'
    env = {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1', 'IPYTHONDIR': str(folder/'ipython')}
    done = subprocess.run([sys.executable, '-c', SESSION.format(jobs=json.dumps(jobs))], input=lines, capture_output=True, text=True, cwd=folder, env=env,
                          timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    parts = re.split(r'^===== (.*)$', done.stdout, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


@pytest.mark.parametrize('name,note,answers', [
    ('dataset', r'item.* 5|items \[.*5', ['bird is bird 5', 'idx is 5']),
    ('transform', '000003.jpg', ['shape is (160, 224, 3)', 'file is 000003.jpg']),
    ('transform with workers', '000003.jpg', ['shape is (160, 224, 3)', 'file is 000003.jpg']),
    ('head', r'iteration 1, images: \d+.jpg', ['levels is 3', 'head is Forgetful']),
    ('hook', r'in Greedy.after_train_iter, epoch 1, iteration 2', ['wanted is 41', 'model is RetinaNet'])])
def test_the_debugger_lands_where_it_broke(session, name, note, answers):
    told, _, answered = session[name].partition('ipdb>')
    assert re.search(note, told), told[-2000:]
    for answer in answers: assert answer in answered, f'{answer} is not in\n{answered}'
    assert 'train_detector' in answered                           # where: the way to it


def test_memory_is_had_back(session):
    text = session['memory']
    assert 'held: True 2' in text
    assert "held: False ['a text'] " in text and 'the frames of the last error (MemoryError), Out[' in text
    freed = int(re.search(r"\['a text'\] (\d+) 0.0 False", text)[1])
    assert freed == 3 * 4_000_000 + 2000                          # the model's, its input and what it made of it; and what Out held
