"""Measure the test images once, at the end of a run, with its best and with its last model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bit_paddle.errors import CheckpointError, MissingFileError
from bit_paddle.models import weights
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.runs.checkpoints import open_checkpoint
from bit_paddle.runs.logbook import Logbook
from bit_paddle.training import distributed
from bit_paddle.training.task import Measurement

Measured = dict[str, dict[str, float]]  # "best" and "last": the step of the model, and its metrics


def measure(
    model: ResNetV2,
    step: int,
    best: Path | None,
    tally: Callable[[], Measurement],
    log: Logbook,
) -> Measured:
    """Return and log the metrics of the best and the last model of a run on its test images.

    ``model`` is the last one, after ``step`` updates; it ends with the same bits. ``best`` is the
    checkpoint of the best one, None if ``model`` is that too. ``tally`` measures the model as it
    is, in all ranks. Only rank 0 reads ``best``. If that cannot be read, only the last model is
    measured. Raises `Interrupted` in all ranks if a signal comes.
    """
    at = int(distributed.from_first([step if best is None else _step_of(best, log)])[0])
    measured = {}
    if at not in (step, -1):
        kept = [parameter.numpy() for parameter in model.parameters()]
        try:
            read = distributed.from_first([_read(model, best, log)])[0]
            distributed.broadcast(model.parameters())
            if read:
                measured["best"] = _logged("best", at, tally(), log)
        finally:
            for parameter, array in zip(model.parameters(), kept):
                parameter.set_value(array)
    title = "best and last" if at == step else "last"
    measured["last"] = _logged(title, step, tally(), log)
    return {"best": measured["last"], **measured} if at == step else measured


def _logged(title: str, step: int, tally: Measurement, log: Logbook) -> dict[str, float]:
    log.metrics("test", step, best="best" in title, **tally.summary())
    log.say(f"test images, {title} model (after step {step}): {tally}")
    return {"step": step, **tally.summary()}


def _step_of(best: Path, log: Logbook) -> int:
    """Return the step of the checkpoint ``best``; -1, with a warning, if it cannot be read."""
    try:
        return open_checkpoint(best).progress.step
    except (CheckpointError, MissingFileError) as error:
        log.say(f"warning: the test images are not measured with the best model: {error}")
        return -1


def _read(model: ResNetV2, best: Path | None, log: Logbook) -> bool:
    """Fill ``model`` from ``best``, in rank 0; return False, with a warning, if that fails."""
    try:
        if best is not None:
            weights.load_npz(model, best)
        return True
    except (CheckpointError, MissingFileError) as error:
        log.say(f"warning: the test images are not measured with the best model: {error}")
        return False
