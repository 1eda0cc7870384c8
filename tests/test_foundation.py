"The ground floor under bad weather: broken configs, broken files, broken connections; and figures of other libraries"
import copy, hashlib, io, json, os, pickle, re, subprocess, sys, threading, warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image
from torch import nn

from detnb import Config, ConfigDict, Registry
from detnb.foundation import checkpoint as ck, locate as lo
from detnb.foundation.config_options import parse_options
from detnb.foundation.environment import data_root
from detnb.foundation.files import PlainUnpickler, atomic_write, dump, load
from detnb.foundation.images import ImageError, imread, imresize, imwrite
from detnb.foundation.interpreter import evaluate
from detnb.foundation.operations import ConfigError
from golden import configs, figures

python_configs = sorted(configs.rglob('*.py'))


def write(folder, **files):
    for name, text in files.items(): (folder/f'{name}.py').write_text(text)
    return folder


# --- configs
def test_every_shipped_config_survives_its_own_text(tmp_path):
    for path in python_configs:
        cfg = Config.fromfile(path)
        again = evaluate(cfg.pretty_text)
        assert again == cfg._cfg_dict and repr(again) == repr(cfg._cfg_dict), path      # repr tells tuples from lists and 1 from 1.
        long = [line for line in cfg.pretty_text.splitlines() if len(line) > 92 and not re.fullmatch(r"\s*(\w+ ?= ?)?'[^']*'[,)\]}]*", line)]
        assert not long, f'{path}: {long}'      # a single string, such as an address, is not broken
    for ending in ('.py', '.json', '.yaml'):
        cfg.dump(tmp_path/f'x{ending}')
        assert json.dumps(Config.fromfile(tmp_path/f'x{ending}')._cfg_dict) == json.dumps(cfg._cfg_dict)


def test_interpreter_agrees_with_python():
    "Where a shipped config has no base variables, plain Python gives the same variables"
    for path in python_configs:
        text = path.read_text()
        if '{{' in text: continue
        names = {}
        exec(compile(text, str(path), 'exec'), names)
        names.pop('__builtins__')
        assert repr(evaluate(text, str(path))) == repr(names), path


@pytest.mark.parametrize('text', ['x = [i * j for i in range(3) for j in range(i) if i + j]', 'a, (b, c) = 1, (2, 3)',
    'x = {k: v for k, v in zip("ab", (1, 2))}', "x = dict(dict(a=1), b=2)\nx.update(a=3)", 'x = [1, 2, 3]\nx[1:] = [9]\nx += [4]\ndel x[0]', "x = f'{3.14159:.2f} {\"a\"!r}'",
    'x = 1 < 2 <= 2 != 3 and not [] or 5', 'x = []\nfor i in range(9):\n  if i == 2: continue\n  if i == 5: break\n  x.append(i)\nelse:\n  x = None',
    'x = (*[1, 2], 3)\ny = {**dict(a=1), "b": 2}', 'x = "a,b".split(",")[::-1]\ny = "%d-%s" % (3, x)', 'x = sorted([3, 1, 2], reverse=True)[0] // 2 ** 1', 'x: int = 3\ny = -x if x else +x'])
def test_language(text):
    names = {}
    exec(text, names)
    assert repr(evaluate(text)) == repr({k: v for k, v in names.items() if not k.startswith('__')})


@pytest.mark.parametrize('text', ["x = __import__('os').system('true')", 'import os', 'from os import system', "x = open('/etc/passwd').read()", "x = eval('1')", "exec('x = 1')",
    'x = ().__class__.__mro__[1].__subclasses__()', "x = '{0.__class__.__mro__}'.format(1)", "x = '{a[0]}'.format(a=[1])", 'x = dict.__subclasses__', 'f = lambda: 1', 'def f(): pass',
    'class A: pass', 'with open("x") as f: pass', "x = getattr(1, 'real')", 'x = globals()', 'x = [].append.__self__', 'while True: pass', 'x = "a" * 10 ** 9', 'x = 10 ** 10 ** 10',
    'global x', 'try:\n  x = 1\nexcept: pass', 'x = (y := 3)', 'x = type(1)', 'x = vars()', '@dict\ndef f(): pass', 'x = [1].__len__()', "x = f'{().__class__}'",
    "x = '{:{w.real}}'.format(1, w=5)", 'raise SystemExit', 'async def f(): pass', 'x = (i for i in ().__iter__())'])
def test_configs_cannot_do_harm(text):
    with pytest.raises(ConfigError, match=r'<config>:\d+'): evaluate(text)


def test_import_says_the_way_out(tmp_path):
    write(tmp_path, evil="model = dict(type='X')\nharm = __import__('os').system('touch harmed')")
    with pytest.raises(ConfigError, match=r'evil\.py:2: __import__ is not allowed.*trust=True'): Config.fromfile(tmp_path/'evil.py')
    write(tmp_path, mine='import math\n\ndef half(x): return x / 2\nmodel = dict(\n  size=half(math.pi))')
    cfg = Config.fromfile(tmp_path/'mine.py', trust=True)
    assert cfg.model.size == pytest.approx(np.pi / 2) and list(cfg) == ['model'] and cfg.where('model.size').line == 5


def test_circular_base(tmp_path):
    write(tmp_path, a="_base_ = './b.py'", b="_base_ = ['c.py']", c="_base_ = '../%s/a.py'" % tmp_path.name, own="_base_ = 'own.py'")
    with pytest.raises(ConfigError, match='circular _base_: .*a.py -> .*b.py -> .*c.py -> .*a.py'): Config.fromfile(tmp_path/'a.py')
    with pytest.raises(ConfigError, match='circular'): Config.fromfile(tmp_path/'own.py')
    write(tmp_path, left="_base_ = 'root.py'\nx = 1", right='y = 1', root='z = 1', diamond="_base_ = ['left.py', 'right.py']")
    assert Config.fromfile(tmp_path/'diamond.py')._cfg_dict == dict(z=1, x=1, y=1)


def test_bases_and_variables(tmp_path, monkeypatch):
    write(tmp_path, model="model = dict(neck=dict(type='FPN', num_outs=5), heads=[dict(a=1), dict(a=2)])", schedule='lr = 0.02\nsteps = [8, 11]',
          top="_base_ = ['model.py', 'schedule.py']\n"
              "model = dict(neck=dict(_delete_=True, type='PAFPN'), extra=dict(_delete_=True, n={{ _base_.model.neck.num_outs }}))\n"
              "half = {{_base_.lr}} / 2\nsame = '{{ _base_.steps }}'\nsaid = 'lr {{ _base_.lr }} x {{ _base_.steps.1 }}'\nhead = {{ _base_.model.heads.1 }}\n"
              "own = '{{ fileBasename }} {{fileBasenameNoExtension}} {{ fileExtname }}'\nfolder = '{{ fileDirname }}'\nuser = '{{$DETNB_TEST_USER:nobody}}'\nn = {{$DETNB_TEST_N:8}}")
    cfg = Config.fromfile(tmp_path/'top.py')
    assert cfg.model.neck == dict(type='PAFPN') and (cfg.half, cfg.same, cfg.said) == (.01, [8, 11], 'lr 0.02 x 11') and cfg.head == dict(a=2)
    assert (cfg.own, cfg.folder, cfg.user, cfg.n) == ('top.py top .py', str(tmp_path.resolve()), 'nobody', 8)
    cfg.same.append(99); cfg.head.a = 3
    assert cfg.steps == [8, 11] and cfg.model.heads[1].a == 2      # a value that is used twice is copied
    monkeypatch.setenv('DETNB_TEST_USER', 'me'); monkeypatch.setenv('DETNB_TEST_N', '3')
    assert (Config.fromfile(tmp_path/'top.py').user, Config.fromfile(tmp_path/'top.py').n) == ('me', 3)
    assert str(cfg.where('model.neck.type')).endswith('top.py:2') and str(cfg.where('model.heads.1.a')).endswith('model.py:1') and str(cfg.where('lr')).endswith('schedule.py:1')
    assert all(f'{n}.py' in cfg.text for n in ('model', 'schedule', 'top')) and cfg.filename == str(tmp_path/'top.py')
    (tmp_path/'x.json').write_text('{"_base_": ["model.py"],\n "neck": {{ _base_.model.neck }},\n "said": "{{ _base_.model.neck.type }} it is"}')
    assert Config.fromfile(tmp_path/'x.json').neck.num_outs == 5 and Config.fromfile(tmp_path/'x.json').said == 'FPN it is'
    (tmp_path/'x.yaml').write_text('_base_: model.py\nneck: {{ _base_.model.neck }}\nsize: !!python/tuple [3, 4]\n')
    assert Config.fromfile(tmp_path/'x.yaml').neck.type == 'FPN' and Config.fromfile(tmp_path/'x.yaml').size == (3, 4)


@pytest.mark.parametrize('files, error, said', [
    (dict(a="_base_ = 'no.py'"), FileNotFoundError, 'no config'),
    (dict(a="_base_ = ['b.py', 'c.py']", b='x = 1', c='x = 1'), KeyError, "two of its bases set 'x': .*b.py:1 and .*c.py:1"),
    (dict(a="_base_ = 'b.py'\nmodel = dict(neck=dict(x=1))", b="model = dict(neck=[1])"), TypeError, 'model.neck .*a.py:2.* _delete_=True'),
    (dict(a="_base_ = 'b.py'\nx = {{ _base_.nock.type }}", b="neck = dict(type=1)"), ConfigError, "the bases have no 'nock.type'"),
    (dict(a='model = dict(a=1,\n  b=)'), ConfigError, r'a.py:2'), (dict(a='x = 1\ny = z'), ConfigError, "a.py:2: the name 'z' is not defined"),
    (dict(a="text = 'x'"), KeyError, "'text' cannot be a key")])
def test_slips_in_files(tmp_path, files, error, said):
    write(tmp_path, **files)
    with pytest.raises(error, match=said): Config.fromfile(tmp_path/'a.py')


def test_options():
    cfg = Config(dict(model=dict(backbone=dict(depth=50)), data=dict(train=dict(pipeline=[dict(type='Load'), dict(type='Flip', ratio=.5)])), classes=('a', 'b')))
    cfg.merge_from_dict(parse_options(['model.backbone.depth=18', 'data.train.pipeline.1.ratio=0', 'classes.1=z', 'runner.max_epochs=3', "model.neck={}", 'steps=(1,[2,3])']))
    assert cfg.model.backbone.depth == 18 and cfg.data.train.pipeline[1] == dict(type='Flip', ratio=0) and cfg.classes == ('a', 'z') and cfg.runner.max_epochs == 3
    assert cfg.steps == (1, [2, 3]) and str(cfg.where('data.train.pipeline.1.ratio')) == '--cfg-options'
    with pytest.raises(KeyError, match='is not a place in a list of 2'): cfg.merge_from_dict({'data.train.pipeline.7.ratio': 0})
    with pytest.warns(UserWarning, match="did you mean 'backbone'"): cfg.merge_from_dict({'model.backbon.depth': 3})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        cfg.merge_from_dict({'model.train_cfg': None, 'new_field.x': 1})


def test_places_live_through_everything(tmp_path):
    write(tmp_path, b="model = dict(\n  neck=dict(type='FPN',\n    num_outs=5))", a="_base_ = 'b.py'")
    cfg = Config.fromfile(tmp_path/'a.py')
    for other in (cfg.copy(), copy.copy(cfg), copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg))):
        assert str(other.where('model.neck.num_outs')).endswith('b.py:3') and other == cfg and other.text == cfg.text
        other.model.neck.num_outs = 4
        assert other.where('model.neck.num_outs') is None and cfg.model.neck.num_outs == 5
        assert list(cfg.diff(other)) == [('model.neck.num_outs', 5, 4)]
    neck = cfg.model.neck.copy()
    neck.pop('type')
    assert str(neck._places['num_outs']).endswith('b.py:3') and 'b.py:3' in cfg._repr_html_()
    with pytest.raises(AttributeError, match="no 'model.neck.num_out'; did you mean 'num_outs'"): cfg.model.neck.num_out


def test_custom_imports(tmp_path, monkeypatch):
    (tmp_path/'my_parts_of_test.py').write_text('loaded = True')
    write(tmp_path, a="custom_imports = dict(imports=['my_parts_of_test'], allow_failed_imports=False)", b="custom_imports = dict(imports=['no_such_parts'])",
          c="custom_imports = dict(imports=['no_such_parts'], allow_failed_imports=True)")
    monkeypatch.syspath_prepend(str(tmp_path))
    Config.fromfile(tmp_path/'a.py')
    assert sys.modules.pop('my_parts_of_test').loaded
    with pytest.raises(ImportError, match="custom_imports asks for 'no_such_parts'"): Config.fromfile(tmp_path/'b.py')
    with pytest.warns(UserWarning, match='left out'): Config.fromfile(tmp_path/'c.py')


# --- registry
def test_registry_errors(tmp_path):
    parts = Registry('parts', scope='detnb')

    @parts.register_module()
    class Base:
        def __init__(self, width=1, **kw):
            if kw: raise TypeError(f"__init__() got an unexpected keyword argument '{list(kw)[0]}'")

    @parts.register_module()
    class Child(Base):
        def __init__(self, depth, **kw): super().__init__(**kw)

    @parts.register_module()
    class Outer:
        def __init__(self, inner): self.inner = parts.build(inner)

    write(tmp_path, a="part = dict(\n  type='Chidl',\n  depth=3)\nwrong = dict(type='Child', depth=1,\n  widht=2)\nlacks = dict(type='Child')\nouter = dict(type='Outer', inner=dict(type='Child', depth=1,\n  widht=3))")
    cfg = Config.fromfile(tmp_path/'a.py')
    with pytest.raises(KeyError) as e: parts.build(cfg.part)
    assert 'Chidl is not in the parts registry' in str(e.value) and 'part.type' in str(e.value) and "a.py:2" in str(e.value) and "did you mean 'Child'?" in str(e.value)
    with pytest.raises(TypeError) as e: parts.build(cfg.wrong)
    assert "Child takes no argument 'widht'" in str(e.value) and 'a.py:5' in str(e.value) and "did you mean 'width'?" in str(e.value) and 'It accepts: depth, width' in str(e.value)
    with pytest.raises(TypeError, match=r"Child needs 'depth', at lacks.type .*a.py:6.*It accepts: depth, width"): parts.build(cfg.lacks)
    with pytest.raises(TypeError, match=r"Child takes no argument 'widht', given at outer.inner.widht .*a.py:8"): parts.build(cfg.outer)
    assert parts.build(dict(type='mmdet.Child', depth=1)).__class__ is Child and cfg.wrong.type == 'Child'      # the config is left as it was
    with pytest.raises(KeyError, match='needs the key "type"'): parts.build(dict(depth=1))


# --- checkpoints
def tiny(): return nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(2, 2))


def test_real_checkpoint():
    path = data_root() and data_root()/'checkpoints'/'yunet_n.pth'
    if path is None or not path.exists(): pytest.skip('no data/checkpoints/yunet_n.pth at hand')
    found = ck.read_checkpoint(path)
    assert found['meta']['CLASSES'] == ('FG',) and found['meta']['epoch'] == 560 and {'meta', 'state_dict', 'optimizer'} == set(found)
    assert found['state_dict']['backbone.model0.conv1.weight'].shape == (16, 3, 3, 3)
    assert len(ck.load_checkpoint_with_prefix('backbone', path)) == sum(k.startswith('backbone.') for k in found['state_dict'])
    cfg = Config.fromstring(found['meta']['config'])
    assert cfg.optimizer.type == 'SGD'
    with pytest.raises(ck.CheckpointError, match='no name in .* fits the model'): ck.load_checkpoint(tiny(), path, logger='silent')


@pytest.mark.parametrize('keep', [.02, .5, .9, .999])
def test_truncated(tmp_path, keep):
    torch.save(dict(state_dict=nn.Linear(64, 64).state_dict()), tmp_path/'a.pth')
    torch.save(nn.Linear(64, 64).state_dict(), tmp_path/'old.pth', _use_new_zipfile_serialization=False)
    from safetensors.torch import save_file
    save_file(nn.Linear(64, 64).state_dict(), tmp_path/'c.safetensors')
    for path in list(tmp_path.iterdir()):
        data = path.read_bytes()
        path.write_bytes(data[:int(len(data) * keep)])
        with pytest.raises(ck.CheckpointError, match='cut off or damaged'): ck.read_checkpoint(path)


class Evil:
    def __init__(self, call, *args): self.made = call, args
    def __reduce__(self): return self.made


@pytest.mark.parametrize('call, args', [(os.system, ('touch harm',)), (eval, ("open('harm', 'w')",)), (subprocess.call, (['touch', 'harm'],))])
@pytest.mark.parametrize('zipped', [True, False])
def test_code_in_a_checkpoint_is_not_executed(tmp_path, monkeypatch, call, args, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict=tiny().state_dict(), meta=Evil(call, *args)), 'evil.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(ck.CheckpointError, match=rf'it asks for [\w.]*{call.__name__}, which weights have no need of, and was not executed'): ck.load_checkpoint(tiny(), 'evil.pth')
    Path('evil.pkl').write_bytes(pickle.dumps([Evil(call, *args)]))
    with pytest.raises(pickle.UnpicklingError, match='plain data does not need'): load('evil.pkl')
    assert not Path('harm').exists()


def test_numpy_in_meta(tmp_path):
    meta = dict(lr=np.float64(.1), n=np.int64(3), ok=np.bool_(True), a=np.arange(3, dtype=np.float32), name=np.str_('x'))
    torch.save(dict(meta=meta, state_dict=tiny().state_dict()), tmp_path/'a.pth')
    found = ck.read_checkpoint(tmp_path/'a.pth')['meta']
    assert found['lr'] == .1 and found['n'] == 3 and found['ok'] and (found['a'] == np.arange(3)).all() and found['name'] == 'x'


def test_other_kinds_of_files(tmp_path):
    from safetensors.torch import save_file
    model = tiny()
    save_file(model.state_dict(), tmp_path/'a.safetensors')
    torch.save(model.state_dict(), tmp_path/'b.pth')
    torch.save({'state_dict': {'module.' + k: v for k, v in model.state_dict().items()}}, tmp_path/'c.pth')
    for path in sorted(tmp_path.iterdir()):
        other = tiny()
        ck.load_checkpoint(other, path, strict=True)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values())), path
    (tmp_path/'empty.pth').touch()
    (tmp_path/'lfs.pth').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0')
    (tmp_path/'page.safetensors').write_text('<html>')
    torch.save([1, 2], tmp_path/'list.pth')
    for name, said in dict(empty='the file is empty', lfs='Git LFS pointer', list='holds a list').items():
        with pytest.raises(ck.CheckpointError, match=said): ck.read_checkpoint(tmp_path/f'{name}.pth')
    with pytest.raises(ck.CheckpointError): ck.read_checkpoint(tmp_path/'page.safetensors')


def test_report(capsys):
    model, given = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 3)), tiny().state_dict()
    given['2.weight'], given['2.bias'], given['head.x'] = given.pop('1.weight'), given.pop('1.bias'), torch.zeros(1)
    report = ck.load_state_dict(model, given)
    assert report.loaded == ['0.weight', '0.bias'] and report.unexpected == ['head.x'] and [m[0] for m in report.mismatched] == ['2.weight', '2.bias']
    assert report.missing == ['1.weight', '1.bias', '1.running_mean', '1.running_var']
    said = capsys.readouterr().out
    assert '2 of 8 tensors loaded' in said and '2.weight is (2, 2) in the checkpoint, (3, 2) in the model' in said
    with pytest.raises(ck.CheckpointError, match='does not fit the model'): ck.load_state_dict(model, given, strict=True)
    many = ck.LoadReport(missing=[f'backbone.layer{i}.{j}.conv.weight' for i in range(1, 5) for j in range(9)])
    assert 'backbone.layer1.* (9)' in str(many) and len(str(many)) < 250


def test_saving_is_atomic(tmp_path, monkeypatch):
    ck.save_checkpoint(tiny(), tmp_path/'a.pth', meta=dict(epoch=1))
    before = (tmp_path/'a.pth').read_bytes()
    def dies(obj, f): f.write(b'half'); raise KeyboardInterrupt
    monkeypatch.setattr(torch, 'save', dies)
    with pytest.raises(KeyboardInterrupt): ck.save_checkpoint(tiny(), tmp_path/'a.pth')
    assert (tmp_path/'a.pth').read_bytes() == before and os.listdir(tmp_path) == ['a.pth']


# --- where checkpoints come from
@pytest.fixture
def web(tmp_path, monkeypatch):
    "A web server whose paths mean: /good/*, /half/* (ends early), /other/* (wrong content), else 404; it keeps a list of what was asked for"
    content = io.BytesIO(); torch.save(tiny().state_dict(), content); content = content.getvalue()
    name = f'tiny_1x_20200130-{hashlib.sha256(content).hexdigest()[:8]}.pth'

    class Handler(BaseHTTPRequestHandler):
        asked = []
        def log_message(self, *_): pass
        def do_GET(self):
            self.asked.append(self.path)
            kind = self.path.split('/')[1]
            data = dict(good=content, half=content[:len(content) // 2], other=b'<html>expired</html>').get(kind)
            self.send_response(200 if data else 404)
            self.send_header('Content-Length', str(len(content if kind == 'half' else data or b'')))
            self.end_headers()
            self.wfile.write(data or b'')

    server = HTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for key, value in dict(DETNB_CACHE=tmp_path/'cache', DETNB_MIRRORS='', DETNB_CHECKPOINTS='', DETNB_OFFLINE='', no_proxy='*').items(): monkeypatch.setenv(key, str(value))
    yield f'http://127.0.0.1:{server.server_port}', name, content, Handler.asked, tmp_path
    server.shutdown()


def test_download(web):
    url, name, content, asked, tmp = web
    model = tiny()
    ck.load_checkpoint(model, f'{url}/good/{name}', strict=True)
    ck.load_checkpoint(model, f'{url}/good/{name}', strict=True)
    assert asked == [f'/good/{name}'] and os.listdir(tmp/'cache') == [name]      # the second time from the cache


@pytest.mark.parametrize('kind, said', [('half', r'the connection ended after \d+ of \d+ bytes'), ('other', 'is not the file that its name says'), ('gone', '404')])
def test_bad_downloads_never_count(web, kind, said):
    url, name, content, asked, tmp = web
    with pytest.raises(lo.CheckpointNotFound, match=said): lo.locate(f'{url}/{kind}/{name}')
    assert not os.path.exists(tmp/'cache') or os.listdir(tmp/'cache') == []
    if kind == 'half':      # also where the name carries no hash
        with pytest.raises(lo.CheckpointNotFound, match=said): lo.locate(f'{url}/half/plain.pth')
        assert os.listdir(tmp/'cache') == []


def test_order_of_search(web, monkeypatch):
    url, name, content, asked, tmp = web
    monkeypatch.setattr(lo, 'address_of', lambda n: f'http://127.0.0.1:9/deep/{name}')     # a host where nobody answers
    with pytest.raises(lo.CheckpointNotFound, match='127.0.0.1:9.*refused'): lo.locate('open-mmlab://tiny')
    monkeypatch.setenv('DETNB_MIRRORS', f'{url}/gone, {url}/half {url}/good')
    assert lo.locate('open-mmlab://tiny') == tmp/'cache'/name
    assert asked == [f'/gone/deep/{name}', f'/gone/{name}', f'/half/deep/{name}', f'/half/{name}', f'/good/deep/{name}']
    (tmp/'mine'/'sub').mkdir(parents=True); (tmp/'mine'/'sub'/name).write_bytes(content)
    monkeypatch.setenv('DETNB_CHECKPOINTS', os.pathsep.join([str(tmp/'none'), str(tmp/'mine')]))
    assert lo.locate('open-mmlab://tiny') == tmp/'mine'/'sub'/name                          # folders before the cache
    assert len(asked) == 5


def test_hash_mismatch_of_a_local_file(tmp_path):
    torch.save(tiny().state_dict(), tmp_path/'net-00000000.pth')
    with pytest.raises(ck.CheckpointError, match='is not the file that its name says: its SHA-256 begins with'): ck.load_checkpoint(tiny(), tmp_path/'net-00000000.pth')
    os.rename(tmp_path/'net-00000000.pth', tmp_path/'net-20240131.pth')      # a date is no hash
    ck.load_checkpoint(tiny(), tmp_path/'net-20240131.pth')


def test_offline_error_lists_all(web, monkeypatch):
    url, name, *_ = web
    monkeypatch.setenv('DETNB_OFFLINE', '1')
    with pytest.raises(lo.CheckpointNotFound) as e: lo.locate('torchvision://resnet50')
    for part in ('resnet50-0676ba61.pth', '0676ba61)', 'DETNB_OFFLINE is set', 'DETNB_CHECKPOINTS', 'DETNB_MIRRORS'): assert part in str(e.value)
    with pytest.raises(lo.CheckpointNotFound, match='no such file'): lo.locate('work_dirs/no/latest.pth')
    with pytest.raises(KeyError, match="did you mean 'resnet50'"): lo.locate('torchvision://resnet_50')


# --- images
def picture(h=61, w=83):
    y, x, c = np.meshgrid(np.arange(h), np.arange(w), np.arange(3), indexing='ij')
    a = np.floor(127.5 + 127.5 * np.sin((c + 1) * x / 7 + y / 5 + c) * np.cos(x / 11 - (c + 1) * y / 9)).astype(np.uint8)
    a[10:30, 20:50] = (250, 10, 90)
    return a


@pytest.mark.parametrize('row', json.loads((figures/'resize.json').read_text())['rows'], ids=lambda r: f'{r["interpolation"]}-{r["size"][0]}x{r["size"][1]}')
def test_resize_equals_opencv(row):
    img = picture()
    for a in (img, np.asfortranarray(img), img[::-1][::-1]):
        out = imresize(a, row['size'], interpolation=row['interpolation'])
        flat = out.ravel().astype(int)
        off = np.abs(flat[np.unique(np.linspace(0, flat.size - 1, 48).astype(int))] - row['values'])
        assert out.shape == (row['size'][1], row['size'][0], 3) and off.max() <= (0 if row['interpolation'] == 'nearest' else 2)
        assert abs(flat.mean() - row['mean']) < .3
    grey = imresize(img[..., 0].copy(), row['size'], interpolation=row['interpolation'])
    assert np.abs(grey.astype(int) - out[..., 0]).max() <= 1


def test_pictures_of_all_kinds(tmp_path):
    rgb = picture()[..., ::-1]
    pil = Image.fromarray(np.ascontiguousarray(rgb))
    pil.save(tmp_path/'a.png'); pil.convert('RGBA').save(tmp_path/'rgba.png'); pil.convert('P').save(tmp_path/'p.png'); pil.convert('L').save(tmp_path/'l.png'); pil.convert('1').save(tmp_path/'one.png')
    pil.convert('CMYK').save(tmp_path/'cmyk.jpg'); pil.save(tmp_path/'a.jpg', quality=95); pil.save(tmp_path/'a.webp', lossless=True); pil.save(tmp_path/'a.bmp'); pil.save(tmp_path/'a.gif')
    Image.fromarray((rgb[..., 0].astype(np.uint16) << 8) + 7).save(tmp_path/'deep.png')
    for path in sorted(tmp_path.iterdir()):
        img = imread(path)
        assert img.shape == (61, 83, 3) and img.dtype == np.uint8 and img.flags.c_contiguous and img.flags.writeable, path
        assert imread(path, 'grayscale').shape == (61, 83)
    for same in (tmp_path/'a.png', str(tmp_path/'a.png'), (tmp_path/'a.png').read_bytes(), pil): assert (imread(same) == picture()).all()
    for name in ('rgba.png', 'a.webp', 'a.bmp'): assert (imread(tmp_path/name) == picture()).all(), name
    assert (imread(tmp_path/'deep.png')[..., 0] == rgb[..., 0]).all() and imread(tmp_path/'deep.png', 'unchanged').dtype == np.uint16
    assert imread(tmp_path/'rgba.png', 'unchanged').shape[2] == 4 and imread(tmp_path/'p.png', 'unchanged', backend='pillow').ndim == 2
    assert np.abs(imread(tmp_path/'a.jpg').astype(int) - picture()).mean() < 8
    array = picture(); assert imread(array) is array


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation(tmp_path, orientation):
    "Each of the eight tags turns the stored picture back to the one upright picture"
    upright = picture()[..., ::-1]
    stored = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.transpose(1, 0, 2),
              6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1)}[orientation](upright)
    exif = Image.Exif(); exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path/'a.png', exif=exif)
    assert (imread(tmp_path/'a.png') == upright[..., ::-1]).all()
    assert (imread(tmp_path/'a.png', 'color_ignore_orientation') == stored[..., ::-1]).all()


def test_missing_and_corrupt_images(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such picture: .*no.jpg; of its folders only'): imread(tmp_path/'images'/'no.jpg')
    imwrite(picture(), tmp_path/'a.jpg')
    data = (tmp_path/'a.jpg').read_bytes()
    for name, bad in dict(cut=data[:len(data) // 2], empty=b'', page=b'<html>', zeros=b'\0' * 99).items():
        (tmp_path/f'{name}.jpg').write_bytes(bad)
        with pytest.raises(ImageError, match=rf'cannot decode .*{name}\.jpg'): imread(tmp_path/f'{name}.jpg')


def test_demo_picture_has_the_pixels_of_opencv():
    path = data_root() and data_root()/'demo'/'demo.jpg'
    if path is None or not path.exists(): pytest.skip('no data/demo/demo.jpg at hand')
    img = imread(path)      # as cv2.imread gives it: mean of the blue-green-red array, and its first pixels
    assert img.shape == (427, 640, 3) and img.mean() == pytest.approx(81.63238, abs=1e-4) and img[0, 0, 0] == 9


# --- video, files, processes
def test_video_needs_pyav(monkeypatch, tmp_path):
    from detnb.foundation.video import VideoReader
    monkeypatch.setitem(sys.modules, 'av', None)            # Python's way to say that it can't be imported, whatever imported it before
    with pytest.raises(ImportError, match=r'pip install "detnb\[video\]"'): VideoReader(tmp_path/'x.mp4')


def test_demo_video():
    pytest.importorskip('av')
    path = data_root() and data_root()/'demo'/'demo.mp4'
    if path is None or not path.exists(): pytest.skip('no data/demo/demo.mp4 at hand')
    from detnb.foundation.video import VideoReader
    video = VideoReader(path)
    assert len(video) == 67 and video.resolution == (1280, 720)
    in_order = {i: f.copy() for i, f in enumerate(video) if i in (0, 13, 40, 66)}
    video = VideoReader(path, cache_capacity=1)
    for i in (66, 13, 0, 40, -1): assert (video[i] == in_order[i % 67]).all(), i


def test_results_survive(tmp_path):
    results = [[np.random.rand(3, 5).astype(np.float32), np.zeros((0, 5), np.float32)], dict(a=np.float64(1.), b={1, 2}, c=np.arange(3) > 1)]
    dump(results, tmp_path/'r.pkl')
    again = load(tmp_path/'r.pkl')
    assert (again[0][0] == results[0][0]).all() and again[1]['b'] == {1, 2} and again[1]['a'] == 1.
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert (PlainUnpickler(io.BytesIO(pickle.dumps(results, protocol))).load()[0][0] == results[0][0]).all()


def test_import_is_light():
    "Neither `import detnb` nor the command `detnb` loads torch or matplotlib, so they cannot add much to them, and help comes at once"
    program = "import sys, detnb, detnb.cli.main; print([m for m in ('torch', 'torchvision', 'matplotlib', 'pycocotools', 'IPython', 'av', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, cwd=Path(__file__).parent.parent).stdout.strip() == '[]'


def test_a_missing_package_is_told(tmp_path, monkeypatch):
    "Not installed; or installed, and something that it imports is not"
    from detnb.foundation.missing import MissingExtra, require
    (tmp_path/'half_installed.py').write_text('import pkg_that_is_not_there')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtra, match='This needs no_such_thing, which is not installed: pip install "detnb.thing."'): require('no_such_thing', 'This', '"detnb[thing]"')
    with pytest.raises(MissingExtra, match="half_installed, which is there and cannot be imported .*pkg_that_is_not_there.*pip install half_installed"): require('half_installed', 'This')


def test_extras_named_in_messages_exist(project):
    "Each `pip install \"detnb[x]\"` that a message or a page names is an extra of settings.ini"
    from configparser import ConfigParser
    settings = ConfigParser(delimiters=['=']); settings.read(project/'settings.ini')
    extras = {name.removesuffix('_requirements') for name in settings['DEFAULT'] if name.endswith('_requirements')}
    files = [*(project/'detnb').rglob('*.py'), *(project/'nbs').rglob('*.ipynb'), project/'README.md']
    named = {m for f in files for m in re.findall(r'detnb\[(\w+)\]', f.read_text(encoding='utf-8'))}
    assert {'video', 'onnx', 'corruptions'} <= named <= extras
