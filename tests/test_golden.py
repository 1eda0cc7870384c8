"Every shipped config has MMDetection's values and builds its state_dict; one detector a family gives its figures"
import json, os, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np, pytest, torch
from golden import check_outputs, compare_masks, ellipses, figures, files, shipped, structure_hash, values_hash, without_weights

from detnb.structures.results import encode_mask

root = Path(__file__).resolve().parent.parent
zoo = json.loads((figures/'zoo.json').read_text())
full = root.parent/'shared'/'golden'          # the full figures, where they lie beside the checkout
FAMILIES = '''faster_rcnn rpn fast_rcnn retinanet ssd pascal_voc mask_rcnn cascade_rcnn htc detectors scnet panoptic_fpn pisa cornernet centripetalnet
    yolox yolo fcos cityscapes lvis openimages wider_face deepfashion dcn dcnv2 empirical_attention gn gn+ws regnet hrnet res2net resnest legacy_1.x scratch selfsup_pretrain
    strong_baselines simple_copy_paste instaboost albu_example'''.split()
# Parts that configs name and that are still to be built. A config is excused only by one of these, and a part that has been built may not stand here.
PENDING = set('''
'''.split())


def types(o):
    if isinstance(o, dict): return {o.get('type')} - {None} | {t for v in o.values() for t in types(v)}
    return {t for v in o for t in types(v)} if isinstance(o, (list, tuple)) else set()


def load(path):
    from detnb import Config
    return Config.fromfile(path)


def test_every_config_has_figures():
    assert set(shipped()) == set(zoo), f'python tests/golden.py ../shared/golden; differ: {sorted(set(shipped()) ^ set(zoo))[:5]}'
    assert {p.split('/')[0] for p in zoo} >= set(FAMILIES)


def test_values():
    bad = [p for p in zoo if values_hash(load(p)._cfg_dict) != zoo[p]['values']]
    assert not bad, f'{len(bad)} configs resolve to other values: {bad[:5]}'


def test_parts_say_their_values():
    "Every file under configs/ loads, the shared parts too"
    for path in files(): assert len(load(str(path))), path


def figures_of(model):
    params = dict(model.named_parameters())
    return dict(structure=structure_hash([(k, v.shape) for k, v in model.state_dict().items()], [k for k, p in params.items() if not p.requires_grad]),
                tensors=len(model.state_dict()), params=sum(p.numel() for p in params.values()))


def test_structure():
    "Names, shapes, order, frozen set and number of parameters; on the meta device, where a network costs no memory"
    from detnb import Registry, layers, models, ops
    from detnb.models import build_detector, targets
    registries = [r for m in (layers, models, targets) for r in vars(m).values() if isinstance(r, Registry)]
    bad, known = [], {}
    for path, want in zoo.items():
        cfg = load(path)
        if types(cfg._cfg_dict.model) & PENDING: continue
        without_weights(cfg.model)
        outer = dict(train_cfg=cfg.get('train_cfg'), test_cfg=cfg.get('test_cfg'))
        asked = values_hash(dict(outer, model=cfg.model))      # a third of the configs differ in their data or schedule only
        if asked not in known:
            with torch.device('meta'): model = build_detector(cfg.model, **outer)
            known[asked] = figures_of(model)
        got = known[asked]
        bad += [f'{path}: {k} {got[k]}, wanted {want[k]}' for k in got if got[k] != want[k]]
    assert not bad, '\n'.join(bad[:20])
    built = sorted(p for p in PENDING if any(p in r for r in registries) or hasattr(ops, p))
    assert not built, f'built by now, take them out of PENDING: {built}'


@pytest.mark.parametrize('name', sorted(p.stem for p in (figures/'outputs').glob('*.json')))
def test_outputs(name):
    if (full/'outputs'/f'{name}.json').exists(): pytest.skip('the whole figure is there, and test_full_figures holds the same run against it')
    bad = check_outputs(json.loads((figures/'outputs'/f'{name}.json').read_text()))
    assert not bad, '\n'.join(bad)


def test_outputs_notice_a_difference():
    "The check itself: a weight that differs by a little shows in every figure"
    figure = json.loads((figures/'outputs'/'retinanet__retinanet_r18_fpn_1x_coco.json').read_text())
    figure['feats'][0]['val'][5] += .01 * figure['feats'][0]['absmax']; figure['dets'] = [[d[0], *[x + 1 for x in d[1:5]], d[5]] for d in figure['dets']]
    figure['losses']['loss_cls'] *= 1.01
    bad = check_outputs(figure)
    assert len(bad) == 3 and 'features[0]' in bad[0] and 'missing' in bad[1] and 'loss_cls' in bad[2], bad


def test_masks_notice_a_difference():
    boxes = [np.array([[10., 10, 60, 60, .9], [80, 20, 130, 90, .8]])]
    masks = [list(ellipses(boxes[0][:, :4], 100, 140).masks)]
    want = [dict(cls=0, area=int(m.sum()), rle=encode_mask(m)['counts']) for m in masks[0]]
    assert not compare_masks(boxes, masks, want, (100, 140))
    assert compare_masks(boxes, [[np.roll(m, 3, 1) for m in masks[0]]], want, (100, 140)) == ['2 of the 2 best masks differ']


def hold(what, family, names):
    "What check.py says of a family: None where it has no figures, else the finished process"
    held = [p for p in zoo if what == 'configs' or p.startswith(family + '/') and not types(load(p)._cfg_dict.model) & PENDING]
    if what == 'outputs': held = [p for p in held if (full/'outputs'/f'{p[:-3].replace("/", "__")}.json').exists()]
    if not held: return None
    names.write_text('\n'.join(held))      # as a pattern, rpn/ would be in cascade_rpn/ too
    return subprocess.run([sys.executable, str(full/'check.py'), what, '--list', str(names)], capture_output=True, text=True, cwd=root,
                          env=dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1'))      # as the figures were made: see compare_detections


@pytest.fixture(scope='module')
def held(request, tmp_path_factory):
    "Every family that is asked for, one to a core"
    folder = tmp_path_factory.mktemp('names')
    wanted = [tuple(item.callspec.params[k] for k in ('what', 'family')) for item in request.session.items if item.name.startswith('test_full_figures[')]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()) as pool:
        yield {key: pool.submit(hold, *key, folder/f'{n}') for n, key in enumerate(wanted)}
        pool.shutdown(cancel_futures=True)


@pytest.mark.skipif(not full.exists(), reason='the full figures lie in ../shared/golden only')
@pytest.mark.parametrize('what,family', [('configs', '')] + [('outputs', f) for f in FAMILIES])
def test_full_figures(what, family, held):
    done = held[what, family].result()
    if done is None: pytest.skip(f'{family}: there are no figures of what its configs compute')
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
