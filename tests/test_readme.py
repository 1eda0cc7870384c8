"README.md is what nbs/index.ipynb gives"
import re
import runpy
from pathlib import Path

root = Path(__file__).resolve().parents[1]


def written(): return runpy.run_path(str(root/'nbs'/'_readme.py'))['readme']()


def test_readme_agrees_with_index():
    text, files = written()
    assert (root/'README.md').read_text(encoding='utf-8') == text, 'run `python nbs/_readme.py`'
    for name, data in files.items(): assert (root/name).read_bytes() == data, name
    assert {p.relative_to(root).as_posix() for p in (root/'nbs'/'index_files').glob('*')} == set(files)


def test_readme_says_what_it_must():
    text = (root/'README.md').read_text(encoding='utf-8')
    for must in ('pip install . && detnb demo', 'pip install ".[dev]" && pytest', '](nbs/index_files/'): assert must in text, must
    assert len(text.splitlines()) < 120


def test_links_of_the_readme_and_contributing_lead_somewhere():
    for page in ('README.md', 'CONTRIBUTING.md'):
        for link in re.findall(r'\]\(([^)#:]+)\)', (root/page).read_text(encoding='utf-8')): assert (root/link).exists(), f'{page}: {link}'
