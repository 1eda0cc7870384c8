"The guides' workflows, step by step and by their letters; B: prepare standard data, C9: test without ground truth, G4: look at a config"
import hashlib, io, json, os, re, shutil, signal, subprocess, sys, tarfile, threading, time, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detnb import Config
from detnb.apis import downloads
from detnb.apis.downloads import Archive
from detnb.cli.main import main, read_config
from detnb.datasets import build_dataset
from detnb.datasets.converters import make_streets
from detnb.datasets.shapes import CLASSES, make_shapes
from detnb.evaluation.class_names import COCO_CLASSES, VOC_CLASSES
from detnb.foundation.config_roots import update_data_root

pytestmark = pytest.mark.filterwarnings('ignore:.*have no box in')


class Site(ThreadingHTTPServer):
    "A web server with files in memory, ranges and versions; after how many bytes it waits (`hold`), and the requests it had"
    daemon_threads = True
    def __init__(self, files):
        self.files, self.asked, self.hold = files, [], {}
        super().__init__(('127.0.0.1', 0), Page)
        threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=.05), daemon=True).start()
    address = property(lambda self: f'http://127.0.0.1:{self.server_port}')


class Page(BaseHTTPRequestHandler):
    def do_HEAD(self): self.do_GET(head=True)
    def do_GET(self, head=False):
        name, asked = self.path.rpartition('/')[2], self.headers.get('Range')
        if not head: self.server.asked.append((name, asked))
        content = self.server.files.get(name)
        if content is None: return self.send_error(404)
        mark = f'"{hashlib.md5(content).hexdigest()}"'
        begin = int(re.match(r'bytes=(\d+)-', asked)[1]) if asked and self.headers.get('If-Range', mark) == mark else 0
        self.send_response(206 if begin else 200)
        if begin: self.send_header('Content-Range', f'bytes {begin}-{len(content) - 1}/{len(content)}')
        self.send_header('Content-Length', str(len(content) - begin)); self.send_header('ETag', mark); self.end_headers()
        try:
            for i in range(begin, 0 if head else len(content), 4096):
                while i >= self.server.hold.get(name, len(content)): time.sleep(.02)
                self.wfile.write(content[i:min(i + 4096, len(content))])
        except (BrokenPipeError, ConnectionResetError): return
    def log_message(self, *args): "Nothing to say"


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        for name, content in files.items(): z.writestr(name, content)
    return out.getvalue()


def tarred(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as t:
        for name, content in files.items():
            info = tarfile.TarInfo(name); info.size = len(content)
            t.addfile(info, io.BytesIO(content))
    return out.getvalue()


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, 'PNG')
    return out.getvalue()


def coco_files(folder):
    "A small COCO with its 80 classes, panoptic maps and stuff maps, as the official archives hold it"
    from detnb.datasets import CocoPanopticDataset
    from detnb.structures.panoptic import id2rgb
    files, maps, stuff, info = {}, {}, {}, {}
    for part, n in (('train2017', 3), ('val2017', 2), ('test2017', 1)):
        data = json.loads(make_shapes(folder, n, (96, 64), seed=n, name=part, empty=0.).read_text())
        data['categories'] = [dict(id=i + 1, name=c) for i, c in enumerate(COCO_CLASSES)]
        pictures = {f'{part}/{img["file_name"]}': (folder/part/img['file_name']).read_bytes() for img in data['images']}
        files[f'{part}.zip'] = zipped(pictures)
        if part == 'test2017': continue
        info[f'annotations/instances_{part}.json'] = json.dumps(data)
        names = CocoPanopticDataset.THING_CLASSES + CocoPanopticDataset.STUFF_CLASSES
        pan = dict(images=data['images'], annotations=[], categories=[dict(id=i + 1, name=c, isthing=int(i < 80)) for i, c in enumerate(names)])
        inner = {}
        for img in data['images']:
            name = img['file_name'].replace('.jpg', '.png')
            ids = np.full((64, 96), 7); ids[:20, :30] = 9
            segments = [dict(id=7, category_id=100, area=int((ids == 7).sum()), bbox=[0, 0, 96, 64], iscrowd=0),
                        dict(id=9, category_id=3, area=600, bbox=[0, 0, 30, 20], iscrowd=0)]
            inner[f'panoptic_{part}/{name}'] = png(id2rgb(ids).astype(np.uint8))
            inner[f'__MACOSX/panoptic_{part}/._{name}'] = b'a shadow'
            pan['annotations'].append(dict(image_id=img['id'], file_name=name, segments_info=segments))
            stuff[f'{part}/{name}'] = png(np.where(ids == 9, 255, 120).astype(np.uint8))
        maps[f'annotations/panoptic_{part}.json'] = json.dumps(pan)
        maps[f'annotations/panoptic_{part}.zip'] = zipped(inner)
    return {**files, 'annotations_trainval2017.zip': zipped(info), 'panoptic_annotations_trainval2017.zip': zipped(maps),
            'stuffthingmaps_trainval2017.zip': zipped(stuff)}


def voc_files():
    "Small VOC archives: 2007 in two parts, 2012, the devkit's code"
    box = '<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>40</xmax><ymax>50</ymax></bndbox></object>'
    def part(year, **splits):
        files = {}
        for split, names in splits.items():
            files[f'VOCdevkit/VOC{year}/ImageSets/Main/{split}.txt'] = '\n'.join(names).encode()
            for i, name in enumerate(names):
                xml = f'<annotation><size><width>60</width><height>64</height><depth>3</depth></size>{box.format(VOC_CLASSES[i], 0)}{box.format("dog", 1)}</annotation>'
                files[f'VOCdevkit/VOC{year}/Annotations/{name}.xml'] = xml.encode()
                files[f'VOCdevkit/VOC{year}/JPEGImages/{name}.jpg'] = png(np.full((64, 60, 3), 90 + i, np.uint8))
        return tarred(files)
    both = ['000001', '000002']
    return {'VOCtrainval_06-Nov-2007.tar': part(2007, train=both[:1], val=both[1:], trainval=both), 'VOCtest_06-Nov-2007.tar': part(2007, test=['000003']),
            'VOCdevkit_08-Jun-2007.tar': tarred({'VOCdevkit/VOCcode/VOCinit.m': b'% matlab'}),
            'VOCtrainval_11-May-2012.tar': part(2012, train=['2008_000001'], val=['2008_000002'], trainval=['2008_000001', '2008_000002'])}


@pytest.fixture(scope='module')
def contents(tmp_path_factory):
    "What the web servers of the data sets would have"
    annotations = {f'lvis_v1_{part}.json.zip': zipped({f'lvis_v1_{part}.json': '{}'}) for part in ('train', 'val')}
    balloon = zipped({f'balloon/{part}/via_region_data.json': '{}' for part in ('train', 'val')} | {'balloon/train/1.jpg': os.urandom(200_000)})
    return {**coco_files(tmp_path_factory.mktemp('coco')), **voc_files(), **annotations, 'balloon_dataset.zip': balloon}


@pytest.fixture
def site(tmp_path, monkeypatch, contents):
    "An empty folder to work in, and the data sets on a server of this machine, their checksums in the table"
    site = Site(dict(contents))
    monkeypatch.chdir(tmp_path); monkeypatch.setenv('DETNB_MIRRORS', site.address)
    known = lambda a: Archive(a.urls, len(contents[a.name]) if a.name in contents else a.size,
                              hashlib.sha256(contents[a.name]).hexdigest() if a.name in contents else a.digest, a.into, a.top)
    monkeypatch.setattr(downloads, 'DOWNLOADS', {name: (home, [known(a) for a in archives]) for name, (home, archives) in downloads.DOWNLOADS.items()})
    yield site
    site.shutdown(); site.server_close()


def test_B1_download_dataset(site, tmp_path, capsys):
    "Five names, each in the tree of the guides; a second call asks for nothing"
    for name in ('coco2017', 'lvis', 'voc2007', 'voc2012', 'balloon'):
        assert main(['download', '--dataset-name', name, '--unzip', '--delete', '--threads', '2']) == 0
    data = tmp_path/'data'
    there = lambda pattern: sorted(p.relative_to(data).as_posix() for p in data.glob(pattern))
    assert there('coco/annotations/*') == ['coco/annotations/instances_train2017.json', 'coco/annotations/instances_val2017.json']
    assert [len(there(f'coco/{part}2017/*.jpg')) for part in ('train', 'val', 'test')] == [3, 2, 1]
    assert there('lvis_v1/annotations/*') == ['lvis_v1/annotations/lvis_v1_train.json', 'lvis_v1/annotations/lvis_v1_val.json']
    assert there('VOCdevkit/*') == ['VOCdevkit/VOC2007', 'VOCdevkit/VOC2012', 'VOCdevkit/VOCcode']
    assert there('balloon/[!.]*') == ['balloon/train', 'balloon/val']
    assert not there('**/*.zip') + there('**/*.tar')
    asked = len(site.asked)
    assert main(['download', '--dataset-name', 'coco2017', '--unzip', '--delete']) == 0
    assert len(site.asked) == asked and 'data/coco already' in capsys.readouterr().out
    assert main(['download', '--dataset-name', 'voc', '--unzip']) == 1
    assert 'voc2007' in capsys.readouterr().err
    cfg = Config.fromfile('faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py')
    cfg.data.train.pipeline[2]['img_scale'] = (120, 80)
    assert len(build_dataset(cfg.data.val)) == 2 and build_dataset(cfg.data.train)[0]['img'].shape == (3, 96, 128)
    voc = Config.fromfile('pascal_voc/faster_rcnn_r50_fpn_1x_voc0712.py')
    assert len(build_dataset(voc.data.test)) == 1 and len(build_dataset(voc.data.train)) == 12        # (2 + 2) images three times


def test_B1_a_download_that_is_killed_goes_on(site, tmp_path, contents, monkeypatch):
    "SIGKILL half way: nothing under the file's name, and the next call asks for the rest alone"
    site.hold['balloon_dataset.zip'] = 40960        # no more comes, however long the test waits
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parent.parent)}
    process = subprocess.Popen([sys.executable, '-m', 'detnb.cli.main', 'download', '--dataset-name', 'balloon', '--unzip'], cwd=tmp_path, env=env,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    part, end = tmp_path/'data/balloon/.balloon_dataset.zip.part', time.time() + 120
    while time.time() < end and not (part.exists() and part.stat().st_size > 20_000) and process.poll() is None: time.sleep(.02)
    process.send_signal(signal.SIGKILL); process.communicate()
    had = part.stat().st_size
    assert 20_000 < had < len(contents['balloon_dataset.zip']) and not (tmp_path/'data/balloon/balloon_dataset.zip').exists()
    site.hold.clear(); site.asked.clear()
    assert main(['download', '--dataset-name', 'balloon', '--unzip']) == 0
    assert site.asked == [('balloon_dataset.zip', f'bytes={had}-')]
    assert (tmp_path/'data/balloon/balloon_dataset.zip').read_bytes() == contents['balloon_dataset.zip']
    assert (tmp_path/'data/balloon/train/1.jpg').stat().st_size == 200_000


def test_B1_a_file_that_changed_meanwhile_is_fetched_anew(site, tmp_path, contents):
    folder = tmp_path/'data/balloon'
    folder.mkdir(parents=True)
    (folder/'.balloon_dataset.zip.part').write_bytes(b'old' * 100)
    (folder/'.balloon_dataset.zip.part.json').write_text(json.dumps(dict(url=f'{site.address}/matterport/Mask_RCNN/releases/download/v2.1/balloon_dataset.zip', mark='"old"')))
    assert main(['download', '--dataset-name', 'balloon']) == 0
    assert site.asked == [('balloon_dataset.zip', 'bytes=300-')]
    assert (folder/'balloon_dataset.zip').read_bytes() == contents['balloon_dataset.zip'] and not (folder/'train').exists()      # no --unzip


def test_B1_wrong_content_is_refused(site, tmp_path, capsys, monkeypatch):
    "Of two files one is not what the table says: the other is kept, no archive of it, and the message names both checksums"
    site.files['lvis_v1_val.json.zip'] = good = zipped({'lvis_v1_val.json': '{"an": "other"}'})
    home, archives = downloads.DOWNLOADS['lvis']
    for a in archives: a.urls = a.urls[:1]; a.size = None
    monkeypatch.setattr(downloads, '_addresses', lambda a: [f'{site.address}/{a.name}'])
    assert main(['download', '--dataset-name', 'lvis', '--unzip', '--threads', '2']) == 1
    err = capsys.readouterr().err
    assert 'lvis_v1_val.json.zip could not be fetched' in err and hashlib.sha256(good).hexdigest() in err and archives[1].digest in err and 'Traceback' not in err
    assert sorted(p.name for p in (tmp_path/'data/lvis_v1').iterdir()) == ['lvis_v1_train.json.zip']


def test_B2_stuff_maps_and_panoptic_maps(site, tmp_path):
    "Beside COCO, where HTC and Panoptic FPN look for them"
    for name in ('coco2017', 'coco2017_panoptic', 'coco2017_stuffthingmaps'):
        assert main(['download', '--dataset-name', name, '--unzip', '--delete']) == 0
    assert len(list(Path('data/coco/stuffthingmaps/train2017').glob('*.png'))) == 3
    assert len(list(Path('data/coco/annotations/panoptic_train2017').glob('*.png'))) == 3 and not list(Path('data').rglob('__MACOSX'))
    htc = Config.fromfile('htc/htc_r50_fpn_1x_coco.py').data.train
    htc.pipeline[2]['img_scale'] = (192, 128)
    sample = build_dataset(htc)[0]
    assert sample['gt_semantic_seg'].shape == (1, 16, 24) and set(np.unique(sample['gt_semantic_seg'])) <= {120, 255}
    pan = Config.fromfile('panoptic_fpn/panoptic_fpn_r50_fpn_1x_coco.py').data
    pan.train.pipeline[2]['img_scale'] = (192, 128)
    sample = build_dataset(pan.train)[0]
    assert sample['gt_labels'].tolist() == [2] and 99 in np.unique(sample['gt_semantic_seg'])
    assert len(build_dataset(pan.val)) == 2
    shutil.copy('data/coco/annotations/instances_val2017.json', 'data/coco/annotations/image_info_test-dev2017.json')
    assert main(['convert', 'panoptic-test-info', 'data/coco']) == 0
    assert len(json.loads(Path('data/coco/annotations/panoptic_image_info_test-dev2017.json').read_text())['categories']) == 133


def test_B3_cityscapes(tmp_path, monkeypatch):
    "The official layout becomes what the configs name; its masks are those of the pictures of numbers"
    from pycocotools import mask as coco_mask
    monkeypatch.chdir(tmp_path)
    make_streets('data/cityscapes', train=3, val=2, test=1)
    assert main(['convert', 'cityscapes', './data/cityscapes', '--nproc', '8', '--out-dir', './data/cityscapes/annotations']) == 0
    cfg = Config.fromfile('cityscapes/mask_rcnn_r50_fpn_1x_cityscapes.py')
    cfg.data.train.dataset.pipeline[2]['img_scale'] = [(256, 100), (256, 128)]
    train, val = build_dataset(cfg.data.train), build_dataset(cfg.data.val)
    assert len(train) == 24 and {'img', 'gt_bboxes', 'gt_labels', 'gt_masks'} <= set(train[0]) and len(val) == 2
    found = []
    for img in val.data_infos:
        ids = np.asarray(Image.open(f'data/cityscapes/gtFine/val/{img["segm_file"].replace("labelIds", "instanceIds")}'))
        ann = val.coco.img_ann_map[img['id']]
        assert {int(n) for n in np.unique(ids[ids >= 24])} == {a['category_id'] * 1000 + k for a in ann for k in range(9)
                                                              if np.array_equal(coco_mask.decode(a['segmentation']) > 0, ids == a['category_id'] * 1000 + k)}
        boxes = [np.zeros((0, 5), np.float32) for _ in range(8)]; masks = [[] for _ in range(8)]
        for a in ann:
            label, (x, y, w, h) = val.cat2label[a['category_id']], a['bbox']
            boxes[label] = np.vstack([boxes[label], np.float32([[x, y, x + w, y + h, 1]])]); masks[label].append(a['segmentation'])
        found.append((boxes, masks))
    figures = val.evaluate(found, ['bbox', 'segm'], logger='silent')
    assert figures['bbox_mAP'] == figures['segm_mAP'] == 1
    assert json.loads(Path('data/cityscapes/annotations/instancesonly_filtered_gtFine_test.json').read_text())['images'][0]['file_name'].startswith('aachen/')


@pytest.mark.parametrize('form', ['coco', 'pkl'])
def test_B4_voc_to_coco(site, tmp_path, form):
    "A file for each split and both years; the boxes are those that VOCDataset reads"
    for name in ('voc2007', 'voc2012'): assert main(['download', '--dataset-name', name, '--unzip']) == 0
    assert main(['convert', 'voc', 'data/VOCdevkit', '--out-dir', 'data/voc', '--out-format', form]) == 0
    end = dict(coco='json', pkl='pkl')[form]
    names = ['voc0712_train', 'voc0712_trainval', 'voc0712_val', 'voc07_test', 'voc07_train', 'voc07_trainval', 'voc07_val', 'voc12_train', 'voc12_trainval', 'voc12_val']
    assert sorted(p.name for p in Path('data/voc').iterdir()) == [f'{n}.{end}' for n in names]
    kind = dict(coco='CocoDataset', pkl='CustomDataset')[form]
    kw = dict(pipeline=[dict(type='LoadImageFromFile')], classes=VOC_CLASSES, test_mode=True)
    ours = build_dataset(dict(type=kind, ann_file=f'data/voc/voc0712_trainval.{end}', img_prefix='data/VOCdevkit', **kw))
    theirs = build_dataset(dict(type='VOCDataset', ann_file=[f'data/VOCdevkit/VOC{y}/ImageSets/Main/trainval.txt' for y in (2007, 2012)],
                                img_prefix=[f'data/VOCdevkit/VOC{y}/' for y in (2007, 2012)], **kw))
    assert len(ours) == len(theirs) == 4 and ours[3]['img'].shape == (64, 60, 3)
    for i in range(4):
        for key in ('bboxes', 'labels'): assert np.array_equal(ours.get_ann_info(i)[key], theirs.get_ann_info(i)[key])


def test_B5_the_environment_moves_the_root(tmp_path, monkeypatch):
    "MMDET_DATASETS, for a config of each data set: every path below data_root is moved, and nothing else"
    names = ['faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py', 'htc/htc_r50_fpn_1x_coco.py', 'panoptic_fpn/panoptic_fpn_r50_fpn_1x_coco.py',
             'cityscapes/mask_rcnn_r50_fpn_1x_cityscapes.py', 'pascal_voc/ssd300_voc0712.py', 'lvis/mask_rcnn_r50_fpn_sample1e-3_mstrain_1x_lvis_v1.py',
             'openimages/faster_rcnn_r50_fpn_32x2_1x_openimages.py', 'wider_face/ssd300_wider_face.py', 'yolox/yolox_s_8x8_300e_coco.py']
    def strings(value):
        if isinstance(value, str): yield value
        elif isinstance(value, (dict, list, tuple)):
            for v in value.values() if isinstance(value, dict) else value: yield from strings(v)
    for name in names:
        monkeypatch.delenv('MMDET_DATASETS', raising=False)
        before = list(strings(Config.fromfile(name)._cfg_dict))
        root = Config.fromfile(name).data_root
        monkeypatch.setenv('MMDET_DATASETS', '/disk/sets')
        after = list(strings(read_config(name)._cfg_dict))
        assert sum(root in b for b in before) > 3, name
        assert after == [b.replace(root, '/disk/sets/') for b in before], name
    cfg = Config.fromfile(names[0])
    monkeypatch.setenv('MMDET_DATASETS', str(tmp_path))
    update_data_root(cfg)
    assert cfg.data.val.ann_file == f'{tmp_path}/annotations/instances_val2017.json'


def test_C9_testing_without_ground_truth(tmp_path, monkeypatch):
    "A folder of pictures and a list of classes become a test set; what is found is written for a server, or raw"
    monkeypatch.chdir(tmp_path)
    make_shapes(tmp_path, 3, (96, 64), name='photos'); (tmp_path/'photos.json').unlink()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save('photos/mask.png')
    Path('classes.txt').write_text('\n'.join(CLASSES) + '\n')
    assert main(['convert', 'images', 'photos', 'classes.txt', 'test.json', '--exclude-extensions', 'png']) == 0
    data = json.loads(Path('annotations/test.json').read_text())
    assert [i['file_name'] for i in data['images']] == [f'{i:06}.jpg' for i in range(3)] and data['images'][0]['width'] == 96 and not data['annotations']
    name = 'demo/retinanet_r18_shapes.py'
    cfg = Config.fromfile(name)
    from detnb.models import build_detector
    torch.manual_seed(0)
    model = build_detector(cfg.model)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(CLASSES=CLASSES)), 'w.pth')
    args = ['test', name, 'w.pth', '--device', 'cpu', '--cfg-options', 'data.test.ann_file=annotations/test.json', 'data.test.img_prefix=photos',
            'data.workers_per_gpu=0', 'model.test_cfg.score_thr=0.0', 'model.test_cfg.max_per_img=7']
    assert main([*args, '--format-only', '--options', 'jsonfile_prefix=./found']) == 0
    found = json.loads(Path('found.bbox.json').read_text())
    assert len(found) == 21 and {f['image_id'] for f in found} == {0, 1, 2} and {f['category_id'] for f in found} <= set(range(5))
    assert main([*args, '--out', 'found.pkl']) == 0
    from detnb.foundation.files import load
    assert [sum(len(c) for c in image) for image in load('found.pkl')] == [7, 7, 7]


def test_G4_a_config_can_be_read(capsys, tmp_path):
    "print(cfg), cfg.data by attribute, and the command"
    name = 'retinanet/retinanet_r50_fpn_1x_coco.py'
    cfg = Config.fromfile(name)
    print(cfg)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('Config (path: ') and lines[0].endswith('retinanet_r50_fpn_1x_coco.py):') and len(lines) > 100 and max(map(len, lines)) < 140
    assert Config.fromstring('\n'.join(lines[1:])).model == cfg.model
    assert cfg.data.train.pipeline[2].img_scale == (1333, 800) == cfg['data']['train']['pipeline'][2]['img_scale'] and isinstance(cfg.data, dict)
    cfg.data.samples_per_gpu = 4
    assert 'samples_per_gpu=4' in cfg.pretty_text
    assert main(['print-config', name, '--cfg-options', 'data.samples_per_gpu=4', 'model.bbox_head.num_classes=3', '--save-path', str(tmp_path/'c.json')]) == 0
    assert 'samples_per_gpu=4' in capsys.readouterr().out
    again = Config.fromfile(str(tmp_path/'c.json'))
    assert (again.data.samples_per_gpu, again.model.bbox_head.num_classes) == (4, 3)
