"""Find a trained model: its file, and the preprocessing, classes and loss that belong to it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bit_paddle.errors import CheckpointError, ConfigError, DownloadError
from bit_paddle.inference import paddle_inference
from bit_paddle.models import losses, npz, published
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.losses import LOSSES
from bit_paddle.models.published import Preprocessing
from bit_paddle.system import fetch


@dataclass(frozen=True)
class TrainedFile:
    """A checkpoint file, or a folder of `export --format paddle`.

    ``classes`` are the names of its ``outputs``, or None where unknown; ``features`` is the number
    of its pre-logits, ``loss`` what it was trained by, as far as is known.
    """

    path: Path
    outputs: int
    features: int
    preprocessing: Preprocessing | None
    classes: list[str] | None
    trained_here: bool  # by `bit_paddle.train`, which wrote the names of the classes into the file
    loss: str = losses.DEFAULT
    architecture: str = ""  # R50x1 and so on; older exports do not say

    def class_name(self, index: int) -> str:
        """Return the name of an output, or its number."""
        return self.classes[index] if self.classes else str(index)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the outputs' probabilities, float64 [N, K], as the loss means them."""
        return LOSSES[self.loss].probabilities(logits.astype(np.float64))


def find_trained(
    model: str,
    directory: str | os.PathLike | None = None,
    crop: int | None = None,
    names: bool = True,
) -> TrainedFile:
    """Return the facts of a trained model; loads no Paddle.

    ``model`` is a published name, which is downloaded if it is missing, a file, a run's folder or
    an exported folder. Files of `bit_paddle.train` contain their preprocessing and class names. For
    published models both are known by the name; the class names are downloaded only with ``names``.
    Other files need ``crop``, which squashes images to that side, and replaces what is known.
    Errors: those of `published.resolve`, `published.obtain` and `npz.CheckpointFile`.
    """
    found = resolve_trained(model)
    if isinstance(found, Path) and found.is_dir():
        return _read_notes(found, crop)
    entry = found if isinstance(found, published.Entry) else published.CATALOG.get(Path(found).stem)
    path = found if isinstance(found, Path) else published.obtain(found, directory)
    with npz.CheckpointFile(path) as file:
        file.check(file.architecture(), file.classes)
        outputs, architecture, notes = file.classes, file.architecture(), file.notes()
    classes = notes.get("classes")
    if "crop" in notes:
        preprocessing = Preprocessing(notes["crop"], notes.get("resize"))
    elif entry is not None:
        preprocessing = entry.preprocessing
        if names and entry.data in published.LEMMAS and outputs == entry.classes:
            classes = _lemmas(published.LEMMAS[entry.data], outputs)
    else:
        preprocessing = None
    if crop is not None:
        preprocessing = Preprocessing(crop)
    if classes is not None and len(classes) != outputs:
        raise CheckpointError(
            f"{path}: its head has {outputs} outputs, but there are {len(classes)} class names"
        )
    settings = notes.get("settings")
    loss = settings.get("loss") if isinstance(settings, dict) else None
    loss = loss if loss in losses.LOSSES else losses.DEFAULT  # such as none, or a later version's
    if entry is not None and entry.data == "imagenet21k" and outputs == entry.classes:
        loss = "sigmoid"  # by which upstream trained: an image may show several of these classes
    return TrainedFile(
        path,
        outputs,
        architecture.features,
        preprocessing,
        classes,
        "classes" in notes,
        loss,
        architecture.name,
    )


def resolve_trained(model: str) -> Path | published.Entry | Architecture:
    """Return what `published.resolve` does, or the path of an exported folder."""
    return Path(model) if paddle_inference.is_exported(model) else published.resolve(model)


def write_notes(file: TrainedFile, folder: Path) -> None:
    """Write the facts of ``file`` into the ``folder`` of a model that was exported from it."""
    notes = {name: value for name, value in asdict(file).items() if name != "path"}
    text = json.dumps(notes, indent=2, ensure_ascii=False)
    (folder / paddle_inference.NOTES).write_text(text + "\n", encoding="utf-8")


def _read_notes(folder: Path, crop: int | None) -> TrainedFile:
    path = folder / paddle_inference.NOTES
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        view = Preprocessing(**notes["preprocessing"]) if notes["preprocessing"] else None
        notes["preprocessing"] = Preprocessing(crop) if crop else view
        found = TrainedFile(folder, **notes)
        names = found.classes
        if not (isinstance(found.outputs, int) and isinstance(found.features, int)):
            raise TypeError("its outputs or features are no number")
        if names is not None and (not isinstance(names, list) or len(names) != found.outputs):
            raise ValueError(f"it does not name {found.outputs} classes")
        if found.loss not in LOSSES:
            raise ValueError(f"its loss is {found.loss!r}")
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: is not what `export` writes ({error})") from error
    return found


def required_preprocessing(file: TrainedFile) -> Preprocessing:
    """Return the preprocessing of ``file``; raise `ConfigError` if nobody knows it."""
    if file.preprocessing is None:
        raise ConfigError(
            f"{file.path}: neither a published checkpoint nor one of `bit_paddle.train`, so its "
            "resolution is unknown; give the side of its images with --crop, or crop= in Python"
        )
    return file.preprocessing


def _lemmas(file: str, count: int) -> list[str] | None:
    """Return the published class names, one a line; None, with a warning, if they cannot be had."""

    def fault_of(path: Path) -> str | None:
        lines = len(path.read_bytes().splitlines())
        return (
            None if lines == count else f"it has {lines} lines, not one for each of {count} classes"
        )

    try:
        path = fetch.cache_dir() / file
        fetch.fetch(published.download_url(file), path, fault_of=fault_of)
    except DownloadError as error:
        print(f"warning: classes are shown by number: {error}", file=sys.stderr)
        return None
    return [line.replace("_", " ") for line in path.read_text(encoding="utf-8").splitlines()]
