"Detecting in pictures of every kind, alone and in batches"
import asyncio, warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detnb.apis import async_inference_detector, inference_detector, init_detector, show_result_pyplot
from detnb.foundation.config import Config
from detnb.training.state import pack, write_checkpoint

SMALL = {'model.backbone.init_cfg': None, 'model.backbone.base_channels': 16, 'model.neck.in_channels': [16, 32, 64, 128], 'model.neck.out_channels': 16,
         'model.bbox_head.in_channels': 16, 'model.bbox_head.feat_channels': 16, 'model.bbox_head.num_classes': 3, 'model.bbox_head.stacked_convs': 1,
         'model.test_cfg.score_thr': 0.0, 'data.test.pipeline.1.img_scale': (128, 96), 'data.test.classes': ('cat', 'dog', 'bird')}


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return init_detector('retinanet/retinanet_r18_fpn_1x_coco.py', device='cpu', cfg_options=SMALL)


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    array = np.random.default_rng(0).integers(0, 256, (72, 96, 3), np.uint8)
    path = tmp_path_factory.mktemp('photos')/'photo.png'
    Image.fromarray(array[..., ::-1]).save(path)
    return array, path


def equal(a, b): return all(np.allclose(x, y, atol=1e-4) for x, y in zip(a, b, strict=True))


def test_a_picture_is_a_path_an_array_or_pil(model, photo):
    array, path = photo
    first = inference_detector(model, array)
    assert len(first) == 3 and all(r.ndim == 2 and r.shape[1] == 5 for r in first) and sum(map(len, first)) > 0
    for other in (str(path), Path(path), Image.open(path)): assert equal(first, inference_detector(model, other))
    assert isinstance(first, list) and first.classes == ('cat', 'dog', 'bird')


def test_lists_are_batched_and_keep_their_order(model, photo):
    array, path = photo
    calls, forward = [], model.forward
    model.forward = lambda *a, **k: calls.append(len(k['img_metas'][0])) or forward(*a, **k)
    try:
        upright = array.transpose(1, 0, 2).copy()
        flipped = array[:, ::-1].copy()
        found = inference_detector(model, (array, upright, str(path), flipped), batch_size=3)
    finally: del model.forward
    assert sorted(calls) == [1, 1, 2] and len(found) == 4                  # of the first three pictures one stands upright
    for one, img in zip(found, (array, upright, array, flipped)): assert equal(one, inference_detector(model, img))
    assert inference_detector(model, []) == []


def test_a_list_with_test_time_augmentation_goes_one_by_one(photo):
    torch.manual_seed(0)
    model = init_detector('retinanet/retinanet_r18_fpn_1x_coco.py', None, 'cpu', {**SMALL, 'data.test.pipeline.1.flip': True})
    pictures = [photo[0], np.roll(photo[0], 20, 1)]
    calls = []
    model.register_forward_pre_hook(lambda m, args, kw: calls.append([tuple(i.shape[:1]) for i in kw['img']]), with_kwargs=True)
    found = inference_detector(model, pictures)
    assert calls == [[(1,), (1,)]] * 2
    for result, picture in zip(found, pictures): assert sum(map(len, result)) > 0 and equal(result, inference_detector(model, picture))


def test_who_gives_up_takes_nobody_along(model, photo):
    "A request that was cancelled, for a picture that cannot be read, in one batch with another request"
    async def several():
        bad, good = (asyncio.create_task(async_inference_detector(model, x)) for x in ('none.jpg', photo[0]))
        await asyncio.sleep(0)
        bad.cancel()
        return await asyncio.gather(bad, good, async_inference_detector(model, photo[0]), return_exceptions=True)
    bad, good, later = asyncio.run(several())
    assert isinstance(bad, asyncio.CancelledError) and equal(good, later) and equal(good, inference_detector(model, photo[0]))


def test_beside_the_event_loop(model, photo):
    async def both(): return await asyncio.gather(*(async_inference_detector(model, img) for img in photo))
    a, b = asyncio.run(both())
    assert equal(a, b)


def test_weights_and_classes_from_a_checkpoint(model, tmp_path, photo):
    config = Config.fromfile('retinanet/retinanet_r18_fpn_1x_coco.py')
    path = write_checkpoint(pack(model, meta=dict(CLASSES=('a', 'b', 'c'))), tmp_path/'w.pth')
    other = init_detector(config, str(path), 'cpu', SMALL)
    assert other.CLASSES == ('a', 'b', 'c') and equal(inference_detector(model, photo[0]), inference_detector(other, photo[0]))
    assert other.cfg is config and not other.training
    with pytest.raises(FileNotFoundError): init_detector(config, str(tmp_path/'none.pth'), 'cpu')


def test_bad_pictures_are_named(model, photo, tmp_path):
    with pytest.raises(FileNotFoundError, match='none.jpg'): inference_detector(model, str(tmp_path/'none.jpg'))
    (tmp_path/'broken.jpg').write_bytes(photo[1].read_bytes()[:500])
    with pytest.raises(OSError) as e: inference_detector(model, [photo[0], str(tmp_path/'broken.jpg')])
    assert 'broken.jpg' in '\n'.join([str(e.value), *getattr(e.value, '__notes__', ())])
    with pytest.raises(TypeError, match='a path, an array or a PIL image'): inference_detector(model, 3)
    with pytest.raises(ValueError, match='BGR'): inference_detector(model, photo[0][..., :2])


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_the_cpu_does_it_and_says_so():
    with pytest.warns(UserWarning, match='runs on the CPU'): model = init_detector('retinanet/retinanet_r18_fpn_1x_coco.py', cfg_options=SMALL)
    assert next(model.parameters()).device.type == 'cpu'


def test_picture_of_a_result(model, photo, tmp_path):
    out = tmp_path/'out.png'
    result = inference_detector(model, photo[0])
    with pytest.warns(UserWarning, match='no display'): show_result_pyplot(model, photo[0], result, score_thr=0)
    with warnings.catch_warnings():                                        # a file that was asked for needs no display
        warnings.simplefilter('error')
        show_result_pyplot(model, photo[0], result, score_thr=0, palette='coco', out_file=str(out))
    assert Image.open(out).size == (96, 72)
