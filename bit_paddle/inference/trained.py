"""Find a trained model's file and its facts: preprocessing, classes and loss."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.errors import CheckpointError, ConfigError, DownloadError
from bit_paddle.inference import calibration, onnx_files, paddle_inference, scores
from bit_paddle.inference.calibration import AUTO, Calibration
from bit_paddle.models import heads, losses, mirrors, npz, published
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.losses import LOSSES
from bit_paddle.system import fetch
from bit_paddle.system.hub import Repository


@dataclass(frozen=True)
class TrainedFile:
    """A checkpoint file, or an export that runs by itself, and its facts.

    ``classes`` are the names of its ``outputs``, or None if they are unknown. ``features`` is the
    number of its pre-logits. ``loss`` is the name of its training loss (softmax if unknown).
    """

    path: Path
    outputs: int
    features: int
    preprocessing: Preprocessing | None
    classes: list[str] | None
    trained_here: bool  # by `bit_paddle.train`: the file contains the class names
    loss: str = losses.DEFAULT
    architecture: str = ""  # R50x1, for example; empty in older exports
    flip: bool = True  # False: training mirrored no images, because that would change labels
    calibration: Calibration | None = None
    head: str = heads.LINEAR  # its kind, see `models.heads`

    def class_name(self, index: int) -> str:
        """Return the name of an output, or its number."""
        return self.classes[index] if self.classes else str(index)

    def probabilities(self, logits: np.ndarray, calibrated: bool = False) -> np.ndarray:
        """Return the probabilities of the outputs by the model's loss, float64 [N, K].

        With ``calibrated`` they are those at the temperature of the model's calibration.
        """
        if not calibrated:
            return scores.probabilities(logits, self.loss)
        found = required_calibration(self, "--calibrated")
        return scores.probabilities(logits, self.loss, found.temperature)


def find_trained(
    model: str,
    directory: str | os.PathLike | None = None,
    crop: int | Preprocessing | None = None,
    names: bool = True,
) -> TrainedFile:
    """Return the facts of a trained model, without loading Paddle.

    ``model`` is a published name, a file, a run's folder, an exported folder or an exported ONNX
    file. The file of a
    published name is downloaded if it is missing. Files of `bit_paddle.train` contain their
    preprocessing and class names. For published models the name determines both; class names are
    downloaded only with ``names``. ``crop`` squashes images to that side in pixels, instead of the
    known resize and crop; files without a known preprocessing need it. A `Preprocessing` sets all
    but mean and std, if these are known. Errors: those of `published.resolve`, `published.obtain`
    and `CheckpointFile`.
    """
    source = resolve_trained(model)
    if isinstance(source, Path) and is_exported(source):
        return _read_notes(source, crop)
    path = source if isinstance(source, Path) else published.obtain(source, directory)
    with CheckpointFile(path) as file:
        file.check(file.architecture(), file.classes)
        outputs, architecture, facts = file.classes, file.architecture(), file.facts
        notes = file.notes()
        if "detector" in notes:
            raise ConfigError(f"{path}: is a detector; `bit_paddle detect` evaluates and runs it")
        if file.averaged:
            print(f"note: {path}: its averaged weights ({file.averaged}) are used", file=sys.stderr)
    classes, preprocessing, loss = facts.classes, facts.preprocessing, facts.loss
    flip = notes.get("flip") is not False
    if isinstance(source, published.Entry):  # the same facts, wherever its weights came from
        entry, classes, preprocessing = source, None, None
    else:
        entry = published.known(path, facts.origin)
    if npz.FACTS in notes:
        classes, preprocessing, loss, flip = _read_facts(path, notes[npz.FACTS])
    elif "crop" in notes:
        preprocessing = Preprocessing(notes["crop"], notes.get("resize"))
        classes = notes.get("classes")
        if not isinstance(classes, (list, type(None))):
            raise CheckpointError(f"{path}: its notes have classes {classes!r}, expected a list")
        classes = classes and [str(name) for name in classes]
    elif entry is not None:
        preprocessing = preprocessing or entry.preprocessing
        if names and entry.data in published.LEMMAS and outputs == entry.classes:
            classes = classes or _lemmas(published.LEMMAS[entry.data], outputs)
    preprocessing = _squashed(preprocessing, crop)
    if not outputs:
        classes = None  # transformers names them for a model without a head, too
    if classes is not None and len(classes) != outputs:
        raise CheckpointError(
            f"{path}: its head has {outputs} outputs, but the file names {len(classes)} classes"
        )
    settings = notes.get("settings")
    if isinstance(settings, dict):
        loss = settings.get("loss")
        flip = flip and settings.get("flip") is not False
    if not isinstance(loss, str) or loss not in LOSSES:  # such as none, or a later version's
        loss = losses.DEFAULT
    if entry is not None and entry.data == "imagenet21k" and outputs == entry.classes:
        loss = "sigmoid"  # the loss of the authors: an image may show several classes
    return TrainedFile(
        path,
        outputs,
        architecture.features,
        preprocessing,
        classes,
        "classes" in notes,
        loss,
        architecture.name,
        flip,
        calibration.of_note(path, notes.get(calibration.NOTE, facts.calibration)),
        architecture.head,
    )


def resolve_trained(model: str) -> Path | published.Entry | Repository | Architecture:
    """Return the path of an export that runs by itself, or the result of `published.resolve`."""
    return Path(model) if is_exported(model) else published.resolve(model)


def is_exported(path: str | os.PathLike) -> bool:
    """Return whether ``path`` runs by itself: a folder of Paddle Inference, or an ONNX file."""
    return paddle_inference.is_exported(path) or onnx_files.is_onnx(path)


def facts_of(file: TrainedFile) -> dict[str, Any]:
    """Return what `find_trained` reads from the notes of an exported file."""
    facts = asdict(file)
    return {name: facts[name] for name in ("classes", "preprocessing", "loss", "flip")}


def _read_facts(path: Path, facts: Any) -> tuple[list[str] | None, Preprocessing | None, str, bool]:
    try:
        view, classes = facts["preprocessing"], facts["classes"]
        names = None if classes is None else [str(name) for name in list(classes)]
        view = Preprocessing(**view) if view else None
        return names, view, str(facts["loss"]), facts.get("flip") is not False
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its notes are malformed ({error})") from error


def _squashed(view: Preprocessing | None, crop: int | Preprocessing | None) -> Preprocessing | None:
    """Return ``view`` with a square of ``crop`` instead of its own sizes, if ``crop`` is given."""
    if crop is None:
        return view
    if isinstance(crop, Preprocessing):
        return crop if view is None else replace(crop, mean=view.mean, std=view.std)
    return Preprocessing(crop) if view is None else replace(view, crop=crop, resize=None)


def notes_of(file: TrainedFile) -> dict[str, Any]:
    """Return the facts of ``file`` as an export that runs by itself keeps them."""
    return {name: value for name, value in asdict(file).items() if name != "path"}


def write_notes(file: TrainedFile, folder: Path) -> None:
    """Write the facts of ``file`` into the ``folder`` of its export."""
    text = json.dumps(notes_of(file), indent=2, ensure_ascii=False)
    (folder / paddle_inference.NOTES).write_text(text + "\n", encoding="utf-8")


def _read_notes(export: Path, crop: int | Preprocessing | None) -> TrainedFile:
    """Return the facts of an export. Raises `CheckpointError` if they are malformed."""
    if onnx_files.is_onnx(export):
        path, notes = export, onnx_files.facts(onnx_files.read(export), export)
    else:
        path, notes = export / paddle_inference.NOTES, None
    try:
        notes = json.loads(path.read_text(encoding="utf-8")) if notes is None else notes
        view = Preprocessing(**notes["preprocessing"]) if notes["preprocessing"] else None
        notes["preprocessing"] = _squashed(view, crop)
        notes["calibration"] = calibration.of_note(path, notes.get("calibration"))
        file = TrainedFile(export, **notes)
        names = file.classes
        if not (isinstance(file.outputs, int) and isinstance(file.features, int)):
            raise TypeError("its outputs or features are not whole numbers")
        if names is not None and (not isinstance(names, list) or len(names) != file.outputs):
            raise ValueError(f"it does not name {file.outputs} classes")
        if file.loss not in LOSSES:
            raise ValueError(f"its loss {file.loss!r} is unknown")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: was not written by `export` ({error})") from error
    return file


def required_preprocessing(file: TrainedFile) -> Preprocessing:
    """Return the preprocessing of ``file``; raise `ConfigError` if it is unknown."""
    if file.preprocessing is None:
        raise ConfigError(
            f"{file.path}: holds no image size; give the one that it was trained with, such as "
            "--crop 224 (crop=224 in Python), or the folder that has its config.json"
        )
    return file.preprocessing


def required_calibration(file: TrainedFile, flag: str) -> Calibration:
    """Return the calibration of ``file``; raise `ConfigError` if it has none for its image size."""
    found, crop = file.calibration, required_preprocessing(file).crop
    command = f"bit_paddle evaluate --model {file.path} --dataset … --calibrate"
    if found is None:
        raise ConfigError(
            f"{flag}: {file.path} has no calibration; measure one, on images that the model was "
            f"not trained on: {command}"
        )
    if found.crop != crop:
        raise ConfigError(
            f"{flag}: {file.path} was calibrated with images of {found.crop} pixels, and {crop} "
            f"are used; omit --crop, or calibrate again: {command} --crop {crop}"
        )
    return found


def check_confidence(
    file: TrainedFile,
    words: Sequence[str],
    calibrated: bool,
    unknown: float | None,
    threshold: float | str | None = None,
) -> None:
    """Raise `ConfigError` if ``file`` has no calibration for what is asked for.

    ``words`` are those of ``--views``, the others those of `outputs.classify`.
    """
    flags = {"--calibrated": calibrated, "--unknown": unknown is not None}
    flags[f"--threshold {AUTO}"] = threshold == AUTO
    for flag in (flag for flag, given in flags.items() if given):
        if words:
            raise ConfigError(f"{flag}: was measured with one view of each image; omit --views")
        required_calibration(file, flag)
    if threshold is not None:
        thresholds_of(file, threshold)


def thresholds_of(file: TrainedFile, threshold: float | str) -> np.ndarray:
    """Return the threshold of each class, float64 [K]: ``threshold``, or the model's for "auto".

    Raises `ConfigError` if the model keeps none.
    """
    if threshold != AUTO:
        return np.full(file.outputs, threshold, np.float64)
    found = required_calibration(file, f"--threshold {AUTO}").thresholds
    if found is None or len(found) != file.outputs:
        raise ConfigError(
            f"--threshold {AUTO}: the calibration of {file.path} has no threshold per label: its "
            "images had one label each; give a number, such as --threshold 0.5"
        )
    return np.array(found)


def are_unknown(file: TrainedFile, logits: np.ndarray, share: float) -> np.ndarray:
    """Return whether each row of ``logits`` [N, K] seems to show none of the classes, bool [N].

    Of the images on which the model was calibrated, ``share`` (0 to 1) would be called unknown.
    Errors: as of `required_calibration`.
    """
    return required_calibration(file, "--unknown").unknown(logits, file.loss, share)


def _lemmas(file: str, count: int) -> list[str] | None:
    """Return the published class names; print a warning and return None if a download fails."""

    def fault_of(path: Path) -> str | None:
        lines = len(path.read_bytes().splitlines())
        return None if lines == count else f"it has {lines} lines, expected {count} class names"

    try:
        path = fetch.cache_dir() / file
        mirrors.fetch_published(file, path, fault_of)
    except DownloadError as error:
        print(f"warning: classes are shown as numbers: {error}", file=sys.stderr)
        return None
    return [line.replace("_", " ") for line in path.read_text(encoding="utf-8").splitlines()]
