"""What a person sees: JupyterLab in a headless Chromium opens notebooks, runs them, and uses their widgets

Runs where Chromium is installed, with `pip install ".[dev,browser]"`. DETNB_SCREENSHOTS names a folder that keeps the pages as pictures."""
import os, re, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import nbformat
import pytest

root = Path(__file__).resolve().parent.parent
chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
playwright = pytest.importorskip('playwright.sync_api', reason='needs `pip install ".[browser]"`')
pytest.importorskip('jupyterlab', reason='needs `pip install ".[browser]"`')
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not chromium, reason='Chromium is not installed')]
QUIET = ['--disable-gpu', '--disable-dev-shm-usage', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A JupyterLab of its own, with settings and notebooks of its own -> its address and the folder that it shows"
    home = tmp_path_factory.mktemp('lab')
    for name in ('config', 'data', 'runtime', 'settings', 'workspaces', 'notebooks'): (home/name).mkdir()
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = {**os.environ, 'JUPYTER_CONFIG_DIR': str(home/'config'), 'JUPYTER_DATA_DIR': str(home/'data'), 'JUPYTER_RUNTIME_DIR': str(home/'runtime'),
           'JUPYTERLAB_SETTINGS_DIR': str(home/'settings'), 'JUPYTERLAB_WORKSPACES_DIR': str(home/'workspaces'), 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-m', 'jupyter', 'lab', '--no-browser', '--expose-app-in-browser', '--allow-root', f'--port={port}', '--ServerApp.port_retries=0', '--ip=127.0.0.1',
               '--IdentityProvider.token=once', f'--ServerApp.root_dir={home/"notebooks"}', '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    log = open(home/'log', 'w')
    server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 240
        while True:
            assert server.poll() is None, (home/'log').read_text()[-3000:]
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status?token=once', timeout=5); break
            except OSError: time.sleep(.25)
            if time.monotonic() > end: pytest.fail('JupyterLab did not answer in four minutes: ' + (home/'log').read_text()[-3000:])
        yield f'http://127.0.0.1:{port}/lab/tree/{{}}?reset&token=once', home/'notebooks'
    finally:
        server.terminate()
        try: server.wait(60)
        except subprocess.TimeoutExpired: server.kill()
        log.close()


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=chromium, args=QUIET, chromium_sandbox=False)
        yield opened
        opened.close()


READY = "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code')
              .flatMap(c => c.model.outputs.toJSON()).filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)"""
SHOW = """css => { const nb = window.jupyterapp.shell.currentWidget.content, found = nb.widgets.findIndex(c => c.node.querySelector(css));
          if (found < 0) return false; nb.activeCellIndex = found; nb.scrollToItem(found, 'center'); return true }"""


class Page:
    "A notebook in JupyterLab"
    def __init__(self, page):
        self.page = page
        page.set_default_timeout(240_000)           # a wait ends when what it waits for is there: a long one costs nothing
    def open(self, address):
        self.page.goto(address)
        self.page.wait_for_selector('.jp-Notebook .jp-Cell')
        self.page.wait_for_function(READY)

    def run_all(self, seconds=900):
        "Run all cells; with `seconds=0` without waiting for them"
        self.page.evaluate("() => { window.ran = false; window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.ran = true }) }")
        if seconds: self.ended(seconds)

    def ended(self, seconds=900):
        self.page.wait_for_function('() => window.ran', timeout=seconds * 1000)
        assert self.page.evaluate(ERRORS) == []

    def widget(self, css):
        "A widget, scrolled into view: JupyterLab draws a cell when it is looked at"
        self.page.wait_for_function(SHOW, arg=css)
        found = self.page.locator(css).first
        found.wait_for()
        return found

    def until(self, condition, arg=None):
        "Wait until a condition of the page (JavaScript) holds"
        self.page.wait_for_function(condition, arg=arg)


@pytest.fixture
def lab_page(lab, browser, request):
    "Opens a notebook of the project, or one made of cells -> its `Page`"
    address, folder = lab
    page = Page(browser.new_page(viewport=dict(width=1200, height=1600)))
    def opened(source):
        name = f'{request.node.name}.ipynb'
        if isinstance(source, str): shutil.copy(root/'nbs'/source, folder/name)
        else:
            kernel = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))     # or JupyterLab asks which
            nbformat.write(nbformat.v4.new_notebook(metadata=kernel, cells=[nbformat.v4.new_code_cell(s) for s in source]), folder/name)
        page.open(address.format(name))
        return page
    yield opened
    keep = os.environ.get('DETNB_SCREENSHOTS')
    if keep: page.page.screenshot(path=str(Path(keep)/f'{request.node.name}.png'))
    page.page.evaluate('() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.shutdown()')
    page.page.close()


def test_stop_and_resume_a_training(lab_page):
    "The stop button is heard while the cell trains; resume goes on"
    cells = ["""from detnb.apis.demo import shapes_config
cfg = shapes_config('run', num_train=8, num_val=4)
cfg.merge_from_dict({'model.backbone.base_channels': 16, 'model.neck.in_channels': [32, 64, 128], 'model.neck.out_channels': 16, 'model.bbox_head.in_channels': 16,
                     'model.bbox_head.feat_channels': 16, 'model.bbox_head.stacked_convs': 1, 'runner.max_epochs': 2000, 'data.samples_per_gpu': 4, 'evaluation.interval': 50})""",
             'from detnb.widgets import train_panel\npanel = train_panel(cfg)', "print('the next cell ran')"]
    lab = lab_page(cells)
    lab.run_all(seconds=0)
    lab.widget('.detnb-training-panel')
    panel = lab.page.locator('.detnb-training-panel')
    says = "words => document.querySelector('.detnb-training-panel').innerText.includes(words)"
    lab.until(says, 'iteration 1')
    panel.get_by_role('button', name='stop').click()
    lab.until(says, 'stopped at iteration')
    lab.ended()
    before = panel.inner_text()
    panel.get_by_role('button', name='resume').click()
    lab.until(says, ' left')
    panel.get_by_role('button', name='stop').click()
    lab.until(says, 'stopped at iteration')
    after = panel.inner_text()
    at = [int(re.search(r'stopped at iteration (\d+)', text)[1]) for text in (before, after)]
    assert at[1] > at[0], (before, after)


def test_edit_a_field_of_a_config(lab_page):
    "A field that is typed into changes the config, is marked, checked, and undone"
    lab = lab_page(["from detnb import Config\nfrom detnb.widgets import edit_config\ncfg = Config.fromfile('retinanet/retinanet_r18_fpn_1x_coco.py')\nedit_config(cfg)"])
    lab.run_all()
    lab.widget('.detnb-config-editor')
    editor = lab.page.locator('.detnb-config-editor')
    editor.get_by_placeholder('search keys and values').fill('num_classes')
    field = lab.page.locator('.detnb-config-editor .model-bbox_head-num_classes input').first
    field.wait_for()
    says = "words => document.querySelector('.detnb-config-editor').innerText.includes(words)"
    lab.until(says, '0 values different from the file')
    field.fill('7'); field.press('Enter')
    lab.until(says, '1 value different from the file')
    lab.until("words => document.querySelector('.detnb-config-problems').innerText.includes(words)", 'num_classes')      # 80 names of classes
    assert lab.page.locator('.detnb-config-editor .detnb-changed').count() >= 1
    lab.page.screenshot(path=str(Path(os.environ['DETNB_SCREENSHOTS'])/'edited.png')) if os.environ.get('DETNB_SCREENSHOTS') else None
    editor.get_by_role('button', name='undo').click()
    lab.until(says, '0 values different from the file')
    assert field.input_value() == '80'


def test_move_the_slider_of_the_explorer(lab_page):
    "A tutorial from top to bottom; a higher least score changes the picture and the counts"
    lab = lab_page('tutorials/70_what_your_detector_gets_wrong.ipynb')
    lab.run_all()
    lab.widget('.detnb-explorer')
    picture = "() => document.querySelector('.detnb-explorer img').src"
    before, text = lab.page.evaluate(picture), lab.page.locator('.detnb-explorer').inner_text()
    slider = lab.page.locator('.detnb-explorer .widget-hslider:has-text("score") .noUi-handle').first
    slider.focus()
    for _ in range(8): lab.page.keyboard.press('ArrowRight')
    lab.until("before => document.querySelector('.detnb-explorer img').src !== before", before)
    assert lab.page.locator('.detnb-explorer').inner_text() != text
