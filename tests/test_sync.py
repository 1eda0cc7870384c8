"Notebooks and package agree: what the notebooks export is exactly what stands in detnb/"
import json, os, re, shutil, subprocess, sys
from collections import defaultdict
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent


def sources(notebook): return [''.join(c['source']) for c in json.loads(notebook.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']


def notebooks(project):
    return sorted(p for p in (project/'nbs').rglob('*.ipynb') if not any(o.startswith(('_', '.')) for o in p.relative_to(project).parts))


def exports(project):
    "Which notebooks export which module, and the notebooks that export without naming one"
    named, nameless = defaultdict(list), []
    for path in notebooks(project):
        rel, code = path.relative_to(project/'nbs').as_posix(), sources(path)
        name = [m[1] for s in code for m in re.finditer(r'^#\s*\|\s*default_exp\s+(\S+)', s, re.M)]
        if name: named[name[0]].append(rel)
        elif any(re.match(r'#\s*\|\s*export', s) for s in code): nameless.append(rel)
        if len(name) > 1: nameless.append(f'{rel} (two default_exp)')
    return named, nameless


def misplaced(project):
    "`nbs/models/necks/10_fpn.ipynb` exports `models.necks.fpn`; a face `00_necks.ipynb` exports `models.necks.__init__` or, in nbs/ itself, its own name"
    bad = []
    for name, (rel, *_) in exports(project)[0].items():
        path = Path(rel); stem = re.sub(r'^\d+_', '', path.stem); here = path.parent.as_posix().replace('/', '.')
        here = '' if here == '.' else here + '.'
        if name not in (here + stem, here + '__init__'): bad.append(f'{rel} exports {name}')
        if not re.match(r'\d+_', path.stem): bad.append(f'{rel}: no number in its name')
    return bad


def exported(project, into):
    "Export every notebook of `project` into a copy -> {file: text} of the package that results"
    shutil.copytree(project/'nbs', into/'nbs', ignore=lambda folder, names: [n for n in names if n[0] in '._' or not (n.endswith('.ipynb') or (Path(folder)/n).is_dir())]); shutil.copy(project/'settings.ini', into)
    (into/'detnb').mkdir(exist_ok=True); shutil.copy(project/'detnb'/'__init__.py', into/'detnb')   # nbdev reads the version from it
    if (project/'detnb'/'configs').exists(): shutil.copytree(project/'detnb'/'configs', into/'detnb'/'configs')   # nbdev's index lists them
    env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'PYTHONPATH')}                # IN_TEST makes nbdev_export do nothing
    done = subprocess.run([sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()'], cwd=into, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return package(into)


def package(project):
    return {p.relative_to(project).as_posix(): p.read_text(encoding='utf-8') for p in sorted((project/'detnb').rglob('*.py'))
            if 'configs' not in p.relative_to(project).parts}


def differences(project, tmp):
    want, got = exported(project, tmp), package(project)
    bad = [f'{name}: no notebook exports it' for name in got if name not in want]
    bad += [f'{name}: not exported yet (nbdev_export)' for name in want if name not in got and want[name]]
    return bad + [f'{name}: differs from its notebook (nbdev_export)' for name in got if name in want and got[name] != want[name]]


def test_one_notebook_per_module():
    named, nameless = exports(root)
    twice = {k: v for k, v in named.items() if len(v) > 1}
    assert not twice, f'modules that several notebooks would overwrite: {twice}'
    assert not nameless, f'cells marked export in notebooks without (one) default_exp: {nameless}'
    assert not misplaced(root), '\n'.join(misplaced(root))


def test_package_is_what_the_notebooks_export(tmp_path):
    bad = differences(root, tmp_path)
    assert not bad, '\n'.join(bad)


def small_project(tmp_path, cells, name='nbs/10_thing.ipynb'):
    project = tmp_path/'project'; path = project/name
    path.parent.mkdir(parents=True, exist_ok=True); (project/'detnb').mkdir(exist_ok=True)
    shutil.copy(root/'settings.ini', project)
    if not (project/'detnb/__init__.py').exists(): (project/'detnb/__init__.py').write_text('__version__ = "0"\n')
    cells = [dict(cell_type='code', id=str(i), metadata={}, source=s, outputs=[], execution_count=None) for i, s in enumerate(cells)]
    kernel = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    path.write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)))
    return project


def test_each_slip_is_seen(tmp_path):
    "The check itself, on a project of one notebook: an edited module, a module without a notebook, two notebooks for one module"
    project = small_project(tmp_path, ['#| default_exp thing', '#| export\nx = 1'])
    copy = lambda n: (tmp_path/n).mkdir() or tmp_path/n
    for name, text in exported(project, copy('a')).items(): (project/name).write_text(text)
    assert differences(project, copy('b')) == []
    module = project/'detnb/thing.py'; text = module.read_text()
    module.write_text(text.replace('x = 1', 'x = 2')); assert 'differs' in differences(project, copy('c'))[0]
    module.write_text(text); (project/'detnb/left.py').write_text('y = 1'); assert 'no notebook' in differences(project, copy('d'))[0]
    small_project(tmp_path, ['#| default_exp thing', '#| export\nz = 1'], 'nbs/20_other.ipynb')
    assert len(exports(project)[0]['thing']) == 2 and misplaced(project) == []
    small_project(tmp_path, ['#| export\nz = 1'], 'nbs/30_bare.ipynb'); assert exports(project)[1] == ['30_bare.ipynb']
    small_project(tmp_path, ['#| default_exp models.other'], 'nbs/models/40_name.ipynb'); assert misplaced(project) == ['models/40_name.ipynb exports models.other']
