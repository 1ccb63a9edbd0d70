"""Verify an exported model: load it back and compare its outputs with the model's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bit_paddle.errors import BitPaddleError, DifferenceError, WriteError
from bit_paddle.inference.formats import FORMATS, as_run
from bit_paddle.inference.paddle_inference import Run
from bit_paddle.inference.trained import TrainedFile

if TYPE_CHECKING:
    from bit_paddle.models.resnetv2 import ResNetV2


LIMIT = 1e-5  # relative difference between the export's outputs and the model's

IMAGES = ((2, 3, 64, 64), (1, 3, 97, 130))  # shapes of the compared batches


# --- Verification -------------------------------------------------------------------------------


def relative_difference(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, divided by the largest absolute value of ``expected``.

    It is infinite for different shapes, and NaN if any output is.
    """
    if outputs.shape != expected.shape:
        return np.inf
    scale = np.abs(expected).max()
    return float(np.abs(outputs - expected).max() / (scale if scale != 0 else 1))


class Verified(NamedTuple):
    """The largest relative differences; the last two are None if the first is within `LIMIT`."""

    difference: float  # between the export and the model
    inexact: float | None = None  # between the export and the model in float64
    rounding: float | None = None  # between the model and the model in float64

    def __str__(self) -> str:
        text = f"the outputs differ from the model's by at most {self.difference:.1e} (relative)"
        if self.inexact is None:
            return text
        return (
            f"{text}; this is rounding: from the model in float64 they differ by "
            f"{self.inexact:.1e}, the model itself by {self.rounding:.1e}"
        )


def verify(run: Run, model: ResNetV2) -> Verified:
    """Compare the outputs of ``run`` and ``model`` for two image sizes; return the differences.

    The relative difference may be up to `LIMIT`. Deep networks round more than that in float32:
    then the export may differ from the outputs in float64 by twice as much as the model does.
    Raises `DifferenceError` beyond that.
    """
    random = np.random.default_rng(0)
    batches = [random.uniform(-1, 1, shape).astype(np.float32) for shape in IMAGES]
    outputs = [run(batch) for batch in batches]
    expected = [as_run(model)(batch) for batch in batches]
    difference = _largest(outputs, expected)
    if difference <= LIMIT:
        return Verified(difference)
    exact = [as_run(_in_float64(model))(batch.astype(np.float64)) for batch in batches]
    result = Verified(difference, _largest(outputs, exact), _largest(expected, exact))
    if not result.inexact <= max(LIMIT, 2 * result.rounding):
        raise DifferenceError(
            f"the export's outputs differ from the model's by {difference:.1e} (relative), more "
            f"than {LIMIT:g} and more than rounding in float32 explains; nothing was written"
        )
    return result


def _largest(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    return float(np.max(list(map(relative_difference, outputs, expected))))  # NaN if any is NaN


def _in_float64(model: ResNetV2) -> ResNetV2:
    from bit_paddle.models.resnetv2 import ResNetV2

    exact = ResNetV2(model.architecture, model.num_classes)
    exact.set_state_dict(model.state_dict())
    return exact.to(dtype="float64")


# --- The command --------------------------------------------------------------------------------


def export(
    model: ResNetV2, trained: TrainedFile, format: str, output: str | os.PathLike
) -> Verified | None:
    """Write ``model`` to ``output`` and verify it; return the differences that `verify` found.

    ``trained`` is the model's checkpoint. The result is None if the export could not be run,
    because onnxruntime is missing. ``output`` exists only if it is complete and verified. Errors:
    `ConfigError` if the format cannot hold the model, `DifferenceError`, `WriteError`.
    """
    output = Path(output)
    partial = output.with_name(f"{output.name}.{os.getpid()}.part")
    write, read = FORMATS[format].write, FORMATS[format].read
    try:
        write(model, trained, partial)
        run = read(partial, model)
        verified = None if run is None else verify(run, model)
        os.rename(partial, output)
    except (OSError, RuntimeError) as error:  # Paddle raises RuntimeError for a full disk
        if isinstance(error, BitPaddleError) and not isinstance(error, WriteError):
            raise
        reason = error.__cause__ if isinstance(error, WriteError) else error
        reason = getattr(reason, "strerror", None) or " ".join(str(reason).split())
        raise WriteError(
            f"{output}: cannot be written, or cannot be loaded back ({reason}); check the free "
            "space on the disk. Nothing was written"
        ) from error
    finally:
        with suppress(OSError):
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)
    return verified
