"The guides' workflows, step by step and by their letters; A: look at a picture with a trained detector"
import asyncio, io, re, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detnb import Config
from detnb.apis import async_inference_detector, detect_video, inference_detector, init_detector, show_result_pyplot
from detnb.cli.main import main
from detnb.foundation.images import imread, imwrite
from detnb.models import build_detector

CONFIG = 'demo/retinanet_r18_shapes.py'
av = pytest.importorskip('av', reason='video needs PyAV: pip install "detnb[video]"')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A checkpoint, a picture and a video, as somebody has them who comes to the guide"
    folder = tmp_path_factory.mktemp('look'); torch.manual_seed(0)
    cfg = Config.fromfile(CONFIG); model = build_detector(cfg.model)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(CLASSES=('circle', 'square', 'triangle', 'star', 'ring')[:cfg.model.bbox_head.num_classes])), folder/'w.pth')
    rng = np.random.RandomState(0)
    imwrite(rng.randint(0, 255, (96, 128, 3), np.uint8), str(folder/'demo.jpg'))
    from detnb.foundation import VideoWriter
    with VideoWriter(folder/'demo.mp4', fps=5) as video:
        for i in range(6): video.write(np.roll(rng.randint(0, 255, (96, 128, 3), np.uint8), i, 1))
    return folder


@pytest.fixture(scope='module')
def model(place):
    return init_detector(CONFIG, str(place/'w.pth'), device='cpu', cfg_options={'model.test_cfg.score_thr': 0.})


def test_A1_A4_one_picture(place, model):
    result = inference_detector(model, str(place/'demo.jpg'))
    again = inference_detector(model, imread(str(place/'demo.jpg')))       # or an array that was read once
    assert isinstance(result, list) and len(result) == model.bbox_head.num_classes
    assert all(r.dtype == np.float32 and r.shape[1] == 5 for r in result) and sum(map(len, result)) > 0
    assert all(np.array_equal(a, b) for a, b in zip(result, again))


def test_A2_A3_show_result(place, model, tmp_path):
    result = inference_detector(model, str(place/'demo.jpg'))
    model.show_result(str(place/'demo.jpg'), result, score_thr=0., out_file=str(tmp_path/'a.jpg'))
    show_result_pyplot(model, str(place/'demo.jpg'), result, score_thr=0., out_file=str(tmp_path/'b.jpg'))
    plain, drawn = imread(str(place/'demo.jpg')), imread(str(tmp_path/'a.jpg'))
    assert drawn.shape == plain.shape and np.abs(drawn.astype(int) - plain).mean() > 2
    assert imread(str(tmp_path/'b.jpg')).shape == plain.shape


def test_A4_masks_are_a_pair():
    cfg = Config.fromfile('mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py'); cfg.model.backbone = dict(type='ResNet', depth=18)
    cfg.model.neck.in_channels = [64, 128, 256, 512]; cfg.data.test.pipeline[1].img_scale = (128, 96); cfg.model.test_cfg.rcnn.score_thr = .0
    torch.manual_seed(0); model = init_detector(cfg, device='cpu', cfg_options={'model.test_cfg.rcnn.max_per_img': 5, 'model.test_cfg.rpn.max_per_img': 20})
    img = np.random.RandomState(0).randint(0, 255, (96, 128, 3), np.uint8)
    result = inference_detector(model, img)
    assert isinstance(result, tuple) and [len(part) for part in result] == [80, 80]
    for boxes, masks in zip(*result):
        assert len(boxes) == len(masks) and all(m.shape == (96, 128) and m.dtype == bool for m in masks)


def test_A5_video_frame_by_frame(place, model, tmp_path):
    from detnb.foundation import VideoReader
    frames = VideoReader(str(place/'demo.mp4'))
    results = [inference_detector(model, frame) for frame in frames]
    shown = model.show_result(frames[0], results[0], wait_time=1, score_thr=0.)
    assert len(results) == 6 and shown.shape == frames[0].shape
    for a, b in zip(results, detect_video(model, place/'demo.mp4', tmp_path/'out.mp4', progress=False)):
        assert np.allclose(sorted(a.scores), sorted(b.scores), atol=1e-3)


def test_A6_A11_webcam(place, capsys, tmp_path):
    "A file stands in for the camera; Esc, q and Q are held in the notebook of drawing.frames"
    code = main(['webcam', CONFIG, str(place/'w.pth'), '--device', 'cpu', '--camera-id', str(place/'demo.mp4'), '--score-thr', '0.1', '--no-show',
                 '--out', str(tmp_path/'seen.mp4'), '--max-frames', '4'])
    assert code == 0 and '4 frames' in capsys.readouterr().out and (tmp_path/'seen.mp4').stat().st_size > 500


@pytest.fixture
def camera(place):
    "An address that sends frames as a network camera does, as MPEG-TS or as a row of JPEGs, in real time; the addresses' beginning"
    from detnb.foundation import VideoReader
    frames = list(VideoReader(str(place/'demo.mp4'))) * 2

    class Camera(BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def do_GET(self):
            self.send_response(200)
            if self.path == '/live.mjpg':
                self.send_header('Content-Type', 'multipart/x-mixed-replace; boundary=frame'); self.end_headers()
                for frame in frames:
                    Image.fromarray(frame[..., ::-1]).save(jpeg := io.BytesIO(), 'JPEG')
                    self.wfile.write(b'--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n' % (len(jpeg.getvalue()), jpeg.getvalue())); time.sleep(.02)
                return
            self.send_header('Content-Type', 'video/mp2t'); self.end_headers()
            with av.open(self.wfile, 'w', format='mpegts') as out:
                stream = out.add_stream('mpeg2video', rate=25); stream.width, stream.height, stream.pix_fmt = 128, 96, 'yuv420p'
                for frame in frames: out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='bgr24'))); time.sleep(.02)
                out.mux(stream.encode(None))

    server = ThreadingHTTPServer(('127.0.0.1', 0), Camera); server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown(); server.server_close()


@pytest.mark.parametrize('kind', ['live.ts', 'live.mjpg'])
def test_A6_A11_a_real_stream(place, camera, kind, capsys, tmp_path):
    "Stopped after some frames; and one that the camera breaks off, by closing the connection: the video that was written is kept"
    webcam = ['webcam', CONFIG, str(place/'w.pth'), '--device', 'cpu', '--camera-id', f'{camera}/{kind}', '--score-thr', '0.1', '--no-show']
    assert main([*webcam, '--max-frames', '3', '--out', str(tmp_path/'seen.mp4')]) == 0 and '3 frames' in capsys.readouterr().out
    with pytest.warns(UserWarning, match='broke off after'): assert main([*webcam, '--out', str(tmp_path/'all.mp4')]) == 0
    assert (tmp_path/'all.mp4').stat().st_size > 500
    assert int(re.search(r'(\d+) frames', capsys.readouterr().out)[1]) >= 11               # a decoder may keep back the last


def test_A6_A11_no_camera_there(place, capsys, monkeypatch):
    webcam = ['webcam', CONFIG, str(place/'w.pth'), '--device', 'cpu', '--no-show', '--camera-id']
    assert main([*webcam, 'http://127.0.0.1:9/nothing']) == 1 and 'cannot open http://127.0.0.1:9/nothing' in capsys.readouterr().err
    assert main([*webcam, '77']) == 1 and 'is a camera connected' in capsys.readouterr().err


def test_A7_asynchronous(place, model):
    async def several():
        other = init_detector(CONFIG, str(place/'w.pth'), device='cpu', cfg_options={'model.test_cfg.score_thr': 0.})
        return await asyncio.gather(*[async_inference_detector(m, str(place/'demo.jpg')) for m in (model, model, other)])
    alone = inference_detector(model, str(place/'demo.jpg'))
    for answer in asyncio.run(several()): assert np.allclose(sorted(answer.scores), sorted(alone.scores), atol=1e-3)


@pytest.mark.parametrize('more', [[], ['--async-test']])
def test_A8_image_demo(place, tmp_path, more, capsys):
    assert main(['image', str(place/'demo.jpg'), CONFIG, str(place/'w.pth'), '--device', 'cpu', '--score-thr', '0.01',
                 '--out-file', str(tmp_path/'out.jpg'), *more]) == 0
    assert imread(str(tmp_path/'out.jpg')).shape == (96, 128, 3) and 'written to' in capsys.readouterr().out


def test_A9_video_demo(place, tmp_path):
    from detnb.foundation import VideoReader
    assert main(['video', str(place/'demo.mp4'), CONFIG, str(place/'w.pth'), '--device', 'cpu', '--score-thr', '0.01', '--out', str(tmp_path/'o.mp4')]) == 0
    assert len(VideoReader(str(tmp_path/'o.mp4'))) == 6
    assert main(['video', str(place/'demo.mp4'), CONFIG, str(place/'w.pth'), '--device', 'cpu']) == 2           # says what is missing


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_A10_decoding_on_a_gpu_that_is_not_there(place, tmp_path, capsys):
    assert main(['video', str(place/'demo.mp4'), CONFIG, str(place/'w.pth'), '--device', 'cpu', '--out', str(tmp_path/'o.mp4'), '--nvdecode']) == 1
    assert 'leave nvdecode out' in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_A12_environment(capsys):
    from detnb.foundation.environment import collect_env
    assert {'torch', 'Python'} <= set(collect_env())
    assert main(['env']) == 0 and 'torch' in capsys.readouterr().out
