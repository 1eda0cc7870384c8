"Model tools: publish, upgrade, ONNX (equal boxes), TorchServe, and their commands; other libraries' weights are in test_conversions"
import json
import zipfile

import numpy as np
import pytest
import torch

from detnb import Config
from detnb.apis.benchmark import wide_weights
from detnb.cli.main import main
from detnb.models.builder import build_detector


def narrow(name, **heads):
    "A shipped config with few channels"
    cfg = Config.fromfile(name).model
    if cfg.backbone.type == 'ResNet':
        cfg.backbone.update(depth=18, base_channels=16, init_cfg=None); cfg.neck.update(in_channels=[16, 32, 64, 128], out_channels=16)
        for key in ('bbox_head', 'rpn_head'):
            if key in cfg: cfg[key].update(in_channels=16, feat_channels=16)
        if 'bbox_head' in cfg: cfg.bbox_head.num_classes = 5
    roi = cfg.get('roi_head')
    if roi:
        for key in ('bbox_roi_extractor', 'mask_roi_extractor'):
            if key in roi: roi[key].out_channels = 16
        for head in roi.bbox_head if isinstance(roi.bbox_head, list) else [roi.bbox_head]: head.update(in_channels=16, fc_out_channels=32, num_classes=5)
        if 'mask_head' in roi: roi.mask_head.update(in_channels=16, conv_out_channels=16, num_convs=1, num_classes=5)
    cfg.backbone.init_cfg = None
    torch.manual_seed(0)
    return build_detector(cfg)


def plain(model, img):
    "What the detector's own test gives: boxes best first, masks in the same order"
    h, w = img.shape[2:]
    meta = dict(img_shape=(h, w, 3), pad_shape=(h, w, 3), ori_shape=(h, w, 3), scale_factor=np.ones(4, np.float32), flip=False)
    with torch.no_grad(): found = model.eval().simple_test(img, [meta])[0]
    boxes, masks = found if isinstance(found, tuple) else (found, None)
    labels = np.concatenate([np.full(len(b), i) for i, b in enumerate(boxes)]); boxes = np.concatenate(boxes)
    order = np.lexsort((boxes[:, 0], -boxes[:, 4]))
    return boxes[order], labels[order], None if masks is None else np.stack([m for c in masks for m in c])[order]


def matches(found, expected, tolerance=.02):
    "Share of the expected boxes that are among the found, with class, place and score"
    (dets, labels), (boxes, classes) = found[:2], expected[:2]
    near = (np.abs(dets[None] - boxes[:, None]).max(-1) < tolerance) & (labels[None] == classes[:, None])
    return near.any(1).mean()


FAMILIES = {'retinanet': 'retinanet/retinanet_r18_fpn_1x_coco.py', 'ssd': 'ssd/ssd300_coco.py', 'yolov3': 'yolo/yolov3_mobilenetv2_320_300e_coco.py',
            'yolox': 'yolox/yolox_nano_8x8_300e_coco.py', 'fcos': 'fcos/fcos_r50_caffe_fpn_gn-head_1x_coco.py', 'faster': 'faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py',
            'mask': 'mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py', 'cascade': 'cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py'}


def sure(name):
    "A small detector that finds something in noise, and such noise"
    if name == 'fcos':
        cfg = Config.fromfile(FAMILIES[name]).model
        cfg.backbone.update(depth=18, base_channels=16, init_cfg=None); cfg.neck.update(in_channels=[16, 32, 64, 128], out_channels=32)
        cfg.bbox_head.update(in_channels=32, feat_channels=32, num_classes=5)
        model = build_detector(cfg)
    else: model = narrow(FAMILIES[name])
    model = wide_weights(model)
    if name == 'ssd':
        with torch.no_grad():
            for conv in model.bbox_head.cls_convs: conv[0].bias.add_(3 * torch.randn(conv[0].bias.shape, generator=torch.Generator().manual_seed(0)))
    h, w = (300, 300) if name == 'ssd' else (128, 160)
    return model.eval(), torch.randn(1, 3, h, w, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('name', FAMILIES)
def test_graph_equals_detector(name):
    "The graph of the last steps, run by torch: every box of the detector is there"
    from detnb.apis.graph import GraphDetector
    model, img = sure(name)
    expected = plain(model, img)
    with torch.no_grad(): found = [x[0].numpy() for x in GraphDetector(model)(img)]
    assert len(expected[0]) > 5 and len(found[0]) == len(expected[0]) and matches(found, expected) == 1


@pytest.mark.parametrize('name', FAMILIES)
def test_onnx_equals_detector(name, tmp_path):
    for package in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(package)
    from detnb.apis.onnx_export import export_onnx, run_onnx
    model, img = sure(name)
    expected = plain(model, img)
    file = export_onnx(model, tmp_path/'a.onnx', img, dynamic_export=name in ('retinanet', 'faster'))
    found = [x[0] for x in run_onnx(file, img)]
    assert len(expected[0]) > 5 and abs(len(found[0]) - len(expected[0])) <= 1 and matches(found, expected) >= .98
    if name == 'retinanet':
        other = torch.randn(1, 3, 96, 192, generator=torch.Generator().manual_seed(2))
        assert matches([x[0] for x in run_onnx(file, other)], plain(model, other)) >= .98
    assert [p.name for p in tmp_path.iterdir()] == ['a.onnx']


def test_onnx_command(tmp_path, capsys):
    for package in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(package)
    cfg = Config.fromfile('demo/retinanet_r18_shapes.py'); cfg.model.backbone.init_cfg = None; cfg.dump(tmp_path/'c.py')
    torch.save(dict(state_dict=wide_weights(build_detector(cfg.model)).state_dict(), meta={}), tmp_path/'w.pth')
    args = ['export-onnx', str(tmp_path/'c.py'), str(tmp_path/'w.pth'), '--shape', '64', '96', '--output-file', str(tmp_path/'maps.onnx'), '--skip-postprocess', '--verify']
    with pytest.warns(UserWarning, match='opset 11'): assert main([*args, '--opset-version', '11']) == 0
    assert 'differ by at most' in capsys.readouterr().out

CAFFE = '''
_base_ = ['retinanet/retinanet_r50_caffe_fpn_1x_coco.py']
model = dict(backbone=dict(depth=18, base_channels=16, init_cfg=None), neck=dict(in_channels=[16, 32, 64, 128], out_channels=16),
             bbox_head=dict(in_channels=16, feat_channels=16, num_classes=5))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', img_scale=(160, 96), flip=False, transforms=[
    dict(type='Resize', keep_ratio=False), dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[60., 90., 120.], to_rgb=False),
    dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])])]
data = dict(test=dict(pipeline=test_pipeline))
'''


@pytest.fixture
def caffe(tmp_path):
    "A detector of BGR pixels, its files and a picture of the network's own size"
    from PIL import Image
    (tmp_path/'c.py').write_text(CAFFE)
    torch.manual_seed(0)
    model = wide_weights(build_detector(Config.fromfile(tmp_path/'c.py').model))
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path/'w.pth')
    rough = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    Image.fromarray(rough).resize((160, 96)).save(tmp_path/'p.png')
    return tmp_path


def best_first(result):
    boxes, labels = np.concatenate(result), np.concatenate([np.full(len(b), i) for i, b in enumerate(result)])
    order = np.argsort(-boxes[:, 4], kind='stable')
    return boxes[order], labels[order]


def test_graph_takes_rgb_pixels_of_a_bgr_detector(caffe):
    "Mean, deviation and channel order are in the graph: it gives for plain RGB pixels what the detector gives for the picture"
    from detnb.apis import inference_detector, init_detector
    from detnb.apis.onnx_export import network_input, whole_graph
    model = init_detector(str(caffe/'c.py'), str(caffe/'w.pth'), 'cpu')
    expected, img = best_first(inference_detector(model, str(caffe/'p.png'))), network_input(str(caffe/'p.png'), (96, 160))
    with torch.no_grad(): found, swapped = ([x[0].numpy() for x in whole_graph(model)(pixels)] for pixels in (img, img.flip(1)))
    assert len(expected[0]) > 5 and matches(found, expected) == 1 > matches(swapped, expected)


def test_onnx_command_with_a_bgr_detector(caffe, capsys):
    for package in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(package)
    from detnb.apis import inference_detector, init_detector
    from detnb.apis.onnx_export import network_input, run_onnx
    args = ['export-onnx', str(caffe/'c.py'), str(caffe/'w.pth'), '--shape', '96', '160', '--output-file', str(caffe/'d.onnx'), '--input-img', str(caffe/'p.png'), '--verify']
    assert main(args) == 0 and 'differ by at most' in capsys.readouterr().out
    expected = best_first(inference_detector(init_detector(str(caffe/'c.py'), str(caffe/'w.pth'), 'cpu'), str(caffe/'p.png')))
    found = [x[0] for x in run_onnx(caffe/'d.onnx', network_input(str(caffe/'p.png'), (96, 160)))]
    assert len(expected[0]) > 5 and matches(found, expected) >= .98


def test_soft_nms_is_refused_before_the_export(caffe, capsys, monkeypatch):
    from detnb.apis import onnx_export
    monkeypatch.setattr(onnx_export, 'require', lambda name, why: None)
    monkeypatch.setattr(torch.onnx, 'export', lambda *a, **k: pytest.fail('the export has begun'))
    args = ['export-onnx', str(caffe/'c.py'), str(caffe/'w.pth'), '--shape', '96', '160', '--output-file', str(caffe/'d.onnx')]
    assert main([*args, '--cfg-options', 'model.test_cfg.nms.type=soft_nms']) == 1
    said = capsys.readouterr().err
    assert "nms=dict(type='nms', iou_threshold=0.5)" in said and 'skip' in said and not (caffe/'d.onnx').exists()


def test_upgrade_command(tmp_path, capsys):
    state = {'bbox_head.fc_cls.weight': torch.arange(21.)[:, None].repeat(1, 2), 'bbox_head.fc_reg.bias': torch.arange(84.), 'backbone.conv1.weight': torch.ones(2)}
    torch.save(dict(state_dict=state, meta=dict(CLASSES=('a',))), tmp_path/'old.pth')
    assert main(['convert-model', 'upgrade', str(tmp_path/'old.pth'), str(tmp_path/'new.pth'), '--num-classes', '21']) == 0
    new = torch.load(tmp_path/'new.pth', weights_only=True)
    assert new['meta']['CLASSES'] == ('a',) and new['state_dict']['roi_head.bbox_head.fc_cls.weight'][:, 0].tolist() == [*range(1, 21), 0]
    assert new['state_dict']['roi_head.bbox_head.fc_reg.bias'].tolist() == list(range(4, 84))
    assert main(['convert-model', 'upgrade', str(tmp_path/'new.pth'), str(tmp_path/'x.pth')]) == 1 and 'of 2.x already' in capsys.readouterr().err


def test_publish_and_torchserve_commands(tmp_path, capsys):
    cfg = Config.fromfile('demo/retinanet_r18_shapes.py'); cfg.model.backbone.init_cfg = None; cfg.dump(tmp_path/'c.py')
    torch.save(dict(state_dict=build_detector(cfg.model).state_dict(), optimizer=dict(state=torch.ones(9)), meta=dict(CLASSES=tuple('abcde'), epoch=3)), tmp_path/'latest.pth')
    assert main(['publish', str(tmp_path/'latest.pth'), str(tmp_path/'shapes.pth')]) == 0
    file = next(tmp_path.glob('shapes-????????.pth'))
    assert set(torch.load(file, weights_only=True)) == {'meta', 'state_dict'}
    args = ['torchserve', str(tmp_path/'c.py'), str(file), '--output-folder', str(tmp_path/'store')]
    assert main(args) == 0 and main(args) == 1 and '--force' in capsys.readouterr().err and main([*args, '--force']) == 0
    manifest = json.loads(zipfile.ZipFile(tmp_path/'store'/'shapes.mar').read('MAR-INF/MANIFEST.json'))
    assert manifest['model']['modelName'] == 'shapes' and manifest['model']['serializedFile'] == file.name


def as_torchserve_loads(archive, folder, batch_size=2):
    "What a worker of TorchServe does with an archive: unpack it, find the one class of the handler's file, initialize it"
    import importlib.util, inspect
    from types import SimpleNamespace
    zipfile.ZipFile(archive).extractall(folder)
    manifest = json.loads((folder/'MAR-INF'/'MANIFEST.json').read_text())
    spec = importlib.util.spec_from_file_location('served_handler', folder/manifest['model']['handler'])
    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    (cls,) = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    assert not hasattr(module, 'handle')
    context = SimpleNamespace(manifest=manifest, system_properties=dict(model_dir=str(folder), gpu_id=None, batch_size=batch_size, server_name='MMS', server_version='0.9.0'),
                              statuses=[], set_response_status=lambda *status: context.statuses.append(status)) # as ts.context.Context
    service = cls(); service.initialize(context)
    return service, context


def test_handler_as_torchserve_calls_it(caffe, tmp_path):
    import base64
    from detnb.apis import inference_detector, init_detector
    from detnb.apis.torchserve import mmdet2torchserve
    archive = mmdet2torchserve(str(caffe/'c.py'), str(caffe/'w.pth'), tmp_path/'store', 'noise', '2.1')
    assert sorted(zipfile.ZipFile(archive).namelist()) == ['MAR-INF/MANIFEST.json', 'config.py', 'handler.py', 'w.pth']
    service, context = as_torchserve_loads(archive, tmp_path/'unpacked')
    assert context.manifest['model'] == dict(modelName='noise', modelVersion='2.1', serializedFile='w.pth', handler='handler.py') and context.manifest['runtime'] == 'python'
    png = (caffe/'p.png').read_bytes()
    answers = service.handle([dict(data=bytearray(png)), dict(body=base64.b64encode(png).decode())], context)
    result = inference_detector(init_detector(str(caffe/'c.py'), str(caffe/'w.pth'), 'cpu'), str(caffe/'p.png'))
    wanted = sum(int((boxes[:, 4] >= .5).sum()) for boxes in result)
    assert len(answers) == 2 and answers[0] == answers[1] and len(answers[0]) == wanted > 3
    assert set(answers[0][0]) == {'class_name', 'bbox', 'score'} and json.loads(json.dumps(answers)) == answers
    bad, good = service.handle([dict(data=b'no picture'), dict(data=png)], context)
    assert 'no picture' in bad['error'] and len(good) == wanted and context.statuses == [(400, 'Bad Request', 0)]
    assert list(service.handle([dict(data=b'no picture')], context)[0]) == ['error']
