"Operations, layers, backbones, necks and losses: what goes beyond their notebooks"
import copy, pickle

import pytest, torch, torch.nn.functional as F, torchvision
from torch import nn

import detnb.models.backbones, detnb.models.losses, detnb.models.necks
from detnb.layers.conv_module import ConvModule
from detnb.layers.fold import _foldable, _kept, conv_norm, fuse_conv_bn
from detnb.layers.build import CONV_LAYERS, PLUGIN_LAYERS
from detnb.models.builder import LOSSES, build_backbone, build_neck
from detnb.ops.batched_nms import batched_nms, fixed_point_nms, multiclass_nms, nms_batch, pad_groups, suppress
from detnb.ops.focal import sigmoid_focal_loss
from detnb.ops.nms import nms
from detnb.ops.roi_align import roi_align, roi_align_bags, roi_align_levels
from detnb.ops.soft_nms import soft_nms


def boxes(*shape, size=80., least=.5):
    b = torch.rand(*shape, 4) * size
    b[..., 2:] = b[..., :2] + b[..., 2:] * .6 + least
    return b


# --- NMS
def greedy(b, s, threshold):
    iou, keep, alive = torchvision.ops.box_iou(b, b), [], torch.ones(len(b), dtype=torch.bool)
    for i in s.argsort(descending=True, stable=True).tolist():
        if alive[i]: keep.append(i); alive &= iou[i] <= threshold
    return keep


@pytest.mark.parametrize('n', [0, 1, 7, 300])
@pytest.mark.parametrize('threshold', [0., .5, 1.])
def test_nms_is_greedy(n, threshold):
    b, s = boxes(n), torch.rand(n)
    assert nms(b, s, threshold)[1].tolist() == greedy(b, s, threshold)


@pytest.mark.parametrize('count,groups', [(0, 1), (3, 3), (400, 7), (1500, 1), (1500, 40)])
def test_three_ways_of_suppression_agree(count, groups):
    b, s, g = boxes(count), torch.rand(count), torch.randint(0, groups, (count,))
    want = torch.zeros(count, dtype=torch.bool)
    for i in range(groups):
        part = (g == i).nonzero()[:, 0]; want[part[greedy(b[part], s[part], .4)]] = True
    assert torch.equal(suppress(b, s, g, .4), want)
    index, valid = pad_groups(g, s); padded = torch.zeros(count, dtype=torch.bool)
    if count: padded[index[valid]] = fixed_point_nms(b[index], valid, .4)[valid]
    assert torch.equal(padded, want)


def test_fixed_point_of_a_long_chain():
    "Each box deletes the next only: every second stays, and the answer travels through the whole chain"
    x = torch.arange(200.) * 4
    chain = torch.stack([x, torch.zeros(200), x + 10, torch.ones(200)], 1)
    kept = fixed_point_nms(chain[None], torch.ones(1, 200, dtype=torch.bool), .4)[0]
    assert kept.tolist() == [i % 2 == 0 for i in range(200)]


def test_nms_batch_equals_images_one_by_one():
    b, s, c = boxes(3, 700), torch.rand(3, 700), torch.randint(0, 5, (3, 700))
    valid = torch.rand(3, 700) > .3; valid[2] = False
    for cfg in (dict(type='nms', iou_threshold=.5), dict(type='soft_nms', iou_threshold=.3, min_score=.05), dict(iou_threshold=.5, class_agnostic=True), None):
        dets, labels, num = nms_batch(b, s, c, valid, cfg, max_per_img=50)
        assert num[2] == 0 and not dets[2].any()
        for i in range(2):
            d, keep = batched_nms(b[i][valid[i]], s[i][valid[i]], c[i][valid[i]], cfg)
            n = min(50, len(d))
            assert num[i] == n and torch.equal(dets[i, :n], d[:n]) and torch.equal(labels[i, :n], c[i][valid[i]][keep][:n])


def test_soft_nms_against_the_loop():
    b, s = boxes(60), torch.rand(60)
    for method in ('linear', 'gaussian', 'naive'):
        left, iou, order = s.clone(), torchvision.ops.box_iou(b, b), []
        alive = torch.ones(60, dtype=torch.bool)
        while alive.any():
            i = left.masked_fill(~alive, -1).argmax().item(); order.append(i); alive[i] = False
            o = iou[i]; f = {'linear': torch.where(o >= .3, 1 - o, 1.), 'gaussian': torch.exp(-o * o / .5), 'naive': (o < .3).float()}[method]
            left = torch.where(alive, left * f, left); alive &= left >= 1e-3
        dets, keep = soft_nms(b, s, .3, .5, 1e-3, method)
        assert keep.tolist() == order
        torch.testing.assert_close(dets[:, 4], left[order])


def test_multiclass_nms_boxes_per_class_and_factors():
    scores = torch.rand(30, 4); per_class = boxes(30, 3)
    dets, labels, where = multiclass_nms(per_class.flatten(1), scores, .4, dict(type='nms', iou_threshold=.5), return_inds=True)
    assert torch.equal(dets[:, :4], per_class.flatten(0, 1)[where]) and torch.equal(labels, where % 3)
    factor = torch.rand(30)
    dets, labels = multiclass_nms(per_class[:, 0], scores, .4, dict(type='nms', iou_threshold=1.), score_factors=factor)
    assert len(dets) == (scores[:, :3] > .4).sum()          # the threshold looks at scores without the factor
    assert [len(t) for t in multiclass_nms(torch.zeros(0, 12), torch.zeros(0, 4), .1, dict(iou_threshold=.5))] == [0, 0]


# --- RoI Align
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align_is_torchvisions(aligned):
    f, b = torch.randn(2, 8, 25, 33), boxes(150, size=300.) - 30
    b[:5, 2:] = b[:5, :2] + .01; b[5:8] = 1e4                 # almost no area; far outside
    rois = torch.cat([torch.randint(0, 2, (150, 1)).float(), b], 1)
    for ratio in (0, 1, 2, 4):
        torch.testing.assert_close(roi_align_bags(f, rois, (5, 3), .125, ratio, aligned), torchvision.ops.roi_align(f, rois, (5, 3), .125, ratio, aligned),
                                   atol=1e-4, rtol=1e-4)


def test_roi_align_of_absurd_boxes_and_half_precision():
    f = torch.randn(1, 4, 10, 10)
    assert roi_align(f, torch.tensor([[0., 0., 0., 1e7, 1e7]]), 2, 1., 2).shape == (1, 4, 2, 2)
    assert roi_align(f.bfloat16(), torch.tensor([[0., 0., 0., 5., 5.]]), 2).dtype == torch.bfloat16
    g = f.clone().requires_grad_(); roi_align(g, torch.zeros(0, 5), 7).sum().backward(); assert not g.grad.any()
    out = roi_align_levels([f, f], torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), 7, [1., .5])
    assert out.shape == (0, 4, 7, 7)


# --- folding
def residual_pair():
    torch.manual_seed(0)
    net = build_backbone(dict(type='ResNet', depth=50, base_channels=8, frozen_stages=1, zero_init_residual=False)); net.init_weights()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(0, .1); m.running_var.uniform_(.5, 2)
    return net.train()


def test_folded_training_equals_two_layers(monkeypatch):
    net, x = residual_pair(), torch.randn(2, 3, 64, 64)
    def gradients():
        net.zero_grad(); sum(o.square().mean() for o in net(x)).backward()
        return {k: p.grad for k, p in net.named_parameters() if p.requires_grad}
    folded = gradients()
    monkeypatch.setattr('detnb.layers.fold._foldable', lambda conv, norm: False)
    plain = gradients()
    assert folded.keys() == plain.keys() and 'layer2.0.bn1.bias' in folded and 'layer1.0.conv1.weight' not in folded
    for k in plain: torch.testing.assert_close(folded[k], plain[k], atol=1e-4, rtol=1e-3)


def test_a_kept_fold_sees_new_weights():
    net, x = residual_pair().eval(), torch.randn(1, 3, 32, 32)
    run = torch.inference_mode()(lambda net: net(x)[-1].clone())
    first = run(net)
    net.load_state_dict({k: v * 1.1 if v.is_floating_point() else v for k, v in net.state_dict().items()})
    second = run(net)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, run(copy.deepcopy(net)))
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=.1)
    net(x)[-1].mean().backward(); optimizer.step()
    torch.testing.assert_close(run(net), run(copy.deepcopy(net)))
    with torch.inference_mode():                                # a change made in inference mode counts too
        run(net); net.layer4[0].bn2.running_mean += 1
    torch.testing.assert_close(run(net), run(copy.deepcopy(net)))


def test_bare_no_grad_runs_layer_by_layer():
    "The reference's own rounding: no fold, no other order in memory"
    net, x = residual_pair().eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net.layer1[0].unit(net.conv1(x), 1), net.layer1[0].bn1(net.layer1[0].conv1(net.conv1(x))))
        plain = net(x)
    with torch.inference_mode(): fast = net(x)
    assert plain[0].is_contiguous()
    for a, b in zip(plain, fast): torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_kept_folds_die_with_their_model():
    net = residual_pair().eval(); before = len(_kept)
    with torch.inference_mode(): net(torch.randn(1, 3, 32, 32))
    assert len(_kept) > before
    del net; import gc; gc.collect()
    assert len(_kept) <= before


def test_fold_leaves_learning_norms_alone():
    conv, norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    assert not _foldable(conv, norm) and not _foldable(conv, nn.GroupNorm(2, 4).eval())
    conv_norm(torch.randn(2, 3, 4, 4), conv, norm)
    assert norm.num_batches_tracked == 1


def test_fuse_conv_bn_of_a_backbone():
    net, x = residual_pair().eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = net(x)[-1]; fused = fuse_conv_bn(copy.deepcopy(net))
        assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
        torch.testing.assert_close(fused(x)[-1], want, atol=1e-4, rtol=1e-4)


# --- backbones and necks
@pytest.mark.parametrize('cfg', [
    dict(type='ResNet', depth=18, base_channels=8), dict(type='ResNet', depth=50, base_channels=8, style='caffe', norm_cfg=dict(type='SyncBN')),
    dict(type='ResNetV1d', depth=50, base_channels=8), dict(type='ResNet', depth=34, base_channels=8, norm_cfg=dict(type='GN', num_groups=4)),
    dict(type='ResNeXt', depth=50, groups=4, base_width=4, base_channels=16), dict(type='MobileNetV2', widen_factor=.25)], ids=lambda c: c['type'])
def test_backbones_train_pickle_and_recompute(cfg):
    net = build_backbone(cfg); net.init_weights(); x = torch.randn(2, 3, 64, 64, requires_grad=True)
    net.train(); outs = net(x); sum(o.mean() for o in outs).backward()
    assert all(torch.isfinite(o).all() for o in outs) and [o.shape[-1] for o in outs] == [16, 8, 4, 2]
    assert all(p.grad is not None for k, p in net.named_parameters() if p.requires_grad)
    again = pickle.loads(pickle.dumps(net.eval()))
    with torch.no_grad(): torch.testing.assert_close(again(x)[-1], net(x)[-1])
    saving = build_backbone({**cfg, 'with_cp': True}); saving.load_state_dict(net.state_dict()); saving.eval()
    torch.testing.assert_close(saving(x)[-1], net(x)[-1])


def test_norm_eval_and_frozen_stages_survive_train():
    net = build_backbone(dict(type='ResNet', depth=18, base_channels=8, frozen_stages=2, norm_eval=False)).train()
    learning = {k for k, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training}
    assert learning and all(k.startswith(('layer3', 'layer4')) for k in learning)
    assert {k.split('.')[0] for k, p in net.named_parameters() if p.requires_grad} == {'layer3', 'layer4'}


def test_dcn_and_plugins_go_to_their_stages():
    class OffsetConv(nn.Conv2d): "Stands for a deformable convolution"
    class Attention(nn.Module):
        def __init__(self, in_channels): super().__init__(); self.in_channels = in_channels
        def forward(self, x): return x * 2
    CONV_LAYERS.register_module('test_dcn', module=OffsetConv, force=True); PLUGIN_LAYERS.register_module('test_attention', module=Attention, force=True)
    try:
        net = build_backbone(dict(type='ResNet', depth=50, base_channels=8, dcn=dict(type='test_dcn', fallback_on_stride=False),
                                  stage_with_dcn=(False, True, True, False),
                                  plugins=[dict(cfg=dict(type='test_attention', postfix='_a'), stages=(False, False, True, True), position='after_conv3')]))
    finally: del CONV_LAYERS.module_dict['test_dcn'], PLUGIN_LAYERS.module_dict['test_attention']
    assert [isinstance(getattr(net, f'layer{i}')[1].conv2, OffsetConv) for i in (1, 2, 3, 4)] == [False, True, True, False]
    assert [hasattr(getattr(net, f'layer{i}')[0], 'attention_a') for i in (1, 2, 3, 4)] == [False, False, True, True]
    assert net.layer4[0].attention_a.in_channels == 256 and len(net(torch.randn(1, 3, 64, 64))) == 4


def test_pretrained_backbone_reads_a_file_and_children_do_not_overwrite(tmp_path):
    donor = build_backbone(dict(type='ResNet', depth=18, base_channels=8)); donor.init_weights()
    torch.save(dict(state_dict=donor.state_dict()), tmp_path/'donor.pth')
    taker = build_backbone(dict(type='ResNet', depth=18, base_channels=8, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path/'donor.pth'))))
    taker.init_weights()
    assert all(torch.equal(a, b) for a, b in zip(donor.state_dict().values(), taker.state_dict().values()))
    with pytest.raises(ValueError, match='leave out pretrained'): build_backbone(dict(type='ResNet', depth=18, pretrained='a.pth', init_cfg=dict(type='Kaiming')))


def test_fpn_first_weights_and_bilinear():
    neck = build_neck(dict(type='FPN', in_channels=[8, 16], out_channels=8, num_outs=3, norm_cfg=dict(type='BN'), no_norm_on_lateral=True,
                           upsample_cfg=dict(mode='bilinear', align_corners=False)))
    neck.init_weights()
    assert neck.lateral_convs[0].norm is None and neck.fpn_convs[0].norm is not None
    bound = (6 / (8 * 9 + 8 * 9)) ** .5                       # Xavier, uniform
    assert bound * .9 < neck.fpn_convs[0].conv.weight.abs().max() <= bound
    assert len(neck((torch.randn(2, 8, 9, 9), torch.randn(2, 16, 5, 5)))) == 3


# --- losses
@pytest.mark.parametrize('kind', ['L1Loss', 'SmoothL1Loss', 'MSELoss', 'IoULoss', 'GIoULoss', 'DIoULoss', 'CIoULoss', 'BoundedIoULoss'])
def test_regression_losses_of_nothing_and_of_everything(kind):
    loss = LOSSES.build(dict(type=kind)); p, t, none = boxes(9).requires_grad_(), boxes(9), torch.zeros(9, 4)
    value = loss(p, t, none, avg_factor=torch.tensor(0.)); value.backward()
    assert value == 0 and not p.grad.any()
    assert loss(p[:0], t[:0], none[:0], avg_factor=1.) == 0
    p.grad = None; loss(p, t, torch.ones(9, 4), avg_factor=9.).backward(); assert torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0
    q = t.clone().requires_grad_(); loss(q, t).backward(); assert torch.isfinite(q.grad).all()             # a perfect box
    with pytest.raises(ValueError, match='nothing to divide'): loss(p, t, reduction_override='sum', avg_factor=2.)


def test_focal_in_half_precision_and_by_weights():
    x, labels = torch.randn(40, 7) * 4, torch.randint(0, 8, (40,))
    half = x.bfloat16().requires_grad_(); sigmoid_focal_loss(half, labels).sum().backward()
    assert half.grad.dtype == torch.bfloat16
    loss = LOSSES.build(dict(type='FocalLoss', gamma=1.5, alpha=.4)); w = torch.rand(40)
    torch.testing.assert_close(loss(x, labels, w, avg_factor=3.), (sigmoid_focal_loss(x, labels, 1.5, .4) * w[:, None]).sum() / 3)
    torch.testing.assert_close(sigmoid_focal_loss(x, labels), torchvision.ops.sigmoid_focal_loss(x, F.one_hot(labels, 8)[:, :7].float()))


def test_cross_entropy_forms():
    x, labels = torch.randn(12, 5), torch.randint(0, 5, (12,)); labels[3] = 255
    ce = LOSSES.build(dict(type='CrossEntropyLoss', ignore_index=255, avg_non_ignore=True))
    torch.testing.assert_close(ce(x, labels), F.cross_entropy(x, labels, ignore_index=255))
    bce = LOSSES.build(dict(type='CrossEntropyLoss', use_sigmoid=True, class_weight=[1., 2., 3., 4., 5.]))
    yes = F.one_hot(labels.clamp(max=4), 5).float()
    torch.testing.assert_close(bce(x, yes), F.binary_cross_entropy_with_logits(x, yes, pos_weight=torch.arange(1., 6.)))
    with pytest.raises(ValueError, match='plain mean'): LOSSES.build(dict(type='CrossEntropyLoss', use_mask=True))(x[..., None, None], yes, labels, avg_factor=3)


def test_spelling_of_a_part_is_found():
    with pytest.raises(KeyError, match='ResNet'): build_backbone(dict(type='Resnet', depth=50))
    with pytest.raises(TypeError, match='(?s)dept.*depth'): build_backbone(dict(type='ResNet', dept=50))


def test_conv_module_orders_and_copies():
    block = ConvModule(4, 8, 3, padding=1, norm_cfg=dict(type='BN'), with_spectral_norm=True).eval(); x = torch.randn(1, 4, 6, 6)
    with torch.no_grad(): torch.testing.assert_close(copy.deepcopy(block)(x), block(x))
    after = ConvModule(4, 8, 3, padding=1, padding_mode='reflect', norm_cfg=dict(type='BN'), order=('act', 'conv', 'norm')).eval()
    with torch.no_grad(): torch.testing.assert_close(after(x.clone()), after.bn(after.conv(F.pad(x.relu(), (1, 1, 1, 1), mode='reflect'))))
