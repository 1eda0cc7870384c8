"DetectoRS: weights of an ordinary backbone reach both looks, and a narrow detector goes through training and testing"
import numpy as np, pytest, torch

from detnb import Config
from detnb.models import ResNet, build_backbone, build_detector

NARROW = dict(base_channels=8, norm_cfg=dict(type='BN', requires_grad=True))


def narrow(name, weights=None):
    cfg = Config.fromfile(f'detectors/{name}.py').model
    cfg.backbone.update(init_cfg=weights and dict(type='Pretrained', checkpoint=weights), **NARROW)
    if cfg.neck.type == 'RFP': cfg.neck.rfp_backbone.update(pretrained=weights, **NARROW)
    cfg.neck.in_channels = [32, 64, 128, 256]
    cfg.train_cfg.rpn_proposal.max_per_img = cfg.test_cfg.rpn.max_per_img = 50
    for stage, head in zip(cfg.train_cfg.rcnn, cfg.roi_head.bbox_head): stage.sampler.num, head.fc_out_channels = 64, 64
    cfg.test_cfg.rcnn.score_thr = 0.
    torch.manual_seed(0)
    model = build_detector(cfg); model.init_weights()
    return model


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(1)
    net = ResNet(50, **NARROW)
    for p in net.parameters(): p.data = torch.randn_like(p) * .05 if p.dim() > 1 else torch.rand_like(p) + .5
    torch.save(dict(state_dict=net.state_dict()), tmp_path/'resnet.pth')
    return str(tmp_path/'resnet.pth'), net.eval()


def test_weights_reach_both_looks(weights):
    path, net = weights
    model, img = narrow('detectors_cascade_rcnn_r50_1x_coco', path).eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        want = net(img)
        feedback = [torch.randn(1, 256, *m.shape[2:]) for m in want]
        for maps in (model.backbone(img)[1:], model.neck.rfp_modules[0].rfp_forward(img, feedback)):
            for a, b in zip(maps, want, strict=True): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert all((m.weight_gamma != 1).all() for m in model.modules() if type(m).__name__ in ('ConvAWS2d', 'SAConv2d'))


def test_a_checkpoint_brings_its_own_gamma(weights, tmp_path):
    kind = dict(type='DetectoRS_ResNet', depth=50, conv_cfg=dict(type='ConvAWS'), **NARROW)
    one, two = build_backbone(kind), build_backbone(kind)
    one.load_state_dict(weights[1].state_dict())              # strictly: gamma and beta are no missing names
    with torch.no_grad(): one.conv1.weight.mul_(3)            # trained on: the filters grow, what they do stays
    two.load_state_dict(one.state_dict())
    assert torch.equal(two.conv1.weight_gamma, one.conv1.weight_gamma) and torch.equal(two.conv1.weight, one.conv1.weight)
    lacking = {k: v for k, v in one.state_dict().items() if k != 'conv1.weight_gamma'}
    with pytest.raises(RuntimeError, match='conv1.weight_gamma'): two.load_state_dict(lacking)


@pytest.mark.parametrize('name', ['detectors_cascade_rcnn_r50_1x_coco', 'cascade_rcnn_r50_rfp_1x_coco', 'cascade_rcnn_r50_sac_1x_coco'])
def test_training_and_testing(name, weights):
    model, img = narrow(name, weights[0]).train(), torch.randn(2, 3, 64, 96)
    metas = [dict(img_shape=(h, 96, 3), pad_shape=(64, 96, 3), ori_shape=(h // 2, 48, 3), scale_factor=np.full(4, 2, np.float32), flip=False) for h in (64, 50)]
    losses = model(img, metas, gt_bboxes=[torch.tensor([[10., 10, 60, 50]]), torch.zeros(0, 4)], gt_labels=[torch.tensor([3]), torch.zeros(0, dtype=torch.long)])
    loss, _ = model._parse_losses(losses); loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    model.eval().double(); img = img.double()          # in single precision boxes of random weights nearly tie
    with torch.inference_mode():
        both = model(return_loss=False, rescale=True, img=[img], img_metas=[metas])
        for i, found in enumerate(both):
            alone = model(return_loss=False, rescale=True, img=[img[i:i + 1]], img_metas=[[metas[i]]])[0]
            assert sum(map(len, found)) == 100 and [len(f) for f in found] == [len(a) for a in alone]
            assert max(np.abs(a - b).max() for a, b in zip(found, alone) if len(a)) < 1e-2
        mirrored = dict(metas[0], flip=True, flip_direction='horizontal')
        assert len(model(return_loss=False, rescale=True, img=[img[:1], img[:1].flip(-1)], img_metas=[metas[:1], [mirrored]])[0]) == 80
