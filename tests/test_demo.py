"The README's first command, as it is typed: it trains, measures, draws, and gets where it promises to"
import json, os, subprocess, sys
from pathlib import Path

from PIL import Image

root = Path(__file__).resolve().parent.parent


def test_demo(tmp_path):
    out = tmp_path/'a folder'
    env = dict({k: v for k, v in os.environ.items() if k != 'OMP_NUM_THREADS'}, PYTHONPATH=str(root))
    done = subprocess.run([sys.executable, '-m', 'detnb.cli.main', 'demo', '--out', str(out)], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    metrics = json.loads((out/'metrics.json').read_text())
    assert metrics['bbox_mAP_50'] >= .6 and metrics['bbox_mAP'] > .35, metrics
    assert set(metrics['class_AP']) == {'ball', 'box', 'triangle', 'star', 'ring'} and min(metrics['class_AP'].values()) > .2, metrics
    assert str(out) in done.stdout and 'loss' in done.stdout + done.stderr, 'it should say where it writes, and show how it goes'
    with Image.open(out/'sheet.png') as sheet: assert sheet.width > 600 and len(sheet.convert('RGB').getcolors(1 << 24)) > 1000
    records = [json.loads(line) for line in next(out.glob('*.log.json')).read_text().splitlines()]
    losses = [r['loss'] for r in records if r.get('mode') == 'train']
    assert losses[-1] < .5 * losses[0]
    assert (out/'latest.pth').exists() and len(list((out/'data'/'train').glob('*.jpg'))) == 400
