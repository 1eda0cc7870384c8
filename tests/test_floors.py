"A module imports only from the floors below its own, or from its own package"
import ast
from pathlib import Path

import pytest
from fresh_process import import_module, run

root = Path(__file__).resolve().parent.parent
FLOORS = dict(foundation=0, ops=1, structures=1, layers=2, drawing=2, models=3, evaluation=4, datasets=5, training=6, apis=7, widgets=8, cli=9)
FACES = {'detnb', 'detnb.core', 'detnb.as_mmdet'}        # they only pass names on
modules = sorted(p for p in (root/'detnb').rglob('*.py') if 'configs' not in p.relative_to(root).parts and p.name != '_modidx.py')


def dotted(path):
    parts = path.relative_to(root).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imported(path):
    "Every module that the file imports, also inside functions: (line, dotted name)"
    package = dotted(path).split('.') if path.name == '__init__.py' else dotted(path).split('.')[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            for name in node.names: yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            base = '.'.join(base + ([node.module] if node.module else []))
            yield from ((node.lineno, f'{base}.{name.name}') for name in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, 'attr', getattr(node.func, 'id', '')) in ('import_module', '__import__'):
            if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str): yield node.lineno, node.args[0].value


def wrong_imports(path):
    own = dotted(path); bad = []
    if own in FACES: return bad
    room = own.split('.')[1]
    if room not in FLOORS: return [f'{own}: {room} is no package of the house']
    for line, name in imported(path):
        parts = name.split('.')
        if parts[0] != 'detnb': continue
        other = parts[1] if len(parts) > 1 else ''
        if other == room or other.startswith('__'): continue   # own package; detnb.__version__
        if other not in FLOORS: bad.append(f'{own}:{line} imports {name}: a face, or no package of the house')
        elif FLOORS[other] >= FLOORS[room]: bad.append(f'{own}:{line} imports {name}: floor {FLOORS[other]} from floor {FLOORS[room]}')
    return bad


def test_floors():
    bad = [line for path in modules for line in wrong_imports(path)]
    assert not bad, '\n'.join(bad)


@pytest.mark.parametrize('code,wrong', [
    ('from ..datasets.coco import CocoDataset', 1), ('def f():\n    import detnb.training.runner', 1), ('from ... import core', 1), ('from .. import Config', 1),
    ('from importlib import import_module\nimport_module("detnb.apis.train")', 1), ('from ..ops.nms import nms\nfrom .necks import fpn\nfrom detnb import __version__', 0)])
def test_floors_are_seen(tmp_path, monkeypatch, code, wrong):
    "The check itself: an import from above is found wherever it stands"
    monkeypatch.setitem(globals(), 'root', tmp_path)
    path = tmp_path/'detnb/models/thing.py'
    path.parent.mkdir(parents=True); path.write_text(code.replace('from ... import', 'from .. import'))
    assert len(wrong_imports(path)) == wrong


@pytest.mark.parametrize('package', sorted(FLOORS))
def test_each_module_imports_alone(package):
    "No module leans on another having been imported before it (an import cycle shows only in one order)"
    mine = [dotted(p) for p in modules if dotted(p).split('.')[1:2] == [package]]
    bad = {name: text for name in mine for good, text in [run(import_module, name, str(root))] if not good}
    assert not bad, '\n'.join(f'{name}:\n{text[-1500:]}' for name, text in bad.items())


def test_light_import():
    "`import detnb` brings in neither matplotlib, pycocotools nor IPython, nor any file of the upper floors"
    good, text = run(light, str(root))
    assert good, text


def light(root):
    import subprocess, sys
    code = f"import sys; sys.path.insert(0, {root!r}); import torch, torchvision; before = set(sys.modules); import detnb; print('\\n'.join(set(sys.modules) - before))"
    new = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd='/').stdout.split()
    heavy = [m for m in new if m.split('.')[0] in ('matplotlib', 'pycocotools', 'IPython', 'ipywidgets', 'pandas', 'scipy')]
    upper = [m for m in new if m.startswith(('detnb.models', 'detnb.datasets', 'detnb.training', 'detnb.apis', 'detnb.drawing'))]
    print('imported by detnb:', heavy + upper)
    return not heavy + upper
