"Results held against the truth, and the explorer driven as a hand would drive it"
import io
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np, pytest
from PIL import Image

from detnb import Config
from detnb.apis.predictions import Predictions, test_dataset as dataset_of
from detnb.datasets import ConcatDataset, RepeatDataset
from detnb.datasets.shapes import CLASSES, make_shapes
from detnb.drawing.comparison import page_pixels, thumbnail
from detnb.evaluation import Comparison, Matched, confusion_matrix
from detnb.evaluation.matching import Pairs
from detnb.structures import as_result, as_results
from detnb.widgets import Live, click, draw_explorer, explore
from detnb.widgets.explorer import chosen, draw_page, frequent_pairs, orders_of


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    "Twenty-five pictures and a clumsy detector: boxes shaken, classes now and then wrong, many found twice"
    root, rng = tmp_path_factory.mktemp('shapes'), np.random.default_rng(0)
    make_shapes(root, 25, (120, 80), seed=3, name='val')
    test = dict(type='CocoDataset', ann_file=str(root/'val.json'), img_prefix=str(root/'val'), classes=CLASSES, pipeline=[dict(type='LoadImageFromFile')])
    with redirect_stdout(io.StringIO()): ds = dataset_of(Config(dict(data=dict(test=test))))
    results = []
    for i in range(len(ds)):
        ann, rows = ds.get_ann_info(i), [[] for _ in CLASSES]
        for box, label in zip(ann['bboxes'], ann['labels']):
            for _ in range(rng.integers(0, 4)):
                said = label if rng.random() < .8 else rng.integers(5)
                rows[said].append([*(box + rng.normal(0, 3, 4)), rng.random()])
        rows[rng.integers(5)].append([3, 3, 30, 25, rng.random()])
        results.append([np.array(r, np.float32).reshape(-1, 5) for r in rows])
    return Predictions(ds, results)

@pytest.fixture
def explorer(shapes): return explore(shapes, orders=dict(loss=np.arange(25.)))

def pixels(explorer): return np.asarray(Image.open(io.BytesIO(explorer.image.value)))


@pytest.mark.parametrize('score', [0., .3, .7])
@pytest.mark.parametrize('nms', [1., .6, .3])
def test_the_matrix_is_the_confusion_matrix(shapes, score, nms):
    c = Comparison(shapes.pairs(), shapes.names, score_thr=score, nms_thr=nms)
    assert (c.matrix() == confusion_matrix(shapes.truth, shapes.boxes, 5, score, .5, None if nms == 1 else nms)).all() and c.matrix().sum() > 50


def test_kinds_add_up(shapes):
    for score in (0., .4, 1.1):
        c, m = Comparison(shapes.pairs(), shapes.names, score_thr=score), Matched(shapes.pairs(), .5, score)
        n = c.counts()
        assert n['hit'] == m.right.sum() and n['overlooked'] == m.missed.sum()
        assert sum(n.values()) - n['hit'] - n['overlooked'] == m.wrong.sum()
        assert all(c.by_image(k).sum() == v for k, v in n.items()) and len(c.rows()) == sum(n.values())
        assert (c.by_image('overlooked') == shapes.misses(score)).all()
    assert Comparison(shapes.pairs(), shapes.names).counts()['wrong class'] > 3


def test_crowds_are_forgiven():
    truth = [dict(labels=np.array([0]), shapes=np.array([[0., 0, 50, 50]]), crowd=np.array([True]))]
    found = [dict(scores=[.9, .8], labels=[0, 0], shapes=np.array([[5., 5, 20, 20], [60, 60, 20, 20]]))]
    c = Comparison(Pairs(found, truth, 1), ['a'])
    assert c.short.tolist() == ['', 'Bkg'] and c.counts()['overlooked'] == 0 and c.marks(0)[1] == ['nothing there']


def test_one_result_compares_itself():
    img = np.full((60, 80, 3), 90, np.uint8)
    result = as_result([np.array([[10, 10, 30, 30, .9], [11, 10, 30, 30, .5]]), np.array([[50, 30, 70, 50, .8]])], img, ('<a>', 'b'))
    c = result.compare([[10, 10, 30, 30], [50, 30, 70, 50], [2, 40, 12, 55]], ['<a>', '<a>', 'b'])
    assert [k for k, n in c.counts().items() for _ in range(n)] == ['hit', 'wrong class', 'found twice', 'overlooked', 'overlooked']
    assert repr(c) == '1 hit, 1 wrong class, 1 found twice, 2 overlooked (score 0.3, IoU 0.5)' and '&lt;a&gt;' in c.table()._repr_html_()
    assert c._repr_jpeg_()[:2] == b'\xff\xd8' and c._repr_html_() is None
    assert 'b 0.80, is <a>' in c.marks(0)[2] and c.marks(0, truth=False)[1].count('overlooked') == 0
    nothing = as_result([np.zeros((0, 5))]).compare(np.zeros((0, 4)), [])
    assert sum(nothing.counts().values()) == 0 and nothing._repr_jpeg_() is None and '0 hit' in nothing._repr_html_()
    with pytest.raises(ValueError, match='does not know its images'): explore(nothing)


def test_many_results_compare_themselves(shapes):
    files = [str(Path(shapes.dataset.img_prefix)/i['filename']) for i in shapes.dataset.data_infos]
    c = as_results(shapes.results, files, CLASSES).compare(shapes.truth)
    assert c.counts() == Comparison(shapes.pairs(), shapes.names).counts()
    assert len(explore(c).indices) == 25 and c._repr_jpeg_()[:2] == b'\xff\xd8'


def test_wrapped_data_sets_are_explored(shapes):
    ds, results = shapes.dataset, shapes.results
    wrapped = Predictions(ConcatDataset([RepeatDataset(ds, 2), ds]), results * 3)
    e, plain = explore(wrapped), explore(shapes)
    assert {k: v // 3 for k, v in e.c.counts().items()} == plain.c.counts() and len(e.indices) == 75
    assert e.titles[60] == plain.titles[10] == ds.data_infos[10]['filename'] and e.c.images[60] == plain.c.images[10]
    assert (wrapped.draw_image(60, show=False) == shapes.draw_image(10, show=False)).all()
    assert wrapped.show([30, 60]).axes[0].get_title() == shapes.show([5, 10]).axes[0].get_title()
    assert wrapped.extremes(topk=2)['bad'][0][1:] == shapes.extremes(topk=2)['bad'][0][1:]
    assert len(wrapped.report().parts) == len(shapes.report().parts)
    with pytest.raises(TypeError, match='a ConcatDataset is made of other datasets, and this analysis needs one COCO file'): wrapped.sizes()


def test_one_rule_for_a_score_at_the_threshold():
    box = np.array([[10, 10, 30, 30, .5]], np.float32)
    result = as_result([box], np.full((60, 80, 3), 90, np.uint8), ('a',))
    for thr, n in ((0., 1), (.4, 1), (.5, 0)):                          # more than the threshold; at 0 all
        c = result.compare(box[:, :4], [0], score_thr=thr)
        assert [len(result.filter(thr).scores), c.counts()['hit'], c.matched.right.sum(), Matched(c.pairs, .5, thr).right.sum(),
                len(result.picture(thr).axes[0].texts)] == [n] * 5


def test_a_crowd_keeps_the_labels_of_the_surest():
    drawn = lambda *n: page_pixels([thumbnail(np.full((60, 80, 3), 255, np.uint8))], [([[10, 20, 60, 50]] * len(n), ['hit'] * len(n), [f'x 0.{i}' for i in n])])
    assert (drawn(9, 8) != drawn(9)).any() and (drawn(*[9] * 30) == drawn(*[9] * 40)).all()
    one = Comparison(Pairs([dict(scores=[.6, .9], labels=[0, 0], shapes=np.array([[0., 0, 9, 9], [1, 0, 9, 9]]))],
                           [dict(labels=[], shapes=np.zeros((0, 4)), crowd=[])], 1), ['a'])
    assert one.marks(0)[2] == ['a 0.90', 'a 0.60']


def test_a_mark_stays_in_its_image():
    white = thumbnail(np.full((40, 60, 3), 255, np.uint8))
    page = page_pixels([white, white], [([[-20, 5, 200, 90]], ['hit'], ['x 0.9']), ([], [], [])], ncols=2, width=200)
    assert (page[:, 102:] == 255).all() and not (page[:, :98] == 255).all()


def test_orders_and_selections(shapes):
    c = Comparison(shapes.pairs(), shapes.names)
    orders = orders_of(c, dict(loss=np.r_[np.arange(24.), np.nan]))
    assert chosen(c, orders['loss']).tolist() == [*range(23, -1, -1), 24]
    errors = orders['error'][chosen(c, orders['error'])]
    assert (np.diff(errors) <= 0).all() and errors[0] > errors[-1]
    for kind in c.counts(): assert (np.sort(chosen(c, orders['file'], kind)) == np.flatnonzero(c.by_image(kind))).all()
    rows, columns, images = c.confused()
    for cell in np.argwhere(c.matrix()): assert set(chosen(c, orders['file'], tuple(cell))) == set(images[(rows == cell[0]) & (columns == cell[1])])
    assert chosen(c, orders['file'], (0, 1), only=2).tolist() == [i for i in chosen(c, orders['file'], only=2) if i in chosen(c, orders['file'], (0, 1))]
    with pytest.raises(ValueError, match="order 'loss'"): orders_of(c, dict(loss=[1.]))


def test_sliders_and_boxes_change_the_page(explorer):
    before, title = pixels(explorer), explorer.now()
    for widget, value in ((explorer.score, .8), (explorer.nms, .2), (explorer.truth, False), (explorer.page, 2), (explorer.order, 'loss'), (explorer.only, 3)):
        widget.value = value
        after = pixels(explorer)
        assert after.shape != before.shape or (after != before).any(), widget.description
        before = after
    assert explorer.c.score_thr == .8 and explorer.c.nms_thr == .2 and 'class star' in explorer.status.value and explorer.now() != title
    assert explorer.page.value == 1 and explorer.indices == sorted(explorer.indices, reverse=True)      # a new order begins at the first page
    assert explorer.score.description == 'score' and explorer.nms.description == 'nms' and 'detnb-explorer' in explorer.box._dom_classes


def test_buttons_select(explorer):
    everything = list(explorer.indices)
    click(explorer.bars['overlooked'])
    assert explorer.indices == [i for i in everything if explorer.c.by_image('overlooked')[i]] and len(explorer.indices) < 25
    click(explorer.cells[0, 5])                                              # balls that were not found
    assert explorer.selection == (0, 5) and 'ball taken for background' in explorer.now()
    explorer.score.value = .6                                                # the selection stays, its images are found again
    assert explorer.cells[0, 5].description == str(explorer.c.matrix()[0, 5]) and explorer.indices == chosen(explorer.c, orders_of(explorer.c)['error'], (0, 5)).tolist()
    click(explorer.cells[0, 5]); assert explorer.selection is None and sorted(explorer.indices) == list(range(25))
    click(explorer.bars['hit']); click(explorer.everything); assert sorted(explorer.indices) == list(range(25))


def test_nothing_to_see(explorer):
    explorer.score.value = 1.
    click(explorer.bars['hit'])
    assert explorer.indices == [] and explorer.page.max == 1 and (pixels(explorer) > 250).mean() > .9
    assert explorer.picture().jpeg()[:2] == b'\xff\xd8'


def test_many_classes_get_a_list(shapes):
    pairs = Pairs([dict(scores=[.9], labels=[7], shapes=np.array([[1., 1, 20, 20]]))] * 2, [dict(labels=np.array([4]), shapes=np.array([[1., 1, 20, 20]]), crowd=np.zeros(1, bool))] * 2, 12)
    names, img = [f'k{i}' for i in range(12)], np.zeros((40, 40, 3), np.uint8)
    e = explore(Comparison(pairs, names, [img, img]))
    assert not e.cells and frequent_pairs(e.c.matrix(), [*names, 'background'])[1] == ('k4 taken for k7: 2', (4, 7))
    e.pairs.value = (4, 7)
    assert e.selection == (4, 7) and e.indices == [0, 1]
    e.score.value = .95
    assert e.pairs.value is None and e.indices == [] and e.pairs.options == (('all images', None), ('k4 taken for background: 2', (4, 12)))


def test_it_shows_a_widget_and_a_figure(explorer):
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    InteractiveShell.instance()
    with capture_output() as captured: explorer._ipython_display_()
    (shown,) = captured.outputs
    assert isinstance(explorer, Live) and set(shown.data) == {'application/vnd.jupyter.widget-view+json', 'image/jpeg', 'text/plain'}
    assert shown.data['text/plain'] == '<Explorer: 25 images, score 0.30, sorted by error; page 1 of 5>'


def test_the_figure_is_pure(shapes):
    files = [str(Path(shapes.dataset.img_prefix)/i['filename']) for i in shapes.dataset.data_infos]
    c = Comparison(shapes.pairs(), shapes.names, files)
    draw = lambda: draw_explorer(c, draw_page(c, [3, 1], {}, {i: f'no. {i}' for i in range(25)}), 'two images', (0, 4)).array()
    assert (draw() == draw()).all()
    figure = draw_explorer(c, np.zeros((50, 690, 3), np.uint8))
    assert [t.get_text().strip() for t in figure.axes[1].texts] == [str(n) for n in c.counts().values()]
    assert sum(int(t.get_text()) for t in figure.axes[2].texts) == c.matrix().sum()


def test_errors_reach_the_code_and_the_reader(shapes):
    e = explore(shapes)
    e.c.images[e.indices[6]] = 'no_such.jpg'
    with pytest.raises(FileNotFoundError, match='no_such'): e.page.value = 2
    assert e.errors.outputs[0]['ename'] == 'FileNotFoundError'
    e.page.value = 1
    assert e.errors.outputs == ()
    with pytest.raises(TypeError, match='results, are needed'): explore(shapes.dataset)
    assert len(explore(shapes.dataset, shapes.results).indices) == 25
