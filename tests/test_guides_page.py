"The page of the guides' steps: complete, and its commands are ones that the parsers take"
import importlib, json, re, shlex
from pathlib import Path

import pytest

from detnb.cli.main import COMMANDS

PAGE = Path(__file__).parent.parent/'nbs'/'explanations'/'20_guides.ipynb'
PROSE = '\n'.join(''.join(c['source']) for c in json.loads(PAGE.read_text())['cells'] if c['cell_type'] == 'markdown')
STEPS = [f'{letter}{i}' for letter, n in dict(A=12, B=5, C=11, D=7, E=6, F=4, G=4).items() for i in range(1, n + 1)]
SHOWN = [c for c in dict.fromkeys(re.findall(r'`(detnb [a-z][^`]*)`', PROSE)) if 'NAME' not in c]


@pytest.mark.parametrize('step', STEPS)
def test_step_has_its_entry(step): assert len(re.findall(rf'^\| {step} \| [^|]+ \|', PROSE, re.M)) == 1


@pytest.mark.parametrize('command', SHOWN)
def test_command_is_accepted(command):
    _, name, *options = shlex.split(command)
    assert name in COMMANDS
    importlib.import_module(f'detnb.cli.{name.replace("-", "_")}').parser().parse_args(options)


def test_commands_are_found(): assert len(SHOWN) > 25
