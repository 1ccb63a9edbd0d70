"""Strangers: images that show none of the model's classes. Does the model notice?"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bit_paddle.data import check
from bit_paddle.data.images import FileImages
from bit_paddle.errors import ConfigError, DataError, MissingFileError
from bit_paddle.inference import inputs, views
from bit_paddle.inference.confidence import SCORES, Separation, score, separation
from bit_paddle.inference.model import TrainedModel
from bit_paddle.system import files, progress
from bit_paddle.system.text import plural

if TYPE_CHECKING:
    from bit_paddle.inference.evaluation import Evaluation
    from bit_paddle.inference.label_evaluation import LabelEvaluation


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


def open_images(
    folder: str | os.PathLike | None, words: Sequence[str], workers: int, on_bad_image: str
) -> FileImages | None:
    """Return all readable images below ``folder``, at any depth; None if there is no folder.

    Every image is decoded once. Unreadable ones raise one `DataError`, or are reported on standard
    error and left out if ``on_bad_image`` is "skip". Errors also: `MissingFileError`; `ConfigError`
    if no image is there, or if there are ``words`` of ``--views``.
    """
    if folder is None:
        return None
    if words:
        raise ConfigError("--strangers: measures one view of each image; omit --views")
    name = files.expanded(os.fspath(folder))
    if not os.path.isdir(name):
        raise MissingFileError(f"--strangers {name}: no such folder; expected a folder of images")
    try:
        _, paths, _ = inputs.find_images([name], Path(name))
    except ConfigError as error:
        raise ConfigError(f"--strangers: {error}") from error
    images, every = FileImages(paths, np.zeros(len(paths), np.int64), ["?"]), np.arange(len(paths))
    broken = check.faults(images, every, workers, thorough=True)
    faults = [broken[index] for index in sorted(broken)]
    if faults and on_bad_image == "error":
        raise DataError(
            f"--strangers: {plural(len(faults), 'image')} cannot be read; "
            "--on_bad_image skip leaves them out\n  " + "\n  ".join(faults[:10])
        )
    for fault in faults:
        print(f"skipped: {fault}", file=sys.stderr)
    if len(faults) == len(images):
        raise ConfigError(f"--strangers {folder}: none of its images can be read")
    return images.subset(np.setdiff1d(every, list(broken)))


def measure(
    model: TrainedModel,
    result: Evaluation | LabelEvaluation,
    folder: str | os.PathLike,
    images: FileImages,
    batch: int,
    workers: int,
) -> Evaluation | LabelEvaluation:
    """Return ``result`` with the scores of the ``images`` of ``folder``.

    They are compared with those of the images of ``result``.
    """
    looks, loss = views.looks((), model.file), model.file.loss
    compute, found = model.function(), []
    with progress.progress_bar(desc="strangers", unit="img", total=len(images)) as bar:
        for part, _ in views.infer(compute, images, looks, batch, workers, loss):
            found.append(part)
            bar.update(len(part))
    logits = np.concatenate(found)
    separations = {
        name: separation(*(score(name, each, loss) for each in (result.outputs.logits, logits)))
        for name in SCORES
    }
    return replace(result, strangers=Strangers(str(folder), len(logits), separations))
