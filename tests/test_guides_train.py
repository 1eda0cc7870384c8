"The guides' workflows by their letters; C: test a detector on standard data, D: train it. The data are synthetic shapes in each set's own layout"
import json, pickle, subprocess, sys
from pathlib import Path
from xml.etree import ElementTree as xml

import numpy as np
import pytest
import torch

from detnb import Config
from detnb.cli.main import main
from detnb.datasets import build_dataset
from detnb.datasets.shapes import make_shapes
from test_cli import CONFIG, records, weights

MASKED = CONFIG.replace('retinanet/retinanet_r18_fpn_1x_coco.py', 'mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py').replace(
    'with_bbox=True', 'with_bbox=True, with_mask=True').replace("'gt_labels']", "'gt_labels', 'gt_masks']").replace(
    'bbox_head=dict(num_classes=5, in_channels=8, feat_channels=8, stacked_convs=1))', '''rpn_head=dict(in_channels=16, feat_channels=16), roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16), bbox_head=dict(num_classes=5, in_channels=16, fc_out_channels=32),
        mask_roi_extractor=dict(out_channels=16), mask_head=dict(num_classes=5, in_channels=16, conv_out_channels=16, num_convs=1)))''').replace(
    'init_cfg=None, frozen', 'depth=18, init_cfg=None, frozen').replace('128], out_channels=8', '128], out_channels=16')
BEGIN, END = MASKED.split(', roi_head=dict(')
PROPOSALS = (BEGIN + ')\n' + END.split('num_convs=1)))')[1]).replace('mask_rcnn/mask_rcnn_r50', 'rpn/rpn_r50').replace(
    ', with_mask=True', '').replace(", 'gt_labels', 'gt_masks'", '')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp('standard')
    for seed, (name, n) in enumerate((('train', 6), ('val', 3))): make_shapes(root, n, (96, 64), seed=seed, name=name)
    for name, text in (('tiny', CONFIG), ('masked', MASKED), ('proposals', PROPOSALS)): (root/f'{name}.py').write_text(text.format(root=str(root)))
    for name in ('tiny', 'masked', 'proposals'):
        assert main(['train', str(root/f'{name}.py'), '--work-dir', str(root/name), '--seed', '0', '--no-validate', '--cfg-options', 'runner.max_epochs=1']) == 0
    return root


def test(place, name, *options): return main(['test', str(place/f'{name}.py'), str(place/name/'latest.pth'), '--work-dir', str(place/name), *options])
test.__test__ = False                                                        # a call, not a case


@pytest.fixture
def no_gpu(monkeypatch): monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')


def test_C1_D4_without_a_gpu(place, tmp_path, no_gpu):
    "As a shell says it: CUDA_VISIBLE_DEVICES=-1 detnb test CONFIG CHECKPOINT --out FILE --eval bbox"
    done = subprocess.run([sys.executable, '-m', 'detnb.cli.main', 'test', str(place/'tiny.py'), str(place/'tiny'/'latest.pth'), '--out', str(tmp_path/'r.pkl'),
                           '--eval', 'bbox', '--work-dir', str(tmp_path), '--cfg-options', 'device=None'], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0 and 'bbox_mAP' in done.stdout, done.stderr
    assert len(pickle.loads((tmp_path/'r.pkl').read_bytes())) == 3


def test_C3_results_and_metrics(place, tmp_path, capsys):
    assert test(place, 'proposals', '--out', str(tmp_path/'r.pkl'), '--eval', 'proposal', 'proposal_fast') == 0
    said = capsys.readouterr().out
    assert 'AR@100' in said and 'AR@1000' in said
    results = pickle.loads((tmp_path/'r.pkl').read_bytes())
    assert len(results) == 3 and all(r.shape[1] == 5 for r in results)


def test_C4_pictures(place, tmp_path):
    assert test(place, 'tiny', '--show-dir', str(tmp_path/'shown'), '--show-score-thr', '0') == 0
    assert len(list((tmp_path/'shown').rglob('*.*'))) == 3
    with pytest.warns(UserWarning, match='no display'): assert test(place, 'tiny', '--show') == 0


def test_C5_options(place, capsys):
    assert test(place, 'tiny', '--eval', 'bbox', '--eval-options', 'classwise=True', '--cfg-options', 'model.test_cfg.max_per_img=3') == 0
    assert 'triangle' in capsys.readouterr().out


def test_C6_voc(place, tmp_path, capsys):
    "The shapes as a Pascal VOC set, and `--eval mAP`"
    data = json.loads((place/'val.json').read_text()); voc = tmp_path/'VOC2007'
    for part in ('Annotations', 'JPEGImages', 'ImageSets/Main'): (voc/part).mkdir(parents=True)
    names = {c['id']: c['name'] for c in data['categories']}
    for image in data['images']:
        stem = Path(image['file_name']).stem
        (voc/'JPEGImages'/f'{stem}.jpg').write_bytes((place/'val'/image['file_name']).read_bytes())
        top = xml.Element('annotation'); size = xml.SubElement(top, 'size')
        for k in ('width', 'height'): xml.SubElement(size, k).text = str(image[k])
        for a in (a for a in data['annotations'] if a['image_id'] == image['id']):
            thing = xml.SubElement(top, 'object'); xml.SubElement(thing, 'name').text = names[a['category_id']]
            xml.SubElement(thing, 'difficult').text = '0'; box = xml.SubElement(thing, 'bndbox'); x, y, w, h = a['bbox']
            for k, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), (x + 1, y + 1, x + w, y + h)): xml.SubElement(box, k).text = str(round(v))
        xml.ElementTree(top).write(voc/'Annotations'/f'{stem}.xml')
    (voc/'ImageSets'/'Main'/'val.txt').write_text('\n'.join(Path(i['file_name']).stem for i in data['images']))
    (tmp_path/'voc.py').write_text((place/'tiny.py').read_text().replace('data = dict(', f'''
test = dict(_delete_=True, type='VOCDataset', ann_file='{voc}/ImageSets/Main/val.txt', img_prefix='{voc}/', classes=classes, pipeline=test_pipeline)
data = dict(''').replace('test=val)', 'test=test)'))
    assert main(['test', str(tmp_path/'voc.py'), str(place/'tiny'/'latest.pth'), '--eval', 'mAP', '--work-dir', str(tmp_path)]) == 0
    assert 'mAP' in capsys.readouterr().out


def test_C6_C7_masks_and_the_test_server(place, tmp_path, capsys):
    assert test(place, 'masked', '--out', str(tmp_path/'results.pkl'), '--eval', 'bbox', 'segm') == 0
    said = capsys.readouterr().out
    assert 'bbox_mAP' in said and 'segm_mAP' in said
    boxes, masks = pickle.loads((tmp_path/'results.pkl').read_bytes())[0]
    assert [len(b) for b in boxes] == [len(m) for m in masks]
    assert test(place, 'masked', '--format-only', '--options', f'jsonfile_prefix={tmp_path}/mask_rcnn_test-dev_results') == 0
    for kind in ('bbox', 'segm'): assert isinstance(json.loads((tmp_path/f'mask_rcnn_test-dev_results.{kind}.json').read_text()), list)


def test_C8_cityscapes(place, tmp_path):
    "txt and png for the server, a file a picture"
    names, data = ('person', 'rider', 'car', 'truck', 'bus'), json.loads((place/'val.json').read_text())
    for category, name in zip(data['categories'], names): category['name'] = name
    (tmp_path/'val.json').write_text(json.dumps(data))
    cfg = Config.fromfile(str(place/'masked.py')).data.val.copy(); cfg.update(type='CityscapesDataset', ann_file=str(tmp_path/'val.json'), classes=names)
    dataset = build_dataset(cfg)
    one = (np.array([[10, 10, 50, 40, .9]], np.float32), [np.pad(np.ones((30, 40), bool), ((10, 24), (10, 46)))])
    nothing = (np.zeros((0, 5), np.float32), [])
    per_class = lambda i: [p if k == 0 else nothing for k, p in enumerate([one] + [nothing] * 4)]
    results = [([b for b, _ in per_class(i)], [m for _, m in per_class(i)]) for i in range(len(dataset))]
    files, _ = dataset.format_results(results, txtfile_prefix=str(tmp_path/'mask_rcnn_cityscapes_test_results'))
    written = sorted(p.suffix for p in tmp_path.rglob('*') if p.is_file())
    assert written.count('.txt') == 3 and written.count('.png') == 3


@pytest.mark.parametrize('how', ['samples_per_gpu', 'DefaultFormatBundle'])
def test_C10_C11_batches(place, tmp_path, how):
    "Two images at a time give what one at a time gives; ImageToTensor is replaced for it, by itself or by hand"
    assert test(place, 'tiny', '--out', str(tmp_path/'one.pkl')) == 0
    text = (place/'tiny.py').read_text()
    if how == 'DefaultFormatBundle': text = text.replace("dict(type='ImageToTensor', keys=['img'])", "dict(type='DefaultFormatBundle')")
    (tmp_path/'tiny.py').write_text(text)
    assert main(['test', str(tmp_path/'tiny.py'), str(place/'tiny'/'latest.pth'), '--out', str(tmp_path/'two.pkl'), '--cfg-options', 'data.test.samples_per_gpu=2']) == 0
    one, two = (pickle.loads((tmp_path/f'{n}.pkl').read_bytes()) for n in ('one', 'two'))
    for a, b in zip(one, two):
        a, b = np.concatenate(a), np.concatenate(b)
        assert abs(len(a) - len(b)) <= 1 and np.allclose(np.sort(a[:, 4])[::-1][:5], np.sort(b[:, 4])[::-1][:5], atol=1e-3)


def test_D1_D2_work_folder_and_intervals(place, tmp_path):
    args = ['train', str(place/'tiny.py'), '--work-dir', str(tmp_path), '--seed', '0', '--cfg-options', 'evaluation.interval=2', 'runner.max_epochs=3']
    assert main(args) == 0
    assert [r['epoch'] for r in records(tmp_path) if r.get('mode') == 'val'] == [2]
    assert {'epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth', 'latest.pth', 'tiny.py'} <= {p.name for p in tmp_path.iterdir()}


def test_D2_resume_goes_on_and_load_begins_anew(place, tmp_path):
    made = place/'tiny'/'epoch_1.pth'
    base = ['train', str(place/'tiny.py'), '--seed', '0', '--no-validate']
    assert main([*base, '--work-dir', str(tmp_path/'a'), '--resume-from', str(made)]) == 0
    assert main([*base, '--work-dir', str(tmp_path/'b'), '--cfg-options', f'load_from={made}', 'runner.max_epochs=1', 'optimizer.lr=0.']) == 0
    assert not (tmp_path/'a'/'epoch_1.pth').exists() and torch.load(tmp_path/'a'/'latest.pth', weights_only=True)['meta']['epoch'] == 2
    assert torch.load(tmp_path/'b'/'latest.pth', weights_only=True)['meta']['epoch'] == 1
    loaded, first = weights(tmp_path/'b'/'latest.pth'), weights(made)
    assert all(torch.equal(v, first[k]) for k, v in loaded.items() if k.endswith(('weight', 'bias')))


def test_D3_learning_rate_for_another_batch(place, tmp_path, capsys):
    options = ['--cfg-options', 'optimizer.lr=0.16', 'lr_config.warmup=None', 'log_config.interval=1', 'runner.max_epochs=1']
    assert main(['train', str(place/'tiny.py'), '--work-dir', str(tmp_path), '--no-validate', '--auto-scale-lr', *options]) == 0
    assert records(tmp_path)[-1]['lr'] == pytest.approx(.16 * 2 / 16)        # one process with 2 images, made for 8 with 2
    base = {name: Config.fromfile(name).auto_scale_lr['base_batch_size'] for name in
            ('cornernet/cornernet_hourglass104_mstest_32x3_210e_coco.py', 'scnet/scnet_x101_64x4d_fpn_8x1_20e_coco.py')}
    assert list(base.values()) == [96, 8]
