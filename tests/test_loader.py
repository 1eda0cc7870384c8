"Batches: the same for any number of workers, errors with their frames, deferred normalisation"
import numpy as np, pytest, torch

from detnb.datasets.loader import build_dataloader, collate
from detnb.datasets.shapes import shapes_sample
from detnb.datasets.transforms import Compose

NORM = dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
TAIL = [NORM, dict(type='Pad', size_divisor=32), dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'])]


class Pictures:
    CLASSES = ('ball', 'box', 'triangle', 'star', 'ring')
    def __init__(self, n=8, steps=(dict(type='RandomCrop', crop_size=(.7, .7), crop_type='relative_range', allow_negative_crop=True),
                                   dict(type='PhotoMetricDistortion')), tail=TAIL, broken=()):
        self.n, self.pipeline, self.broken, self.flag = n, Compose([*steps, *tail]), broken, np.arange(n) % 2
    def __len__(self): return self.n
    def __getitem__(self, i):
        if i in self.broken: raise OSError(f'picture {i} is broken')
        return self.pipeline(shapes_sample(i, size=(100, 80) if i % 2 else (80, 100)))


class Repeat:
    def __init__(self, dataset, times): self.dataset, self.times, self.flag = dataset, times, np.tile(dataset.flag, times)
    def __len__(self): return len(self.dataset) * self.times
    def __getitem__(self, i): return self.dataset[i % len(self.dataset)]


def same(a, b):
    assert [m['filename'] for m in a['img_metas']] == [m['filename'] for m in b['img_metas']]
    assert torch.equal(a['img'], b['img']) and all(torch.equal(x, y) for x, y in zip(a['gt_bboxes'], b['gt_bboxes']))


def test_the_same_for_any_number_of_workers():
    alone, one, two = (list(build_dataloader(Pictures(), 2, n, dist=False, seed=1)) for n in (0, 1, 2))
    for a, b, c in zip(alone, one, two): same(a, b); same(a, c)


def test_persistent_workers_and_epochs():
    loader, plain = build_dataloader(Pictures(), 2, 1, dist=False, seed=1, persistent_workers=True), build_dataloader(Pictures(), 2, 0, dist=False, seed=1)
    first = [[m['filename'] for b in plain for m in b['img_metas']] for _ in range(2)]
    assert first[0] != first[1]
    for epoch in (1, 0):
        loader.set_epoch(epoch)
        assert [m['filename'] for b in loader for m in b['img_metas']] == first[epoch]


def test_resuming_in_the_middle_of_an_epoch():
    whole = list(build_dataloader(Pictures(), 2, 0, dist=False, seed=1))
    for workers in (0, 2):
        loader = build_dataloader(Pictures(), 2, workers, dist=False, seed=1)
        loader.skip(2)
        for a, b in zip(whole[2:], loader, strict=True): same(a, b)


def test_without_a_seed_the_users_seed_decides():
    names = []
    for _ in range(2):
        np.random.seed(5)
        names.append([m['filename'] for b in build_dataloader(Pictures(), 2, 0, dist=False) for m in b['img_metas']])
    assert names[0] == names[1]


def test_reading_leaves_the_users_luck_alone():
    np.random.seed(0); want = np.random.rand()
    np.random.seed(0)
    list(build_dataloader(Pictures(), 2, 0, dist=False, seed=1))
    assert np.random.rand() == want


@pytest.mark.parametrize('workers', [0, 2])
def test_error_comes_from_the_main_process(workers):
    with pytest.raises(OSError, match='picture 5 is broken') as e: list(build_dataloader(Pictures(broken=[5]), 2, workers, dist=False, shuffle=False))
    assert 'Caught' not in str(e.value)                                       # not a worker's text
    assert any(entry.name == '__getitem__' for entry in e.traceback)          # the real frames
    if hasattr(e.value, '__notes__'): assert 'items [4, 5] of the Pictures' in e.value.__notes__[-1]


class Hiccup(Pictures):
    def __getitem__(self, i):
        if i == 5 and torch.utils.data.get_worker_info() is not None: raise OSError('the disk was away')
        return super().__getitem__(i)


def test_what_succeeds_the_second_time_goes_on():
    for a, b in zip(build_dataloader(Hiccup(), 2, 1, dist=False, seed=1), build_dataloader(Pictures(), 2, 0, dist=False, seed=1), strict=True): same(a, b)


def test_deferred_batch_equals_the_normalised_one():
    flip = [dict(type='RandomFlip', flip_ratio=1.)]
    batch = next(iter(build_dataloader(Repeat(Pictures(steps=flip), 2), 4, 0, dist=False, shuffle=False)))
    want = collate([Pictures(steps=flip)[i] for i in range(4)])
    assert batch['img'].dtype == torch.uint8 and want['img'].dtype == torch.float32 and batch['img'].shape == want['img'].shape
    for img, meta, expect in zip(batch['img'], batch['img_metas'], want['img']):
        norm, (h, w) = meta['img_norm_cfg'], meta['img_shape'][:2]
        out = (img.flip(0) - torch.tensor(norm['mean'])[:, None, None]) / torch.tensor(norm['std'])[:, None, None]
        out[:, h:] = 0; out[:, :, w:] = 0
        torch.testing.assert_close(out, expect, rtol=1e-5, atol=1e-5)


def test_bytes_and_floats_in_one_batch():
    "A random policy may leave some images float and others not; then all are normalised here"
    class Mixed(Pictures):
        def __getitem__(self, i):
            sample = shapes_sample(i)
            if i % 2: sample['img'] = sample['img'].astype(np.float32)
            return self.pipeline(sample)
    batch = next(iter(build_dataloader(Mixed(steps=[]), 2, 0, dist=False, shuffle=False)))
    want = collate([Compose(TAIL)(shapes_sample(i)) for i in range(2)])
    torch.testing.assert_close(batch['img'], want['img'], rtol=1e-5, atol=1e-4)


def test_users_dataset_is_not_changed():
    dataset = Pictures()
    loader = build_dataloader(dataset, 2, 0, dist=False)
    assert dataset[0]['img'].dtype == torch.float32 and not hasattr(dataset, '__getitems__')
    assert type(loader.dataset) is Pictures and loader.dataset.CLASSES == Pictures.CLASSES


def test_views_become_a_list_of_batches():
    views = dict(type='MultiScaleFlipAug', img_scale=[(64, 64), (96, 96)], flip=True, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), NORM, dict(type='Pad', size_divisor=32), dict(type='ImageToTensor', keys=['img']),
        dict(type='Collect', keys=['img'])])
    batch = next(iter(build_dataloader(Pictures(steps=[views], tail=[]), 2, 0, dist=False, shuffle=False)))
    assert [tuple(x.shape) for x in batch['img']] == [(2, 3, 64, 64)] * 2 + [(2, 3, 96, 96)] * 2
    assert [len(m) for m in batch['img_metas']] == [2] * 4 and all(x.dtype == torch.uint8 for x in batch['img'])


def test_semantic_maps_are_padded_with_the_ignore_label():
    seg = [dict(gt_semantic_seg=torch.zeros(1, h, 4, dtype=torch.uint8)) for h in (2, 3)]
    assert collate(seg)['gt_semantic_seg'][0, 0].tolist() == [[0] * 4, [0] * 4, [255] * 4]


@pytest.mark.parametrize('call, text', [
    (lambda: build_dataloader(Pictures(0), 2, 0, dist=False), 'Pictures is empty'),
    (lambda: build_dataloader(Pictures(), 0, 0, dist=False), 'samples_per_gpu must be at least 1'),
    (lambda: collate([dict(a=1), dict(b=1)]), 'samples of a batch differ')], ids=['empty', 'no samples', 'keys'])
def test_bad_settings(call, text):
    with pytest.raises((ValueError, KeyError), match=text): call()
