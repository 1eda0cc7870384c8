"""Run a function in a process of its own that starts with the heavy libraries already imported.

A notebook registers classes, sets seeds and default types; a process that is thrown away afterwards is the one place where all of that
is reset. Forking it from a server that holds torch, torchvision and matplotlib (and nothing of detnb) makes it cost milliseconds; where
the system can't fork, it starts from nothing and only takes longer."""
import contextlib, multiprocessing, os, sys, tempfile, traceback
from pathlib import Path

HEAVY = 'torch torchvision matplotlib.pyplot pycocotools.coco IPython nbdev.test'.split()
method = 'forkserver' if 'forkserver' in multiprocessing.get_all_start_methods() else 'spawn'
context = multiprocessing.get_context(method)
if method == 'forkserver': context.set_forkserver_preload(HEAVY)


def _child(function, args, log, environ):
    os.environ.clear(); os.environ.update(environ)          # as they are now, not when the fork server was started
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2): os.dup2(fd, stream)   # the descriptors, so that a library's own prints are caught too
    sys.stdout = sys.stderr = open(fd, 'w', buffering=1, encoding='utf-8', errors='replace', closefd=False)
    try: good = function(*args) is not False
    except BaseException: traceback.print_exc(); good = False
    sys.stdout.flush()
    if good: Path(f'{log}.good').touch()        # the fork server now and then loses an exit code when several end at once
    os._exit(0 if good else 1)                  # no clean-up of what a notebook left half open


def run(function, *args, timeout=600):
    "Call `function(*args)` in a fresh process -> (whether it returned without an exception and not False, what it printed)"
    fd, log = tempfile.mkstemp(suffix='.log'); os.close(fd)
    try:
        process = context.Process(target=_child, args=(function, args, log, dict(os.environ)))
        process.start(); process.join(timeout)
        late = process.is_alive()
        if late: process.kill(); process.join()
        text = Path(log).read_text(encoding='utf-8', errors='replace')
        good = Path(f'{log}.good').exists()
        ended = f'\nstopped after {timeout} s' if late else '' if good else f'\nended with exit code {process.exitcode}'
        return good, text + ended
    finally:
        for path in (log, f'{log}.good'):
            with contextlib.suppress(FileNotFoundError): os.unlink(path)


def run_notebook(path, root, skip_flags):
    "Execute one notebook, as `nbdev_test` does"
    os.environ['MPLBACKEND'] = 'Agg'
    import torch
    torch.set_num_threads(1)                    # several notebooks run at once
    from nbdev.test import test_nb
    return test_nb(Path(path), skip_flags=skip_flags, basepath=root)[0]


def import_module(name, root):
    "Import one module, alone"
    sys.path.insert(0, str(root))
    __import__(name)


def run_tutorial(path, root):
    "Execute one notebook in a Jupyter kernel of its own, as a reader does -> the notebook with the outputs of this run"
    import nbformat
    from jupyter_client import KernelManager
    from nbclient import NotebookClient
    notebook = nbformat.read(path, 4)
    manager = KernelManager(kernel_name='python3')
    # several run at once; the checkout comes before an installed package
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))}
    NotebookClient(notebook, km=manager, timeout=600, resources={'metadata': {'path': str(Path(path).parent)}}).execute(env=env)
    return notebook


def run_script(path, cwd, args, root):
    "Run a script as `python path *args` would, with the checkout on its path, in a process that knows nothing of detnb yet"
    import runpy
    os.chdir(cwd)
    os.environ.update(MPLBACKEND='Agg', PYTHONPATH=str(root), OMP_NUM_THREADS='1')      # the last two for processes that it starts
    import torch
    torch.set_num_threads(1)
    sys.argv, sys.path[:0] = [str(path), *args], [str(Path(path).parent), str(root)]
    runpy.run_path(str(path), run_name='__main__')
