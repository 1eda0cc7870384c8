"Every notebook runs top to bottom, each one its own case in its own process"
import os
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path

import pytest
from fresh_process import run, run_notebook

root = Path(__file__).resolve().parent.parent
settings = ConfigParser(delimiters=['='])
settings.read(root/'settings.ini', encoding='utf-8')
flags = settings['DEFAULT']['tst_flags'].split()
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if not any(o.startswith(('_', '.')) for o in p.relative_to(root).parts))


@pytest.fixture(scope='session')
def runs(request):
    "As many notebooks at once as there are cores, in the order in which the cases ask for them"
    wanted = [item.callspec.params['notebook'] for item in request.session.items if item.name.startswith('test_notebook[')]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()) as pool:
        jobs = {nb: pool.submit(run, run_notebook, str(nb), str(root), flags) for nb in wanted}
        yield jobs
        for job in jobs.values(): job.cancel()


@pytest.mark.parametrize('notebook', notebooks, ids=lambda p: p.relative_to(root/'nbs').as_posix())
def test_notebook(notebook, runs):
    good, text = runs[notebook].result()
    assert good, f'{notebook.relative_to(root)} failed:\n{text[-6000:]}'


def test_there_are_notebooks(): assert len(notebooks) > 50, f'{len(notebooks)} notebooks in {root/"nbs"}'
