"""Shared parts of the tests: checkpoints rebuilt from their seeds, small images, real commands."""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib.util
import os
import signal
from pathlib import Path

import numpy as np
import pytest

# What a shell or nohup has told this process to ignore, those that it starts would ignore too. A
# handler is not passed on to them.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)
# No test leaves this machine. A proxy would be asked even for the servers of the tests, and
# variables of the user name other servers.
for name in list(os.environ):
    if name.lower().endswith("_proxy") or name in (
        "BIT_PADDLE_API_KEY",
        "BIT_PADDLE_BASE_URL",
        "BIT_PADDLE_MIRRORS",
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
    ):
        del os.environ[name]
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores, of one thread each
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
else:  # Paddle sets 1 where there is none; commands that a test starts would inherit that
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

from helpers.commands import run_here, run_train, start_train, wait_until
from helpers.places import GOLDEN, ROOT, SHARED

import bit_paddle  # before Paddle, as users import the package

_spec = importlib.util.spec_from_file_location("make_checkpoint", GOLDEN / "make_checkpoint.py")
make_checkpoint = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_checkpoint)


def arrays_of(layers: int, width: int, classes: int, seed: int) -> dict[str, np.ndarray]:
    """Return the pseudo-random checkpoint that the goldens were computed from."""
    return make_checkpoint.checkpoint(make_checkpoint.UNITS[layers], width, classes, seed)


class Golden:
    """A golden file, and the model and checkpoint arrays that belong to it."""

    def __init__(self, name: str):
        self.values = dict(np.load(GOLDEN / f"{name}.npz"))
        self.arrays = arrays_of(
            *(int(self.values[key]) for key in ("layers", "width", "classes", "seed"))
        )
        assert make_checkpoint.digest(self.arrays) == self.values["digest"]

    def __getitem__(self, key: str):
        value = self.values[key]
        return value if value.ndim else value.item()

    def model(self, tmp_path: Path):
        from bit_paddle import create_model

        path = tmp_path / "golden.npz"
        np.savez(path, **self.arrays)
        return create_model(path)

    def images(self, dtype: str) -> np.ndarray:
        random = np.random.default_rng(self["image_seed"])
        return random.uniform(-1, 1, self["input_shape"]).astype(np.float32).astype(dtype)


def in_checkpoint_layout(parameter_name: str, value: np.ndarray) -> np.ndarray:
    """Parameter or gradient -> the layout of the checkpoint, flattened."""
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
    return value.ravel()


def golden_sample(flat: np.ndarray) -> np.ndarray:
    return flat[np.linspace(0, flat.size - 1, min(16, flat.size)).astype(np.int64)]


@pytest.fixture(scope="session", autouse=True)
def cache_of_tests(tmp_path_factory):
    """No test reads or writes the user's own cache. Workers share the operators they compile."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "native"
    shared.mkdir(exist_ok=True)
    home = tmp_path_factory.mktemp("cache") / "bit_paddle"
    home.mkdir()
    (home / "native").symlink_to(shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home.parent))
        patch.setenv("BIT_PADDLE_HOME", str(home))
        patch.setenv("HF_HOME", str(home.parent / "huggingface"))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
        patch.setenv("HF_HUB_DISABLE_XET", "1")  # no server of the tests speaks that protocol
        yield


@pytest.fixture(scope="module", autouse=True)
def memory_is_returned():
    """Commands make malloc keep what is freed, see `environment.keep_memory`; here are thousands.

    On a machine with little memory the kernel would kill this process.
    """
    yield
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    """Paddle's default type for the length of a test."""
    import paddle

    before = paddle.get_default_dtype()
    paddle.set_default_dtype(request.param)
    yield request.param
    paddle.set_default_dtype(before)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory) -> Path:
    """R14x1 with a head of 10 outputs, as an .npz file."""
    path = tmp_path_factory.mktemp("checkpoints") / "small.npz"
    np.savez(path, **arrays_of(14, 1, 10, 0))
    return path


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """train/ with 12 and val/ with 5 images of each of three classes, told apart by colour."""
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 5)):
        for label, name in enumerate(("amber", "blue", "coral")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = random.integers(0, 120, (40 + k, 50, 3))
                pixels[..., label] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k}.png")
    return root


def update(model, optimizer, parts, lr, lam=1.0, images=None, loss_of=None, **options):
    """`step.update` with ``parts``, which are all of the batch unless it has more ``images``."""
    from bit_paddle.training import distributed, step
    from bit_paddle.training.classification import task

    sums = distributed.GradientSums(list(model.parameters()))
    images = sum(len(part.labels) for part in parts) if images is None else images
    loss = functools.partial(loss_of or task.loss_of, images=images, lam=lam)
    return step.update(model, optimizer, sums, parts, loss, lr, **options)
