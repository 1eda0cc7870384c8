"The training panel: stop, resume, errors, a kernel whose browser presses buttons while a cell trains, and the learning rate finder"
import queue, sys, time
from pathlib import Path

import ipywidgets, pytest, torch

from detnb.apis import train_detector
from detnb.apis.demo import shapes_config
from detnb.datasets import build_dataset
from detnb.models import build_detector
from detnb.training import HOOKS, set_random_seed
from detnb.training.hooks import Hook
from detnb.widgets import click
from detnb.widgets.training_panel import TrainingPanel, draw_panel, train_panel

SMALL = {'model.backbone.base_channels': 16, 'model.neck.in_channels': [32, 64, 128], 'model.neck.out_channels': 16, 'model.bbox_head.in_channels': 16,
         'model.bbox_head.feat_channels': 16, 'model.bbox_head.stacked_convs': 1, 'runner.max_epochs': 2, 'data.samples_per_gpu': 4,
         'log_config.interval': 1, 'evaluation.interval': 1, 'checkpoint_config.interval': 1}


def small_config(folder):
    cfg = shapes_config(folder, num_train=16, num_val=4)          # two epochs of four iterations
    cfg.merge_from_dict(SMALL)
    return cfg


@HOOKS.register_module(force=True)
class AtIteration(Hook):
    "Calls `what` when iteration `at` is done"
    at, what = None, None
    def after_train_iter(self, runner):
        if runner.iter + 1 == AtIteration.at: AtIteration.what()


@pytest.fixture(autouse=True)
def nothing_happens():
    yield
    AtIteration.at = AtIteration.what = None


def panel_in(folder, **options):
    cfg = small_config(folder)
    cfg.merge_from_dict(options)
    cfg.custom_hooks = [dict(type='AtIteration')]
    return TrainingPanel(cfg)


def equal(a, b): return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    "Weights of the same run without a panel"
    cfg = small_config(tmp_path_factory.mktemp('plain'))
    set_random_seed(0)
    model = build_detector(cfg.model)
    model.init_weights()
    dataset = build_dataset(cfg.data.train)
    model.CLASSES = dataset.CLASSES
    train_detector(model, [dataset], cfg, validate=True)
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_stop_and_resume_give_the_weights_of_the_whole_run(plain, tmp_path):
    panel = panel_in(tmp_path)
    assert panel.stop_button.disabled and panel.resume_button.disabled and panel.text.value == 'not begun'
    said = []
    panel.text.observe(lambda change: said.append(change['new']), 'value')
    AtIteration.at, AtIteration.what = 3, lambda: click(panel.stop_button)
    panel.train()
    assert 'stopping after this iteration' in said
    assert panel.text.value == f'stopped at iteration 3 of 8, saved to {tmp_path}/interrupted.pth' and Path(panel.checkpoint).is_file()
    assert panel.stop_button.disabled and not panel.resume_button.disabled and panel.bar.value == 3 and panel.bar.max == 8
    assert not equal(plain, panel.model.state_dict())
    AtIteration.at = None
    before = panel.image.value
    click(panel.resume_button)
    assert panel.text.value == 'finished after iteration 8' and panel.resume_button.disabled and panel.bar.value == 8
    assert equal(plain, panel.model.state_dict()) and panel.image.value != before
    records = [*panel.past, *panel.runner.log]
    assert [(r['epoch'], r['iter']) for r in records if r['mode'] == 'train'] == [(e, i) for e in (1, 2) for i in (1, 2, 3, 4)]
    assert len(panel.samples) == 3 and all('result' in s for s in panel.samples)


def test_the_panel_changes_nothing(plain, tmp_path):
    panel = panel_in(tmp_path)
    panel.every = 0                                               # draw in every iteration
    panel.train()
    assert equal(plain, panel.model.state_dict())


def test_stop_between_epochs_and_twice(plain, tmp_path):
    panel = panel_in(tmp_path)
    for at in (4, 5):
        AtIteration.at, AtIteration.what = at, lambda: click(panel.stop_button)
        panel.train()
        assert panel.text.value.startswith(f'stopped at iteration {at} of 8, saved to')
    panel.train()
    assert equal(plain, panel.model.state_dict())


def test_a_failure_reaches_the_caller_and_the_run_goes_on_from_its_checkpoint(plain, tmp_path):
    panel = panel_in(tmp_path)
    def fail(): raise ZeroDivisionError('on purpose')
    AtIteration.at, AtIteration.what = 6, fail
    with pytest.raises(ZeroDivisionError, match='on purpose') as e: panel.train()
    frames = []
    tb = e.value.__traceback__
    while tb: frames.append(tb.tb_frame.f_code.co_name); tb = tb.tb_next
    assert frames[-1] == 'fail' and 'train_detector' in frames                     # what %debug opens
    assert any('AtIteration.after_train_iter, epoch 2, iteration 6' in n for n in e.value.__notes__)
    assert panel.text.value.startswith('failed in iteration 6: ZeroDivisionError: on purpose; resume goes on from') and 'epoch_1.pth' in panel.text.value
    with pytest.raises(ZeroDivisionError): click(panel.resume_button)              # its handler fails the same way, and the user reads it
    assert panel.errors.outputs[0]['ename'] == 'ZeroDivisionError'
    AtIteration.at = None
    click(panel.resume_button)
    assert panel.errors.outputs == () and equal(plain, panel.model.state_dict())


def test_what_an_older_run_left_is_not_taken_for_ours(tmp_path):
    import os
    panel = panel_in(tmp_path, **{'checkpoint_config.interval': 10})
    old = tmp_path/'latest.pth'
    old.write_bytes(b'of another run')
    os.utime(old, (1e9, 1e9))
    AtIteration.at, AtIteration.what = 2, lambda: 1 / 0
    with pytest.raises(ZeroDivisionError): panel.train()
    assert panel.checkpoint is None and panel.resume_button.disabled
    assert panel.text.value == 'failed in iteration 2: ZeroDivisionError: division by zero'


def test_a_wrong_config_fails_before_it_begins(tmp_path):
    panel = panel_in(tmp_path, **{'optimizer.type': 'SGDD'})
    with pytest.raises(KeyError, match="did you mean 'SGD'"): panel.train()
    assert panel.text.value.startswith('failed before it began: UnknownName') and panel.stop_button.disabled
    with pytest.raises(RuntimeError, match='disabled'): click(panel.stop_button)


def test_lines_in_a_terminal(tmp_path, capsys):
    cfg = small_config(tmp_path)
    cfg.runner.max_epochs = 1
    panel = train_panel(cfg, num_samples=0)
    text = capsys.readouterr().out
    assert 'Epoch [1][4/4]' in text and 'eta: ' in text and 'bbox_mAP' in text and '<' not in panel.text.value
    assert 'detnb-training-panel' in panel.box._dom_classes


def test_iterations_instead_of_epochs(tmp_path):
    panel = panel_in(tmp_path, runner=dict(_delete_=True, type='IterBasedRunner', max_iters=6), **{'evaluation.interval': 3})
    AtIteration.at, AtIteration.what = 4, lambda: click(panel.stop_button)
    panel.train()
    assert panel.text.value.startswith('stopped at iteration 4 of 6, saved to')
    assert panel.samples and [r['mode'] for r in panel.runner.log].count('val') == 1
    panel.train()
    assert panel.text.value == 'finished after iteration 6'


def test_the_picture_is_drawn_from_the_log_alone():
    log = [dict(mode='train', epoch=1, iter=i, loss=1 / i, lr=.1) for i in (1, 2, 3)]
    kept = [dict(r) for r in log]
    wide, narrow = draw_panel(log), draw_panel(log, width=4.)
    assert log == kept and len(wide.axes) == 3 and [a.get_title() for a in wide.axes] == ['loss', 'evaluation', 'learning rate']
    assert wide.bbox.width > narrow.bbox.width and draw_panel([]).array().std() > 0


# --- a real kernel, and messages as a browser sends them

CELL = '''
import sys, time
sys.path[:0] = {paths!r}
from test_training_panel import *
@HOOKS.register_module(force=True)
class Slow(Hook):
    seconds = .5                                    # so that a click comes before the run has ended, on a busy machine too
    def after_train_iter(self, runner): time.sleep(self.seconds)
cfg = small_config({folder!r})
cfg.runner.max_epochs, cfg.custom_hooks, cfg.log_level = 2, [dict(type='Slow')], 'ERROR'
panel = train_panel(cfg)
panel
'''


class Browser:
    "Sends and receives what JupyterLab would"
    def __init__(self, client): self.client, self.widgets, self.states, self.shown, self.errors, self.idle = client, {}, {}, [], [], set()

    def listen(self, until, seconds=240):
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, f'waited {seconds} s; the panel says {self.text()!r}; errors: {self.errors}'
            try: message = self.client.get_iopub_msg(timeout=.2)
            except queue.Empty: continue
            kind, content, parent = message['msg_type'], message['content'], message['parent_header'].get('msg_id')
            if kind == 'comm_open': self.states[content['comm_id']] = dict(content['data'].get('state', {}))
            elif kind == 'comm_msg': self.states.setdefault(content['comm_id'], {}).update(content['data'].get('state', {}))
            elif kind in ('display_data', 'update_display_data'): self.shown.append((kind, content['data']))
            elif kind == 'error': self.errors.append((content['ename'], content['traceback']))
            elif kind == 'status' and content['execution_state'] == 'idle': self.idle.add(parent)

    def button(self, name): return next((i for i, s in self.states.items() if s.get('_model_name') == 'ButtonModel' and s.get('description') == name), None)
    def enabled(self, name): return bool(self.button(name)) and not self.states[self.button(name)].get('disabled')
    def text(self): return next((s.get('value') for s in self.states.values() if s.get('_model_name') == 'LabelModel'), '')

    def press(self, name, subshell=None):
        message = self.client.session.msg('comm_msg', dict(comm_id=self.button(name), data=dict(method='custom', content=dict(event='click'))))
        if subshell: message['header']['subshell_id'] = subshell
        self.client.shell_channel.send(message)
        return message['header']['msg_id']


@pytest.fixture(scope='module')
def kernel():
    manager = pytest.importorskip('jupyter_client').KernelManager(kernel_name='python3')
    manager.start_kernel(extra_arguments=['--IPKernelApp.log_level=ERROR'])
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=240)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def begin(kernel, folder):
    browser, here = Browser(kernel[1]), Path(__file__).resolve().parent
    asked = kernel[1].execute(CELL.format(paths=[str(here), str(here.parent)], folder=str(folder)))
    browser.listen(lambda: browser.enabled('stop') and 'iteration 1 of' in (browser.text() or '') or browser.errors)
    assert not browser.errors, browser.errors
    return browser, asked


def value(kernel, expression):
    reply = kernel[1].execute_interactive('pass', user_expressions=dict(x=expression), timeout=240, output_hook=lambda m: None)
    return reply['content']['user_expressions']['x']['data']['text/plain']


@pytest.mark.parametrize('subshell', [False, True])
def test_a_click_stops_the_cell_that_trains(kernel, plain, tmp_path, subshell):
    browser, asked = begin(kernel, tmp_path)
    if subshell:
        control = kernel[1].session.msg('create_subshell_request', {})
        kernel[1].control_channel.send(control)
        reply = kernel[1].control_channel.get_msg(timeout=60)['content']
        if reply.get('status') != 'ok': pytest.skip('this ipykernel has no subshells')
        subshell = reply['subshell_id']
    later = kernel[1].execute('queued = panel.text.value')                # a cell that waits its turn
    pressed = browser.press('stop', subshell or None)
    browser.listen(lambda: {asked, later, pressed} <= browser.idle)
    assert browser.text().startswith('stopped at iteration') and 'interrupted.pth' in browser.text()
    assert browser.text() == value(kernel, 'queued').strip("'\"") and browser.enabled('resume') and not browser.errors
    first, last = browser.shown[0], [s for s in browser.shown if s[0] == 'update_display_data'][-1]
    for _, forms in (first, last): assert {'application/vnd.jupyter.widget-view+json', 'text/plain'} < set(forms)
    assert sum('application/vnd.jupyter.widget-view+json' in d for k, d in browser.shown if k == 'display_data') == 1    # `panel` at the end: not again
    assert value(kernel, 'setattr(Slow, "seconds", 0)') == 'None'
    browser.press('resume', subshell or None)
    browser.listen(lambda: browser.text() == 'finished after iteration 8' and not browser.enabled('resume'))
    torch.save(plain, tmp_path/'plain.pth')
    assert value(kernel, f'equal(torch.load({str(tmp_path/"plain.pth")!r}, weights_only=True), panel.model.state_dict())') == 'True'
    assert not browser.errors


def test_the_stop_button_of_the_kernel(kernel, tmp_path):
    browser, asked = begin(kernel, tmp_path)
    kernel[0].interrupt_kernel()
    browser.listen(lambda: asked in browser.idle)
    assert [e[0] for e in browser.errors] == ['KeyboardInterrupt']
    assert browser.text().startswith('stopped at iteration') and browser.enabled('resume')
    browser.press('resume')
    browser.listen(lambda: browser.enabled('stop') and 'loss' in browser.text())
    browser.press('stop')
    browser.listen(lambda: browser.text().startswith('stopped at iteration') and browser.enabled('resume'))
    assert value(kernel, 'cfg.optimizer.update(type="SGDD")') == 'None'        # now the run fails after a click, outside of any cell
    browser.press('resume')
    browser.listen(lambda: browser.text().startswith('failed before it began: UnknownName'))
    browser.listen(lambda: any(s.get('_model_name') == 'OutputModel' and s.get('outputs') for s in browser.states.values()))
    assert "did you mean 'SGD'" in str([s['outputs'] for s in browser.states.values() if s.get('_model_name') == 'OutputModel'])


def test_the_learning_rate_finder_leaves_no_trace(tmp_path):
    from detnb.apis import find_lr
    from detnb.apis.train import build_for_training
    from detnb.training import build_optimizer
    from detnb.training.seeds import random_state
    cfg = small_config(tmp_path)
    model, dataset = build_for_training(cfg)
    optimizer, batch = build_optimizer(model, cfg.optimizer), torch.randn(2, 3, 64, 64)
    model.eval()
    sum(f.mean() for f in model.extract_feat(batch)).backward()
    optimizer.step()                                                      # so that it has a state, and the weights have gradients
    def trace(): return dict(weights=model.state_dict(), grads={k: p.grad for k, p in model.named_parameters() if p.grad is not None},
                             steps={k: s['exp_avg'] for k, s in enumerate(optimizer.state.values())}, dice=dict(torch=random_state()['torch']))
    before = {k: {n: t.clone() for n, t in v.items()} for k, v in trace().items()}
    python, numpy, text, training = random_state()['python'], random_state()['numpy'], cfg.pretty_text, model.training
    sweep = find_lr(cfg, model, dataset, low=1e-4, high=100., num=20)
    for kind, values in trace().items(): assert equal(before[kind], values), kind
    assert random_state()['python'] == python and torch.equal(random_state()['numpy'][1], numpy[1]) and random_state()['numpy'][2:] == numpy[2:]
    assert cfg.pretty_text == text and model.training == training and optimizer.param_groups[0]['lr'] == cfg.optimizer.lr
    assert 3 < len(sweep.losses) <= 20 and len(sweep.lrs) == len(sweep.losses) == len(sweep.smooth)
    assert sweep.lrs[0] == pytest.approx(1e-4) and sweep.picture().array().std() > 0
    again = find_lr(cfg, model, dataset, low=1e-4, high=100., num=20)
    assert (again.losses == sweep.losses).all()


def test_where_the_loss_is_no_number_at_once(tmp_path):
    from detnb.apis import find_lr
    from detnb.apis.train import build_for_training
    from detnb.training import InvalidLossError
    cfg = small_config(tmp_path)
    model, dataset = build_for_training(cfg)
    with torch.no_grad(): model.bbox_head.retina_cls.weight.fill_(float('nan'))
    with pytest.raises(InvalidLossError, match='the rate is not at fault'): find_lr(cfg, model, dataset)
