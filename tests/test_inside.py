"Inside every kind of detector: each view gives a picture, or an error that says what is missing and what would work"
import re

import numpy as np, pytest, torch
from golden import picture
from test_families import missing, one_thread, ready, side, small, walk         # noqa: F401 (one_thread is a fixture)

import detnb.apis as apis
from detnb.apis.inside import VIEWS, Look, priors_of, views
from detnb.apis.inside_assignment import assignment
from detnb.apis.inside_heat_maps import corners_of, heat_maps
from detnb.apis.inside_regions import roi_assignment, rounds
from detnb.apis.inside_stages import detections
from detnb.apis.small import learn_by_heart, picture_by_heart, small_config
from detnb.drawing import Picture
from detnb.models import build_detector
from detnb.structures.overlaps import bbox_overlaps

KINDS = '''ssd/ssd300_coco.py ssd/ascend_ssd300_coco.py retinanet/retinanet_r50_fpn_1x_coco.py retinanet/ascend_retinanet_r18_fpn_1x8_1x_coco.py
    yolo/yolov3_mobilenetv2_320_300e_coco.py yolox/yolox_tiny_8x8_300e_coco.py fcos/fcos_r50_caffe_fpn_gn-head_1x_coco.py rpn/rpn_r50_fpn_1x_coco.py
    fast_rcnn/fast_rcnn_r50_fpn_1x_coco.py faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py mask_rcnn/mask_rcnn_r50_caffe_c4_1x_coco.py
    pisa/pisa_mask_rcnn_r50_fpn_1x_coco.py cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py htc/htc_r50_fpn_1x_coco.py scnet/scnet_r50_fpn_1x_coco.py
    detectors/detectors_htc_r50_1x_coco.py panoptic_fpn/panoptic_fpn_r2_50_fpn_fp16_1x_coco.py
    cornernet/cornernet_hourglass104_mstest_8x6_210e_coco.py centripetalnet/centripetalnet_hourglass104_mstest_16x6_210e_coco.py'''.split()
ONE_STAGE = ('SSD', 'SingleStageDetector', 'RetinaNet', 'YOLOV3', 'YOLOX', 'FCOS')
BOXES, LABELS = np.float32([[6, 8, 50, 60], [40, 16, 88, 56]]), np.int64([0, 1])      # on an image of 96 x 72 pixels


def shrunk(name):
    "A detector with all its parts and few channels, and its own test pipeline for small pictures"
    cfg = small(name)
    if missing(cfg): pytest.skip(f'still to be built: {", ".join(missing(cfg))}')
    for step in walk(cfg.data.test._cfg_dict if hasattr(cfg.data.test, '_cfg_dict') else cfg.data.test):
        if 'img_scale' in step: step.img_scale = (side(cfg), side(cfg))
    model = ready(cfg)
    model.cfg = cfg
    return model


def arguments(model, name):
    "What a view needs besides the detector and the image"
    given = dict(gt_bboxes=BOXES, gt_labels=LABELS) if 'assignment' in name else {}
    if type(model).__name__ == 'FastRCNN' and name in ('show_roi_assignment', 'show_cascade', 'show_nms'): given['proposals'] = BOXES + 2
    if type(model).__name__ == 'FastRCNN' and name == 'show_roi_features': given['boxes'] = BOXES
    return given


@pytest.mark.parametrize('name', KINDS)
def test_every_view_of_every_kind(name):
    model, img = shrunk(name), picture(72, 96)
    kind = type(model).__name__
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    settings, answers = str(model.test_cfg), {row['call'].split('(')[0]: row['answers'] for row in views(model)}
    assert list(answers) == list(VIEWS)
    for view, answer in answers.items():
        call = lambda: getattr(apis, view)(model, img, **arguments(model, view))
        if answer == 'yes':
            drawn = call()
            drawn = getattr(drawn, 'picture', drawn)
            drawn.set_layout_engine('none')           # the layout takes longest and is not what is tested
            assert isinstance(drawn, Picture) and drawn.array().std() > 5, view
            continue
        with pytest.raises(TypeError, match=rf'{kind} has no .*: {view} can not work. These can: .*show_heat_maps') as error: call()
        for other in re.findall(r'show_\w+|explain_\w+', str(error.value).split('These can:')[1]): assert answers[other] == 'yes'
    expected = dict(show_proposals=kind not in (*ONE_STAGE, 'CornerNet', 'FastRCNN'), show_cascade=kind not in (*ONE_STAGE, 'CornerNet', 'RPN'),
                    show_corners=kind == 'CornerNet', show_assignment=kind not in ('CornerNet', 'FastRCNN'))
    assert {v: answers[v] == 'yes' for v in expected} == expected
    assert not model.training and str(model.test_cfg) == settings and all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('name', [n for n in KINDS if n.split('/')[0] in ('ssd', 'retinanet', 'yolo', 'yolox', 'fcos', 'rpn', 'scnet')] + ['pisa/pisa_ssd300_coco.py', KINDS[10]])
def test_assignments_are_those_of_training(name, monkeypatch):
    "The assignment that is shown is the one that the losses of a batch are made from"
    model, img = shrunk(name), picture(72, 96)
    look = Look(model, img)
    head = getattr(model, 'rpn_head', None) or model.bbox_head
    seen = {}
    for owner, method in ((head, 'get_targets'), (head, 'targets_batch'), (head, 'assign_anchors')):
        if hasattr(owner, method):
            def spy(*args, inner=getattr(owner, method), at=method, **kw): seen[at] = inner(*args, **kw); return seen[at]
            monkeypatch.setattr(owner, method, spy, raising=False)
    truth = ([look.scaled(BOXES)], [torch.from_numpy(LABELS)])
    with torch.no_grad():
        outs = head(look.features)
        head.loss(*outs, truth[0], *([] if hasattr(model, 'rpn_head') else [truth[1]]), look.metas)
    inds = torch.from_numpy(assignment(look, BOXES, LABELS)[1])
    if 'assign_anchors' in seen: assert torch.equal(seen['assign_anchors'][3].gt_inds[0], inds)
    elif 'targets_batch' in seen: assert torch.equal(torch.cat(seen['targets_batch'][0], 1)[0, :, 4] > 0, inds > 0) and torch.equal(torch.cat(seen['targets_batch'][1], 1)[0] > 0, inds == 0)
    elif type(model).__name__ == 'YOLOX':
        assert torch.equal(seen['get_targets'][0][0], inds > 0) and torch.equal(seen['get_targets'][2][0][inds > 0], truth[1][0][inds[inds > 0] - 1])
    else:
        labels = torch.cat([l.reshape(-1) for l in seen['get_targets'][0]])
        assert torch.equal(labels < head.num_classes, inds > 0) and torch.equal(labels[inds > 0], truth[1][0][inds[inds > 0] - 1])
    assert seen and (inds > 0).any()


def test_reasons_agree_with_the_numbers():
    "Each sentence of the table follows from its row, for all four rules"
    img = picture(72, 96)
    for name, top in (('rpn/rpn_r50_fpn_1x_coco.py', 40), ('yolo/yolov3_mobilenetv2_320_300e_coco.py', 40), ('yolox/yolox_tiny_8x8_300e_coco.py', 40), ('fcos/fcos_r50_caffe_fpn_gn-head_1x_coco.py', 40)):
        model = shrunk(name)
        _, inds, level = assignment(Look(model, img), BOXES, LABELS)
        for box in (0, 1):
            table = apis.explain_assignment(model, img, BOXES, LABELS, box=box, top=top)
            positive = [r for r in table if re.match('positive(?! for)', r['why'])]
            assert len(positive) == min((inds == box + 1).sum(), top - 3) > 0 and table[:len(positive)] == positive
            assert f'box {box}, {(inds == box + 1).sum()} positive' in table.title and len(table) == min(top, len(inds))
            for row in table:
                if 'IoU under' in row['why']: assert row['best IoU'] < .3
                if 'IoU from' in row['why']: assert row['IoU'] >= .7
                if 'out of range' in row['why']:
                    low, high = row['range'].split('..'); assert not float(low) <= row['farthest side'] <= float(high or 1e9)
                if 'in range' in row['why']: assert row['centerness'] > 0
                if 'responsible' in row['why']: assert row['responsible'] == ('not' not in row['why'])
                if 'cheapest' in row['why']: assert row['cost'] < np.inf


def test_border_and_scale():
    "Boxes come back to the image through CornerNet's border and any resize; priors of points are their cells"
    for name in ('cornernet/cornernet_hourglass104_mstest_8x6_210e_coco.py', 'faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py'):
        look = Look(shrunk(name), picture(72, 96))
        assert np.allclose(look.original(look.scaled(BOXES)), BOXES, atol=1e-3)
    corner = Look(shrunk(KINDS[-2]), picture(72, 96))
    assert (corner.shift > 0).all() and corner.input.shape[-1] > 96
    (scores, _, at, _), _ = corners_of(corner, 5)
    assert (np.diff(scores) <= 0).all() and (at >= 0).all() and (at < 128).all()
    fcos = Look(shrunk('fcos/fcos_r50_caffe_fpn_gn-head_1x_coco.py'), picture(72, 96))
    for cells, stride in zip(priors_of(fcos), fcos.model.bbox_head.strides): assert torch.equal(cells[:, 2:] - cells[:, :2], torch.full((len(cells), 2), float(stride)))


@pytest.mark.parametrize('name', ['retinanet', 'yolox', 'fcos'])
def test_heat_is_where_the_scores_are(name):
    "The best value of the score maps is the best score of the result, of the same class"
    model = learn_by_heart(small_config(name), steps=25)
    look = Look(model, picture_by_heart()['img'])
    maps, (boxes, labels) = heat_maps(look)['score'], detections(look)
    best = max(maps, key=lambda m: m.max())
    assert np.isclose(best.max(), boxes[0, 4], atol=1e-4) and np.unravel_index(best.argmax(), best.shape)[0] == labels[0]


def test_a_cascade_that_learnt_a_picture():
    "Its rounds bring boxes nearer, later rounds have more to learn from, and what is shown is what it answers"
    sample = picture_by_heart()
    model = learn_by_heart(small_config('cascade_rcnn'), steps=60)
    look, truth = Look(model, sample['img']), torch.from_numpy(sample['gt_bboxes'])
    boxes, scores = rounds(look, look.proposals())
    near = [bbox_overlaps(truth, b).amax(1).mean() for b in boxes]
    assert len(boxes) == 4 and len(scores) == 3 and near[-1] > max(near[0], .8)
    assert [roi_assignment(look, truth, stage=s)[3].pos_iou_thr for s in (0, 1, 2)] == [.5, .6, .7]
    rows, labels = detections(look)
    found = look.result()
    order = np.argsort(-found.scores, kind='stable')
    assert np.allclose(rows[:, 4], found.scores[order], atol=1e-5) and np.allclose(rows[:3, :4], found.boxes[order][:3], atol=1e-3) and (labels[:3] == found.labels[order][:3]).all()


def test_no_boxes_and_wrong_calls():
    model, img = build_detector(small_config('fcos').model), picture(72, 96)
    with pytest.raises(AttributeError): apis.show_anchors(model, img)               # no cfg, so no test pipeline
    model.cfg = small_config('fcos')
    assert apis.show_assignment(model, img, np.zeros((0, 4))).axes[0].get_title().startswith('0 positive') and (assignment(Look(model, img), [])[1] == 0).all()
    with pytest.raises(ValueError, match='1 labels for 2 boxes'): apis.show_assignment(model, img, BOXES, [0])
    with pytest.raises(IndexError, match='there are 2'): apis.explain_assignment(model, img, BOXES, LABELS, box=2)
