"""Figures of MMDetection 2.28.2 and how a detector is held against them.

`python tests/golden.py ../shared/golden` writes tests/figures/zoo.json (a line for each shipped config: a hash of its values, a hash of
its state_dict and frozen set, its number of parameters) and tests/figures/outputs/ (features, head outputs, detections and losses of one
config a family) from the full figures, of which these are a small part that every checkout can hold."""
import gzip, hashlib, json, math, sys, zlib
from pathlib import Path

import numpy as np, torch
from pycocotools import mask as coco_mask
from torchvision.ops import box_iou

from detnb.structures.masks import BitmapMasks
from detnb.structures.results import encode_mask

figures = Path(__file__).resolve().parent/'figures'
configs = Path(__file__).resolve().parent.parent/'detnb'/'configs'
OUTPUTS = '''faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py fast_rcnn/fast_rcnn_r50_fpn_1x_coco.py rpn/rpn_r50_fpn_1x_coco.py
    retinanet/retinanet_r18_fpn_1x_coco.py ssd/ssd300_coco.py ssd/ssdlite_mobilenetv2_scratch_600e_coco.py
    pascal_voc/faster_rcnn_r50_caffe_c4_mstrain_18k_voc0712.py mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py cityscapes/faster_rcnn_r50_fpn_1x_cityscapes.py
    dcn/faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco.py dcnv2/faster_rcnn_r50_fpn_mdconv_c3-c5_1x_coco.py gn/mask_rcnn_r50_fpn_gn-all_2x_coco.py
    gn+ws/faster_rcnn_x50_32x4d_fpn_gn_ws-all_1x_coco.py cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py
    htc/htc_r50_fpn_1x_coco.py scnet/scnet_r50_fpn_1x_coco.py
    res2net/faster_rcnn_r2_101_fpn_2x_coco.py resnest/faster_rcnn_s50_fpn_syncbn-backbone+head_mstrain-range_1x_coco.py
    lvis/mask_rcnn_r50_fpn_sample1e-3_mstrain_1x_lvis_v1.py openimages/retinanet_r50_fpn_32x2_1x_openimages.py
    regnet/faster_rcnn_regnetx-400MF_fpn_mstrain_3x_coco.py scratch/faster_rcnn_r50_fpn_gn-all_scratch_6x_coco.py
    detectors/cascade_rcnn_r50_sac_1x_coco.py panoptic_fpn/panoptic_fpn_r50_fpn_1x_coco.py wider_face/ssd300_wider_face.py
    pisa/pisa_faster_rcnn_r50_fpn_1x_coco.py pisa/pisa_retinanet_r50_fpn_1x_coco.py
    centripetalnet/centripetalnet_hourglass104_mstest_16x6_210e_coco.py
    yolox/yolox_nano_8x8_300e_coco.py yolo/yolov3_mobilenetv2_320_300e_coco.py fcos/fcos_r50_caffe_fpn_gn-head_1x_coco.py
    hrnet/fcos_hrnetv2p_w18_gn-head_4x4_1x_coco.py legacy_1.x/faster_rcnn_r50_fpn_1x_coco_v1.py
    empirical_attention/faster_rcnn_r50_fpn_attention_0010_1x_coco.py'''.split()


def files():
    "Every file of configs, the shared parts too; nbdev_export leaves empty `__init__.py` beside them"
    return [p for p in configs.rglob('*.py') if p.name != '__init__.py']

def shipped():
    "Every detector config of the package by its path (the files in `_base_` and `common` are parts)"
    return sorted(p.relative_to(configs).as_posix() for p in files() if p.relative_to(configs).parts[0] not in ('_base_', 'common', 'demo'))


# --- what a config says
def values_hash(cfg):
    "Order of keys does not count; a tuple is not a list, 1 is not 1.0"
    def plain(v):
        if isinstance(v, dict): return {str(k): plain(x) for k, x in v.items()}
        if isinstance(v, tuple): return {'tuple': [plain(x) for x in v]}
        return [plain(x) for x in v] if isinstance(v, list) else v
    return hashlib.sha256(json.dumps(plain(cfg), sort_keys=True).encode()).hexdigest()[:16]


def structure_hash(named_shapes, frozen):
    "Names, shapes and their order, and which parameters are frozen"
    rows = [f'{name} {list(shape)}' for name, shape in named_shapes] + ['frozen'] + sorted(frozen)
    return hashlib.sha256('\n'.join(rows).encode()).hexdigest()[:16]


def without_weights(cfg):
    "Drop, in place, every pointer to weights that would be fetched"
    if isinstance(cfg, dict):
        if cfg.get('pretrained') is not None: cfg['pretrained'] = None
        if isinstance(cfg.get('init_cfg'), dict) and cfg['init_cfg'].get('type') == 'Pretrained': cfg['init_cfg'] = None
    for v in (cfg.values() if isinstance(cfg, dict) else cfg if isinstance(cfg, (list, tuple)) else ()): without_weights(v)


def all_samples(cfg):
    "Enlarge the random samplers, in place, until nothing is left to chance"
    if isinstance(cfg, dict):
        if isinstance(cfg.get('sampler'), dict) and 'num' in cfg['sampler']: cfg['sampler'].update(num=1_000_000, neg_pos_ub=-1)
    for v in (cfg.values() if isinstance(cfg, dict) else cfg if isinstance(cfg, (list, tuple)) else ()): all_samples(v)


# --- weights and picture by formula, the same for any implementation
def fill(model):
    "Each tensor's values follow from its name alone"
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point(): continue
        draw, leaf, shape = np.random.RandomState(zlib.crc32(name.encode()) & 0x7fffffff), name.rsplit('.', 1)[-1], tuple(tensor.shape)
        if leaf == 'weight_gamma': value = .02 * draw.uniform(.5, 1.5, size=shape)          # of ConvAWS: the size of a filter ...
        elif leaf == 'weight_beta': value = .001 * draw.standard_normal(shape)              # ... and its mean
        elif leaf == 'running_var' or tensor.dim() <= 1 and (leaf.endswith('weight') or leaf in ('scale', 'gamma', 'alpha')): value = draw.uniform(.5, 1.5, size=shape)
        elif tensor.dim() <= 1: value = .1 * draw.standard_normal(shape)
        else: value = draw.standard_normal(shape) / math.sqrt(tensor[0].numel())
        tensor.copy_(torch.from_numpy(np.asarray(value, np.float32)).reshape(shape))
    return model


def picture(h, w):
    "Waves and four discs, (h, w, 3) uint8 RGB"
    y, x, c = np.meshgrid(np.arange(h), np.arange(w), np.arange(3), indexing='ij')
    img = np.floor(127.5 + 127.5 * np.sin((c + 1) * x / 17 + y / 23 + c) * np.cos(x / 41 - (c + 1) * y / 29))
    for cx, cy, r, colour in ((.25, .3, .14, (200, 40, 30)), (.62, .55, .22, (30, 180, 60)), (.2, .75, .12, (240, 240, 20)), (.8, .2, .1, (10, 10, 120))):
        img[(x[..., 0] - cx * w) ** 2 + (y[..., 0] - cy * h) ** 2 < (r * min(h, w)) ** 2] = colour
    return img.astype(np.uint8)


def network_input(spec):
    rgb = picture(spec['height'], spec['width'])
    img = (rgb if spec['to_rgb'] else rgb[..., ::-1]).astype(np.float32)
    h, w = spec['height'], spec['width']
    meta = dict(filename='d.jpg', ori_filename='d.jpg', ori_shape=(h, w, 3), img_shape=(h, w, 3), pad_shape=(h, w, 3), batch_input_shape=(h, w),
                scale_factor=np.ones(4, np.float32), flip=False, flip_direction=None,
                img_norm_cfg=dict(mean=np.array(spec['mean']), std=np.array(spec['std']), to_rgb=spec['to_rgb']))
    img = (img - np.float32(spec['mean'])) / np.float32(spec['std'])
    return torch.from_numpy(img.transpose(2, 0, 1)[None].copy()), meta


def grid_proposals(h, w):
    "The fixed proposals of the Fast R-CNN figures: 64 places, three widths, two heights, clipped to the picture"
    g = torch.arange(8).float()
    boxes = torch.stack(torch.meshgrid(g * w / 10, g * h / 10, torch.tensor([.12, .3, .55]) * w, torch.tensor([.15, .4]) * h, indexing='ij'), -1).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return torch.minimum(boxes.clamp(min=0), torch.tensor([w, h, w, h]).float())


def ellipses(boxes, h, w):
    "The masks of the figures' losses: the ellipse inscribed in each box, taken at pixel centres"
    y, x = np.mgrid[:h, :w] + .5
    x1, y1, x2, y2 = np.array(boxes, np.float32).T[:, :, None, None]
    return BitmapMasks((((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1).astype(np.uint8), h, w)


# --- comparing
def compare(got, want, where, tol=2e-3):
    "Differences between nested lists of tensors and their recorded shapes and 32 values each"
    if isinstance(want, dict):
        if list(got.shape) != want['shape']: return [f'{where}: shape {list(got.shape)}, wanted {want["shape"]}']
        flat = got.detach().float().numpy().ravel()
        error = np.abs(flat[np.unique(np.linspace(0, flat.size - 1, 32).astype(int))] - want['val']).max() / max(want['absmax'], 1e-6)
        return [] if error <= tol else [f'{where}: off by {error:.1e} of its largest value']
    if len(got) != len(want): return [f'{where}: {len(got)} items, wanted {len(want)}']
    return [d for i, (g, w) in enumerate(zip(got, want)) for d in compare(g, w, f'{where}[{i}]', tol)]


def compare_detections(result, want):
    """All but one in fifty of the best detections must be there: class, an overlap above .98, score within .002 (or the same place to .05 px).

    A box thinner than a tenth of a pixel is not looked for: the last digits of a convolution change with the processor and the number of
    threads, and move such a box by more than its own width (in double precision it is elsewhere again)."""
    result = [result] if isinstance(result, np.ndarray) else result
    count, bad = sum(map(len, result)), []
    if len(result) != want['num_classes_out']: return [f'{len(result)} classes, wanted {want["num_classes_out"]}']
    if abs(count - want['num_dets']) > max(1, .02 * want['num_dets']): bad.append(f'{count} detections, wanted {want["num_dets"]}')
    missing, dets = 0, [d for d in want['dets'] if min(d[3] - d[1], d[4] - d[2]) >= .1]
    for cls, *values in dets:
        near = np.abs(result[cls] - np.array(values)) if len(result[cls]) else np.full((1, 5), np.inf)
        overlap = box_iou(torch.tensor([values[:4]]), torch.from_numpy(np.asarray(result[cls], np.float32)[:, :4]))[0].numpy() if len(result[cls]) else np.zeros(1)
        missing += not ((overlap > .98) & (near[:, 4] < 2e-3) | (near[:, :4].max(1) < .05)).any()
    return bad + ([f'{missing} of the {len(dets)} best detections are missing'] if missing > .02 * len(dets) else [])


def compare_masks(boxes, masks, want, size):
    "Among the twenty best, each of the ten recorded masks (but one) must have a mask of its class that overlaps it by .97"
    best = sorted((-box[4], cls, i) for cls, found in enumerate(boxes) for i, box in enumerate(found))[:20]
    off = 0
    for w in want:
        found = [encode_mask(masks[cls][i]) for _, cls, i in best if cls == w['cls']]
        overlap = coco_mask.iou(found, [dict(size=list(size), counts=w['rle'])], [0]).ravel() if w['area'] else [float(coco_mask.area(f) == 0) for f in found]
        off += max(overlap, default=0) < .97
    return [f'{off} of the {len(want)} best masks differ'] if off > 1 else []


def compare_panoptic(pan, want):
    "Pixels of each number of a panoptic map: all but one in a hundred must agree"
    got, want = dict(zip(*(a.tolist() for a in np.unique(pan, return_counts=True)))), dict(want)
    off = sum(abs(got.get(k, 0) - want.get(k, 0)) for k in {*got, *want}) / 2
    return [f'panoptic map: {off:.0f} of {pan.size} pixels differ'] if off > .01 * pan.size else []


def checkerboard(h, w, stride):
    "The semantic map of the figures' losses: squares of 64 pixels, 53 classes in turn"
    y, x = np.mgrid[:h // stride, :w // stride] * stride
    return torch.from_numpy((y // 64 + x // 64) % 53)[None, None]


def check_outputs(figure):
    "Build, fill and run one detector -> its differences from a figure of outputs/"
    from detnb import Config
    from detnb.models import build_detector
    cfg, spec, bad = Config.fromfile(figure['config']), figure['input'], []
    without_weights(cfg.model); all_samples(cfg.model)
    model = fill(build_detector(cfg.model)).eval()
    model.CLASSES = [f'c{i}' for i in range(figure.get('num_classes_out', 133))]
    img, meta = network_input(spec)
    proposals = [grid_proposals(spec['height'], spec['width'])] if 'proposals' in figure else None
    extra = dict(proposals=proposals) if proposals else {}
    with torch.no_grad():
        feats = model.extract_feat(img); bad += compare(feats, figure['feats'], 'features')
        for head in ('rpn_head', 'bbox_head'):
            if head in figure: bad += compare(getattr(model, head)(feats), figure[head], head)
        result = model.simple_test(img, [meta], rescale=True, **extra)[0]
        if 'pan' in figure: bad += compare_panoptic(result['pan_results'], figure['pan'])
        boxes, masks = result if isinstance(result, tuple) else (result, None)
        if 'dets' in figure: bad += compare_detections(boxes, figure)
        if figure.get('masks'): bad += compare_masks(boxes, masks, figure['masks'], meta['img_shape'][:2])
    boxes, labels = torch.tensor(figure['train_inputs']['boxes']), torch.tensor(figure['train_inputs']['labels'])
    truth = dict(gt_bboxes=[boxes], **extra) | ({} if figure['config'].startswith('rpn/') else dict(gt_labels=[labels]))
    if figure['train_inputs'].get('masks'): truth['gt_masks'] = [ellipses(figure['train_inputs']['boxes'], *meta['img_shape'][:2])]
    if figure['train_inputs'].get('sem'): truth['gt_semantic_seg'] = checkerboard(*meta['img_shape'][:2], int(figure['train_inputs']['sem'].rsplit(' ', 1)[1]))
    losses = model._parse_losses(model.forward_train(img.clone(), [meta], **truth))[1]
    for name, want in figure['losses'].items():
        if name not in losses: bad.append(f'{name}: missing')
        elif not math.isclose(float(losses[name]), want, rel_tol=2e-3, abs_tol=2e-3): bad.append(f'{name}: {float(losses[name]):.6g}, wanted {want:.6g}')
    return bad


# --- writing the small figures from the full ones
def with_tuples(row):
    cfg = row['cfg']
    for place in sorted(row['tuple_paths'], key=len, reverse=True):   # the innermost first, so that no path leads through a tuple yet
        *way, last = [int(p) if p.isdigit() else p for p in place.replace('[', '.').replace(']', '').split('.')]
        at = cfg
        for step in way: at = at[step]
        at[last] = tuple(at[last])
    return cfg


def write(golden):
    lines = lambda name: (json.loads(line) for line in gzip.open(golden/'zoo'/f'{name}.jsonl.gz', 'rt'))
    mine, zoo = set(shipped()), {}
    for row in lines('resolved'):
        if row['path'] in mine: zoo[row['path']] = dict(values=values_hash(with_tuples(row)))
    for row in lines('structure'):
        if row['path'] in mine: zoo[row['path']].update(structure=structure_hash(row['state_dict'], row['frozen']), tensors=len(row['state_dict']), params=row['n_params'])
    (figures/'outputs').mkdir(parents=True, exist_ok=True)
    (figures/'zoo.json').write_text('{\n' + ',\n'.join(f'{json.dumps(k)}: {json.dumps(zoo[k])}' for k in sorted(zoo)) + '\n}\n')
    for path in OUTPUTS:
        name = path.replace('/', '__').replace('.py', '.json')
        (figures/'outputs'/name).write_text(json.dumps(slim(json.loads((golden/'outputs'/name).read_text()))) + '\n')
    return len(zoo)


def slim(o):
    "Keep of a tensor what `compare` reads, and five digits"
    if isinstance(o, dict): return {k: slim(v) for k, v in o.items() if not ('absmax' in o and k in ('n', 'mean', 'std'))}
    return [slim(v) for v in o] if isinstance(o, list) else float(f'{o:.6g}') if isinstance(o, float) else o


if __name__ == '__main__': print(write(Path(sys.argv[1])), 'configs')
