"""The weights that a run starts with: found and checked before the data, downloaded after them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from bit_paddle.config.run_settings import RunSettings
from bit_paddle.errors import CheckpointError, MissingFileError
from bit_paddle.models import published
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.runs import folder
from bit_paddle.system.hub import Repository


class Initialization(NamedTuple):
    """The shape of a network and the file of its weights."""

    architecture: Architecture
    checkpoint: Path | None  # None: random weights
    source: Architecture | Path | published.Entry  # what --model names

    def downloaded(self, directory: str | None) -> Initialization:
        """Return the same with a checkpoint that is there: a missing one is downloaded."""
        if self.checkpoint is None or self.checkpoint.exists():
            return self
        checkpoint = published.obtain(self.source, directory)
        return self._replace(architecture=_checked(checkpoint), checkpoint=checkpoint)


def find(settings: RunSettings, start: folder.Start, fetch: bool) -> Initialization:
    """Return the weights that ``settings`` name, after a check of their file if it is there.

    With ``fetch``, a published checkpoint that is missing must be reachable.
    """
    model = published.resolve(settings.model, pretrained=not settings.from_scratch)
    resumed = _resumed(start) if isinstance(model, Repository) else None
    if isinstance(model, Repository):  # its files alone tell its architecture
        model = Path(settings.model) if resumed else published.obtain(model)
    architecture = resumed or getattr(model, "architecture", model)
    checkpoint = model if isinstance(model, Path) else None
    if isinstance(model, published.Entry) and not settings.from_scratch:
        checkpoint = published.locate(model, settings.bit_pretrained_dir)
    if checkpoint is not None and checkpoint.exists():
        architecture = _checked(checkpoint)
    elif checkpoint is not None and fetch and not model.packaged:
        published.check_reachable(model)  # before the data are read
    return Initialization(architecture, checkpoint, model)


def notes(checkpoint: Path | None) -> list[str]:
    """Return notes on a foreign checkpoint: averaged weights, pixels of another scale."""
    if checkpoint is None or not checkpoint.exists():
        return []
    with CheckpointFile(checkpoint) as file:
        averaged, view = file.averaged, file.facts.preprocessing
    notes = [f"{checkpoint}: its averaged weights ({averaged}) are used"] if averaged else []
    if view is not None and not view.is_scaled_as_bit:
        notes.append(
            f"{checkpoint} was trained on pixels scaled by mean {view.mean} and std {view.std}; "
            "fine-tuning scales them to -1 to 1, as BiT does, and adapts the network to that"
        )
    return notes


def _resumed(start: folder.Start) -> Architecture | None:
    """Return the architecture in the run's own checkpoints; with these it needs no hub."""
    for checkpoint in start.checkpoints:
        if not checkpoint.elsewhere:
            with suppress(CheckpointError, MissingFileError):
                return _checked(checkpoint.path)
    return None


def _checked(checkpoint: Path) -> Architecture:
    """Return the architecture of a checkpoint file, after a check of all its arrays."""
    with CheckpointFile(checkpoint) as file:
        architecture = file.architecture()
        file.check(architecture, file.classes)
    return architecture
