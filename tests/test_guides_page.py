"The page of the guides' steps: complete, each step with a test that bears its letter, and its commands and calls are ones that exist"
import ast, importlib, json, re, shlex
from pathlib import Path

import pytest

from detnb.cli.main import COMMANDS

PAGE = Path(__file__).parent.parent/'nbs'/'explanations'/'20_guides.ipynb'
CELLS = json.loads(PAGE.read_text())['cells']
PROSE = '\n'.join(''.join(c['source']) for c in CELLS if c['cell_type'] == 'markdown')
STEPS = [f'{letter}{i}' for letter, n in dict(A=12, B=5, C=11, D=7, E=6, F=4, G=4).items() for i in range(1, n + 1)]
SHOWN = [c for c in dict.fromkeys(re.findall(r'`(detnb [a-z][^`]*)`', PROSE)) if 'NAME' not in c]


@pytest.mark.parametrize('step', STEPS)
def test_step_has_its_entry(step): assert len(re.findall(rf'^\| {step} \| [^|]+ \|', PROSE, re.M)) == 1


@pytest.mark.parametrize('command', SHOWN)
def test_command_is_accepted(command):
    _, name, *options = shlex.split(command)
    assert name in COMMANDS
    importlib.import_module(f'detnb.cli.{name.replace("-", "_")}').parser().parse_args(options)


def test_commands_are_found(): assert len(SHOWN) > 50 and {c.split()[1] for c in SHOWN} == set(COMMANDS)


@pytest.mark.parametrize('step', STEPS)
def test_step_has_a_test(step):
    "The letters in the names of this folder's tests, such as test_C10_C11_batches"
    names = [node.name for file in Path(__file__).parent.glob('test_guides*.py') for node in ast.walk(ast.parse(file.read_text()))
             if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')]
    assert any(step in name.split('_') for name in names), f'no test bears {step}'


def test_steps_are_those_of_the_guides():
    "Against the list of the guides, where it is at hand"
    from detnb.foundation.environment import data_root
    file = data_root() and data_root().parent/'design'/'guides.md'
    if not file or not file.exists(): pytest.skip('the list of the guides is not here')
    assert re.findall(r'^- ([A-G]\d+) ', file.read_text(), re.M) == STEPS


def test_calls_beyond_the_steps_exist():
    "Functions of the last table are imported in the cell below it, and take what the table gives them"
    import inspect
    spaces = {}
    exec('\n'.join(line for line in ''.join(CELLS[-1]['source']).splitlines() if line.startswith('from ')), spaces)
    table = PROSE.split('## Beyond the steps')[1]
    calls = [ast.parse(text).body[0].value for cell in re.findall(r'^\| [^|]+ \| ([^|]+) \|', table, re.M) for text in re.findall(r'`([A-Za-z_]\w*\(.*?)`', cell)]
    assert len(calls) > 17
    for call in calls:
        inner = call.func.value if isinstance(call.func, ast.Attribute) else call
        function = spaces[inner.func.id]
        if inner is not call: assert callable(getattr(function, call.func.attr))
        inspect.signature(function).bind(*inner.args, **{k.arg: k.value for k in inner.keywords})
