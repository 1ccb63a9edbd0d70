"""Verify an exported model: load it back and compare what it computes with the model.

The outputs of the four stages, the features and the outputs are compared. An export of a model with
a head of zeros is compared with random numbers in the head, see `activations`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bit_paddle.errors import BitPaddleError, DifferenceError, WriteError
from bit_paddle.inference import activations, card
from bit_paddle.inference.activations import Activations, Head, Inspect
from bit_paddle.inference.formats import FORMATS
from bit_paddle.inference.trained import TrainedFile

if TYPE_CHECKING:
    from bit_paddle.models.resnetv2 import ResNetV2


LIMIT = 1e-5  # relative difference between the export's activations and the model's

IMAGES = ((2, 3, 64, 64), (1, 3, 97, 130))  # shapes of the compared batches


# --- Verification -------------------------------------------------------------------------------


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, divided by the largest absolute value of ``expected``.

    It is infinite for different shapes, and NaN if any number is.
    """
    if found.shape != expected.shape:
        return np.inf
    scale = np.abs(expected).max()
    return float(np.abs(found - expected).max() / (scale if scale != 0 else 1))


class Verified(NamedTuple):
    """The largest relative differences; the last two are None if the first is within `LIMIT`."""

    difference: float  # between the export and the model
    random_head: bool = False  # whether the head is zero, so that random numbers took its place
    inexact: float | None = None  # between the export and the model in float64
    rounding: float | None = None  # between the model and the model in float64

    def __str__(self) -> str:
        text = "the 4 stages, the features and the outputs"
        if self.random_head:
            text = f"{text} (also with random numbers in the head, because the head is zero)"
        if self.difference == 0:
            return f"{text} equal the model's"
        text = f"{text} differ from the model's by at most {self.difference:.1e} (relative)"
        if self.inexact is None:
            return text
        return (
            f"{text}; this is rounding: from the model in float64 they differ by "
            f"{self.inexact:.1e}, the model itself by {self.rounding:.1e}"
        )


def verify(inspect: Inspect, model: ResNetV2, head: Head | None) -> Verified:
    """Compare the activations of an export and of ``model`` for two image sizes.

    ``head`` is `activations.random_head` of the model. The relative difference of each activation
    may be up to `LIMIT`. Deep networks round more than that in float32: then the export may differ
    from the activations in float64 by twice as much as the model does. Raises `DifferenceError`
    beyond that.
    """
    random = np.random.default_rng(0)
    batches = [random.uniform(-1, 1, shape).astype(np.float32) for shape in IMAGES]
    found = inspect(batches)
    expected = activations.of_model(model, head)(batches)
    differences = _differences(found, expected)
    difference = _largest(differences.values())
    if difference <= LIMIT:
        return Verified(difference, head is not None)
    double = [batch.astype(np.float64) for batch in batches]
    exact = activations.of_model(_in_float64(model), head)(double)
    inexact, rounding = _differences(found, exact), _differences(expected, exact)
    for name in expected[0]:
        if not (differences[name] <= LIMIT or inexact[name] <= max(LIMIT, 2 * rounding[name])):
            raise DifferenceError(
                f"{name}: the export differs from the model by {differences[name]:.1e} "
                f"(relative), more than {LIMIT:g} and more than rounding in float32 explains; "
                "nothing was written"
            )
    return Verified(
        difference, head is not None, _largest(inexact.values()), _largest(rounding.values())
    )


def _differences(found: Sequence[Activations], expected: Sequence[Activations]) -> dict[str, float]:
    """Return the largest relative difference of each activation."""
    return {
        name: _largest(
            relative_difference(mine.get(name, np.empty(0)), theirs[name])
            for mine, theirs in zip(found, expected)
        )
        for name in expected[0]
    }


def _largest(differences: Iterable[float]) -> float:
    return float(np.max(list(differences)))  # NaN if any is NaN


def _in_float64(model: ResNetV2) -> ResNetV2:
    from bit_paddle.models.resnetv2 import ResNetV2

    exact = ResNetV2(model.architecture, model.num_classes)
    exact.set_state_dict(model.state_dict())
    return exact.to(dtype="float64")


# --- The export ---------------------------------------------------------------------------------


def export(
    model: ResNetV2,
    trained: TrainedFile,
    format: str,
    output: str | os.PathLike,
    address: str | None = None,
    finish: Callable[[Path], None] | None = None,
) -> Verified | None:
    """Write ``model`` to ``output`` and verify it; return the differences that `verify` found.

    ``trained`` is the model's checkpoint. A folder for Hugging Face gets a model card, in which it
    is called ``address`` (None: the name of ``output``). ``finish`` may change the export after it
    was verified, at a path that is not ``output`` yet. The result is None if the export could not
    be run, because onnxruntime is missing. ``output`` exists only if it is complete and verified.
    Errors: `ConfigError` if the format cannot hold the model, `DifferenceError`, `WriteError`.
    """
    output = Path(output)
    partial = output.with_name(f"{output.name}.{os.getpid()}.part")
    write, read = FORMATS[format].write, FORMATS[format].read
    head = activations.random_head(model)
    try:
        write(model, trained, partial)
        inspect = read(partial, model, head)
        verified = None if inspect is None else verify(inspect, model, head)
        if format == "huggingface" and verified is not None:
            card.write(partial, trained, model.architecture, verified, address or output.name)
        if finish is not None:
            finish(partial)
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
