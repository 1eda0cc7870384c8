"Budgets that keep notebooks readable: small cells, short lines, more prose than code, small figures, saved outputs, plain names"
import ast, base64, json, re, subprocess
from pathlib import Path

import nbformat, pytest

root = Path(__file__).resolve().parent.parent
CELL_SELDOM, CELL_NEVER, LINE, EXPORTED, NOTEBOOK_KB, FIGURE_KB = 35, 60, 150, 220, 300, 40
VAGUE = {'utils', 'util', 'misc', 'common', 'helpers', 'helper', 'tools', 'base_utils'}
PROSE_ONLY = ('tutorials/', 'explanations/', 'index.ipynb')     # pages that export nothing
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if not any(o.startswith(('_', '.')) for o in p.relative_to(root).parts))
modules = sorted(p for p in (root/'detnb').rglob('*.py') if 'configs' not in p.relative_to(root).parts and p.name != '_modidx.py')


def source(cell): return ''.join(cell['source'])
def rows(text): return text.splitlines()
def directive(cell, name): return re.search(rf'^#\s*\|\s*{name}\b', source(cell), re.M)


def shows_something(code):
    "Does the cell's last statement print or give a value? (A call may give None: only prints and plain expressions count.)"
    try: body = ast.parse(re.sub(r'^\s*[%!].*$', 'pass', code, flags=re.M)).body
    except SyntaxError: return False
    if not body or code.rstrip().endswith(';') or not isinstance(body[-1], ast.Expr): return False
    last = body[-1].value
    if isinstance(last, ast.Call): return getattr(last.func, 'id', '') in ('print', 'len', 'list', 'dict', 'tuple', 'type', 'sorted', 'sum', 'max', 'min')
    return isinstance(last, (ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.List, ast.Dict, ast.BinOp, ast.Compare, ast.JoinedStr))


def figure_bytes(output):
    for kind, data in (output.get('data') or {}).items():
        data = ''.join(data) if isinstance(data, list) else data
        if kind == 'image/svg+xml': yield kind, len(data)
        elif kind.startswith('image/'): yield kind, len(base64.b64decode(data))
        elif kind == 'text/html':
            for found in re.finditer(r'data:image/\w+;base64,([A-Za-z0-9+/=]+)', data): yield 'image in html', len(found[1]) * 3 // 4


def faults(notebook, page=''):
    "Everything in one notebook (a dict) that breaks a budget"
    bad, cells = [], notebook['cells']
    prose, code = [c for c in cells if c['cell_type'] == 'markdown'], [c for c in cells if c['cell_type'] == 'code']
    out = [c for c in code if directive(c, 'export')]
    lines, words = sum(len(rows(source(c))) for c in out), sum(len(source(c).split()) for c in prose)
    head = rows(source(cells[0])) if cells else []
    if not (head and head[0].startswith('# ')): bad.append('first cell is no `# Title`')
    elif not page.startswith(PROSE_ONLY) and not any(h.startswith('> ') for h in head): bad.append('no `> subtitle` under the title')
    if lines > EXPORTED: bad.append(f'{lines} exported lines (at most {EXPORTED}; split it)')
    if words < lines: bad.append(f'{words} words of prose for {lines} exported lines')
    if page.startswith(PROSE_ONLY) and out: bad.append('this page should export nothing')
    for c in out:
        if len(rows(source(c))) > CELL_NEVER: bad.append(f'exported cell of {len(rows(source(c)))} lines: {rows(source(c))[1][:60]}')
    for c in code:
        bad += [f'line of {len(r)} characters: {r[:70]}' for r in rows(source(c)) if len(r) > LINE]
        if c.get('execution_count') is not None or c.get('metadata'): bad.append(f'execution count or metadata not cleaned: {source(c)[:50]}')
        silent = directive(c, 'export') or directive(c, 'exporti') or directive(c, 'hide') or directive(c, r'eval:\s*false')
        if not silent and shows_something(source(c)) and not c['outputs']: bad.append(f'no saved output: {rows(source(c))[-1][:70]}')
        for o in c['outputs']:
            if o['output_type'] == 'error': bad.append(f'saved error: {o["ename"]}')
            if o.get('name') == 'stderr': bad.append(f'stderr: {"".join(o["text"])[:100]}')
            bad += [f'{kind} of {size // 1024} kB' for kind, size in figure_bytes(o) if size > FIGURE_KB * 1024]
    size = len(json.dumps(notebook, ensure_ascii=False)) // 1024
    return bad + ([f'{size} kB'] if size > NOTEBOOK_KB else [])


@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.relative_to(root/'nbs').as_posix())
def test_notebook_style(path):
    notebook = json.loads(path.read_text(encoding='utf-8'))
    nbformat.validate(nbformat.from_dict(notebook))
    bad = faults(notebook, path.relative_to(root/'nbs').as_posix())
    assert not bad, '\n'.join(bad)


def test_long_cells_are_few():
    "An exported cell is seldom over 35 lines: at most one in thirty"
    sizes = [(len(rows(source(c))), p.name) for p in notebooks for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code' and directive(c, 'export')]
    long = sorted(s for s in sizes if s[0] > CELL_SELDOM)
    assert len(long) <= max(3, len(sizes) / 30), f'{len(long)} of {len(sizes)}: {long}'


def names(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): yield node


def code_faults(text, name):
    "What no module may do"
    bad, tree = [], ast.parse(text, feature_version=(3, 10))     # the oldest Python that must run it
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and '__name__' in ast.unparse(node.test))]   # run as a file: may end
    if not ast.get_docstring(tree) and tree.body: bad.append(f'{name}: no module docstring (the notebook\'s subtitle)')
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_') and not ast.get_docstring(node):
            patched = any('patch' in ast.unparse(d) for d in node.decorator_list)
            if not patched and len(node.body) > 2: bad.append(f'{name}:{node.lineno} {node.name}: no docstring')
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            everything = node.type is None or ast.unparse(node.type) in ('Exception', 'BaseException')
            if everything and all(isinstance(s, (ast.Pass, ast.Continue)) for s in node.body): bad.append(f'{name}:{node.lineno} swallows every exception')
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ('sys.exit', 'exit', 'quit', 'os._exit'): bad.append(f'{name}:{node.lineno} ends the process')
        if isinstance(node, ast.Raise) and node.exc is not None and ast.unparse(node.exc).split('(')[0] == 'SystemExit': bad.append(f'{name}:{node.lineno} ends the process')
        roots = [n.name.split('.')[0] for n in node.names] if isinstance(node, ast.Import) else [(node.module or '').split('.')[0]] if isinstance(node, ast.ImportFrom) and not node.level else []
        bad += [f'{name}:{node.lineno} imports {r}' for r in roots if r in ('mmcv', 'mmdet', 'mmengine', 'cv2', 'torchvision_c')]
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith('torch.load'):
            if not any(k.arg == 'weights_only' and ast.unparse(k.value) == 'True' for k in node.keywords): bad.append(f'{name}:{node.lineno} torch.load without weights_only=True')
    return bad


def test_code():
    bad = [b for p in modules for b in code_faults(p.read_text(encoding='utf-8'), p.relative_to(root).as_posix())]
    bad += [f'{p.relative_to(root)}: a vague name' for p in [*modules, *notebooks] if {re.sub(r'^\d+_', '', x) for x in p.relative_to(root).with_suffix('').parts} & VAGUE]
    assert not bad, '\n'.join(bad)


def tracked():
    "Text files of the project, as git has them (a checkout without git: all of them)"
    try: files = subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True, check=True).stdout.split('\0')
    except (OSError, subprocess.CalledProcessError): files = [p.relative_to(root).as_posix() for p in root.rglob('*') if p.is_file()]
    return [root/f for f in files if f.endswith(('.py', '.ipynb', '.md', '.ini', '.json', '.yaml', '.txt', '.in')) and (root/f).is_file()]


def test_no_machine_paths():
    "No file tells of the machine it was written on"
    home = re.compile(r'(?<![\w.])(/work(space)?/|/root/|/home/\w+/|/Users/\w+/|/tmp/[\w.]*\w{6,})')
    bad = []
    for path in tracked():
        if path == Path(__file__): continue
        bad += [f'{path.relative_to(root)}: {m[0]}' for m in list(home.finditer(path.read_text(encoding='utf-8')))[:2]]
    assert not bad, '\n'.join(bad)


def nb(*cells):
    made = []
    for kind, text, *outputs in cells:
        cell = dict(cell_type=kind, metadata={}, source=text)
        made.append(dict(cell, outputs=outputs, execution_count=None) if kind == 'code' else cell)
    return dict(cells=made)


@pytest.mark.parametrize('cell,word', [
    (('code', '#| export\n' + 'x = 1\n' * 61), 'exported cell'), (('code', 'x = "' + 'a' * 150 + '"'), 'characters'), (('code', '1 + 1'), 'no saved output'),
    (('code', 'print(1)', dict(output_type='stream', name='stderr', text='warning')), 'stderr'), (('code', 'f()', dict(output_type='error', ename='E')), 'saved error'),
    (('code', 'x', dict(output_type='display_data', data={'image/png': base64.b64encode(bytes(50_000)).decode()})), 'image/png'),
    (('code', 'x', dict(output_type='display_data', data={'text/plain': 'a' * 400_000})), 'kB'), (('code', '#| export\n' + 'y = 2\n' * 40), 'words of prose')])
def test_notebook_budgets_are_seen(cell, word):
    title = ('markdown', '# A title\n> and a subtitle')
    assert faults(nb(title)) == []
    found = faults(nb(title, cell))
    assert any(word in f for f in found), found


@pytest.mark.parametrize('code,word', [
    ('"d"\ntry: x\nexcept Exception: pass', 'swallows'), ('"d"\nimport sys\nsys.exit(1)', 'ends'), ('"d"\nfrom mmcv import Config', 'imports mmcv'), ('x = 1', 'module docstring'),
    ('"d"\ntorch.load(f)', 'weights_only'), ('"d"\ndef f(x):\n    y = x\n    y += 1\n    return y', 'no docstring'), ('"d"\nraise SystemExit(2)', 'ends'),
    ('"d"\nif x: sys.exit(main())', 'ends')])
def test_code_rules_are_seen(code, word): assert word in ' '.join(code_faults(code, 'm'))
