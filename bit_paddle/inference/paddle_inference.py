"""Folders of ``export --format paddle``: what is in them, and how Paddle Inference runs them.

They are of Paddle's own operators alone, for machines without this package; here Paddle Inference
computes them as it does there: by oneDNN, on every core, in float32 or bfloat16.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bit_paddle.errors import CheckpointError
from bit_paddle.system import environment

if TYPE_CHECKING:
    from bit_paddle.models.resnetv2 import ResNetV2


Run = Callable[[np.ndarray], np.ndarray]  # images [N, 3, H, W] -> logits, or features [N, C]


NOTES = "bit_paddle.json"  # what a `TrainedFile` knows of it

_NAME, _WEIGHTS = "inference", "inference.pdiparams"

_PROGRAMS = ("inference.json", "inference.pdmodel")  # of Paddle 3, of Paddle 2


def is_exported(path: str | os.PathLike) -> bool:
    """Tell whether ``path`` is such a folder."""
    return Path(path, NOTES).is_file()


def hush() -> None:
    """Keep Paddle's executors from announcing themselves; before it is imported."""
    os.environ.setdefault("GLOG_minloglevel", "2")


def write(model: ResNetV2, path: Path) -> None:
    """Write the program and weights of ``model``, for any batch and any size, into ``path``."""
    import paddle

    images = paddle.static.InputSpec([None, 3, None, None], "float32", "images")
    paddle.jit.save(model, str(path / _NAME), input_spec=[images])


def open_folder(path: Path, bf16: bool = False) -> Run:
    """Return the model of ``path`` as a function of float32 images in [-1, 1].

    Raises `CheckpointError` where files are missing.
    """
    from paddle import inference

    programs = [path / name for name in _PROGRAMS if (path / name).is_file()]
    if not programs or not (path / _WEIGHTS).is_file():
        raise CheckpointError(
            f"{path}: an exported model has {' or '.join(_PROGRAMS)}, and {_WEIGHTS}; something "
            "is missing here: export it again"
        )
    config = inference.Config(str(programs[0]), str(path / _WEIGHTS))
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(environment.threads())
    config.enable_mkldnn()
    if bf16:
        config.enable_mkldnn_bfloat16()
    predictor = inference.create_predictor(config)
    taken = predictor.get_input_handle(predictor.get_input_names()[0])
    given = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(images: np.ndarray) -> np.ndarray:
        taken.copy_from_cpu(np.ascontiguousarray(images))
        with _stdout_on_stderr():  # where results go, and one of Paddle 3.3's kernels says its name
            predictor.run()
        return given.copy_to_cpu()

    return run


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Send what is written to this process's standard output, from C++ too, to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
