"""Fixtures for all tests. Sample data is not part of the repository; tests that need it are skipped without it."""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import threading
from pathlib import Path

# Set before torch is imported: on a busy machine a second, spinning thread makes small models 50 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

# Set before triton is imported: without a GPU its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# On a shared machine a slow example says nothing about the code, so hypothesis has no deadlines. Its examples are the
# same in every run, so that a failure is due to the change; `pytest --hypothesis-profile=explore` draws new ones.
shared_machine = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", derandomize=True, **shared_machine)
settings.register_profile("explore", **shared_machine)
settings.load_profile("same")

# Compute float32 in float32: by default cuDNN convolutions use TF32, with an error a thousand times larger.
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False

# What tuning finds in tests is not for the user's models.
tuned = tempfile.TemporaryDirectory(prefix="vitpose_fast_tests_")
os.environ["VITPOSE_FAST_CACHE"] = tuned.name

ROOT = Path(__file__).resolve().parents[1]

# Subprocesses of tests import from this checkout too (pytest's `pythonpath` applies to its own process only).
SOURCES = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "training")]
os.environ["PYTHONPATH"] = os.pathsep.join([*SOURCES, *filter(None, [os.environ.get("PYTHONPATH")])])


def pytest_collection_modifyitems(items):
    """Skip tests marked `cuda` on a machine without a GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session")
def leave_if_broken():
    """leave_if_broken(test): if the GPU fails to synchronize, print one line that names the test and exit with code 70.

    Tests of this fixture pass other functions as `synchronize` and `leave`.
    """

    def check(test, synchronize=torch.cuda.synchronize, leave=os._exit):
        try:
            synchronize()
        except RuntimeError as error:
            line = str(error).splitlines()[0]
            print(f"\n{test}: the CUDA context is broken ({line}); this process ends", file=sys.stderr, flush=True)
            leave(70)

    return check


@pytest.fixture(autouse=True)
def sound_device(request, leave_if_broken):
    """Exit the process after a test that broke the CUDA context, since every later test in it would fail too.

    pytest-xdist reports the test as crashed and starts a new worker; without it the run ends here with a message.
    """
    yield
    if torch.cuda.is_initialized():
        leave_if_broken(request.node.nodeid)


@pytest.fixture
def recorder(monkeypatch):
    """Replace CUDA graphs by fakes whose replay runs the function on the captured buffers, as a GPU would.

    The value of the fixture is the list of the batch sizes captured so far, in order.
    """
    from vitpose_fast import graphs

    recorded = []

    def record(self, function, inputs):
        def run():
            graphs._recorder = threading.get_ident()
            try:
                return function(*inputs)
            finally:
                graphs._recorder = None

        out = run()
        out = tuple(out) if isinstance(out, tuple) else (out,)

        class Graph:
            def replay(_):
                again = run()
                for buffer, value in zip(out, again if isinstance(again, tuple) else (again,), strict=True):
                    buffer.copy_(value)

        recorded.append(inputs[0].shape[0])
        return graphs._Recorded(Graph(), inputs, out)

    monkeypatch.setattr(graphs.Graphs, "_record", record)
    return recorded


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of the sample data: $VITPOSE_SAMPLES, or else ../shared/samples next to the checkout.

    Tests that use it are skipped if it has no data.
    """
    folder = Path(os.environ.get("VITPOSE_SAMPLES", ROOT.parent / "shared" / "samples"))
    if not (folder / "coco" / "test_coco.json").is_file():
        pytest.skip(f"no sample data in {folder}; set VITPOSE_SAMPLES")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """Root folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def python_path():
    """python_path(*folders) -> a value for PYTHONPATH: these folders, this checkout, and what PYTHONPATH had before."""
    return lambda *folders: os.pathsep.join([*map(str, folders), os.environ["PYTHONPATH"]])


@pytest.fixture(scope="session")
def scramble():
    """scramble(model, seed=0): fill all weights and statistics in place with random values, and return the model.

    No value is 0 or 1, and the outputs are of order 1.
    """
    import torch

    def randomize(model, seed=0):
        noise = torch.Generator().manual_seed(seed)
        for name, value in model.state_dict().items():
            draw = torch.randn(value.shape, generator=noise)
            if "num_batches" in name:
                draw = torch.tensor(7 + seed)
            elif "running_var" in name:
                draw = 0.5 + draw.abs()
            elif "deconv" in name and value.dim() == 4:  # [in, out, 4, 4]; a quarter of the taps reaches an output
                draw = draw / (4 * value.shape[0]) ** 0.5
            elif value.dim() > 1 and "pos" not in name:
                draw = draw / value[0].numel() ** 0.5
            else:
                draw = 0.2 * draw + (1.0 if name.endswith("weight") else 0.0)
            value.copy_(draw)
        return model

    return randomize


@pytest.fixture(scope="session")
def damage():
    """damage(data, rng) -> a copy of JSON-like data in which some random values are replaced by bad ones or deleted."""
    leaves = [None, "", "x", -1, 0, 1e308, float("nan"), [], {}, True, [[1]], "1", 10**400]

    def damaged(data, rng):
        """Return a copy of `data` with one to three random values replaced by one of `leaves`, or deleted.

        `rng` is a `random.Random`. Empty data, and data that is no dict or list, is returned unchanged.
        """
        data = copy.deepcopy(data)
        for _ in range(rng.randint(1, 3)):
            place, key = None, None
            inside = data
            while isinstance(inside, (dict, list)) and inside and (place is None or rng.random() < 0.8):
                place, key = inside, rng.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
                inside = place[key]
            if place is None:
                return data
            if rng.random() < 0.25:
                del place[key]
            else:
                place[key] = copy.deepcopy(rng.choice(leaves))
        return data

    return damaged
