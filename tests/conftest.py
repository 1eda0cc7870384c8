"The checkout is what is tested, and no test leaves seeds, plotting settings or torch defaults behind for the next"
import os, random, sys
from pathlib import Path

os.environ.setdefault('MPLBACKEND', 'Agg')
root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))

import matplotlib, numpy as np, pytest, torch


@pytest.fixture(scope='session')
def project():
    "Root folder of the checkout"
    return root


@pytest.fixture(autouse=True)
def clean_state():
    for seed in (random.seed, np.random.seed, torch.manual_seed): seed(0)
    settings = matplotlib.rcParams.copy()
    yield
    matplotlib.rcParams.update(settings)
    torch.set_default_dtype(torch.float32); torch.set_grad_enabled(True); torch.use_deterministic_algorithms(False)
