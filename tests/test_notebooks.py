"Every notebook runs top to bottom, each one its own case in its own process; a tutorial, in a clean kernel, gives the outputs that are saved in it"
import os, re
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
from fresh_process import run, run_notebook, run_tutorial

from detnb.foundation.environment import data_root

root = Path(__file__).resolve().parent.parent
settings = ConfigParser(delimiters=['='])
settings.read(root/'settings.ini', encoding='utf-8')
flags = settings['DEFAULT']['tst_flags'].split()
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if not any(o.startswith(('_', '.')) for o in p.relative_to(root).parts))
NUMBER = re.compile(r'-?\d+(\.\d+)?(e[-+]?\d+)?')


def is_tutorial(path): return 'tutorials' in path.relative_to(root).parts


@pytest.fixture(scope='session')
def runs(request):
    "As many notebooks at once as there are cores, in the order in which the cases ask for them"
    wanted = [item.callspec.params['notebook'] for item in request.session.items if item.name.startswith('test_notebook[')]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()) as pool:
        jobs = {nb: pool.submit(run_tutorial, nb, root) if is_tutorial(nb) else pool.submit(run, run_notebook, str(nb), str(root), flags) for nb in wanted}
        yield jobs
        for job in jobs.values(): job.cancel()


def lines(cell):
    "What a cell says in text: no pictures, no progress bars, no moments and durations"
    out = []
    for o in cell.get('outputs', ()):
        data = o.get('data', {})
        if any(kind.startswith('image/') for kind in data) or '<progress' in (text := o.get('text') or data.get('text/html') or data.get('text/plain') or ''): continue
        out += [line.rstrip() for line in re.sub(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+|(eta: |\b(data_)?time: )[\d:.]+|\b0x[0-9a-f]+', '', text).splitlines()]
    return out


def changed(saved, fresh):
    """What a reader of the saved notebook is told, and a run does not give: `[(cell, saved lines, lines of the run)]`.
    Where a cell says `#| numbers: vary` (a training ends a little elsewhere on another processor), only the form of what it first says is held."""
    form = lambda found: [NUMBER.sub('#', line) for line in found[:1]]
    pairs = [(a.source, lines(a), lines(b)) for a, b in zip(saved.cells, fresh.cells, strict=True) if a.cell_type == 'code']
    return [(source, a, b) for source, a, b in pairs if (form(a) != form(b) if re.search(r'^#\|\s*numbers:\s*vary', source, re.M) else a != b)]


@pytest.mark.parametrize('notebook', notebooks, ids=lambda p: p.relative_to(root/'nbs').as_posix())
def test_notebook(notebook, runs):
    name = notebook.relative_to(root)
    if not is_tutorial(notebook):
        good, text = runs[notebook].result()
        assert good, f'{name} failed:\n{text[-6000:]}'
    else:
        saved, fresh = nbformat.read(notebook, 4), runs[notebook].result()
        if data_root() is None and 'data_root()' in notebook.read_text(encoding='utf-8'): return      # it ran; its saved text tells of real pictures
        bad = changed(saved, fresh)
        told = [f'cell {source[:70]!r}\n  saved:\n    ' + '\n    '.join(a[:12]) + '\n  this run:\n    ' + '\n    '.join(b[:12]) for source, a, b in bad]
        assert not bad, f'{name}: saved outputs are not what a run gives; run it again and save it\n' + '\n'.join(told)


@pytest.mark.parametrize('source,saved,fresh,same', [
    ('x', 'a 1', 'a 1', True), ('x', 'a 1', 'a 2', False), ('#| numbers: vary\nx', 'a 1\nb', 'a 2.5\nc', True), ('#| numbers: vary\nx', 'a 1', 'b 1', False), ('x', 'a', '', False),
    ('x', '2026-01-02 03:04:05,678 - a', '2027-01-02 03:04:05,679 - a', True)])
def test_a_changed_output_is_seen(source, saved, fresh, same):
    one, two = (nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, outputs=[nbformat.v4.new_output('stream', text=t)] if t else [])]) for t in (saved, fresh))
    assert (changed(one, two) == []) == same


def test_there_are_notebooks(): assert len(notebooks) > 50, f'{len(notebooks)} notebooks in {root/"nbs"}'
