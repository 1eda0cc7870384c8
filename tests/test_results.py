"A result of one image or of many: still the old list, and readable besides"
import copy, importlib.util, json, pickle, sys, types
import numpy as np, pytest

import detnb.drawing  # results draw themselves
from detnb.structures import Crops, DetectionResult, InstanceResult, PanopticResult, Results, as_result, as_results
from detnb.structures.results import encode_mask

names = ('a', '<b>', 'c')
none = np.zeros((0, 5), np.float32)


@pytest.fixture
def img(): return np.random.RandomState(0).randint(0, 255, (60, 80, 3), np.uint8)

def raw(): return [np.array([[10, 10, 30, 30, .9], [0, 0, 80, 60, .4]], np.float32), none, np.array([[40, 20, 50, 25, .6]], np.float32)]

def masks():
    def box(x1, y1, x2, y2):
        m = np.zeros((60, 80), bool); m[y1:y2, x1:x2] = True
        return m
    return [[box(10, 10, 30, 20), encode_mask(box(0, 0, 80, 60))], [], [box(40, 20, 50, 25)]]


def test_area_of_box_and_mask():
    boxes, pair = as_result(raw()), as_result((raw(), masks()))
    assert boxes.areas.tolist() == [400, 4800, 50] and pair.areas.tolist() == [200, 4800, 50]
    assert [len(r) for r in boxes.filter(area=(400, 4800))] == [1, 0, 0]
    assert [len(r) for r in pair.filter(area=(400, None))[0]] == [1, 0, 0]                    # by its mask the first is smaller
    assert boxes.filter(area='small', score_thr=.7).scores.tolist() == [np.float32(.9)] and boxes.filter(area='medium').labels.tolist() == [0]
    assert DetectionResult([none]).filter(area='large').areas.shape == (0,)
    for wrong in ('tiny', 7, (1, 2, 3)):
        with pytest.raises(ValueError, match='pixels²'): boxes.filter(area=wrong)


def test_crops_are_pixels_of_the_image(img):
    result = as_result(raw() + [np.array([[-5, -5, 3, 4, .2], [200, 5, 210, 9, .1]], np.float32)], img, names + ('d',))
    pieces = result.crops(margin=0)
    for piece, (x1, y1, x2, y2) in zip(pieces, [(10, 10, 30, 30), (0, 0, 80, 60), (40, 20, 50, 25), (0, 0, 3, 4), (79, 5, 80, 9)]):
        assert (piece == img[y1:y2, x1:x2]).all()
    assert len(pieces) == len(result.scores) and pieces.titles[0] == 'a 0.90'
    pieces[0][:] = 0
    assert img[10:30, 10:30].any()                                                           # a copy
    assert type(pickle.loads(pickle.dumps(pieces))) is Crops
    result.image = None
    with pytest.raises(ValueError, match='does not know its image'): result.crops()


def test_crops_show_themselves(img):
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    InteractiveShell.instance()
    with capture_output() as captured: as_result(raw(), img, names).crops()._ipython_display_()
    (shown,) = captured.outputs
    assert {'image/jpeg', 'image/png'} & set(shown.data)


def test_supervision_gets_boxes_and_masks(monkeypatch):
    made = types.SimpleNamespace(Detections=lambda **kw: kw)
    monkeypatch.setitem(sys.modules, 'supervision', made)
    got = as_result((raw(), masks()), classes=names).to_supervision()
    assert got['mask'].shape == (3, 60, 80) and got['mask'].dtype == bool and got['mask'].sum((1, 2)).tolist() == [200, 4800, 50]
    assert got['class_id'].tolist() == [0, 0, 2] and got['data']['class_name'].tolist() == ['a', 'a', 'c'] and got['xyxy'].shape == (3, 4)
    assert as_result(raw()).to_supervision()['mask'] is None and as_result(([none], [[]])).to_supervision()['mask'] is None
    monkeypatch.setitem(sys.modules, 'supervision', None)
    with pytest.raises(ImportError, match='pip install supervision'): as_result(raw()).to_supervision()


@pytest.mark.skipif(not importlib.util.find_spec('supervision'), reason='needs `pip install supervision`')
def test_supervision_itself():
    assert as_result((raw(), masks())).to_supervision().area.tolist() == [200, 4800, 50]
    assert len(as_result([none]).to_supervision()) == 0


def test_many_are_a_list(img):
    results = as_results([raw(), [none] * 3], [img, 'x/y.jpg'], names)
    assert isinstance(results, list) and json.dumps([[c.tolist() for c in r] for r in results]) and results[1] is list(results)[1]
    assert type(results[:1]) is type(copy.deepcopy(results)) is type(pickle.loads(pickle.dumps(results))) is Results
    assert results.image_names() == ['image 0', 'y.jpg'] and pickle.loads(pickle.dumps(results))[0].classes == names
    assert [e['image_id'] for e in results.to_coco()] == [0, 0, 0] and json.dumps(results.to_coco())
    assert len(results.filter(score_thr=.5).rows()) == 2 and len(results.table(limit=1)) == 1 and 'and 2 more' in repr(results.table(1))
    assert [line.split() for line in repr(results).splitlines()] == [['2', 'images'], ['image', 'found', 'what'], ['image', '0', '3', '2', 'a,', '1', 'c'], ['y.jpg', '0']]
    if importlib.util.find_spec('pandas'): assert list(results.to_pandas().columns)[:2] == ['image', 'class']


def test_many_show_themselves(img):
    floor = PanopticResult(dict(pan_results=np.kron([[0, 1], [1001, 2]], np.ones((30, 40), int))), img, names)
    known = Results([as_result(raw(), img, names), as_result((raw(), masks()), img, names), floor])
    assert known._repr_jpeg_()[:2] == b'\xff\xd8' and known._repr_html_() is None
    assert [t.get_text() for t in known.picture(score_thr=.5).axes[0].texts] == ['a 0.90', 'c 0.60']
    unknown = as_results([raw()], classes=names)
    assert unknown._repr_jpeg_() is None and '2 a, 1 c' in unknown._repr_html_() and '1 image<' in unknown._repr_html_()
    with pytest.raises(ValueError, match='does not know its image'): unknown.picture()
    assert Results()._repr_jpeg_() is None and '0 images' in Results()._repr_html_()


def test_what_is_known_stays_known(img):
    again = as_result(as_result((raw(), masks()), img, names))
    assert type(again) is InstanceResult and again.classes == names and again.image is img
    assert as_result(PanopticResult(dict(pan_results=np.zeros((2, 2), int)), num_classes=5)).num_classes == 5
