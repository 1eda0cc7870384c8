"The checkout is what is tested, and no test leaves seeds, plotting settings or torch defaults behind for the next"
import os, random, signal, sys
from pathlib import Path

os.environ.setdefault('MPLBACKEND', 'Agg')
root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))

# a shell that starts the suite in the background lets it ignore Ctrl-C, and so do its children; the tests of Ctrl-C need it heard
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)

import matplotlib, numpy as np, pytest, torch


def pytest_configure(config): config.addinivalue_line('markers', 'browser: opens JupyterLab in a browser; `-m "not browser"` leaves them out')


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
