"""The teacher of a distillation (``--teacher``): its facts, its classes, its memory. No Paddle."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bit_paddle.config.settings import Settings
from bit_paddle.data.images import Dataset, Images
from bit_paddle.data.readers.unlabelled import is_unlabelled
from bit_paddle.errors import ConfigError
from bit_paddle.inference.evaluation import match_classes
from bit_paddle.inference.trained import (
    TrainedFile,
    find_trained,
    is_exported,
    resolve_trained,
)
from bit_paddle.models import cost, published
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.containers.folder import weights_in
from bit_paddle.recipes.hyperrule import Resolution
from bit_paddle.system.text import plural


class Teacher(NamedTuple):
    """A trained model whose outputs a student learns.

    ``fits`` is whether the labels of the data are its classes; if not, no label is used at all.
    """

    file: TrainedFile
    architecture: Architecture
    entry: published.Entry | None  # of a published model
    crop: int | None  # --teacher_crop
    fits: bool = True

    def download(self, directory: str | None) -> None:
        """Download the file of a published model if it is missing."""
        if self.entry is not None and not self.file.path.exists():
            published.obtain(self.entry, directory)

    @property
    def resolution(self) -> Resolution | None:
        """The resolution of the images that the teacher was trained for; None if unknown."""
        view = self.file.preprocessing
        return None if view is None else Resolution(view.resize or view.crop, view.crop)

    def side(self, crop: int) -> int:
        """Return the side in pixels at which the teacher sees the student's views of ``crop``."""
        return self.crop or crop

    def memory(self, half: bool) -> int:
        """Return the bytes of its weights."""
        return cost.inference_memory(self.architecture, self.file.outputs, half)

    def activations(self, crop: int, half: bool) -> int:
        """Return the bytes per image at the peak of its forward pass; they are freed after it."""
        return cost.forward_activations(self.architecture, self.side(crop), half)

    def described(self, crop: int) -> str:
        """Return the teacher in words, for views of ``crop``."""
        side, file = self.side(crop), self.file
        operations = cost.multiply_adds(self.architecture, side, file.outputs) / 1e9
        text = (
            f"{file.path}: {self.architecture.name}, {plural(file.outputs, 'class')}; sees the "
            f"student's views at {side} x {side}, {operations:.3g} G multiply-adds per image"
        )
        return text if self.entry is None else text.replace(f"{file.path}", self.entry.name, 1)

    def notes(self, crop: int) -> list[str]:
        """Return a note if it sees the views at another side than in its own training."""
        view, side = self.file.preprocessing, self.side(crop)
        if view is None or view.crop == side:
            return []
        return [
            f"the teacher was trained at {view.crop} pixels, and sees views of {side} here; "
            f"--teacher_crop {view.crop} resizes them for it"
        ]

    @property
    def digest(self) -> str | None:
        """A hash of its file, by which a resumed run knows it; None if that is not here yet."""
        path = self.file.path
        path = (weights_in(path) or path) if path.is_dir() else path
        if not path.is_file():
            return None
        digest = hashlib.sha256()
        with open(path, "rb") as stream:
            for chunk in iter(lambda: stream.read(1 << 20), b""):
                digest.update(chunk)
        return digest.hexdigest()


def find(settings: Settings) -> Teacher | None:
    """Return the teacher of ``settings``, None for a rule without one. It is not downloaded.

    Raises `ConfigError` for a model that cannot teach; errors of a file as of `find_trained`.
    """
    name = settings.teacher
    if not settings.recipe.taught or name is None:
        return None
    source = resolve_trained(name)
    entry = source if isinstance(source, published.Entry) else None
    if entry is not None and not published.locate(entry, settings.bit_pretrained_dir).exists():
        file = _of_entry(entry, settings.bit_pretrained_dir)
        return _checked(Teacher(file, entry.architecture, entry, settings.teacher_crop))
    if isinstance(source, Path) and is_exported(source):
        raise ConfigError(f"--teacher: {name} is an export; give the model that it came from")
    file = find_trained(name, settings.bit_pretrained_dir, names=False)
    with CheckpointFile(file.path) as opened:
        architecture = opened.architecture()
    return _checked(Teacher(file, architecture, entry, settings.teacher_crop))


def _of_entry(entry: published.Entry, directory: str | None) -> TrainedFile:
    """Return the facts of a published model that is not downloaded yet."""
    return TrainedFile(
        published.locate(entry, directory),
        entry.classes,
        entry.architecture.features,
        entry.preprocessing,
        None,
        False,
        "sigmoid" if entry.data == "imagenet21k" else "softmax",
        entry.architecture.name,
    )


def _checked(teacher: Teacher) -> Teacher:
    file = teacher.file
    faults = []
    if not file.outputs:
        faults.append("has no head, so no outputs to learn; give a trained classifier")
    elif file.loss != "softmax":
        faults.append(
            f"was trained with the {file.loss} loss; its softmax probabilities, which the student "
            "learns, mean nothing"
        )
    view = file.preprocessing
    if view is not None and not view.is_scaled_as_bit:
        faults.append(
            f"wants pixels scaled by mean {view.mean} and std {view.std}, the student -1 to 1; "
            "both must see the same view"
        )
    if faults:
        raise ConfigError("; ".join(f"--teacher: {file.path} {fault}" for fault in faults))
    return teacher


def with_classes(
    settings: Settings, data: Dataset, teacher: Teacher | None
) -> tuple[Dataset, Teacher | None]:
    """Return ``data`` with the teacher's classes, and the teacher with `Teacher.fits`.

    Classes are paired as in `match_classes`. Where they do not fit, all labels are 0, which nothing
    may use. Without a teacher both stay as they are. Raises `ConfigError` if labels are needed, but
    there are none.
    """
    if teacher is None and is_unlabelled(data.train):
        raise ConfigError(
            f"--dataset {settings.dataset}: its images have no labels; they are for --rule distill"
        )
    if teacher is None:
        return data, teacher
    names, found = list(data.train.classes), None
    if not is_unlabelled(data.train):
        try:
            found = match_classes(teacher.file, names)
        except ConfigError as error:
            note = f"the labels are not used, as they are not the teacher's classes: {error}"
            data = data._replace(notes=(*data.notes, note))
    fits, count = found is not None, teacher.file.outputs
    if not fits:
        found = np.zeros(len(names), np.int64)
    own = names if fits and len(names) == count else [str(output) for output in range(count)]
    classes = teacher.file.classes or own
    if fits and classes == names:
        return data, teacher
    if not fits and settings.examples_per_class is not None:
        raise ConfigError("--examples_per_class: the images have no labels to choose by")

    def renamed(images: Images) -> Images:
        return images.chosen(np.arange(len(images)), found[images.labels], classes)

    parts = {part: getattr(data, part) for part in ("train", "val", "test")}
    changed = {part: renamed(images) for part, images in parts.items() if images}
    return data._replace(**changed), teacher._replace(fits=fits)
