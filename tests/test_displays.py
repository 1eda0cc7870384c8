"Everything that shows itself in a cell does so: each class with a display of its own is made here once and asked for what a notebook would show"
import contextlib, importlib, inspect, io, pkgutil
from html.parser import HTMLParser

import numpy as np, pytest
from test_explorer import shapes                       # pictures with results, a fixture

import detnb
from detnb import Config
from detnb.apis.check_config import check_config
from detnb.apis.data_check import check_data
from detnb.apis.inside_reasons import Explanation
from detnb.apis.lr_finder import LRSweep
from detnb.apis.report import Report
from detnb.apis.top_losses import TopLosses
from detnb.datasets import ConcatDataset, RepeatDataset
from detnb.datasets.checks import DatasetSummary
from detnb.drawing import image_picture
from detnb.structures import as_result, as_results
from detnb.structures.panoptic import PanopticResult
from detnb.structures.results import Table
from detnb.widgets import edit_config, explore
from detnb.widgets.data_browser import DataBrowser
from detnb.widgets.training_panel import TrainingPanel

WAYS = '_repr_html_', '_ipython_display_'
PIXELS = np.full((40, 60, 3), 90, np.uint8)
EMPTY = {'area', 'base', 'br', 'col', 'embed', 'hr', 'img', 'input', 'link', 'meta', 'source', 'track', 'wbr', 'line', 'rect', 'path', 'polyline', 'circle'}


def showing():
    "Every class of the library that says itself how it is shown, and how"
    found = {}
    for module in pkgutil.walk_packages(detnb.__path__, 'detnb.'):
        if module.name.startswith(('detnb.configs', 'detnb._modidx', 'detnb.as_mmdet')): continue
        for c in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(c) and c.__module__.startswith('detnb.') and any(w in vars(c) for w in WAYS): found[c.__name__] = c
    return found


def table(): return Table([dict(name='<b>', n=1)])

def explanation():
    e = Explanation([dict(anchor=1, why='near')])
    e.picture = image_picture(PIXELS)[0]
    return e

def sweep():
    lrs = np.geomspace(1e-5, 1, 20)
    return LRSweep(lrs, np.linspace(2, 1, 20), np.linspace(2, 1, 20), 1e-2)

def wrong():
    cfg = Config.fromfile('retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg.model.neck.out_channel = 3
    return cfg

def found(image=PIXELS): return as_result([np.array([[5, 5, 30, 30, .9]], np.float32), np.zeros((0, 5), np.float32)], image, ('<ball>', 'box'))

def trainer(folder):
    from detnb.apis.demo import shapes_config
    return TrainingPanel(shapes_config(folder, num_train=4, num_val=2))

MAKERS = dict(
    Table=lambda s, f: table(), Explanation=lambda s, f: explanation(), LRSweep=lambda s, f: sweep(), Report=lambda s, f: Report('all', [('one', table()), ('two', image_picture(PIXELS)[0])]),
    TopLosses=lambda s, f: TopLosses(s.dataset, dict(loss=np.arange(25.)), [found()] * 3, 3), DatasetSummary=lambda s, f: DatasetSummary('D', 'x.json', 2, ('a', '<b>'), np.array([1, 2]), np.array([1, 1])),
    CustomDataset=lambda s, f: s.dataset, ConcatDataset=lambda s, f: ConcatDataset([s.dataset, s.dataset]), IndexedDataset=lambda s, f: RepeatDataset(s.dataset, 2),
    DataReport=lambda s, f: check_data(s.dataset, progress=False), Picture=lambda s, f: image_picture(PIXELS)[0], Comparison=lambda s, f: found().compare(np.array([[5, 5, 31, 31.]]), np.array([0])),
    Tide=lambda s, f: s.tide()[0], Config=lambda s, f: wrong(), ConfigDiff=lambda s, f: wrong().diff(Config.fromfile('retinanet/retinanet_r18_fpn_1x_coco.py')), Problems=lambda s, f: check_config(wrong()),
    Crops=lambda s, f: found().crops(), Results=lambda s, f: as_results([found(None), found(None)]), PanopticResult=lambda s, f: PanopticResult(dict(pan_results=np.full((40, 60), 1)), PIXELS, ('a', 'b')),
    ReadableResult=lambda s, f: found(None), Live=lambda s, f: explore(s), TrainingPanel=lambda s, f: trainer(f))
MORE = dict(ConfigEditor=lambda s, f: edit_config(wrong()), DataBrowser=lambda s, f: DataBrowser(s.dataset), pictured=lambda s, f: found(), grid=lambda s, f: as_results([found(), found()]))


class Balanced(HTMLParser):
    "HTML whose tags are closed in the order in which they were opened"
    def __init__(self, text): super().__init__(); self.open, self.text = [], ''; self.feed(text); assert not self.open, self.open
    def handle_starttag(self, tag, attrs): self.open += [tag] * (tag not in EMPTY)
    def handle_endtag(self, tag): assert tag in EMPTY or self.open and self.open.pop() == tag, f'</{tag}> after {self.open}'
    def handle_data(self, data): self.text += data


def displayed(thing):
    "All forms in which a cell would show a thing"
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    shell = InteractiveShell.instance()
    try:
        with capture_output(stdout=False, stderr=False) as shown:
            # a formatter prints what goes wrong and goes on; called directly, it comes here
            own = thing._ipython_display_() if hasattr(thing, '_ipython_display_') else shell.display_formatter.format(thing)[0]
        return [own] * bool(own) + [o.data for o in shown.outputs]
    finally: InteractiveShell.clear_instance()


def test_no_class_is_forgotten():
    assert set(MAKERS) == set(showing()), set(MAKERS) ^ set(showing())


@pytest.mark.parametrize('name', [*MAKERS, *MORE])
def test_shows_itself(name, shapes, tmp_path):
    with contextlib.redirect_stdout(io.StringIO()): thing = {**MAKERS, **MORE}[name](shapes, tmp_path)
    kind = showing().get(name)
    assert kind is None or isinstance(thing, kind)
    forms = displayed(thing)
    assert forms and all('text/plain' in f for f in forms)
    rich = [f for f in forms if any(k.startswith('image/') or k == 'text/html' for k in f)]
    assert rich, f'{name} shows only text: {forms}'
    pages = [f['text/html'] for f in forms if 'text/html' in f]
    if hasattr(thing, '_repr_html_') and (own := thing._repr_html_()) is not None: pages.append(own)
    for page in pages: assert Balanced(page).text.strip() and '<ball>' not in page
