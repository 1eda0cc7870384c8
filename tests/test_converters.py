"Converters and data set tools beside what their notebooks tell: real data where it is there, wrapped datasets, interruptions, the commands"
import os, shutil, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from detnb import Config
from detnb.cli.main import main
from detnb.datasets import build_dataset
from detnb.datasets.browse import browse_dataset, without_steps
from detnb.datasets.converters import cityscapes_to_coco, make_streets, voc_infos, voc_to_coco
from detnb.datasets.shapes import CLASSES, make_shapes
from detnb.foundation.environment import data_root
from detnb.foundation.files import load
from detnb.foundation.images import imread, imresize

data = data_root()
needs_data = pytest.mark.skipif(data is None, reason='the sample data (DETNB_DATA) are not here')
pytestmark = pytest.mark.filterwarnings('ignore:.*have no box in')


@needs_data
def test_blood_cells_in_voc_layout(tmp_path):
    "364 pictures, 4888 boxes: the converted file has those that the XML files have"
    (tmp_path/'VOC2007').symlink_to((data/'bccd').resolve())
    classes = ('RBC', 'WBC', 'Platelets')
    files = voc_to_coco(tmp_path, tmp_path/'out', classes=classes)
    whole = [load(f) for f in files if f.stem in ('voc07_train', 'voc07_val', 'voc07_test')]
    assert sum(len(d['images']) for d in whole) == 364
    assert sum(len(d['annotations']) for d in whole) == sum(len(i['ann']['bboxes']) + len(i['ann']['bboxes_ignore']) for s in ('train', 'val', 'test')
                                                            for i in voc_infos(tmp_path, '2007', s, classes))
    ds = build_dataset(dict(type='CocoDataset', ann_file=str(tmp_path/'out/voc07_val.json'), img_prefix=str(tmp_path), classes=classes, pipeline=[
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]))
    assert len(ds[0]['gt_bboxes']) and ds[0]['img'].shape == (480, 640, 3)


@needs_data
def test_the_balloons(tmp_path):
    "The guide's set: 61 and 13 pictures; half a pixel"
    for part, n in (('train', 61), ('val', 13)):
        out = tmp_path/f'{part}.json'
        assert main(['convert', 'via', str(data/f'balloon/{part}/via_region_data.json'), str(out), str(data/f'balloon/{part}')]) == 0
        coco = load(out)
        assert len(coco['images']) == n and coco['categories'] == [dict(id=0, name='balloon')]
        assert all(a['segmentation'][0][0] % 1 == .5 for a in coco['annotations'])


def test_threads_do_not_change_the_file(tmp_path):
    make_streets(tmp_path, train=6)
    one, many = (load(cityscapes_to_coco(tmp_path, tmp_path/str(n), nproc=n)[0]) for n in (1, 4))
    assert one == many and [a['id'] for a in one['annotations']] == list(range(1, len(one['annotations']) + 1))
    path = next((tmp_path/'gtFine').rglob('*_instanceIds.png'))
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(Exception) as e: cityscapes_to_coco(tmp_path, nproc=4)
    assert 'while reading the annotations of' in ' '.join(getattr(e.value, '__notes__', [str(e.value)]))
    assert main(['convert', 'cityscapes', str(tmp_path), '--nproc', '2']) == 1


def test_a_test_split_without_truth(tmp_path):
    "Its pictures are listed; a training split without truth is an error"
    make_streets(tmp_path, train=1, test=2); shutil.rmtree(tmp_path/'gtFine/test')
    assert [len(load(f)['images']) for f in cityscapes_to_coco(tmp_path)] == [1, 2]
    shutil.rmtree(tmp_path/'gtFine/train')
    with pytest.raises(FileNotFoundError, match='instanceIds.png'): cityscapes_to_coco(tmp_path)


def test_split_by_the_command(tmp_path, capsys):
    make_shapes(tmp_path, 40, (32, 24), name='x'); (tmp_path/'annotations').mkdir()
    os.rename(tmp_path/'x.json', tmp_path/'annotations/instances_train2017.json')
    assert main(['convert', 'split', '--data-root', str(tmp_path), '--out-dir', str(tmp_path/'semi'), '--labeled-percent', '10', '50', '--fold', '2']) == 0
    names = {f'instances_train2017.{k}@{p}{s}.json' for k in (1, 2) for p in (10, 50) for s in ('', '-unlabeled')}
    assert names <= {p.name for p in (tmp_path/'semi').iterdir()}
    drawn = set(np.random.RandomState(2).choice(range(40), size=20))
    assert [i['id'] for i in load(tmp_path/'semi/instances_train2017.2@50.json')['images']] == sorted(drawn)


def test_image_metas_of_a_config(tmp_path):
    make_shapes(tmp_path, 3, (48, 32), name='val')
    (tmp_path/'c.py').write_text(f"data = dict(val=dict(ann_file='{tmp_path}/val.json', img_prefix='{tmp_path}/val'))")
    assert main(['convert', 'image-metas', str(tmp_path/'c.py'), '--out', 'sizes.pkl', '--nproc', '2']) == 0
    assert [(Path(m['filename']).name, m['ori_shape']) for m in load(tmp_path/'sizes.pkl')] == [(f'{i:06}.jpg', (32, 48, 3)) for i in range(3)]


@pytest.fixture
def shapes(tmp_path):
    make_shapes(tmp_path, 5, (96, 64), empty=0.)
    return dict(type='CocoDataset', ann_file=f'{tmp_path}/train.json', img_prefix=f'{tmp_path}/train', classes=CLASSES,
                pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)])


def test_browse_mixed_pictures(tmp_path, shapes):
    "Mosaic: the wrapper's own pipeline loses its last steps, too"
    mixed = dict(type='MultiImageMixDataset', dataset=shapes, pipeline=[
        dict(type='Mosaic', img_scale=(64, 96), pad_val=114.), dict(type='Normalize', mean=[0.] * 3, std=[1.] * 3, to_rgb=True),
        dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'])])
    files = browse_dataset(Config(dict(data=dict(train=mixed))), tmp_path/'out', show=False, num=3)
    assert len(files) == 3 and imread(files[0]).shape == (128, 192, 3)


def test_browse_a_test_set(tmp_path, shapes):
    "A test pipeline has its steps one level deeper, and no boxes"
    views = dict(shapes, test_mode=True, pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', img_scale=(48, 32)),
                                                   dict(type='Normalize', mean=[9.] * 3, std=[2.] * 3, to_rgb=True), dict(type='ImageToTensor', keys=['img'])])
    cfg = Config(dict(data=dict(test=views)))
    files = browse_dataset(cfg, tmp_path/'out', show=False, part='test', skip_type=('ImageToTensor',))
    picture, plain = imread(files[0]).astype(int), imresize(imread(tmp_path/'train/000000.jpg'), (48, 32))
    assert picture.shape == (32, 48, 3) and abs(picture - plain).mean() < 20         # normalised, brought back, and written as a JPEG (noise in its colours)
    deep = dict(type='CocoDataset', pipeline=[dict(type='MultiScaleFlipAug', transforms=[dict(type='Normalize'), dict(type='Resize')])])
    assert [t['type'] for t in without_steps(deep)['pipeline'][0]['transforms']] == ['Resize']


def test_browse_by_the_command(tmp_path, shapes, capsys):
    Config(dict(data=dict(train=[shapes, dict(shapes)]))).dump(tmp_path/'c.py')
    assert main(['browse', str(tmp_path/'c.py'), '--output-dir', str(tmp_path/'out'), '--not-show', '--show-interval', '0.1']) == 0
    assert len(list((tmp_path/'out').iterdir())) == 10 and '10 pictures' in capsys.readouterr().out
    assert main(['browse', str(tmp_path/'c.py')]) == 1
    assert 'no display' in capsys.readouterr().err


def test_ctrl_c_stops_a_download(tmp_path, monkeypatch):
    "The threads end, what has come is kept"
    from detnb.apis import downloads
    class Slow(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.send_header('Content-Length', '10000000'); self.end_headers()
            try:
                for _ in range(2000): self.wfile.write(bytes(5000)); time.sleep(.02)
            except OSError: return
        def log_message(self, *args): "Nothing to say"
    server = ThreadingHTTPServer(('127.0.0.1', 0), Slow); server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    def interrupted(running, timeout):
        end = time.time() + 60
        while time.time() < end and not all((p.exists() and p.stat().st_size) for p in parts): time.sleep(.05)
        raise KeyboardInterrupt
    parts = [tmp_path/f'.{n}.bin.part' for n in 'ab']
    monkeypatch.setattr(downloads, 'wait', interrupted)
    archives = [downloads.Archive([f'http://127.0.0.1:{server.server_port}/{n}.bin'], 10_000_000) for n in 'ab']
    begin = time.time()
    with pytest.raises(KeyboardInterrupt): downloads.fetch_all(archives, tmp_path, 2)
    assert time.time() - begin < 60 and all(0 < p.stat().st_size < 10_000_000 for p in parts)
    server.shutdown(); server.server_close()


def test_checksums_have_the_right_form():
    from detnb.apis.downloads import DOWNLOADS
    for name, (home, archives) in DOWNLOADS.items():
        for a in archives:
            assert a.digest is None or len(a.digest) in (32, 64) and set(a.digest) <= set('0123456789abcdef'), a.name
            assert all(u.startswith('http') and u.endswith(a.name) for u in a.urls) and a.name.endswith(('.zip', '.tar')), a.name
