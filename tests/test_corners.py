"CornerNet and CentripetalNet from their configs: pipelines, training on hard batches, mirrored and batched testing; corners against plain loops"
import itertools

import numpy as np, pytest, torch

from detnb import Config
from detnb.apis import inference_detector
from detnb.datasets import build_dataloader, build_dataset, make_shapes
from detnb.datasets.shapes import CLASSES
from detnb.datasets.transforms import seeded
from detnb.models import build_detector
from detnb.models.dense_heads.corner_pairs import all_boxes, centre_distance
from detnb.ops import corner_pool

PATHS = ['cornernet/cornernet_hourglass104_mstest_8x6_210e_coco.py', 'centripetalnet/centripetalnet_hourglass104_mstest_16x6_210e_coco.py']


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes')
    make_shapes(folder, 4, (160, 120), seed=1, empty=0)
    return folder


def config(path, folder=None, size=127):
    "A small network, and windows of `size` from the shapes"
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(downsample_times=1, stage_channels=[32, 48], stage_blocks=[1, 1], feat_channel=32)
    cfg.model.bbox_head.update(in_channels=32, num_classes=len(CLASSES))
    for data in (cfg.data.train, cfg.data.test):
        data.update(ann_file=str(folder/'train.json'), img_prefix=str(folder/'train') + '/', classes=CLASSES)
    for step in cfg.data.train.pipeline:
        if step.type == 'RandomCenterCropPad': step.update(crop_size=(size, size), border=32)
        if step.type == 'Resize': step.update(img_scale=(size, size))
    return cfg


def detector(cfg):
    torch.manual_seed(0)
    model = build_detector(cfg.model)
    model.init_weights()
    model.cfg, model.CLASSES = cfg, CLASSES
    return model


@pytest.mark.parametrize('path', PATHS)
def test_from_files_to_boxes(path, shapes):
    "Training pipeline, loader, one step; test pipeline with its mirrored view, whose boxes are brought back"
    cfg = config(path, shapes)
    dataset = build_dataset(cfg.data.train)
    with seeded(0): batch = next(iter(build_dataloader(dataset, 2, 0, dist=False, seed=0)))
    assert batch['img'].shape == (2, 3, 127, 127) and all(len(b) for b in batch['gt_bboxes'])
    model = detector(cfg).train()
    losses = model.train_step(batch, None)
    losses['loss'].backward()
    assert np.isfinite(losses['log_vars']['loss']) and all(p.grad.isfinite().all() for p in model.parameters())

    test = build_dataset(cfg.data.test, dict(test_mode=True))[0]
    metas = [m.data if hasattr(m, 'data') else m for m in test['img_metas']]
    assert [m['flip'] for m in metas] == [False, True] and [tuple(i.shape) for i in test['img']] == [(3, 127, 255)] * 2
    assert metas[0]['border'].tolist() == [3, 123, 47, 207] and metas[0]['img_shape'] == (120, 160, 3)
    assert torch.equal(test['img'][0].flip(2), test['img'][1])
    small = np.full((90, 70, 3), 99, np.uint8)
    for img in (str(shapes/'train'/'000000.jpg'), small):
        result = inference_detector(model.eval(), img)
        assert len(result) == len(CLASSES) and all(r.shape[1] == 5 and r.dtype == np.float32 for r in result)


@pytest.mark.parametrize('path', PATHS)
def test_hard_batches(path, shapes):
    "No object, one object, a box without area, two objects with one corner in common: two steps, finite losses and weights"
    model = detector(config(path, shapes)).train()
    img, meta = torch.randn(4, 3, 64, 96), dict(img_shape=(64, 96, 3), pad_shape=(64, 96, 3), scale_factor=1.)
    boxes = [torch.zeros(0, 4), torch.tensor([[4., 4, 60, 50]]), torch.tensor([[20., 20, 20, 40]]), torch.tensor([[8., 8, 40, 40], [9, 9, 90, 60]])]
    labels = [torch.zeros(len(b), dtype=torch.long) for b in boxes]
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    for picked in ([0, 1, 2, 3], [0, 0]):
        data = dict(img=img[picked], img_metas=[dict(meta) for _ in picked], gt_bboxes=[boxes[i] for i in picked], gt_labels=[labels[i] for i in picked])
        out = model.train_step(data, optimizer)
        assert all(np.isfinite(v) for v in out['log_vars'].values()), out['log_vars']
        optimizer.zero_grad(); out['loss'].backward(); optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_two_images_of_two_sizes(shapes):
    "Each image of a batch has its own border and scale"
    model = detector(config(PATHS[0], shapes)).eval().double()
    img = torch.randn(2, 3, 127, 127, dtype=torch.double)
    metas = [dict(img_shape=(h, w, 3), pad_shape=(127, 127, 3), scale_factor=np.float32([s] * 4), flip=False, border=np.float32([t, t + h, l, l + w]))
             for h, w, s, t, l in ((100, 120, 1, 13, 3), (90, 64, 2, 18, 31))]
    with torch.inference_mode():
        both, mirrored = model.simple_test(img, metas, rescale=True), [dict(m, flip=True, flip_direction='horizontal') for m in metas]
        augmented = model.aug_test([img, img.flip(3)], [metas, mirrored], rescale=True)
        for i in (0, 1):
            alone = model.simple_test(img[i:i + 1], metas[i:i + 1], rescale=True)[0]
            for a, b in zip(both[i], alone): np.testing.assert_allclose(a[:5], b[:5], rtol=1e-3, atol=1e-3)
            alone = model.aug_test([img[i:i + 1], img[i:i + 1].flip(3)], [metas[i:i + 1], mirrored[i:i + 1]], rescale=True)[0]
            for a, b in zip(augmented[i], alone): np.testing.assert_allclose(a[:5], b[:5], rtol=1e-3, atol=1e-3)


def test_corner_pool_by_loops():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 7).contiguous(memory_format=torch.channels_last)
    for y, i in itertools.product(range(5), range(7)):
        for mode, seen in dict(top=x[:, :, y:, i].amax(2), bottom=x[:, :, :y + 1, i].amax(2), left=x[:, :, y, i:].amax(2), right=x[:, :, y, :i + 1].amax(2)).items():
            assert torch.equal(corner_pool(x, mode)[:, :, y, i], seen), mode
    x = x.double().requires_grad_()
    for mode in ('top', 'bottom', 'left', 'right'): assert torch.autograd.gradcheck(lambda v: corner_pool(v, mode), x)


def test_centres_by_loops():
    "Agreement of centres, pair by pair as the paper says it"
    torch.manual_seed(0)
    tl, br = torch.rand(1, 12, 2) * 40, torch.rand(1, 12, 2) * 40 + 60              # around (50, 50), some above and some below 3500 pixels
    a, b = torch.rand(1, 12, 2) * 40 + 30, torch.rand(1, 12, 2) * 40 + 30
    got, inside = centre_distance(all_boxes(tl, br), a, b)[0], 0
    for i, j in itertools.product(range(12), range(12)):
        (x1, y1), (x2, y2) = tl[0, i].tolist(), br[0, j].tolist()
        mu = 1 / 2.1 if abs((x2 - x1) * (y2 - y1)) > 3500 else 1 / 2.4
        x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, mu * (x2 - x1) / 2, mu * (y2 - y1) / 2
        points = [a[0, i].tolist(), b[0, j].tolist()]
        if all(x - w < px < x + w and y - h < py < y + h for px, py in points):
            inside += 1
            spanned = abs((points[1][0] - points[0][0]) * (points[1][1] - points[0][1]))
            assert got[i, j].item() == pytest.approx(spanned / (4 * w * h), rel=1e-3)
        else: assert got[i, j] == torch.inf
    assert 3 < inside < 120
