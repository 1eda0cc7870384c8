"""Converted weights held against peers: torchvision's own detectors and RegNet, networks written here as detectron2 and Detectron run them,
and checkpoints of 1.x with few classes. Random weights, small networks; what is compared are boxes, scores, masks and features, not names."""
import math, re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

from detnb import Config
from detnb.apis.benchmark import wide_weights
from detnb.foundation.checkpoint import load_state_dict
from detnb.foundation.detectron_names import from_detectron, from_detectron2, from_pycls, from_selfsup
from detnb.foundation.old_checkpoints import upgraded
from detnb.foundation.other_names import from_torchvision
from detnb.structures.boxes import bbox2roi
from detnb.models.builder import build_backbone, build_detector

SIZE = 96, 128


def image(seed=0): return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def meta(size=SIZE): return dict(img_shape=(*size, 3), pad_shape=(*size, 3), ori_shape=(*size, 3), scale_factor=np.ones(4, np.float32), flip=False)


def calm(state):
    "Regression as after training: boxes near their anchors, none without area at the picture's edge. In place"
    for k, v in state.items():
        if re.search(r'bbox_pred|bbox_reg|anchor_deltas|rpn_reg|retina_reg|fc_reg', k): v.mul_(.1)
    return state


def config(name, depth=18, classes=5, style=None):
    "A shipped config with few channels"
    cfg = Config.fromfile(name).model
    cfg.backbone.update(depth=depth, base_channels=16, init_cfg=None, **({} if style is None else dict(style=style)))
    wide = [16, 32, 64, 128] if depth == 18 else [64, 128, 256, 512]
    cfg.neck.update(in_channels=wide, out_channels=16)
    for key in ('rpn_head', 'bbox_head'):
        if key in cfg: cfg[key].update(in_channels=16, feat_channels=16)
    if 'bbox_head' in cfg: cfg.bbox_head.num_classes = classes
    roi = cfg.get('roi_head')
    if roi:
        roi.bbox_roi_extractor.out_channels = 16; roi.bbox_head.update(in_channels=16, fc_out_channels=32, num_classes=classes)
        if 'mask_head' in roi:
            roi.mask_roi_extractor.out_channels = 16; roi.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=classes)
    return cfg


def loaded(cfg, state):
    model = build_detector(cfg).eval()
    assert load_state_dict(model, state, strict=True).perfect
    return model


def paired(a, b, tolerance):
    "Share of the rows of `a` that are in `b`"
    return (np.abs(a[:, None] - b[None]).max(-1) < tolerance).any(1).mean()


@torch.no_grad()
def found(model, img):
    "Our detector's boxes with scores and labels as rows, and its masks, best first"
    result = model.simple_test(img, [meta(img.shape[2:])])[0]
    boxes, masks = result if isinstance(result, tuple) else (result, None)
    rows = np.concatenate([np.c_[b, np.full(len(b), i)] for i, b in enumerate(boxes)])
    order = np.argsort(-rows[:, 4], kind='stable')
    return rows[order], None if masks is None else np.stack([m for c in masks for m in c])[order]


# torchvision: its own post-processing, from pixels to boxes and masks

def theirs_found(theirs):
    "Rows of torchvision's boxes, scores and labels; all it gives; and the picture as our network takes it"
    pixels = torch.rand(3, 128, 256, generator=torch.Generator().manual_seed(3))         # their strides are the nominal ones for multiples of 128 alone
    out, norm = theirs([pixels])[0], lambda v: torch.tensor(v).view(1, 3, 1, 1)
    rows = torch.cat([out['boxes'], out['scores'][:, None], out['labels'][:, None] - 1.], 1).numpy()
    return rows, out, (pixels[None] * 255 - norm([123.675, 116.28, 103.53])) / norm([58.395, 57.12, 57.375])


@pytest.mark.parametrize('masks', [False, True], ids=['faster', 'mask'])
@torch.no_grad()
def test_torchvision_rcnn_finds_the_same(masks):
    from torchvision.models.detection import FasterRCNN, MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    theirs = (MaskRCNN if masks else FasterRCNN)(resnet_fpn_backbone(backbone_name='resnet18', weights=None), num_classes=6)
    calm(wide_weights(theirs).eval().state_dict())
    theirs.transform.resize = lambda image, target: (image, target)
    cfg = Config.fromfile(f'{"mask" if masks else "faster"}_rcnn/{"mask" if masks else "faster"}_rcnn_r50_fpn_1x_coco.py').model
    cfg.backbone.update(depth=18, init_cfg=None); cfg.neck.in_channels = [64, 128, 256, 512]; cfg.roi_head.bbox_head.num_classes = 5
    for part in ('bbox_roi_extractor', 'mask_roi_extractor'):
        if part in cfg.roi_head: cfg.roi_head[part].roi_layer.update(sampling_ratio=2, aligned=False)
    if masks: cfg.roi_head.mask_head.num_classes = 5
    ours = loaded(cfg, from_torchvision(theirs.state_dict()))
    theirs.rpn.anchor_generator.cell_anchors = [a.clone() for a in ours.rpn_head.prior_generator.base_anchors]       # theirs are rounded to pixels
    theirs.roi_heads.box_predictor.bbox_pred.weight[:4] = 7                                                         # the background's box is nobody's
    logits = []
    if masks: theirs.roi_heads.mask_predictor.register_forward_hook(lambda module, inputs, output: logits.append(output[:, 1:]))
    expected, out, img = theirs_found(theirs)
    rows, shapes = found(ours, img)
    assert len(expected) > 20 and len(rows) == len(expected) and paired(expected, rows, 2e-3) == 1
    if masks:
        raw = ours.roi_head._mask_forward(ours.extract_feat(img), bbox2roi([out['boxes']]))['mask_pred']
        assert torch.allclose(raw, logits[0], atol=1e-3)
        both, theirs_shapes = shapes > 0, out['masks'][:, 0].numpy() > .5
        assert (both & theirs_shapes).sum() / (both | theirs_shapes).sum() > .8        # they round the box to pixels before they paste


@torch.no_grad()
def test_torchvision_retinanet_finds_the_same():
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    theirs = RetinaNet(resnet_fpn_backbone(backbone_name='resnet18', weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)), num_classes=6,
                       anchor_generator=None, topk_candidates=1000, detections_per_img=100)
    calm(wide_weights(theirs).eval().state_dict())
    theirs.head.classification_head.cls_logits.bias.view(9, 6)[:, 0] = -99       # the first of their sigmoids, class 0, is nobody's
    cfg = config('retinanet/retinanet_r50_fpn_1x_coco.py')
    cfg.backbone.base_channels = 64; cfg.neck.update(in_channels=[64, 128, 256, 512], out_channels=256, add_extra_convs='on_output', relu_before_extra_convs=True)
    cfg.bbox_head.update(in_channels=256, feat_channels=256)
    ours = loaded(cfg, from_torchvision(theirs.state_dict()))
    theirs.transform.resize = lambda image, target: (image, target)
    theirs.anchor_generator.cell_anchors = [a.clone() for a in ours.bbox_head.prior_generator.base_anchors]
    expected, _, img = theirs_found(theirs)
    rows, _ = found(ours, img)
    assert len(expected) > 20 and paired(expected, rows, 2e-3) > .98


# detectron2: what its layers do, written down here from its names and its order of rows

class Detectron2:
    "A ResNet-FPN of detectron2's kind (caffe style, frozen norms), run from its own names"
    def __init__(self, state, blocks=(3, 4, 6, 3), lowest=2): self.state, self.blocks, self.lowest = state, blocks, lowest

    def conv(self, name, x, stride=1, padding=0, norm=False):
        x = F.conv2d(x, self.state[name + '.weight'], self.state.get(name + '.bias'), stride, padding)
        return F.batch_norm(x, *(self.state[f'{name}.norm.{k}'] for k in ('running_mean', 'running_var', 'weight', 'bias'))) if norm else x

    def stages(self, x, root='backbone.bottom_up.'):
        x, outs = F.max_pool2d(self.conv(root + 'stem.conv1', x, 2, 3, True).relu(), 3, 2, 1), []
        for stage, n in enumerate(self.blocks, 2):
            for i in range(n):
                at, stride = f'{root}res{stage}.{i}.', 2 if stage > 2 and not i else 1
                y = self.conv(at + 'conv1', x, stride, 0, True).relu()
                y = self.conv(at + 'conv3', self.conv(at + 'conv2', y, 1, 1, True).relu(), 1, 0, True)
                x = (y + (x if i else self.conv(at + 'shortcut', x, stride, 0, True))).relu()
            outs.append(x)
        return outs

    def pyramid(self, x):
        stages = self.stages(x)[self.lowest - 2:]
        inner = [self.conv(f'backbone.fpn_lateral{i}', s) for i, s in enumerate(stages, self.lowest)]
        for i in reversed(range(len(inner) - 1)): inner[i] = inner[i] + F.interpolate(inner[i + 1], scale_factor=2., mode='nearest')
        outs = [self.conv(f'backbone.fpn_output{i}', s, 1, 1) for i, s in enumerate(inner, self.lowest)]
        if 'backbone.top_block.p6.weight' not in self.state: return [*outs, outs[-1][..., ::2, ::2]]
        p6 = self.conv('backbone.top_block.p6', stages[-1], 2, 1)
        return [*outs, p6, self.conv('backbone.top_block.p7', p6.relu(), 2, 1)]

    @staticmethod
    def rows(maps, k): # (1, A * k, H, W) of a level -> (H * W * A, k)
        n, _, h, w = maps.shape
        return maps.view(n, -1, k, h, w).permute(0, 3, 4, 1, 2).reshape(-1, k)

    @staticmethod
    def anchors(maps, stride, sizes): # sizes first, then ratios; no offset
        cell = torch.tensor([[-w / 2, -w * r / 2, w / 2, w * r / 2] for s in sizes for r in (.5, 1, 2) for w in [math.sqrt(s * s / r)]])
        y, x = torch.meshgrid(*(torch.arange(n) * stride for n in maps.shape[-2:]), indexing='ij')
        return (torch.stack([x, y, x, y], -1).view(-1, 1, 4) + cell).reshape(-1, 4)

    @staticmethod
    def boxes(deltas, anchors, weights=(1, 1, 1, 1)):
        dx, dy, dw, dh = (deltas / torch.tensor(weights)).unbind(-1)
        size, centre = anchors[:, 2:] - anchors[:, :2], (anchors[:, 2:] + anchors[:, :2]) / 2
        half = torch.stack([dw, dh], -1).clamp(max=math.log(1000 / 16)).exp() * size / 2
        middle = torch.stack([dx, dy], -1) * size + centre
        return torch.cat([middle - half, middle + half], -1).clamp(min=0).minimum(torch.tensor([SIZE[1], SIZE[0]] * 2))


def detectron2_names(names):
    "Our names of a caffe-style detector -> detectron2's, written independently of the converter"
    first = 3 if any('retina' in n for n in names) else 2
    rules = [(r'backbone\.conv1\.', 'backbone.bottom_up.stem.conv1.'), (r'backbone\.bn1\.', 'backbone.bottom_up.stem.conv1.norm.'),
             (r'backbone\.layer(\d)\.(\d+)\.conv(\d)\.', lambda m: f'backbone.bottom_up.res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.'),
             (r'backbone\.layer(\d)\.(\d+)\.bn(\d)\.', lambda m: f'backbone.bottom_up.res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm.'),
             (r'backbone\.layer(\d)\.0\.downsample\.0\.', lambda m: f'backbone.bottom_up.res{int(m[1]) + 1}.0.shortcut.'),
             (r'backbone\.layer(\d)\.0\.downsample\.1\.', lambda m: f'backbone.bottom_up.res{int(m[1]) + 1}.0.shortcut.norm.'),
             (r'neck\.lateral_convs\.(\d)\.conv\.', lambda m: f'backbone.fpn_lateral{int(m[1]) + first}.'),
             *([(r'neck\.fpn_convs\.([34])\.conv\.', lambda m: f'backbone.top_block.p{int(m[1]) + 3}.')] if first == 3 else []),
             (r'neck\.fpn_convs\.(\d)\.conv\.', lambda m: f'backbone.fpn_output{int(m[1]) + first}.'),
             (r'bbox_head\.cls_convs\.(\d)\.conv\.', lambda m: f'head.cls_subnet.{2 * int(m[1])}.'), (r'bbox_head\.reg_convs\.(\d)\.conv\.', lambda m: f'head.bbox_subnet.{2 * int(m[1])}.'),
             (r'bbox_head\.retina_cls\.', 'head.cls_score.'), (r'bbox_head\.retina_reg\.', 'head.bbox_pred.'),
             (r'rpn_head\.rpn_conv\.', 'proposal_generator.rpn_head.conv.'), (r'rpn_head\.rpn_cls\.', 'proposal_generator.rpn_head.objectness_logits.'),
             (r'rpn_head\.rpn_reg\.', 'proposal_generator.rpn_head.anchor_deltas.'), (r'roi_head\.bbox_head\.shared_fcs\.(\d)\.', lambda m: f'roi_heads.box_head.fc{int(m[1]) + 1}.'),
             (r'roi_head\.bbox_head\.fc_cls\.', 'roi_heads.box_predictor.cls_score.'), (r'roi_head\.bbox_head\.fc_reg\.', 'roi_heads.box_predictor.bbox_pred.'),
             (r'roi_head\.mask_head\.convs\.(\d)\.conv\.', lambda m: f'roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.'),
             (r'roi_head\.mask_head\.upsample\.', 'roi_heads.mask_head.deconv.'), (r'roi_head\.mask_head\.conv_logits\.', 'roi_heads.mask_head.predictor.')]
    out = {}
    for name in names:
        if name.endswith('num_batches_tracked'): continue
        pattern, new = next(r for r in rules if re.match(r[0], name))
        out[name] = re.sub(pattern, new, name)
    return out


def theirs_for(cfg):
    "Random weights of detectron2's names and shapes, in its own order of rows"
    state = calm(wide_weights(build_detector(cfg), seed=5).state_dict())
    return {new: state[old] for old, new in detectron2_names(state).items()}


@torch.no_grad()
def test_detectron2_retinanet_finds_the_same():
    cfg = config('retinanet/retinanet_r50_caffe_fpn_1x_coco.py', depth=50)
    cfg.neck.relu_before_extra_convs = True; cfg.test_cfg.nms.iou_threshold = 1.; cfg.test_cfg.nms_pre = 100_000
    state = theirs_for(cfg)
    ours, peer, img = loaded(cfg, {**build_detector(cfg).state_dict(), **from_detectron2(state)}), Detectron2(state, lowest=3), image()
    feats = peer.pyramid(img)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours.extract_feat(img), feats))
    parts = []
    for level, x in enumerate(feats):
        towers = {}
        for kind in ('cls', 'bbox'):
            towers[kind] = x
            for i in (0, 2, 4, 6): towers[kind] = peer.conv(f'head.{kind}_subnet.{i}', towers[kind], 1, 1).relu()
        scores, deltas = peer.rows(peer.conv('head.cls_score', towers['cls'], 1, 1), 5).sigmoid(), peer.rows(peer.conv('head.bbox_pred', towers['bbox'], 1, 1), 4)
        boxes = peer.boxes(deltas, peer.anchors(x, 8 << level, [(32 << level) * 2 ** (i / 3) for i in range(3)]))
        parts.append(torch.cat([boxes[:, None].expand(-1, 5, 4), scores[..., None], torch.arange(5.).expand(len(scores), 5)[..., None]], -1).reshape(-1, 6))
    expected = torch.cat(parts); expected = expected[expected[:, 4].argsort(descending=True, stable=True)][:100].numpy()
    rows, _ = found(ours, img)
    assert len(rows) == 100 and paired(expected, rows, 1e-3) > .98
    plain, cfg.neck.relu_before_extra_convs = cfg.neck.relu_before_extra_convs, False              # the shipped config lacks the ReLU, and it matters
    assert not torch.allclose(loaded(cfg, {**build_detector(cfg).state_dict(), **from_detectron2(state)}).extract_feat(img)[4], feats[4], atol=1e-4) and plain


@torch.no_grad()
def test_detectron2_mask_rcnn_finds_the_same():
    "Objectness and anchors of the RPN; classes, boxes and masks of fixed regions"
    cfg = config('mask_rcnn/mask_rcnn_r50_caffe_fpn_1x_coco.py', depth=50)
    state = theirs_for(cfg)
    ours, peer, img = loaded(cfg, {**build_detector(cfg).state_dict(), **from_detectron2(state)}), Detectron2(state), image()
    feats, x = peer.pyramid(img), ours.extract_feat(img)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(x, feats))
    cfg_rpn = ours.rpn_head.test_cfg; cfg_rpn.nms.iou_threshold = 1.; cfg_rpn.nms_pre = cfg_rpn.max_per_img = 100_000
    parts = []
    for level, f in enumerate(feats):
        h = peer.conv('proposal_generator.rpn_head.conv', f, 1, 1).relu()
        score, deltas = (peer.rows(peer.conv(f'proposal_generator.rpn_head.{n}', h), k) for n, k in (('objectness_logits', 1), ('anchor_deltas', 4)))
        parts.append(torch.cat([peer.boxes(deltas, peer.anchors(f, 4 << level, [32 << level])), score.sigmoid()], 1))
    expected = torch.cat(parts); expected = expected[expected[:, 4].argsort(descending=True)][:200].numpy()
    proposals = ours.rpn_head.simple_test_rpn(x, [meta()])[0]
    assert paired(expected, proposals[:260].numpy(), 1e-3) > .98
    boxes = torch.tensor([[5, 8, 40, 60], [0, 0, 128, 96], [60, 20, 90, 31.5]])
    pool = lambda size: torch.cat([torchvision.ops.roi_align(feats[0], [b[None]], size, 1 / 4, 0, True) for b in boxes])     # all three belong to P2
    y = pool(7).flatten(1)
    for i in (1, 2): y = F.linear(y, state[f'roi_heads.box_head.fc{i}.weight'], state[f'roi_heads.box_head.fc{i}.bias']).relu()
    cls, reg = (F.linear(y, state[f'roi_heads.box_predictor.{n}.weight'], state[f'roi_heads.box_predictor.{n}.bias']) for n in ('cls_score', 'bbox_pred'))
    rois = bbox2roi([boxes]); head = ours.roi_head._bbox_forward(x, rois)
    assert torch.allclose(head['cls_score'].softmax(1), cls.softmax(1), atol=1e-4)                 # the background is the last of both
    for k in range(5):
        own = ours.roi_head.bbox_head.bbox_coder.decode(boxes, head['bbox_pred'][:, 4 * k:4 * k + 4], max_shape=SIZE)
        assert torch.allclose(own, peer.boxes(reg[:, 4 * k:4 * k + 4], boxes, (10., 10., 5., 5.)), atol=1e-3)
    m = pool(14)
    for i in range(1, 5): m = peer.conv(f'roi_heads.mask_head.mask_fcn{i}', m, 1, 1).relu()
    m = F.conv_transpose2d(m, state['roi_heads.mask_head.deconv.weight'], state['roi_heads.mask_head.deconv.bias'], 2).relu()
    assert torch.allclose(ours.roi_head._mask_forward(x, rois)['mask_pred'], peer.conv('roi_heads.mask_head.predictor', m), atol=1e-3)


@torch.no_grad()
def test_first_detectron_backbone():
    "Convolutions and a scale and a shift for each norm, with Caffe's names"
    theirs = Detectron2({k: v for k, v in theirs_for(config('faster_rcnn/faster_rcnn_r50_caffe_fpn_1x_coco.py', depth=50)).items()})
    caffe = {}
    for name, value in theirs.state.items():
        m = re.match(r'backbone\.bottom_up\.(?:res(\d)\.(\d+)\.(conv(\d)|shortcut)|stem\.conv1)(\.norm)?\.(\w+)$', name)
        if not m: continue
        if m[6] == 'running_mean': value.zero_()
        if m[6] == 'running_var': value.fill_(1.)
        base = 'res_conv1' if not m[1] else f'res{m[1]}_{m[2]}_branch' + ('1' if m[3] == 'shortcut' else '2' + 'abc'[int(m[4]) - 1])
        if m[6] in ('weight', 'bias'): caffe[(base.replace('res_conv1', 'conv1') + '_w') if not m[5] else base + dict(weight='_bn_s', bias='_bn_b')[m[6]]] = value
    net = build_backbone(dict(type='ResNet', depth=50, base_channels=16, style='caffe', norm_eval=True)).eval()
    assert load_state_dict(net, from_detectron(caffe), strict=True).perfect
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(net(image()), theirs.stages(image())))


def test_detectron2_command(tmp_path):
    "A pickle of arrays, as the model zoo has them, becomes a checkpoint that fits the caffe config without a gap"
    import pickle
    from detnb.cli.main import main
    cfg = config('mask_rcnn/mask_rcnn_r50_caffe_fpn_1x_coco.py')
    state = wide_weights(build_detector(cfg)).state_dict()
    arrays = {new: state[old].numpy() for old, new in detectron2_names(state).items()}
    with open(tmp_path/'model_final.pkl', 'wb') as f: pickle.dump(dict(model=arrays, __author__='test'), f)
    assert main(['convert-model', 'detectron2', str(tmp_path/'model_final.pkl'), str(tmp_path/'out.pth')]) == 0
    found = torch.load(tmp_path/'out.pth', weights_only=True)['state_dict']
    assert all(torch.equal(found[k], v) for k, v in state.items() if not k.endswith('num_batches_tracked'))


# pretraining

@torch.no_grad()
def test_pycls_regnet_features():
    "torchvision's RegNet is the one of pycls: the same features, through pycls' names"
    theirs, state = wide_weights(torchvision.models.regnet_x_800mf(weights=None)).eval(), {}
    for k, v in theirs.state_dict().items():
        k = re.sub(r'^stem\.0', 'stem.conv', re.sub(r'^stem\.1', 'stem.bn', re.sub(r'^fc', 'head.fc', k)))
        m = re.match(r'trunk_output\.block(\d)\.block\d-(\d+)\.(?:proj\.(\d)|f\.([abc])\.(\d)|f\.(c)\.(\d))\.(\w+)', k)
        if m: k = f's{m[1]}.b{int(m[2]) + 1}.' + (('proj' if m[3] == '0' else 'bn') if m[3] else f'f.{m[4]}{"_bn" if m[5] == "1" else ""}') + f'.{m[8]}'
        state[k] = v
    net = build_backbone(dict(type='RegNet', arch='regnetx_800mf', out_indices=(0, 1, 2, 3))).eval()
    assert load_state_dict(net, from_pycls(state), strict=True).perfect
    x, outs = theirs.stem(image()), []
    for block in theirs.trunk_output: x = block(x); outs.append(x)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * b.abs().max()) for a, b in zip(net(image()), outs))


@pytest.mark.parametrize('method, prefix', [('moco', 'module.encoder_q.'), ('swav', 'module.')])
@torch.no_grad()
def test_self_supervised_features(method, prefix):
    "Both train torchvision's ResNet, beside which heads, queues and a second encoder are stored"
    theirs = wide_weights(torchvision.models.resnet50(weights=None)).eval()
    extra = {'module.encoder_k.conv1.weight': torch.zeros(1), 'module.queue': torch.zeros(2, 2)} if method == 'moco' else {'module.prototypes.weight': torch.zeros(2, 2), 'module.projection_head.0.weight': torch.zeros(2)}
    state = {**{prefix + k: v for k, v in theirs.state_dict().items()}, **extra}
    net = build_backbone(dict(type='ResNet', depth=50, out_indices=(3,))).eval()
    assert load_state_dict(net, from_selfsup(state, method), strict=True).perfect
    plain = from_torchvision(theirs.state_dict())
    assert all(torch.equal(plain[k], v) for k, v in net.state_dict().items())
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image()))))
    for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4): x = layer(x)
    assert torch.allclose(net(image())[0], x, rtol=1e-3, atol=1e-3 * x.abs().max())


# 1.x

def background_first(state, n, softmax):
    "A state of 2.x as 1.x had it"
    out = {}
    for k, v in state.items():
        if '.fc_cls.' in k or softmax and '.cls_convs.' in k: v = v.unflatten(0, (-1, n)).roll(1, 1).flatten(0, 1)
        if '.fc_reg.' in k: v = torch.cat([torch.full_like(v[:4], 9.), v])
        if '.conv_logits.' in k: v = torch.cat([torch.full_like(v[:1], 9.), v])
        k = re.sub(r'^(bbox_head\.(?:cls|reg)_convs\.\d)\.conv\.', r'\1.', k) if 'roi_head' not in k and not softmax else k
        out[re.sub(r'^roi_head\.', '', k)] = v
    return out


@pytest.mark.parametrize('classes', [1, 2, 5, 8])
@pytest.mark.parametrize('name', ['retinanet/retinanet_r50_fpn_1x_coco.py', 'mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py'])
def test_upgraded_checkpoints_with_few_classes(name, classes):
    "9 x 2 rows of sigmoids are no multiple of background and 2 classes, though 3 divides 18; nor are the RPN's 3 rows"
    state = wide_weights(build_detector(config(name, classes=classes))).state_dict()
    new = upgraded(background_first(state, classes + 1, False), classes + 1)
    assert list(new) == list(state) and all(torch.equal(new[k], v) for k, v in state.items())


def test_wrong_number_of_classes_is_told():
    from detnb.foundation.locate import CheckpointError
    old = background_first(wide_weights(build_detector(config('mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py', classes=20))).state_dict(), 21, False)
    with pytest.raises(CheckpointError, match=r'fc_cls.weight has 21 rows.*81 classes.*is num_classes 21\?'): upgraded(old)
    old = background_first(wide_weights(build_detector(config('retinanet/retinanet_r50_fpn_1x_coco.py', classes=20))).state_dict(), 21, False)
    with pytest.raises(CheckpointError, match='is num_classes 20, or without background 21'): upgraded(old)
