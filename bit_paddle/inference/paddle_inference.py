"""Write and run the folders of ``export --format paddle``.

They contain only Paddle's own operators, for machines without this package. This package runs them
as such a machine does: with Paddle Inference and oneDNN, on all cores, in float32 or bfloat16.
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


NOTES = "bit_paddle.json"  # the fields of a `TrainedFile`

_NAME, _WEIGHTS = "inference", "inference.pdiparams"

_PROGRAMS = ("inference.json", "inference.pdmodel")  # written by Paddle 3, by Paddle 2


def is_exported(path: str | os.PathLike) -> bool:
    """Return whether ``path`` is a folder of ``export --format paddle``."""
    return Path(path, NOTES).is_file()


def hush() -> None:
    """Silence the log messages of Paddle's executors; call it before Paddle is imported."""
    os.environ.setdefault("GLOG_minloglevel", "2")


def write(model: ResNetV2, path: Path) -> None:
    """Write the program and weights of ``model`` into ``path``, for any batch and image size."""
    import paddle

    images = paddle.static.InputSpec([None, 3, None, None], "float32", "images")
    paddle.jit.save(model, str(path / _NAME), input_spec=[images])


def open_folder(path: Path, bf16: bool = False) -> Run:
    """Return the model in ``path`` as a function of float32 images in [-1, 1].

    Raises `CheckpointError` if files are missing.
    """
    from paddle import inference

    programs = [path / name for name in _PROGRAMS if (path / name).is_file()]
    if not programs or not (path / _WEIGHTS).is_file():
        raise CheckpointError(
            f"{path}: a file is missing: expected {' or '.join(_PROGRAMS)}, and {_WEIGHTS}; export "
            "the model again"
        )
    config = inference.Config(str(programs[0]), str(path / _WEIGHTS))
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(environment.threads())
    config.enable_mkldnn()
    if bf16:
        config.enable_mkldnn_bfloat16()
    predictor = inference.create_predictor(config)
    inputs = predictor.get_input_handle(predictor.get_input_names()[0])
    outputs = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(images: np.ndarray) -> np.ndarray:
        inputs.copy_from_cpu(np.ascontiguousarray(images))
        with _stdout_on_stderr():  # one of Paddle 3.3's kernels prints its name among the results
            predictor.run()
        return outputs.copy_to_cpu()

    return run


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Redirect the standard output of this process, also of C++ code, to standard error."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
