"""What a person sees: JupyterLab in a headless Chromium opens notebooks, runs them, and uses their widgets

Runs where Chromium is installed, with `pip install ".[dev,browser]"`. DETNB_SCREENSHOTS names a folder that keeps the pages as pictures."""
import json, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path

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
           'JUPYTERLAB_SETTINGS_DIR': str(home/'settings'), 'JUPYTERLAB_WORKSPACES_DIR': str(home/'workspaces'), 'PYTHONPATH': str(root)}
    command = [sys.executable, '-m', 'jupyter', 'lab', '--no-browser', '--expose-app-in-browser', '--allow-root', f'--port={port}', '--ServerApp.port_retries=0', '--ip=127.0.0.1',
               '--IdentityProvider.token=once', f'--ServerApp.root_dir={home/"notebooks"}', '--LabApp.news_url=None', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    log = open(home/'log', 'w')
    server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(240):
            assert server.poll() is None, (home/'log').read_text()[-3000:]
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status?token=once', timeout=1); break
            except OSError: time.sleep(.25)
        else: pytest.fail('JupyterLab did not answer in a minute: ' + (home/'log').read_text()[-3000:])
        yield f'http://127.0.0.1:{port}/lab/tree/{{}}?reset&token=once', home/'notebooks'
    finally: server.terminate(); server.wait(30); log.close()


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=chromium, args=QUIET, chromium_sandbox=False)
        yield opened
        opened.close()


@pytest.fixture
def notebook(lab, browser, request):
    "Opens a notebook and runs all its cells -> the page"
    address, folder = lab
    page = browser.new_page(viewport=dict(width=1200, height=2000))
    def run(path, seconds=240):
        name = Path(path).name
        shutil.copy(root/'nbs'/path, folder/name)
        page.goto(address.format(name))
        page.wait_for_selector('.jp-Notebook .jp-Cell', timeout=90_000)
        page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=90_000)
        page.evaluate("() => { window.ran = false; window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.ran = true }) }")
        page.wait_for_function('() => window.ran', timeout=seconds * 1000)
        outputs = page.evaluate("() => window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code').flatMap(c => c.model.outputs.toJSON())")
        assert not [f"{o['ename']}: {o['evalue']}" for o in outputs if o['output_type'] == 'error']
        return page
    yield run
    keep = os.environ.get('DETNB_SCREENSHOTS')
    if keep: page.screenshot(path=str(Path(keep)/f'{request.node.name}.png'))
    page.evaluate("() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.shutdown()")
    page.close()


def into_view(page, css):
    "Scroll a widget into the page; JupyterLab renders the cells that are seen"
    index = page.evaluate("""css => { const nb = window.jupyterapp.shell.currentWidget.content; const cells = nb.widgets;
        return cells.findIndex(c => c.model.type === 'code' && c.model.outputs.toJSON().some(o => o.data && o.data['application/vnd.jupyter.widget-view+json']) && (c.node.querySelector(css) || true) && (c.node.querySelector(css) !== null)) }""", css)
    if index >= 0: page.evaluate("i => { const nb = window.jupyterapp.shell.currentWidget.content; nb.activeCellIndex = i; return nb.scrollToItem ? nb.scrollToItem(i, 'start') : null }", index)
    found = page.locator(css).first
    found.wait_for(state='attached', timeout=30_000)
    found.scroll_into_view_if_needed()
    return found


def test_square(notebook):
    page = notebook('widgets/10_events.ipynb')
    image = into_view(page, '.jupyter-widgets img')
    before = image.get_attribute('src')
    page.locator('.noUi-handle').last.focus()
    page.keyboard.press('ArrowLeft')
    page.wait_for_function("b => [...document.querySelectorAll('.jupyter-widgets img, img.jupyter-widgets')].every(i => i.src !== b)", arg=before)
