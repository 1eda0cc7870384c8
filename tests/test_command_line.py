"""The commands as somebody meets them who knows MMDetection's tools, or who knows nothing yet: option names and defaults are those of the tools
(figures/command_line.json: names and defaults of 2.28.2), every option says what it does, every help has examples, and the examples are ones that work"""
import ast, importlib, json, re, shlex
from pathlib import Path

import pytest

from detnb.cli.main import COMMANDS, top_parser
from detnb.foundation.environment import data_root

TOOLS = json.loads((Path(__file__).parent/'figures'/'command_line.json').read_text())
COMMAND = {        # a tool -> the command, and what is another word there: an option's name -> ours, or a value that stands for it
    'train.py': ('train', {}), 'test.py': ('test', {}),
    'analysis_tools/analyze_logs.py': ('analyze logs', {}), 'analysis_tools/analyze_results.py': ('analyze results', {}), 'analysis_tools/benchmark.py': ('benchmark', {}),
    'analysis_tools/coco_error_analysis.py': ('analyze coco-errors', {}), 'analysis_tools/coco_occluded_separated_recall.py': ('analyze occluded-recall', {}),
    'analysis_tools/confusion_matrix.py': ('confusion-matrix', {}), 'analysis_tools/eval_metric.py': ('analyze eval', {}), 'analysis_tools/get_flops.py': ('flops', {}),
    'analysis_tools/optimize_anchors.py': ('analyze anchors', {}), 'analysis_tools/robustness_eval.py': ('analyze robustness-eval', {}),
    'analysis_tools/test_robustness.py': ('analyze robustness', {}),
    'dataset_converters/cityscapes.py': ('convert cityscapes', {}), 'dataset_converters/images2coco.py': ('convert images', {}), 'dataset_converters/pascal_voc.py': ('convert voc', {}),
    'misc/split_coco.py': ('convert split', {}), 'misc/get_image_metas.py': ('convert image-metas', {}), 'misc/gen_coco_panoptic_test_info.py': ('convert panoptic-test-info', {}),
    'misc/browse_dataset.py': ('browse', {}), 'misc/download_dataset.py': ('download', {}), 'misc/print_config.py': ('print-config', {}),
    'model_converters/publish_model.py': ('publish', {}), 'model_converters/detectron2pytorch.py': ('convert-model detectron', {'depth': '--depth'}),
    'model_converters/regnet2mmdet.py': ('convert-model regnet', {}), 'model_converters/selfsup2mmdet.py': ('convert-model moco', {'--selfsup': 'source'}),
    'model_converters/upgrade_model_version.py': ('convert-model upgrade', {'in_file': 'src', 'out_file': 'dst'}),
    'model_converters/upgrade_ssd_version.py': ('convert-model upgrade-ssd', {'in_file': 'src', 'out_file': 'dst'}),
    'deployment/mmdet2torchserve.py': ('torchserve', {}), 'deployment/pytorch2onnx.py': ('export-onnx', {})}
NOT_PROVIDED = {
    'deployment/mmdet_handler.py': "no command: TorchServe imports it; `apis.torchserve.DetectionHandler` is packed into each archive",
    'deployment/onnx2tensorrt.py': 'TensorRT reads ONNX files with its own trtexec',
    'deployment/test.py': 'export-onnx --verify compares the file with the detector; no metrics of ONNX files',
    'deployment/test_torchserver.py': 'any HTTP client asks a server; the handler is tested as TorchServe calls it'}
OTHER_DEFAULT = {  # (command, option): why its default is another here
    ('download', '--save-dir'): 'each data set has the folder where its configs look', ('export-onnx', '--opset-version'): 'the exporter writes 18 and later',
    ('export-onnx', '--mean'): "the config's normalisation is a part of the graph", ('export-onnx', '--std'): "the config's normalisation is a part of the graph",
    ('analyze anchors', '--device'): 'has no effect: the search is quick on a CPU', ('analyze robustness', '--workers'): 'no processes unless asked for',
    ('analyze robustness', '--seed'): 'noise is the same each time'}


def command_parser(name):
    "The parser of a command, or of a word after it"
    command, *word = name.split()
    parser = importlib.import_module(f'detnb.cli.{command.replace("-", "_")}').parser()
    below = [a for a in parser._actions if hasattr(a, '_name_parser_map')]
    return below[0].choices[word[0]] if word and below else parser


def every_command():
    for command in COMMANDS:
        parser = command_parser(command)
        yield command
        for action in parser._actions: yield from (f'{command} {word}' for word in (action.choices if hasattr(action, '_name_parser_map') else ()))


EVERY = list(every_command())


def options(parser): return {name: a for a in parser._actions for name in (a.option_strings or [a.dest]) if a.dest != 'help'}


def test_every_tool_has_its_command_or_a_reason():
    assert set(TOOLS) == set(COMMAND) | set(NOT_PROVIDED) and all(len(reason) > 20 for reason in NOT_PROVIDED.values())


def test_the_names_are_those_of_the_full_list():
    "The small file here against the golden one"
    root = data_root()
    full = root and root.parent/'golden'/'zoo'/'command_line.md'
    if not full or not full.exists(): pytest.skip('the golden figures are not here')
    for tool, body in re.findall(r'^## (\S+\.py)\n(.*?)(?=^## |\Z)', full.read_text(), re.M | re.S):
        assert set(TOOLS[tool]) == {m for m in re.findall(r'^\| `([^`]+)` \|', body, re.M)}


@pytest.mark.parametrize('tool', COMMAND)
def test_names_and_defaults_are_those_of_the_tool(tool):
    name, renamed = COMMAND[tool]
    ours = options(command_parser(name))
    for names, default in TOOLS[tool].items():
        for option in names.split(', '):
            option = renamed.get(option, option)
            assert option in ours, f'detnb {name} lacks {option}'
            if default is None or (name, option) in OTHER_DEFAULT: continue
            mine, theirs = ours[option].default, ast.literal_eval(default)
            assert mine == theirs or [mine] == theirs or mine == [theirs] or {mine, theirs} <= {'', None}, f'detnb {name} {option}: {mine!r}, in {tool} {theirs!r}'


def test_exceptions_are_needed():
    for tool, (name, renamed) in COMMAND.items():
        for option, default in TOOLS[tool].items():
            if (name, option) in OTHER_DEFAULT: assert default is not None and options(command_parser(name))[option].default != ast.literal_eval(default), (name, option)


@pytest.mark.parametrize('name', EVERY)
def test_help_tells_a_newcomer_everything(name):
    parser = command_parser(name)
    assert parser.description and 'example' in (parser.epilog or ''), f'detnb {name} --help shows no example'
    for option, action in options(parser).items():
        text = action.help or ''
        assert len(text) > 3 or hasattr(action, '_name_parser_map'), f'detnb {name} {option}: no help'
        if action.default in (None, False, [], '') or not action.option_strings or text.startswith('(old)') or action.dest == 'local_rank': continue
        assert 'default' in text, f'detnb {name} {option}: the default {action.default!r} is not told'


def examples(text):
    "Commands in a help text: (what the environment says, the words after `detnb`)"
    for line in re.findall(r'^  ((?:\w+=\S+ )*detnb .*)$', text or '', re.M):
        yield re.sub(r'\s+(#|\().*$', '', line) if not re.search(r'"[^"]*[#(]', line) else line


@pytest.mark.parametrize('name', [*EVERY, ''])
def test_examples_are_accepted(name):
    parser = command_parser(name) if name else top_parser()
    shown = list(examples(parser.epilog))
    assert shown, f'detnb {name}: no example that begins with detnb'
    for line in shown:
        words = shlex.split(line.split(' && ')[0])
        words = words[words.index('detnb') + 1:]
        assert words[:len(name.split())] == name.split() or name in ('', 'train'), line
        importlib.import_module(f'detnb.cli.{words[0].replace("-", "_")}').parser().parse_args(words[1:])
