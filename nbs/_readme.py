"Write README.md from nbs/index.ipynb: `python nbs/_readme.py`"
import os
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

nbs = Path(__file__).resolve().parent
pictures = Path('nbs/index_files')
hidden = re.compile(r'^#\s*\|\s*(hide|export)\b', re.M)
quiet = re.compile(r'^#\s*\|\s*output:\s*false\b', re.M)
link = re.compile(r'\]\(([^):#]+)\)')      # to a file of the project; it starts from nbs/ in the notebook, from the root in README.md
directive = re.compile(r'^#\s*\|.*\n?', re.M)


def readme() -> tuple:  # the text of README.md, and {path from the project's root: bytes} of its pictures
    nb = nbformat.read(nbs/'index.ipynb', 4)
    nb.cells = [c for c in nb.cells if c.source.strip() and not (c.cell_type == 'code' and hidden.search(c.source))]
    for cell in nb.cells:
        if cell.cell_type != 'code': continue
        if quiet.search(cell.source): cell.outputs = []
        cell.source = directive.sub('', cell.source)
        for out in cell.outputs:      # a picture's text form, `<Picture of 540 x 360 pixels>`, is for terminals
            if any(kind.startswith('image/') for kind in out.get('data', {})): out.data.pop('text/plain', None)
    nb.metadata.language_info = {'name': 'python'}
    text, resources = MarkdownExporter().from_notebook_node(nb, resources={'output_files_dir': pictures.as_posix(), 'unique_key': 'index'})
    text = re.sub(r'[ \t]+$', '', text, flags=re.M)
    text = link.sub(lambda m: f']({m[1] if m[1].startswith(pictures.as_posix()) else os.path.normpath(f"nbs/{m[1]}")})', text)
    return '<!-- Written from nbs/index.ipynb by nbs/_readme.py: edit there -->\n\n' + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', resources['outputs']


if __name__ == '__main__':
    root, (text, files) = nbs.parent, readme()
    for name, data in files.items():
        (root/name).parent.mkdir(exist_ok=True)
        (root/name).write_bytes(data)
    for old in set((root/pictures).glob('*')) - {root/name for name in files}: old.unlink()
    (root/'README.md').write_text(text, encoding='utf-8')
    print(f'README.md: {len(text.splitlines())} lines, {len(files)} pictures')
