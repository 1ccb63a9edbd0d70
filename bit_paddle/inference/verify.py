"""Verify an exported model: load it back and compare what it computes with the model.

The outputs of the four stages, the features and the outputs are compared. An export of a model with
a head of zeros is compared with random numbers in the head, see `activations`.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bit_paddle.errors import BitPaddleError, DifferenceError, WriteError
from bit_paddle.inference import activations, card, onnx_data
from bit_paddle.inference.activations import Activations, Head, Inspect
from bit_paddle.inference.formats import FORMATS
from bit_paddle.inference.trained import TrainedFile

if TYPE_CHECKING:
    from bit_paddle.models.resnetv2 import ResNetV2


FACTOR = 1.5  # times the model's rounding in float32: what an export may differ from float64

LIMIT = 5e-5  # relative difference that no export may exceed

IMAGES = ((2, 3, 64, 64), (1, 3, 97, 130))  # shapes of the compared batches


# --- Verification -------------------------------------------------------------------------------


def relative_difference(found: np.ndarray, expected: np.ndarray, typical: float = 0) -> float:
    """Return the largest difference, divided by the largest absolute value of ``expected``.

    It is divided by ``typical`` if that is larger. It is infinite for different shapes, and NaN if
    any number is.
    """
    if found.shape != expected.shape:
        return np.inf
    scale = max(np.abs(expected).max(), typical)
    return float(np.abs(found - expected).max() / (scale if scale != 0 else 1))


class Verified(NamedTuple):
    """The largest relative differences from the model in float64: the export's and the model's.

    An export that computes the model's bits is not compared with float64: it has 0 and None.
    """

    difference: float = 0.0  # between the export and the model in float64
    rounding: float | None = None  # between the model in float32 and the model in float64
    random_head: bool = False  # whether the head is zero, so that random numbers took its place

    def __str__(self) -> str:
        text = "the 4 stages, the features and the outputs"
        if self.random_head:
            text = f"{text} (also with random numbers in the head, because the head is zero)"
        if self.rounding is None:
            return f"{text} equal the model's"
        return (
            f"{text} differ from the model in float64 by at most {self.difference:.1e} (relative); "
            f"the model in float32 itself differs by {self.rounding:.1e}"
        )


def verify(inspect: Inspect, model: ResNetV2, head: Head | None) -> Verified:
    """Compare the activations of an export and of ``model`` for two image sizes.

    ``head`` is `activations.random_head` of the model. An export with the model's bits passes.
    Others are compared with the model in float64: an activation may differ from it by `FACTOR`
    times as much as the activations of the model in float32 do at most, but not by more than
    `LIMIT`. Raises `DifferenceError` beyond that.
    """
    random = np.random.default_rng(0)
    batches = [random.uniform(-1, 1, shape).astype(np.float32) for shape in IMAGES]
    found = inspect(batches)
    expected = activations.of_model(model, head)(batches)
    if all(same_bits(mine, theirs) for mine, theirs in zip(found, expected)):
        return Verified(random_head=head is not None)
    with in_float64(model):
        inspect_exactly = activations.of_model(model, head)
        exact = inspect_exactly([batch.astype(np.float64) for batch in batches])
    typical = _typical_outputs(model, head, exact)
    differences = _differences(found, exact, typical)
    rounding = _largest(_differences(expected, exact, typical).values())
    most = min(LIMIT, FACTOR * rounding)
    for name, difference in differences.items():
        if not difference <= most:
            raise DifferenceError(
                f"{name}: the export differs from the model in float64 by {difference:.1e} "
                f"(relative), and the model in float32 by up to {rounding:.1e}; allowed are "
                f"{FACTOR} times as much, and at most {LIMIT:g}; nothing was written"
            )
    return Verified(_largest(differences.values()), rounding, head is not None)


def same_bits(found: Activations, expected: Activations) -> bool:
    """Return whether all activations have the same names, shapes and finite numbers."""
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], value) and np.isfinite(value).all()
        for name, value in expected.items()
    )


def _differences(
    found: Sequence[Activations], exact: Sequence[Activations], typical: dict[str, float]
) -> dict[str, float]:
    """Return the largest relative difference of each activation."""
    return {
        name: _largest(
            relative_difference(mine.get(name, np.empty(0)), theirs[name], typical.get(name, 0))
            for mine, theirs in zip(found, exact)
        )
        for name in exact[0]
    }


def _typical_outputs(
    model: ResNetV2, head: Head | None, exact: Sequence[Activations]
) -> dict[str, float]:
    """Return the size of an output that random features and weights of the same norms have.

    A model with few outputs may happen to have outputs near zero for all compared images, whose
    rounding then seems large.
    """
    if not model.num_classes:
        return {}
    heads = {activations.OUTPUT: model.last_linear.weight.numpy()}
    heads.update({activations.RANDOM: head[0]} if head is not None else {})
    features = max(np.linalg.norm(one[activations.FEATURES], axis=1).max().item() for one in exact)
    return {
        name: float(features * np.linalg.norm(weight, axis=0).max() / np.sqrt(len(weight)))
        for name, weight in heads.items()
    }


def _largest(differences: Iterable[float]) -> float:
    return float(np.max(list(differences)))  # NaN if any is NaN


@contextmanager
def in_float64(model: ResNetV2) -> Iterator[None]:
    """Compute with ``model`` in float64, then in float32 as before.

    A copy of R152x4 in float64 would take 7.5 GB beside the model's 3.7 GB, so the model itself is
    converted. Kernels are standardized in each pass, as in training, so that none is kept twice.
    """
    training = model.training
    model.train()
    model.to(dtype="float64")
    try:
        yield
    finally:
        model.to(dtype="float32")
        if not training:
            model.eval()


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
    partial = output.with_name(f"{output.name}.{os.getpid()}.part")  # a folder
    path = partial / output.name
    write, read = FORMATS[format].write, FORMATS[format].read
    head = activations.random_head(model)
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a killed process with the same number
        partial.mkdir()
        write(model, trained, path)
        inspect = read(path, model, head)
        verified = None if inspect is None else verify(inspect, model, head)
        if format == "huggingface" and verified is not None:
            card.write(path, trained, model.architecture, verified, address or output.name)
        if finish is not None:
            finish(path)
        _publish(path, output)
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
        shutil.rmtree(partial, ignore_errors=True)
    return verified


def _publish(path: Path, output: Path) -> None:
    """Give the complete export at ``path`` its name, after the data file that belongs to it."""
    data, target = onnx_data.path_of(path), onnx_data.path_of(output)
    if not data.exists():
        os.rename(path, output)
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, f"{target.name} exists")
    try:
        os.rename(data, target)
        os.rename(path, output)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
