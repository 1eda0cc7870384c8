"A config under the hands: history, short files that read back, slips that are found, and the widget over them"
import random, time, warnings
from copy import deepcopy

import pytest

from detnb import Config, ConfigDict
from detnb.apis.check_config import check_config
from detnb.foundation.config_dict import walk
from detnb.foundation.config_edit import History, put, remove, same, value_at
from detnb.foundation.config_export import export_config, short_config
from detnb.foundation.config_paths import shipped

FASTER = 'faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py'
every = sorted(p.relative_to(shipped()).as_posix() for p in shipped().glob('[a-z]*/*.py') if p.name != '__init__.py')
some = every[5::len(every) // 20]
VALUES = [None, True, 0, -3, 1e-5, -.5, 1e400, '', 'a', "it's \"so\"", 'line\nbreak \\n', 'größe', '{a}', '$x', [], (), {}, (1,), [1, (2., [None])], {1, 2},
          dict(type='X', a=dict(b=[dict(c=1)])), {'class': 1, 'a.b': 2, 3: 4}, dict(a={}), [dict(type='Y')]]


def paths(value, at=()):
    "Every address of a config, of dicts and lists too"
    for k, v in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*at, k)
        if isinstance(v, (dict, list, tuple)): yield from paths(v, (*at, k))


def meddle(cfg, rng):
    "One change of any kind that an editor could make, the kinds that a file finds hardest more often"
    path = rng.choice(list(paths(cfg._cfg_dict)))
    holder, deep = value_at(cfg, path[:-1]), len(path) > 1
    kind = rng.choice(['set', 'set', 'remove', 'add', 'retype', 'turn'])
    if kind == 'remove' and deep: remove(cfg, path)
    elif kind == 'add' and isinstance(holder, dict): put(cfg, (*path[:-1], f'new_{rng.randrange(9)}'), deepcopy(rng.choice(VALUES)))
    elif kind == 'turn' and isinstance(value_at(cfg, path), (list, tuple)):
        v = value_at(cfg, path)
        put(cfg, path, tuple(v) if isinstance(v, list) else list(v))
    elif kind == 'retype' and deep and isinstance(holder, dict): put(cfg, path[:-1], dict(type='Other', lr=rng.random()))
    else: put(cfg, path, deepcopy(rng.choice(VALUES)))


@pytest.mark.parametrize('name', some)
def test_short_config_reads_back(name, tmp_path):
    "Whatever was changed, the short file gives the very same values"
    for seed in range(6):
        rng, cfg = random.Random(f'{name} {seed}'), Config.fromfile(name)
        for _ in range(1 + seed * 2): meddle(cfg, rng)
        if seed == 5: del cfg[rng.choice(list(cfg))]
        file = export_config(cfg, tmp_path/f'{seed}.py')
        assert same(Config.fromfile(file, import_custom_modules=False)._cfg_dict, cfg._cfg_dict)
        assert file.read_text(encoding='utf-8').startswith('# written whole' if seed == 5 else f"_base_ = '{name}'\n")


def test_short_config_is_short(tmp_path):
    cfg = Config.fromfile(FASTER)
    cfg.optimizer.lr = .01
    assert short_config(cfg) == f"_base_ = '{FASTER}'\noptimizer = dict(lr=0.01)\n"
    cfg.optimizer.lr = .02
    assert short_config(cfg) == f"_base_ = '{FASTER}'\n"                       # back to what the file has: nothing is changed
    (tmp_path/'faster_rcnn').mkdir()
    (tmp_path/FASTER).write_text('seed = 1')                                  # hides the shipped file of that name
    cfg.seed = 3
    file = export_config(cfg, tmp_path/'mine.py')
    assert same(Config.fromfile(file)._cfg_dict, cfg._cfg_dict)
    mine = Config.fromfile(file)
    mine.optimizer.lr = 1
    (tmp_path/'sub').mkdir()
    over = export_config(mine, tmp_path/'sub'/'over.py')
    assert over.read_text() == "_base_ = '../mine.py'\noptimizer = dict(lr=1)\n" and Config.fromfile(over).optimizer.lr == 1


@pytest.mark.parametrize('key,value,word', [('work_dir', '{{ fileBasename }}', 'work_dir cannot be written'), ('hook', print, 'hook is <built-in'), ('a b', 1, "'a b'")])
def test_what_no_file_can_say(key, value, word, tmp_path):
    "An honest error, and no file"
    cfg = Config.fromfile(FASTER)
    cfg[key] = value
    with pytest.raises((ValueError, TypeError), match=word): export_config(cfg, tmp_path/'x.py')
    assert not list(tmp_path.iterdir())


def test_export_never_overwrites_unasked(tmp_path):
    cfg = Config.fromfile(FASTER)
    file = export_config(cfg, tmp_path/'x.py')
    with pytest.raises(FileExistsError, match='already'): export_config(cfg, file)
    export_config(cfg, file, overwrite=True)
    with pytest.raises(ValueError, match='is the base'): export_config(Config.fromfile(file), file, overwrite=True)
    with pytest.raises(ValueError, match='should end in .py'): export_config(cfg, tmp_path/'x.json')


@pytest.mark.parametrize('name', some[::4])
def test_history_goes_all_the_way_back(name):
    "Every state comes back as it was, places and shared parts too"
    cfg, rng = Config.fromfile(name), random.Random(name)
    history, model, states = History(cfg), cfg.model if 'model' in cfg else cfg.data, []
    for _ in range(8):
        states.append(deepcopy(cfg._cfg_dict))
        before = len(history.past)
        while len(history.past) == before: meddle(cfg, rng); history.note()
    final = deepcopy(cfg._cfg_dict)
    for state in reversed(states):
        history.undo()
        assert same(cfg._cfg_dict, state)
    assert not history.can_undo
    fresh = Config.fromfile(name)
    assert [cfg.where(at) for at, *_ in walk(fresh._cfg_dict) if '.0' not in at] == [fresh.where(at) for at, *_ in walk(fresh._cfg_dict) if '.0' not in at]
    for _ in states: history.redo()
    assert same(cfg._cfg_dict, final) and not history.can_redo


SLIPS = [   # (address of the change, value; ... takes the key away), where it should be told, a word of what should be told
    (('model', 'neck', 'num_out'), 5, 'model.neck.num_out', "'num_outs'"), (('model', 'backbone', 'type'), 'ResNett', 'model.backbone.type', "'ResNet'"),
    (('model', 'backbone', 'depth'), 42, 'model.backbone.depth', '50'), (('model', 'neck', 'num_outs'), ..., 'model.neck', "needs 'num_outs'"),
    (('model', 'neck', 'out_channels'), 128, 'model.rpn_head.in_channels', 'takes 256 channels and is given 128'),
    (('model', 'roi_head', 'bbox_head', 'in_channels'), 128, 'model.roi_head.bbox_head.in_channels', 'takes 6272 channels and is given 12544'),
    (('model', 'neck', 'num_outs'), 4, 'model.rpn_head.anchor_generator', '4 feature maps'),
    (('model', 'roi_head', 'bbox_head', 'num_classes'), 3, 'model.roi_head.bbox_head.num_classes', '80 (person'),
    (('model', 'rpn_head', 'loss_bbox', 'type'), 'L1', 'model.rpn_head.loss_bbox.type', 'registry'),
    (('data', 'train', 'pipeline', 2, 'img_scal'), (1, 1), 'data.train.pipeline.2.img_scal', "'img_scale'"), (('data', 'train', 'type'), 'Coco', 'data.train.type', 'dataset registry'),
    (('data', 'train', 'pipeline', 3, 'flip_ratio'), 7, 'data.train.pipeline.3.flip_ratio', ''), (('data', 'val', 'classes'), ('cat',), 'data.val.classes', '80 of data.train'),
    (('data', 'train', 'classes'), 'cat', 'data.train.classes', "('cat',)"), (('data', 'sample_per_gpu'), 2, 'data.sample_per_gpu', "'samples_per_gpu'"),
    (('data', 'test', 'pipeline', 1, 'transforms', 0, 'keep_ration'), True, 'data.test.pipeline.1.transforms.0.keep_ration', "'keep_ratio'"),
    (('optimizer', 'type'), 'Sgd', 'optimizer.type', "'SGD'"), (('optimizer', 'lr'), 'fast', 'optimizer', ''), (('lr_config', 'policy'), 'stop', 'lr_config.policy', "'step'"),
    (('lr_config', 'step'), ..., 'lr_config', "'step'"), (('log_config', 'hooks', 0, 'type'), 'TextLogger', 'log_config.hooks.0.type', 'TextLoggerHook'),
    (('checkpoint_config', 'intervall'), 1, 'checkpoint_config.intervall', "'interval'"), (('modle',), {}, None, ''), (('load_from',), '${work}', 'load_from', "'work'")]


@pytest.mark.parametrize('path,value,at,word', SLIPS, ids=lambda v: '.'.join(map(str, v)) if isinstance(v, tuple) else None)
def test_a_slip_is_told_where_it_stands(path, value, at, word):
    cfg = Config.fromfile(FASTER)
    if value is ...: remove(cfg, path)
    else: put(cfg, path, value)
    before = deepcopy(cfg._cfg_dict)
    found = check_config(cfg)
    assert same(cfg._cfg_dict, before)                                        # looking changes nothing
    if at is None: return
    assert [p for p in found if p.at == at and word in p.text], found
    assert str(found[0]) in repr(found) and found[0].at in found._repr_html_()


def test_a_slip_in_a_file_is_told_with_its_line(tmp_path):
    (tmp_path/'mine.py').write_text(f"_base_ = '{FASTER}'\n\nmodel = dict(\n    neck=dict(\n        num_out=5))\n")
    (found,) = check_config(Config.fromfile(tmp_path/'mine.py'))
    assert found.place.line == 5 and found.place.file == str(tmp_path/'mine.py')


def test_several_slips_are_told_at_once():
    cfg = Config.fromfile('cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py')
    for part in ('train', 'val', 'test'): cfg.data[part].classes = ('cat', 'dog')
    cfg.model.neck.out_channels, cfg.lr_config.polisy = 128, 'step'
    found = {p.at for p in check_config(cfg)}
    assert found == {'lr_config.polisy', 'model.rpn_head.in_channels', 'model.roi_head.mask_head.num_classes', *(f'model.roi_head.bbox_head.{i}.num_classes' for i in range(3))}


@pytest.mark.parametrize('name', [next(n for n in every if n.startswith(f + '/')) for f in sorted({n.split('/')[0] for n in every})])
def test_nothing_is_wrong_with_what_ships(name):
    "The first config of every family (all were looked at by hand; three of the family retinanet say `pretrained` twice, as they do in MMDetection)"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert check_config(name) == []


def test_a_check_is_quick():
    cfg = Config.fromfile(FASTER)
    def took():
        start = time.process_time()
        check_config(cfg)
        return time.process_time() - start
    assert min(took() for _ in range(3)) < 2


# ---- the widget ----

from detnb.widgets import click, edit_config
from detnb.widgets.config_fields import field, kind_of, read_value
from detnb.widgets.config_tree import Part, Row


@pytest.fixture
def editor(): return edit_config(Config.fromfile(FASTER))


@pytest.mark.parametrize('name', some[::5])
def test_every_leaf_has_a_field_that_changes_nothing(name):
    "All parts of a config opened: as many rows as values, and the config is what it was"
    cfg = Config.fromfile(name)
    editor, rows = edit_config(cfg), []
    before = deepcopy(cfg._cfg_dict)
    def unfold(part):
        for p in part.parts:
            if isinstance(p, Row): rows.append(p)
            else:
                p.toggle.value = True
                unfold(p)
    unfold(editor.root)
    editor.show()
    assert same(cfg._cfg_dict, before) and not editor.history.can_undo
    assert len(rows) == len({r.at for r in rows}) and {at for at, *_ in walk(before)} >= {r.at for r in rows if r.kind != 'python'}
    tip = lambda field: field.tooltip if field.has_trait('tooltip') else field.description_tooltip       # ipywidgets 8, or 7
    assert all(tip(r.field) == r.at and r.at.replace('.', '-') in r.field._dom_classes and r.field.description == str(r.path[-1]) for r in rows)


def test_only_what_is_open_is_made(editor):
    def count(part): return 1 + sum(count(p) if isinstance(p, Part) else 1 for p in part.parts)
    closed = count(editor.root)
    assert closed == 1 + len(editor.cfg._cfg_dict) < 40
    editor.row('model.backbone.depth')
    assert closed < count(editor.root) < closed + 40


TYPED = [('optimizer.lr', .5, .5), ('model.backbone.depth', 101, 101), ('model.backbone.norm_eval', False, False), ('data_root', 'x/"y"', 'x/"y"'), ('data_root', 'None', None),
         ('lr_config.step', '[1, 2]', [1, 2]), ('load_from', "'a.pth'", 'a.pth'), ('load_from', "dict(a=1)", dict(a=1)), ('data.train.pipeline.2.img_scale', '(640, 480)', (640, 480)),
         ('model.neck.type', 'PAFPN', 'PAFPN'), ('model.neck.in_channels', '[256 * 2 ** i for i in range(4)]', [256, 512, 1024, 2048])]


@pytest.mark.parametrize('at,typed,value', TYPED)
def test_a_field_changes_the_config_and_undo_takes_it_back(editor, at, typed, value):
    before = deepcopy(editor.tree)
    row = editor.row(at)
    row.field.value = typed
    assert same(value_at(editor.cfg._cfg_dict, row.path), value)
    if same(editor.tree, before): return
    new = editor.row(at) if not isinstance(value, dict) else None                   # what is a dict now is a part of the tree
    if new: assert 'detnb-changed' in new.box._dom_classes and new.told.value.startswith('<span style="color:#888">was ')
    click(editor.undo_button)
    assert same(editor.tree, before) and 'detnb-changed' not in editor.row(at).box._dom_classes and editor.undo_button.disabled


WRONG = [('lr_config.step', '[1, 2', 'no Python value'), ('lr_config.step', 'open("x")', 'not allowed'), ('load_from', 'work/x.pth', 'not defined'), ('optimizer.lr', 'fast', None),
         ('model.backbone.depth', 'deep', None), ('model.backbone.type', 'ResNot', None), ('load_from', '().__class__', 'not allowed')]


@pytest.mark.parametrize('at,typed,word', WRONG)
def test_what_cannot_be_read_is_told_and_changes_nothing(editor, at, typed, word):
    before, row = deepcopy(editor.tree), editor.row(at)
    with pytest.raises(Exception): row.field.value = typed
    assert same(editor.tree, before) and editor.row(at) is row
    if word is None: return                                                         # the widget itself refuses, and keeps its old value
    assert word in row.wrong.value and row.field.value == typed and editor.errors.outputs[0]['output_type'] == 'error'
    good = row.field.value = '[3]'
    assert word not in row.wrong.value and editor.errors.outputs == () and value_at(editor.tree, row.path) == [3]


def test_code_and_fields_stay_in_step(editor):
    cfg = editor.cfg
    lr, classes = editor.row('optimizer.lr'), editor.row('model.roi_head.bbox_head.num_classes')
    cfg.optimizer.lr = .005
    cfg.merge_from_dict({'model.roi_head.bbox_head.num_classes': 7})                # gives the config a new dict
    cfg.lr_config.step.append(20)                                                   # a list tells nobody
    assert lr.field.value == .02
    editor.refresh()
    assert (lr.field.value, classes.field.value, editor.row('lr_config.step').field.value) == (.005, 7, '[8, 11, 20]')
    cfg.model.neck.start = dict(a=1)
    del cfg.model.rpn_head
    cfg.model.backbone.type = 'ResNot'                                              # what no list of choices has
    editor.refresh()
    assert editor.row('model.neck.start.a').field.value == 1 and editor.row('model.backbone.type').field.value == 'ResNot'
    assert "did you mean 'ResNet'" in editor.row('model.backbone.type').wrong.value.replace('&#x27;', "'")
    with pytest.raises(KeyError, match='model has'): editor.row('model.rpn_head.in_channels')
    for _ in range(2): editor.undo()
    assert same(cfg._cfg_dict, Config.fromfile(FASTER)._cfg_dict) and editor.problems == []


def test_in_a_notebook_the_fields_follow_each_cell():
    "What IPython calls after a cell brings the fields up to date, and lets go of an editor that is gone"
    from IPython.core.interactiveshell import InteractiveShell
    had = InteractiveShell.initialized()
    shell = InteractiveShell.instance()
    try:
        shell.run_cell(f"from detnb import Config\nfrom detnb.widgets import edit_config\ncfg = Config.fromfile('{FASTER}')\neditor = edit_config(cfg)").raise_error()
        shell.run_cell('cfg.optimizer.lr = .25').raise_error()
        editor = shell.user_ns['editor']
        assert editor.row('optimizer.lr').field.value == .25 and editor.history.can_undo
    finally:
        for call in list(shell.events.callbacks['post_run_cell']): shell.events.unregister('post_run_cell', call)
        if not had: InteractiveShell.clear_instance()


def test_problems_stand_by_their_fields(editor):
    editor.row('model.neck.out_channels').field.value = 128
    assert 'takes 256 channels and is given 128' in editor.row('model.rpn_head.in_channels').wrong.value
    assert 'model.rpn_head.in_channels' in editor.told.value and 'detnb-config-problems' in editor.told._dom_classes
    model = next(p for p in editor.root.parts if p.at == 'model')
    assert 'detnb-wrong' in model.toggle._dom_classes
    editor.undo()
    assert editor.row('model.rpn_head.in_channels').wrong.value == '' and 'nothing wrong' in editor.told.value and 'detnb-wrong' not in model.toggle._dom_classes


def test_search(editor):
    editor.search.value = 'NUM_classes'
    assert [r.row.at for r in editor.results] == ['model.roi_head.bbox_head.num_classes']
    editor.search.value = 'coco train2017'
    assert {'data.train.img_prefix', 'data.train.ann_file'} <= {r.row.at for r in editor.results}
    editor.results[0].row.field.value = 'other'
    assert value_at(editor.tree, editor.results[0].path) == 'other'
    editor.order.value = 'del data.train'                                           # what was found is gone
    assert all(r.row is None for r in editor.results)
    editor.search.value = ''
    assert editor.view.children == (editor.root.box,)


def test_orders(editor):
    editor.order.value = 'model.neck.start_level = 1'
    editor.order.value = 'data.train.pipeline.2.img_scale.0 = 640'
    editor.order.value = 'del optimizer.momentum'
    assert editor.cfg.model.neck.start_level == 1 and editor.cfg.data.train.pipeline[2].img_scale == (640, 800) and 'momentum' not in editor.cfg.optimizer
    assert editor.order.value == ''
    for text, word in (('optimiser.lr = 1', "did you mean 'optimizer'"), ('lr', 'an address, ='), ('del seed', 'seed'), ('seed = [', 'no Python value')):
        before = deepcopy(editor.tree)
        with pytest.raises(Exception, match=word): editor.order.value = text
        assert same(editor.tree, before) and editor.order.value == text


def test_export_button(editor, tmp_path):
    editor.row('optimizer.lr').field.value = .01
    editor.file.value = str(tmp_path/'mine.py')
    click(editor.export_button)
    assert same(Config.fromfile(tmp_path/'mine.py')._cfg_dict, editor.tree) and 'mine.py' in editor.said.value
    editor.row('optimizer.lr').field.value = .02
    click(editor.export_button)                                                     # its own file it may write again
    assert (tmp_path/'mine.py').read_text() == f"_base_ = '{FASTER}'\n"
    (tmp_path/'theirs.py').write_text('a = 1')
    editor.file.value = str(tmp_path/'theirs.py')
    with pytest.raises(FileExistsError): click(editor.export_button)
    assert (tmp_path/'theirs.py').read_text() == 'a = 1' and 'already' in editor.errors.outputs[0]['evalue']


def test_without_widgets_there_is_a_tree(editor):
    editor.cfg.optimizer.lr = .001
    forms = editor.forms()
    assert list(forms) == ['application/vnd.jupyter.widget-view+json', 'text/html', 'text/plain']
    assert '<details open' in forms['text/html'] and '#ffe9a8' in forms['text/html'] and 'nothing wrong' in forms['text/html'] and '1 values changed' in forms['text/plain']


def test_configs_without_a_file_and_other_things():
    editor = edit_config(Config(dict(a=1, b=dict(c=[2]))))
    editor.row('b.c').field.value = '[3]'
    assert editor.cfg.b.c == [3] and edit_config(FASTER).cfg.filename
    with pytest.raises(TypeError, match='takes a Config'): edit_config(dict(a=1))
