"The guides' workflows by their letters; E4-E6: a data set of one's own from a notebook, G: find your way"
import inspect, json, pdb, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detnb import Config
from detnb.apis import inference_detector, show_result_pyplot, train_detector
from detnb.datasets import DATASETS, CustomDataset, build_dataset
from detnb.datasets.shapes import make_shapes
from detnb.models import HEADS, build_detector
from test_cli import CONFIG

LINES = {'000000': ['Car 0 0 0 10 8 50 40', 'Pedestrian 0 0 0 60 10 75 50', 'DontCare 0 0 0 1 1 9 9'],
         '000001': ['Cyclist 0 0 0 20 15 60 55', 'Car 0 0 0 2 30 18 60']}


def kitti_tiny():
    @DATASETS.register_module(force=True)
    class KittiTinyDataset(CustomDataset):
        CLASSES = ('Car', 'Pedestrian', 'Cyclist')
        def load_annotations(self, ann_file):
            infos = []
            for name in LINES:
                rows = [line.split() for line in LINES[name]]
                boxes = np.array([r[4:] for r in rows], np.float32).reshape(-1, 4)
                known = np.array([r[0] in self.CLASSES for r in rows])
                labels = np.array([self.CLASSES.index(r[0]) for r in rows if r[0] in self.CLASSES], np.int64)
                infos.append(dict(filename=f'{name}.png', width=96, height=64, ann=dict(
                    bboxes=boxes[known], labels=labels, bboxes_ignore=boxes[~known], labels_ignore=np.full((~known).sum(), -1))))
            return infos
    return KittiTinyDataset


@pytest.fixture
def cfg(tmp_path):
    kitti_tiny()
    make_shapes(tmp_path, 2, (96, 64), seed=0, name='train'), make_shapes(tmp_path, 2, (96, 64), seed=0, name='val')
    for name in LINES: Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)).save(tmp_path/f'{name}.png')
    (tmp_path/'tiny.py').write_text(CONFIG.format(root=str(tmp_path)))
    cfg = Config.fromfile(str(tmp_path/'tiny.py'))
    for part in (cfg.data.train, cfg.data.val, cfg.data.test):
        part.type, part.ann_file, part.img_prefix = 'KittiTinyDataset', 'train.txt', str(tmp_path)
        part.pop('classes', None)
    cfg.model.bbox_head.num_classes = 3
    cfg.optimizer.lr = .02 / 8
    cfg.lr_config.warmup = None
    cfg.log_config.interval = 1
    cfg.evaluation.metric, cfg.evaluation.interval, cfg.checkpoint_config.interval = 'mAP', 1, 1
    cfg.runner.max_epochs = 1
    cfg.work_dir, cfg.seed, cfg.gpu_ids, cfg.device = str(tmp_path/'run'), 0, [0], 'cpu'
    yield cfg
    DATASETS._module_dict.pop('KittiTinyDataset')


def test_E4_a_data_set_of_ones_own(cfg):
    data = build_dataset(cfg.data.train)
    ann = data.get_ann_info(0)
    assert len(data) == 2 and ann['labels'].tolist() == [0, 1] and ann['bboxes_ignore'].tolist() == [[1, 1, 9, 9]]


def test_E5_a_config_edited_by_attribute(cfg):
    again = Config.fromstring(cfg.pretty_text, '.py')
    assert again.optimizer.lr == .0025 and again.evaluation.metric == 'mAP' and again.data.train.type == 'KittiTinyDataset'
    assert again.lr_config.warmup is None and again.model.bbox_head.num_classes == 3


def test_E6_train_and_look_from_a_notebook(cfg, tmp_path):
    datasets = [build_dataset(cfg.data.train)]
    model = build_detector(cfg.model, train_cfg=cfg.get('train_cfg'), test_cfg=cfg.get('test_cfg'))
    model.CLASSES = datasets[0].CLASSES
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train_detector(model, datasets, cfg, distributed=False, validate=True)
    assert (tmp_path/'run'/'epoch_1.pth').exists()
    assert any(not torch.equal(v.cpu(), before[k]) for k, v in model.state_dict().items())
    assert '"mAP"' in ''.join(p.read_text() for p in (tmp_path/'run').glob('*.log.json'))
    model.cfg = cfg
    img = str(tmp_path/'000000.png')
    result = inference_detector(model, img)
    assert len(result) == 3 and all(r.shape[1] == 5 for r in result)
    show_result_pyplot(model, img, result, score_thr=.3)


def test_G2_debug_lands_in_the_frame_that_failed(cfg):
    model = build_detector(cfg.model)
    model.CLASSES = ('Car', 'Pedestrian', 'Cyclist')
    try: model.bbox_head([torch.zeros(1, 3, 4, 4)])
    except Exception: trace = sys.exc_info()[2]
    else: pytest.fail('three channels went into a head of eight')
    debugger = pdb.Pdb()
    debugger.reset()
    stack, at = debugger.get_stack(None, trace)
    names = [frame.f_code.co_filename for frame, _ in stack]
    assert any('detnb' in n and 'dense_heads' in n for n in names) and at == len(stack) - 1


def test_G1_every_family_stands_in_the_table(project):
    page = ''.join(''.join(c['source']) + json.dumps(c.get('outputs', '')) for c in json.loads((project/'nbs'/'explanations'/'10_families.ipynb').read_text())['cells'])
    families = {p.name for p in (project/'detnb'/'configs').iterdir() if p.is_dir()} - {'_base_', 'common', 'demo', '__pycache__'}
    assert not [f for f in families if f not in page]


def test_G3_one_network_can_be_read_alone():
    "From a name in a config to the file that holds it, and nothing of another head in it"
    for name, file in (('SSDHead', 'ssd_head.py'), ('RetinaHead', 'retina_head.py'), ('YOLOXHead', 'yolox_head.py')):
        source = Path(inspect.getsourcefile(HEADS.get(name)))
        assert source.name == file and len(source.read_text().splitlines()) < 300
