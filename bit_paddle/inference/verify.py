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

IMAGES = ((2, 3, 64, 64), (1, 3, 97, 130))  # what both are given


# --- Verification -------------------------------------------------------------------------------


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest of ``expected``; NaN if any is."""
    if found.shape != expected.shape:
        return np.inf
    scale = np.abs(expected).max()
    return float(np.abs(found - expected).max() / (scale if scale != 0 else 1))


class Verified(NamedTuple):
    """Largest relative differences; the last two are None where the first is within `LIMIT`."""

    difference: float  # of the export from the model
    inexact: float | None = None  # of the export from the model in float64
    rounding: float | None = None  # of the model from itself in float64

    def __str__(self) -> str:
        text = f"outputs within {self.difference:.1e} of the model's largest"
        if self.inexact is None:
            return text
        return (
            f"{text}, by rounding: within {self.inexact:.1e} of those in float64, where the "
            f"model's are within {self.rounding:.1e}"
        )


def verify(run: Run, model: ResNetV2) -> Verified:
    """Compare ``run`` with ``model`` over two sizes of images; raise `DifferenceError` if it fails.

    Their outputs may differ by `LIMIT` of the largest. Deep networks round more than that in
    float32; for them the export may be twice as far from the outputs in float64 as the model is.
    """
    random = np.random.default_rng(0)
    batches = [random.uniform(-1, 1, shape).astype(np.float32) for shape in IMAGES]
    found = [run(batch) for batch in batches]
    expected = [as_run(model)(batch) for batch in batches]
    difference = _largest(found, expected)
    if difference <= LIMIT:
        return Verified(difference)
    exact = [as_run(_in_float64(model))(batch.astype(np.float64)) for batch in batches]
    result = Verified(difference, _largest(found, exact), _largest(expected, exact))
    if not result.inexact <= max(LIMIT, 2 * result.rounding):
        raise DifferenceError(
            f"loaded back, its outputs differ from the model's by {difference:.1e} of the largest, "
            f"more than {LIMIT:g} and than float32 explains; nothing was kept"
        )
    return result


def _largest(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    return float(np.max(list(map(relative_difference, found, expected))))  # NaN if any is


def _in_float64(model: ResNetV2) -> ResNetV2:
    from bit_paddle.models.resnetv2 import ResNetV2

    exact = ResNetV2(model.architecture, model.num_classes)
    exact.set_state_dict(model.state_dict())
    return exact.to(dtype="float64")


# --- The command --------------------------------------------------------------------------------


def export(
    model: ResNetV2, trained: TrainedFile, format: str, output: str | os.PathLike
) -> Verified | None:
    """Write ``model``, whose checkpoint is ``trained``, as ``output``; return what `verify` does.

    None means that it could not be run (onnxruntime is missing). ``output`` appears when it is
    complete and verified, and is not there otherwise. Errors: `ConfigError` for what the format
    cannot hold, `DifferenceError`, `WriteError`.
    """
    output = Path(output)
    partial = output.with_name(f"{output.name}.{os.getpid()}.part")
    write, read = FORMATS[format].write, FORMATS[format].read
    try:
        write(model, trained, partial)
        run = read(partial, model)
        verified = None if run is None else verify(run, model)
        os.rename(partial, output)
    except (OSError, RuntimeError) as error:  # the latter are Paddle's, of which a full disk is one
        if isinstance(error, BitPaddleError) and not isinstance(error, WriteError):
            raise
        reason = error.__cause__ if isinstance(error, WriteError) else error
        reason = getattr(reason, "strerror", None) or " ".join(str(reason).split())
        raise WriteError(
            f"{output}: cannot be written, or not be loaded back ({reason}); is there room on the "
            "disk? Nothing was kept"
        ) from error
    finally:
        with suppress(OSError):
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)
    return verified
