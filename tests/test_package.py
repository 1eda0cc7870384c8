"The wheel: it builds from what git has, carries configs and licence, is small, and works where nothing else of the project is"
import importlib.util, os, re, subprocess, sys, zipfile
from pathlib import Path

import pytest
from test_style import tracked

root = Path(__file__).resolve().parent.parent


def call(*args, **kwargs):
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, f'{" ".join(map(str, args))}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}'
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built from a copy of the files that belong to the project: an old build/ folder can't lend it anything"
    source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    done = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=root, capture_output=True, text=True)
    names = done.stdout.split('\0') if done.returncode == 0 else [p.relative_to(root).as_posix() for p in root.rglob('*') if 'build' not in p.parts]
    for name in names:
        if not (root/name).is_file() or not name.startswith(('detnb/', 'setup.py', 'settings.ini', 'MANIFEST.in', 'README.md', 'LICENSE')): continue
        (source/name).parent.mkdir(parents=True, exist_ok=True); (source/name).write_bytes((root/name).read_bytes())
    isolated = [] if importlib.util.find_spec('setuptools') is None else ['--no-build-isolation']
    call('-m', 'pip', 'wheel', '--quiet', '--no-deps', *isolated, '--wheel-dir', str(out), str(source))
    found, = out.glob('detnb-*.whl')
    return found


def test_wheel_contents(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    here = {p.relative_to(root).as_posix() for p in (root/'detnb').rglob('*') if p.suffix in ('.py', '.json', '.yaml') and '__pycache__' not in p.parts}
    assert not here - names, f'not in the wheel: {sorted(here - names)[:5]}'
    assert sum(n.startswith('detnb/configs/faster_rcnn/') for n in names) >= 36 and 'detnb/configs/_base_/default_runtime.py' in names
    assert any(n.endswith('LICENSE') for n in names), 'no LICENSE'
    assert not [n for n in names if n.startswith(('tests/', 'nbs/', 'build/')) or n.endswith(('.ipynb', '.pth', '.pyc'))]
    assert wheel.stat().st_size < 5 * 2 ** 20, f'{wheel.stat().st_size / 2 ** 20:.1f} MB'


def test_wheel_metadata(wheel):
    files = zipfile.ZipFile(wheel)
    read = lambda end: next(files.read(n).decode() for n in files.namelist() if n.endswith(end))
    assert 'detnb = detnb.cli.main:main' in read('entry_points.txt')
    meta = read('METADATA')
    assert re.search(r'^Requires-Python: >=3\.10$', meta, re.M) and 'Provides-Extra: dev' in meta and re.search(r'^License.*Apache-2\.0', meta, re.M)


def test_wheel_works_alone(wheel, tmp_path):
    "Installed by itself, away from the checkout: imports, finds its configs with and without `configs/`, builds a detector, answers on the command line"
    target = tmp_path/'site'
    call('-m', 'pip', 'install', '--quiet', '--no-deps', '--no-compile', '--target', str(target), str(wheel))
    env = dict({k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}, PYTHONPATH=str(target))
    code = """if True:
        import detnb, sys
        from pathlib import Path
        assert Path(detnb.__file__).resolve().is_relative_to(Path(sys.argv[1]).resolve()), detnb.__file__
        for name in ('faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py', 'configs/retinanet/retinanet_r18_fpn_1x_coco.py'):
            cfg = detnb.Config.fromfile(name); print(cfg.model.type)
        from detnb.models import build_detector
        print(type(build_detector(cfg.model)).__name__)"""
    assert call('-c', code, str(target), cwd=tmp_path, env=env).split() == ['FasterRCNN', 'RetinaNet', 'RetinaNet']
    assert 'demo' in call('-m', 'detnb.cli.main', '--help', cwd=tmp_path, env=env)


def test_nothing_large_in_git():
    large = [(p.stat().st_size // 1024, p.relative_to(root).as_posix()) for p in tracked()
             if p.stat().st_size > (2000 if p.name == '_modidx.py' else 600) * 1024]       # nbdev's index has a line a name, and is no data
    assert not large, large
