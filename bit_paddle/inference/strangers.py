"""Strangers: images that show none of the model's classes. Does the model notice?"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bit_paddle.errors import ConfigError, DataError, MissingFileError
from bit_paddle.inference import inputs, views
from bit_paddle.inference.confidence import SCORES, Separation, score, separation
from bit_paddle.inference.model import TrainedModel
from bit_paddle.system import files, progress
from bit_paddle.system.text import plural

if TYPE_CHECKING:
    from bit_paddle.inference.evaluation import Evaluation


class Strangers(NamedTuple):
    """The scores of the images in ``folder``, against those of the known images."""

    folder: str
    images: int
    separations: dict[str, Separation]  # by the names of `confidence.SCORES`

    def __str__(self) -> str:
        lines = [
            f"{self.images:,} strangers in {self.folder}. AUROC: the chance that an image of the "
            "data has a higher score than a stranger (50% is guessing). FPR95: the share of "
            "strangers that pass a threshold which 95% of the data pass."
        ]
        for name, (auroc, fpr95) in self.separations.items():
            lines.append(f"  {name:<15} AUROC {auroc:7.2%}   FPR95 {fpr95:7.2%}")
        return "\n".join(lines)


def measure(
    model: TrainedModel,
    result: Evaluation,
    folder: str | os.PathLike,
    batch: int,
    workers: int,
    on_bad_image: str = "error",
) -> Evaluation:
    """Return ``result`` with the scores of all images below ``folder``, at any depth.

    They are compared with those of the images of ``result``. Unreadable strangers raise one
    `DataError`, or are reported on standard error and left out if ``on_bad_image`` is "skip".
    Errors also: `MissingFileError`; `ConfigError` if no image is there.
    """
    images, looks = _find(folder), views.looks((), model.file)
    compute, found, loss = model.function(), [], model.file.loss
    with progress.progress_bar(desc="strangers", unit="img", total=len(images)) as bar:
        for logits, part in views.infer(compute, images, looks, batch, workers, loss):
            good = np.array([index not in images.broken for index in part.indices])
            found.append(logits[good])
            bar.update(len(logits))
    faults = [images.broken[index] for index in sorted(images.broken)]
    if faults and on_bad_image == "error":
        raise DataError(
            f"--strangers: {plural(len(faults), 'image')} cannot be read; "
            "--on_bad_image skip leaves them out\n  " + "\n  ".join(faults[:10])
        )
    for fault in faults:
        print(f"skipped: {fault}", file=sys.stderr)
    logits = np.concatenate(found)
    if not len(logits):
        raise ConfigError(f"--strangers {folder}: none of its images can be read")
    separations = {
        name: separation(*(score(name, each, loss) for each in (result.outputs.logits, logits)))
        for name in SCORES
    }
    return replace(result, strangers=Strangers(str(folder), len(logits), separations))


def check(folder: str | os.PathLike | None, words: Sequence[str]) -> None:
    """Raise an error if ``folder`` has no images, or if there are ``words`` of ``--views``."""
    if folder is not None and words:
        raise ConfigError("--strangers: measures one view of each image; omit --views")
    if folder is not None:
        _find(folder)


def _find(folder: str | os.PathLike) -> inputs.ReadableImages:
    name = files.expanded(os.fspath(folder))
    if not os.path.isdir(name):
        raise MissingFileError(f"--strangers {name}: no such folder; expected a folder of images")
    try:
        _, paths, _ = inputs.find_images([name], Path(name))
    except ConfigError as error:
        raise ConfigError(f"--strangers: {error}") from error
    return inputs.ReadableImages(paths)
