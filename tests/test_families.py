"Each family as a whole, made small: it trains on odd batches, tests with and without augmentation, and a batch is nothing but its images"
import asyncio, copy

import numpy as np, pytest, torch
from golden import compare_detections, compare_masks, ellipses, fill, grid_proposals, picture, shipped, without_weights
from test_golden import PENDING, types

from detnb import Config, Registry, layers, models, ops
from detnb.apis import async_inference_detector, inference_detector
from detnb.models import build_detector, targets
from detnb.structures.results import encode_mask
from detnb.training.optimizer import build_optimizer

REPRESENTATIVES = '''faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py empirical_attention/faster_rcnn_r50_fpn_attention_1111_1x_coco.py faster_rcnn/faster_rcnn_r50_fpn_ohem_1x_coco.py faster_rcnn/faster_rcnn_r50_fpn_giou_1x_coco.py
    faster_rcnn/faster_rcnn_r50_fpn_ciou_1x_coco.py faster_rcnn/faster_rcnn_r50_fpn_bounded_iou_1x_coco.py faster_rcnn/faster_rcnn_r50_fpn_iou_1x_coco.py
    mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py mask_rcnn/mask_rcnn_r50_caffe_c4_1x_coco.py fast_rcnn/fast_rcnn_r50_fpn_1x_coco.py
    rpn/rpn_r50_fpn_1x_coco.py
    cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py retinanet/retinanet_r50_fpn_1x_coco.py retinanet/ascend_retinanet_r18_fpn_1x8_1x_coco.py
    ssd/ssd300_coco.py ssd/ascend_ssd300_coco.py ssd/ssdlite_mobilenetv2_scratch_600e_coco.py htc/htc_r50_fpn_1x_coco.py
    detectors/detectors_htc_r50_1x_coco.py scnet/scnet_r50_fpn_1x_coco.py panoptic_fpn/panoptic_fpn_r2_50_fpn_fp16_1x_coco.py
    pisa/pisa_mask_rcnn_r50_fpn_1x_coco.py pisa/pisa_retinanet_r50_fpn_1x_coco.py pisa/pisa_ssd300_coco.py
    cornernet/cornernet_hourglass104_mstest_8x6_210e_coco.py centripetalnet/centripetalnet_hourglass104_mstest_16x6_210e_coco.py
    yolox/yolox_tiny_8x8_300e_coco.py yolo/yolov3_d53_320_273e_coco.py yolo/yolov3_mobilenetv2_320_300e_coco.py
    fcos/fcos_r50_caffe_fpn_gn-head_1x_coco.py hrnet/fcos_hrnetv2p_w18_gn-head_4x4_1x_coco.py dcn/mask_rcnn_r50_fpn_dconv_c3-c5_1x_coco.py
    dcn/faster_rcnn_r50_fpn_dpool_1x_coco.py dcnv2/faster_rcnn_r50_fpn_mdconv_c3-c5_1x_coco.py dcnv2/faster_rcnn_r50_fpn_mdpool_1x_coco.py
    gn/mask_rcnn_r50_fpn_gn-all_2x_coco.py gn+ws/mask_rcnn_x50_32x4d_fpn_gn_ws-all_2x_coco.py regnet/mask_rcnn_regnetx-400MF_fpn_mstrain-poly_3x_coco.py
    res2net/faster_rcnn_r2_101_fpn_2x_coco.py resnest/cascade_mask_rcnn_s50_fpn_syncbn-backbone+head_mstrain_1x_coco.py
    legacy_1.x/retinanet_r50_fpn_1x_coco_v1.py legacy_1.x/cascade_mask_rcnn_r50_fpn_1x_coco_v1.py legacy_1.x/ssd300_coco_v1.py
    strong_baselines/mask_rcnn_r50_fpn_syncbn-all_rpn-2conv_lsj_50e_coco.py'''.split()
FIXED = {'SSDVGG', 'Darknet', 'CSPDarknet', 'MobileNetV2'}       # backbones whose widths a config does not set: their necks and heads stay as they are


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    "Maps as small as these are slower on several"
    before = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- a shipped config, made small
def walk(cfg):
    if isinstance(cfg, dict): yield cfg
    for v in (cfg.values() if isinstance(cfg, dict) else cfg if isinstance(cfg, (list, tuple)) else ()): yield from walk(v)


def quarter(value):
    if isinstance(value, (list, tuple)): return type(value)(map(quarter, value))
    return value // 4 if type(value) is int and value > 4 else value


def narrow(cfg):
    "A quarter of the channels, wherever a config names channels"
    for part in walk(cfg):
        for key, value in part.items():
            if 'channel' in key or key in ('rfp_inplanes', 'num_groups', 'groups', 'base_width'): part[key] = quarter(value)


def small(name, fixed=FIXED):
    "The config of `name` with few channels, blocks, samples and proposals: same parts, same wiring"
    cfg = Config.fromfile(name); model = cfg.model; without_weights(model)
    for part in walk(model):
        kind = part.get('type')
        if kind in ('ResNet', 'ResNeXt', 'Res2Net', 'ResNeSt', 'DetectoRS_ResNet') and 'shared_head' not in model.get('roi_head', {}):
            part.base_channels = part.get('base_channels', 64)
            if part.depth > 50: part.depth = 50
        if kind == 'Res2Net': part.base_width = part.get('base_width', 26)
        if kind == 'RegNet': part.arch, model.neck.in_channels = 'regnetx_400mf', [4 * n for n in (32, 64, 160, 384)]
        if kind == 'HourglassNet': part.update(stage_channels=[256] * 6, stage_blocks=[1] * 6, feat_channel=256); model.bbox_head.num_classes = 3
        if kind == 'SSDNeck': part.level_paddings = (1,) * len(part.level_paddings)        # for pictures smaller than 300
        if 'num' in part and 'pos_fraction' in part: part.num = 24 if model.get('neck') else 8
        for key, most in dict(nms_pre=60, nms_post=30, max_per_img=30, max_num=30).items():
            if part.get(key, 0) > most: part[key] = most if model.get('neck') or model.type == 'CornerNet' else 20     # C4: a whole stage for each
    if model.type == 'YOLOX': model.update(input_size=(64, 64), random_size_range=(2, 2))
    if model.backbone.type not in fixed and 'shared_head' not in model.get('roi_head', {}): narrow(model)
    return cfg


def missing(cfg):
    registries = [r for m in (layers, models, targets) for r in vars(m).values() if isinstance(r, Registry)]
    return sorted(t for t in types(cfg._cfg_dict.model) & PENDING if not any(t in r for r in registries) and not hasattr(ops, t))


@pytest.fixture(params=REPRESENTATIVES)
def family(request):
    cfg = small(request.param)
    if missing(cfg): pytest.skip(f'still to be built: {", ".join(missing(cfg))}')
    return cfg


def takes(cfg, key): return any(key in (p.get('keys') or ()) for p in walk(cfg.data.train._cfg_dict if hasattr(cfg.data.train, '_cfg_dict') else cfg.data.train))


# --- pictures and what is on them
def side(cfg): return 64 if cfg.model.backbone.type in FIXED else 128      # of the canvas; the hourglass halves five times from stride four


def batch(canvas, *sizes, **meta):
    "Pictures of these sizes (height, width) on one canvas"
    img, metas = torch.zeros(len(sizes), 3, canvas, canvas), []
    for i, (x, (h, w)) in enumerate(zip(img, sizes)):
        x[:, :h, :w] = torch.from_numpy(np.roll(picture(h, w), 20 * i, 1).transpose(2, 0, 1).copy()) / 60. - 2
        metas.append(dict(dict(filename=f'{i}.jpg', ori_filename=f'{i}.jpg', ori_shape=(h, w, 3), img_shape=(h, w, 3), pad_shape=(canvas, canvas, 3), flip=False,
                               scale_factor=np.ones(4, np.float32), flip_direction=None, border=(0, h, 0, w), batch_input_shape=(canvas, canvas)), **meta))
    return img, metas


BOXES = [[[10., 10, 60, 70], [50, 20, 120, 90], [30, 60, 50, 110]], [], [[5., 5, 70, 60]]]      # on a canvas of 128


def truth(cfg, boxes):
    "Everything the family's training pipeline collects"
    n = side(cfg); sizes = (n, n), (n * 3 // 4, n * 7 // 8), (n * 7 // 8, n * 5 // 8)
    img, metas = batch(n, *sizes); boxes = [[[x * n / 128 for x in box] for box in each] for each in boxes]
    out = dict(img=img, img_metas=metas, gt_bboxes=[torch.tensor(b).reshape(-1, 4) for b in boxes])
    if cfg.model.type != 'RPN': out['gt_labels'] = [torch.arange(len(b)) for b in boxes]
    if takes(cfg, 'gt_masks'): out['gt_masks'] = [ellipses(b, n, n) if b else ellipses([[0, 0, 1, 1]], n, n)[[]] for b in boxes]
    if takes(cfg, 'gt_semantic_seg'):
        scale, = {p.scale_factor for p in walk(cfg.data.train) if p.get('type') == 'SegRescale'}
        out['gt_semantic_seg'] = torch.randint(0, 50, (len(boxes), 1, int(n * scale), int(n * scale)), generator=torch.Generator().manual_seed(0))
    return out | extra(cfg, sizes)


def extra(cfg, sizes): return dict(proposals=[grid_proposals(h, w)[::8] for h, w in sizes]) if cfg.model.type == 'FastRCNN' else {}


# --- training
def test_trains(family):
    "Two steps on three boxes, none and one, with masks and stuff where the family has them; then a batch without any box"
    model = build_detector(family.model); model.init_weights(); model.train()
    for layer in model.modules():           # trained weights bring these scales along; left at one, two hundred layers overflow
        if hasattr(layer, 'weight_gamma'): layer.weight_gamma /= layer.weight[0].numel() ** .5
    optimizer = build_optimizer(model, dict(family.optimizer, lr=.05 * family.optimizer.lr))
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    for boxes in (BOXES, BOXES, [[], [], []]):
        out = model.train_step(truth(family, boxes), optimizer)
        assert out['num_samples'] == 3 and all(np.isfinite(v) for v in out['log_vars'].values()), out['log_vars']
        optimizer.zero_grad(); out['loss'].backward()
        assert not [k for k, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        if boxes is BOXES: optimizer.step()
    moved = {k for k, p in model.named_parameters() if not torch.equal(p, before[k])}
    parts = {k.split('.')[0] for k, p in model.named_parameters() if p.requires_grad}
    assert {k.split('.')[0] for k in moved} == parts, f'nothing moved in {parts - {k.split(".")[0] for k in moved}}'


# --- testing
def ready(cfg):
    "With the figures' weights, whose scores differ from box to box, and every score good enough"
    for part in walk(cfg.model.test_cfg):
        if part.get('score_thr', 0) > .001: part.score_thr = .001
    model = fill(build_detector(cfg.model)).eval()
    if cfg.model.type == 'CornerNet': agree(model.bbox_head)
    return model


def agree(head):
    "Corners by formula refuse each other; with calm maps, and centres six cells away, some pairs agree"
    for name in ('heat', 'off', 'emb', 'centripetal_shift'):
        for branch in head._pairs(name) if hasattr(head, f'tl_{name}') else ():
            branch[-1].conv.weight.data *= .1 if name == 'heat' else .01
            if name == 'centripetal_shift': branch[-1].conv.bias.data.fill_(np.log(6))


def check_result(model, result, meta):
    "2.x shapes -> (boxes by class, masks by class or None)"
    h, w = meta['ori_shape'][:2]
    if isinstance(result, dict): assert result['pan_results'].shape == (h, w) and set(result) == {'pan_results'}; return [result['pan_results']], None
    if isinstance(result, np.ndarray): result = [result]
    boxes, masks = result if isinstance(result, tuple) else (result, None)
    assert isinstance(boxes, list) and (model.with_mask == (masks is not None))
    for found in boxes: assert found.dtype == np.float32 and found.ndim == 2 and found.shape[1] == 5 and np.isfinite(found).all()
    everything = np.concatenate(boxes)
    if type(model).__name__ not in ('YOLOV3', 'YOLOX', 'CornerNet') and len(everything):      # these three do not clip
        assert everything[:, :4].min() >= 0 and everything[:, 2].max() <= w + .01 and everything[:, 3].max() <= h + .01
    for found, cut in zip(boxes, masks or boxes):
        assert len(found) == len(cut)
        if masks: assert all(m.shape == (h, w) and m.dtype == bool for m in cut)
    return boxes, masks


def test_tests(family):
    "Two sizes in a batch, boxes and masks in pixels of pictures half as large; two scales of a picture, plain and mirrored"
    model, n = ready(family), side(family); sizes = (n, n), (n * 3 // 4, n * 7 // 8)
    half = dict(scale_factor=np.full(4, 2., np.float32))
    img, metas = batch(n, *sizes, **half)
    for m in metas: m['ori_shape'] = (m['img_shape'][0] // 2, m['img_shape'][1] // 2, 3)
    more = {k: [v] for k, v in extra(family, sizes).items()}
    with torch.inference_mode():
        results = model(img=[img], img_metas=[metas], return_loss=False, rescale=True, **more)
        found = [check_result(model, r, m) for r, m in zip(results, metas)]
        assert len(results) == 2 and all(sum(map(len, boxes)) > 2 for boxes, _ in found)
        if family.model.type in ('FastRCNN', 'PanopticFPN'): return       # 2.x has no augmentation for them
        versions = []
        for size, scale in (((n, n), 2.), ((n * 3 // 4, n * 3 // 4), 1.5)):
            for flip in (False, True):
                img, metas = batch(n, size, scale_factor=np.full(4, scale, np.float32), ori_shape=(n // 2, n // 2, 3), flip=flip, flip_direction='horizontal' if flip else None)
                if flip: img[..., :size[1]] = img[..., :size[1]].flip(-1)
                versions.append((img, metas))
        result, = model(img=[v[0] for v in versions], img_metas=[v[1] for v in versions], return_loss=False, rescale=True)
    boxes, _ = check_result(model, result, dict(ori_shape=(n // 2, n // 2)))
    assert sum(map(len, boxes)) > 0


@pytest.mark.parametrize('name', [n for n in REPRESENTATIVES if n.split('/')[0] in 'mask_rcnn cascade_rcnn rpn retinanet ssd htc panoptic_fpn cornernet yolox yolo fcos'.split()
                                  and not any(w in n for w in ('c4', 'ascend', 'ssdlite', 'mobilenetv2'))])
def test_asynchronous(name):
    "Two who ask at once share a batch"
    cfg = small(name); n = side(cfg)
    for step in walk(cfg.data.test.pipeline):
        if step.get('type') == 'MultiScaleFlipAug': step.flip = False
        if 'img_scale' in step: step.img_scale = n, n
        if step.get('type') == 'Resize': step.keep_ratio = False
    model = ready(cfg); model.cfg = cfg
    pictures = [np.roll(picture(n, n), 30 * i, 1) for i in range(2)]
    async def together(): return await asyncio.gather(*[async_inference_detector(model, p) for p in pictures])
    for one, other in zip(asyncio.run(together()), inference_detector(model, pictures), strict=True):
        if isinstance(other, dict): assert np.array_equal(one['pan_results'], other['pan_results'])
        else: assert len(other.scores) > 2 and np.array_equal(one.scores, other.scores) and np.array_equal(one.boxes, other.boxes)


def test_a_batch_is_its_images(family):
    "In double precision: these weights blow the last digits up, and in single precision boxes that nearly tie would change places from one processor to another"
    model, n = ready(family).double(), side(family); sizes = ((n, n),) * 2
    img, metas = batch(n, *sizes); img, more = img.double(), {k: [p.double() for p in v] for k, v in extra(family, sizes).items()}
    with torch.inference_mode():
        both = model.simple_test(img, copy.deepcopy(metas), rescale=True, **more)
        for i, meta in enumerate(metas):
            one, = model.simple_test(img[i:i + 1], [copy.deepcopy(meta)], rescale=True, **{k: v[i:i + 1] for k, v in more.items()})
            if isinstance(one, dict):
                assert (one['pan_results'] == both[i]['pan_results']).mean() > .98 and len(np.unique(one['pan_results'])) > 2
                continue
            (boxes, masks), (want, want_masks) = check_result(model, both[i], meta), check_result(model, one, meta)
            dets = sorted([[c, *map(float, d)] for c, rows in enumerate(want) for d in rows], key=lambda d: -d[5])[:50]
            assert dets and not compare_detections(boxes, dict(num_classes_out=len(want), num_dets=sum(map(len, want)), dets=dets))
            if masks is None: continue
            best = sorted([(-d[4], c, k) for c, rows in enumerate(want) for k, d in enumerate(rows)])[:10]
            rles = [dict(cls=c, area=int(want_masks[c][k].sum()), rle=encode_mask(want_masks[c][k])['counts']) for _, c, k in best]
            assert not compare_masks(boxes, masks, rles, (n, n))


def test_every_part_is_in_a_family():
    "A part that some shipped config names stands in one of the representatives (plain layers and losses of one formula aside)"
    held = set().union(*[types(Config.fromfile(p)._cfg_dict.model) for p in REPRESENTATIVES])
    named = set().union(*[types(Config.fromfile(p)._cfg_dict.model) for p in shipped()])
    assert named <= held, sorted(named - held)
