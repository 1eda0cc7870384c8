"Drawing: what every picture must hold, and what bad input gets for an answer"
import importlib.util, json, subprocess, sys
import numpy as np, pytest
from detnb.drawing.boxes import covered, draw_labels, draw_masks
from detnb.drawing.curves import loss_curves, positions, read_log
from detnb.drawing.detections import detection_picture, imshow_det_bboxes, imshow_gt_det_bboxes, show_result
from detnb.drawing.palette import COCO_PALETTE, get_palette
from detnb.drawing.picture import Picture, image_picture, new_picture
from detnb.drawing.sheet import result_sheet, show_grid
from detnb.structures.results import DetectionResult, InstanceResult, as_result


@pytest.fixture
def img(): return np.random.RandomState(0).randint(0, 255, (113, 157, 3)).astype(np.uint8)


def test_palette_leaves_the_global_generator_alone():
    np.random.seed(3); first = np.random.rand()
    np.random.seed(3); get_palette('random', 7)
    assert np.random.rand() == first


@pytest.mark.parametrize('size', [(57, 113), (427, 640), (99, 1333)])
def test_native_size_and_untouched_pixels(size):
    img = np.random.RandomState(1).randint(0, 255, (*size, 3)).astype(np.uint8)
    before = img.copy()
    out = imshow_det_bboxes(img, [[10, 10, 40, 40, .9]], [0], font_size=0, show=False)
    assert out.shape == img.shape and out.dtype == np.uint8
    assert (out[:, 60:] == img[:, 60:]).all()           # away from the box: the same pixels, blue still first
    assert (out[10:40, 9:12] != img[10:40, 9:12]).any()
    assert (img == before).all()                        # what was given is not drawn on


def test_box_lands_on_its_pixels():
    img = np.zeros((50, 80, 3), np.uint8)
    out = imshow_det_bboxes(img, [[20, 10, 60, 40]], [0], bbox_color='white', thickness=.72, font_size=0, show=False)   # .72 pt is one pixel
    ys, xs = np.nonzero(out.sum(-1))
    assert (xs.min() + xs.max() + 1) / 2 == pytest.approx(40, abs=.5) and (ys.min() + ys.max() + 1) / 2 == pytest.approx(25, abs=.5)
    assert xs.max() - xs.min() == pytest.approx(40, abs=1) and ys.max() - ys.min() == pytest.approx(30, abs=1)


def test_every_form_of_mask_draws_the_same(img):
    from pycocotools import mask as coco
    mask = np.zeros((2, 113, 157), bool); mask[0, 20:60, 30:90] = mask[1, 70:100, 10:50] = True
    class Structure:
        def to_ndarray(self): return mask.astype(np.uint8)
    forms = [mask, mask.astype(np.uint8), list(mask), [coco.encode(np.asfortranarray(m, dtype=np.uint8)) for m in mask], Structure()]
    first, *rest = [imshow_det_bboxes(img, None, [0, 1], segms=f, show=False) for f in forms]
    for other in rest: assert (first == other).all()
    assert (first != img).any()


def test_labels_of_a_crowd_do_not_cover_each_other(img):
    picture, ax = image_picture(img)
    boxes = np.array([[30 + 3 * i, 40 + 2 * i, 90 + 3 * i, 90 + 2 * i] for i in range(6)])
    draw_labels(ax, boxes, [f'label {i}' for i in range(6)])
    picture.canvas.draw()
    rects = np.array([t.get_window_extent().extents for t in ax.texts])
    assert sum(covered(r, np.delete(rects, i, 0)) for i, r in enumerate(rects)) == 0
    frame = ax.get_window_extent().extents
    assert (rects[:, :2] >= frame[:2] - 1).all() and (rects[:, 2:] <= frame[2:] + 1).all()


@pytest.mark.parametrize('color', [None, (72, 101, 241), 'green', 'coco', ['red', (0, 255, 0)], 200])
def test_text_can_be_read_whatever_its_color(img, color):
    from matplotlib.colors import to_rgb
    picture = detection_picture(img, [[10, 10, 60, 60, .9], [70, 20, 140, 90, .8]], [0, 1], bbox_color=color, text_color=color)
    for text in picture.axes[0].texts: assert to_rgb(text.get_color()) != to_rgb(text.get_bbox_patch().get_facecolor()[:3])


@pytest.mark.parametrize('args, message', [
    (dict(bboxes=np.zeros((2, 3)), labels=[0, 0]), r'not \(2, 3\)'),
    (dict(bboxes=np.zeros((2, 4)), labels=[0]), '2 bboxes, but 1 labels'),
    (dict(bboxes=np.zeros((1, 4)), labels=[0], segms=np.zeros((2, 5, 5))), '2 segms, but 1 labels'),
    (dict(bboxes=np.zeros((1, 5)), labels=[3], class_names=['a']), 'label 3 has no name'),
    (dict(bboxes=np.zeros((1, 4)), labels=[0], score_thr=.5), 'fifth column'),
    (dict(bboxes=np.zeros((1, 4)), labels=[0], bbox_color='rde'), "no palette or colour 'rde'")])
def test_what_does_not_fit_is_said(img, args, message):
    with pytest.raises(ValueError, match=message): detection_picture(img, **args)


def test_no_display_is_said(img, monkeypatch):
    monkeypatch.setenv('MPLBACKEND', 'agg')
    import matplotlib; matplotlib.use('agg')
    with pytest.warns(UserWarning, match='no display'): imshow_det_bboxes(img, [[1, 2, 30, 40]], [0])


def test_pyplot_stays_out():
    code = ("import sys, numpy as np; import detnb.drawing as d; "
            "d.imshow_det_bboxes(np.zeros((50, 60, 3), np.uint8), [[1, 2, 30, 40, .9]], [0], show=False); assert 'matplotlib.pyplot' not in sys.modules")
    subprocess.run([sys.executable, '-c', code], check=True)


def test_a_picture_is_shown_once_and_small(img):
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    InteractiveShell.instance()
    picture = detection_picture(np.full_like(img, 90), [[1, 2, 30, 40, .9]], [0])
    with capture_output() as captured: picture._ipython_display_()
    (shown,) = captured.outputs
    assert set(shown.data) == {'image/jpeg', 'text/plain'} and len(shown.data['image/jpeg']) < 20_000


def test_results_are_what_they_were():
    raw = [np.array([[0, 0, 4, 4, .5]], np.float32), np.zeros((0, 5), np.float32)]
    result = as_result(raw)
    assert isinstance(result, list) and result[0] is raw[0] and json.dumps([r.tolist() for r in result])
    pair = as_result((raw, [[np.ones((4, 4), bool)], []]))
    bboxes, segms = pair
    assert isinstance(pair, tuple) and len(pair) == 2 and segms[0][0].sum() == 16
    scored = InstanceResult((raw, ([[np.ones((4, 4), bool)], []], [[.4], []])))     # mask scoring
    assert len(scored.masks) == 1 and scored.filter(score_thr=.9)[1] == ([[], []], [[], []])
    assert pair.filter(score_thr=.4).to_coco(5)[0]['segmentation']['size'] == [4, 4]


def test_pandas_is_optional(monkeypatch):
    result = DetectionResult([np.array([[0, 0, 4, 4, .5]])], classes=['a'])
    monkeypatch.setitem(sys.modules, 'pandas', None)
    with pytest.raises(ImportError, match='pip install pandas'): result.to_pandas()
    monkeypatch.undo()
    if importlib.util.find_spec('pandas'): assert list(result.to_pandas()['class']) == ['a']


def test_result_draws_itself_or_its_table(img):
    result = DetectionResult([np.array([[5, 5, 60, 60, .9]])], classes=['<b>'])
    assert result._repr_jpeg_() is None and '&lt;b&gt;' in result._repr_html_()
    result.image = img
    assert result._repr_jpeg_()[:2] == b'\xff\xd8' and result._repr_html_() is None


def test_gt_and_detections(img):
    out = imshow_gt_det_bboxes(img, dict(gt_bboxes=[[5, 5, 60, 60]], gt_labels=[0]), [np.array([[5, 5, 60, 60, .9]])], show=False)
    assert out.shape == img.shape
    assert show_result(img, np.array([[5, 5, 60, 60, .9]]), show=False).shape == img.shape


def test_logs_by_iteration_and_empty(tmp_path):
    log = [dict(mode='train', epoch=e, iter=i, loss=1 / i, lr=.1) for i, e in ((50, 1), (100, 1), (150, 2))]
    assert positions(log) == ([50, 100, 150], 'iteration')
    assert len(loss_curves([]).axes) == 1
    path = tmp_path/'x.log.json'; path.write_text('')
    assert read_log(path) == []


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'pdf', 'svg'])
def test_sheet_in_every_format(img, tmp_path, suffix):
    samples = [dict(img=img, gt_bboxes=[[5, 5, 60, 60]], gt_labels=[0], result=[np.zeros((0, 5))])] * 4
    sheet = result_sheet(samples, [dict(mode='train', epoch=1, iter=1, loss=1., lr=.1)], dict(a=None), ['a'])
    assert sheet.save(tmp_path/f'sheet.{suffix}').stat().st_size > 1000
    assert [p.name for p in tmp_path.iterdir()] == [f'sheet.{suffix}']
