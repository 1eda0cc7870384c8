"Panoptic maps on COCO's own sample: samples for training, quality, files, and one detector through all of it"
import json

import numpy as np, pytest, torch

from detnb import Config
from detnb.apis import inference_detector, single_gpu_test
from detnb.apis.test import encode_mask_results
from detnb.apis.train import check_classes
from detnb.datasets import CocoPanopticDataset, build_dataloader, build_dataset, replace_ImageToTensor
from detnb.evaluation import PanopticFigures
from detnb.foundation.environment import data_root
from detnb.foundation.images import imread
from detnb.models import build_detector
from detnb.structures import INSTANCE_OFFSET, PanopticResult, rgb2id

folder = data_root() and data_root()/'panoptic_sample'
real = pytest.mark.skipif(not (folder and folder.exists()), reason='the panoptic sample lies in ../shared/data only')


def config(**options):
    cfg = Config.fromfile('panoptic_fpn/panoptic_fpn_r50_fpn_1x_coco.py')
    cfg.merge_from_dict(options)
    for part in (cfg.data.train, cfg.data.val, cfg.data.test):
        part.update(ann_file=str(folder/'annotations/panoptic_val2017.json'), img_prefix=str(folder/'val2017'), seg_prefix=str(folder/'annotations/panoptic_val2017'))
        for step in part.pipeline:
            if step.type in ('Resize', 'MultiScaleFlipAug'): step.img_scale = (160, 128)
    return cfg


def small(cfg):
    cfg.model.backbone.update(depth=18, init_cfg=None); cfg.model.neck.in_channels = [64, 128, 256, 512]
    cfg.model.train_cfg.rcnn.sampler.num = 32; cfg.model.train_cfg.rpn_proposal.max_per_img = cfg.model.test_cfg.rpn.max_per_img = 50
    cfg.model.test_cfg.panoptic.update(score_thr=.01, stuff_area_limit=64)
    torch.manual_seed(0)
    model = build_detector(cfg.model); model.init_weights()
    return model


@real
def test_a_training_sample_is_the_png():
    cfg = config()
    dataset = build_dataset(dict(cfg.data.train, pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadPanopticAnnotations')]))
    assert (len(dataset.THING_CLASSES), len(dataset.STUFF_CLASSES), len(dataset.PALETTE)) == (80, 53, 133)
    raw = json.loads((folder/'annotations/panoptic_val2017.json').read_text())
    for i, ann in enumerate(raw['annotations']):
        sample, pan = dataset[i], rgb2id(imread(folder/'annotations/panoptic_val2017'/ann['file_name'], channel_order='rgb'))
        things = [s for s in ann['segments_info'] if dataset.categories[s['category_id']]['isthing'] and not s['iscrowd']]
        assert sample['gt_labels'].tolist() == [dataset.cat2label[s['category_id']] for s in things]
        assert all((m == (pan == s['id'])).all() for m, s in zip(sample['gt_masks'].masks, things, strict=True))
        for s in ann['segments_info']: assert (sample['gt_semantic_seg'][pan == s['id']] == dataset.cat2label[s['category_id']]).all()
        assert (sample['gt_semantic_seg'][pan == 0] == 255).all()
        boxes = np.array([s['bbox'] for s in things], float); boxes[:, 2:] += boxes[:, :2]
        assert np.abs(sample['gt_bboxes'] - boxes).max() == 0


def reference(pan_gt, gt, pan_pred, pred):
    "Panoptic quality of one image from its definition: a category's sum of IoU, matches, wrong and missed ones"
    void, count, hit = pan_gt == 0, {}, set()
    of = lambda c: count.setdefault(c, [0., 0, 0, 0])
    for g in gt:
        if g['iscrowd']: continue
        for p in pred:
            if p['category_id'] != g['category_id']: continue
            a, b = pan_gt == g['id'], pan_pred == p['id']
            iou = (a & b).sum() / ((a | b) & ~(b & void)).sum()
            if iou > .5: of(g['category_id'])[0] += iou; of(g['category_id'])[1] += 1; hit |= {('g', g['id']), ('p', p['id'])}
        if ('g', g['id']) not in hit: of(g['category_id'])[3] += 1
    for p in pred:
        if ('p', p['id']) in hit: continue
        b, crowd = pan_pred == p['id'], [pan_gt == g['id'] for g in gt if g['iscrowd'] and g['category_id'] == p['category_id']]
        if (b & (void | crowd[-1] if crowd else void)).sum() / b.sum() <= .5: of(p['category_id'])[2] += 1
    return count


@real
def test_quality_equals_its_definition():
    dataset = build_dataset(config().data.val, dict(test_mode=True))
    assert set(dataset.evaluate([dataset.truth(i) for i in range(2)], logger='silent').values()) == {100.}
    rng, answers, want = np.random.RandomState(0), [], {}
    for i in range(2):
        pan = np.roll(dataset.truth(i).pan, (5, -7), (0, 1))
        for k in np.unique(pan)[rng.rand(len(np.unique(pan))) < .3]: pan[pan == k] = rng.choice([133, 17 + (80 + i) * INSTANCE_OFFSET, 100])
        answers.append(dict(pan_results=pan))
        gt_map = rgb2id(imread(dataset._path(i), channel_order='rgb'))
        gt = [dict(id=s, category_id=c, iscrowd=crowd) for s, c, _, crowd, _ in dataset.segments[i].tolist()]
        for c, n in reference(gt_map, gt, *dataset._found(i, answers[-1])).items(): want[c] = np.add(want.get(c, 0), n)
    got = dataset.evaluate(answers, metric='pq', logger='silent', classwise=True)
    quality = {c: (iou / (tp + (fp + fn) / 2), iou / tp if tp else 0, tp / (tp + (fp + fn) / 2)) for c, (iou, tp, fp, fn) in want.items()}
    for end, kind in (('', (0, 1)), ('_th', (1,)), ('_st', (0,))):
        chosen = [q for c, q in quality.items() if dataset.categories[c]['isthing'] in kind]
        for name, value in zip(('PQ', 'SQ', 'RQ'), np.mean(chosen, 0)): assert abs(got[name + end] - 100 * value) < 1e-6, (name, end)
    assert 0 < got['PQ'] < 100 and isinstance(dataset.panoptic_figures, PanopticFigures)


@real
def test_train_test_and_evaluate(tmp_path):
    cfg = config(); model = small(cfg)
    train, test = build_dataset(cfg.data.train), build_dataset(cfg.data.test, dict(test_mode=True))
    check_classes(model, train, cfg)
    loader = build_dataloader(train, 2, 0, dist=False, seed=0)
    out = model.train().train_step(next(iter(loader)), None)
    out['loss'].backward()
    assert torch.isfinite(out['loss']) and {'loss_seg', 'loss_mask', 'loss_rpn_cls'} <= set(out['log_vars'])
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    test.pipeline = type(test.pipeline)(replace_ImageToTensor(cfg.data.test.pipeline))
    results = single_gpu_test(model, build_dataloader(test, 2, 0, dist=False, shuffle=False), out_dir=str(tmp_path/'drawn'), progress=False)
    assert [r['pan_results'].shape for r in results] == [(427, 640), (360, 640)] and results[0]['pan_results'].dtype == np.int32
    figures = test.evaluate(results, logger='silent', jsonfile_prefix=str(tmp_path/'mine'))
    assert list(figures) == ['PQ', 'SQ', 'RQ', 'PQ_th', 'SQ_th', 'RQ_th', 'PQ_st', 'SQ_st', 'RQ_st']
    assert sorted(p.name for p in (tmp_path/'panoptic').iterdir()) == ['000000142238.png', '000000439180.png'] and len(list((tmp_path/'drawn').iterdir())) == 2
    model.cfg, model.CLASSES = cfg, test.CLASSES
    found = inference_detector(model, str(folder/'val2017/000000142238.jpg'))
    assert isinstance(found, PanopticResult) and list(found) == ['pan_results'] and found._repr_jpeg_()[:2] == b'\xff\xd8'
    shown = model.show_result(str(folder/'val2017/000000142238.jpg'), dict(found), out_file=str(tmp_path/'one.jpg'))
    assert shown.shape == (427, 640, 3) and (tmp_path/'one.jpg').exists()


@real
def test_instances_beside_the_map():
    "bbox and segm of things against a COCO file of instances"
    dataset = CocoPanopticDataset(str(folder/'annotations/panoptic_val2017.json'), [], ins_ann_file=str(folder/'annotations/panoptic_coco_detection_format.json'),
                                  seg_prefix=str(folder/'annotations/panoptic_val2017'), test_mode=True)
    answers = []
    for i in range(2):
        ann, truth = dataset.get_ann_info(i), dataset.truth(i)
        things = [s for s in ann['masks'] if s['is_thing']]
        pan = rgb2id(imread(dataset._path(i), channel_order='rgb'))
        boxes = [np.concatenate([ann['bboxes'][ann['labels'] == c], np.ones(((ann['labels'] == c).sum(), 1))], 1) for c in range(80)]
        masks = [[pan == s['id'] for s in things if s['category'] == c] for c in range(80)]
        answers.append(encode_mask_results(dict(truth, ins_results=(boxes, masks))))
    got = dataset.evaluate(answers, metric=['PQ', 'bbox', 'segm'], logger='silent')
    assert got['PQ'] == 100 and got['bbox_mAP'] > .95 and got['segm_mAP'] > .95


def test_a_test_file_without_annotations(tmp_path):
    categories = [dict(id=i + 1, name=n, isthing=int(i < 80)) for i, n in enumerate(CocoPanopticDataset.CLASSES)]
    (tmp_path/'info.json').write_text(json.dumps(dict(images=[dict(id=1, file_name='a.jpg', width=8, height=6)], categories=categories)))
    dataset = CocoPanopticDataset(str(tmp_path/'info.json'), [], test_mode=True)
    files, _ = dataset.format_results([dict(pan_results=np.full((6, 8), 133))], jsonfile_prefix=str(tmp_path/'out'))
    assert json.loads(open(files['panoptic']).read())['annotations'] == [dict(image_id=1, segments_info=[], file_name='a.png')]
    with pytest.raises(ValueError, match='lacks the list annotations'): CocoPanopticDataset(str(tmp_path/'info.json'), [])
