"""The plan of a run: everything that is decided before it starts, without loading Paddle."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle.config.settings import AUTO, Settings
from bit_paddle.data import check, fewshot
from bit_paddle.data.readers import registry
from bit_paddle.models import cost, npz, published
from bit_paddle.models.architecture import Architecture
from bit_paddle.recipes import hyperrule
from bit_paddle.recipes.recipe import SIDES
from bit_paddle.runs import folder
from bit_paddle.system import environment
from bit_paddle.system.fetch import ask
from bit_paddle.training import description


@dataclass(frozen=True)
class Plan:
    """Everything that a run has decided before it starts."""

    settings: Settings
    architecture: Architecture
    checkpoint: Path | None  # None: random weights
    data: registry.Dataset
    subset: np.ndarray  # indices of the training images that are used
    image_size: tuple[int, int]  # median (height, width) of the originals
    resolution: hyperrule.Resolution
    schedule: hyperrule.Schedule
    mixup_alpha: float
    flip: bool
    inception: bool  # training crops are Inception's, not of `resolution`
    skipped: tuple[str, ...]  # what is wrong with each image that is left out
    start: folder.Start

    @property
    def resize(self) -> int | None:
        """What the shorter side of a validation image is resized to; None: it is squashed."""
        return self.resolution.precrop if self.settings.recipe.evaluation_keeps_shape else None

    def batch_split(self, memory: int, amp: str = "off", processes: int = 1) -> int:
        """Return in how many parts each of ``processes`` computes its share of a batch.

        ``memory`` bytes are what a process has for activations, in float32 unless by ``amp``.
        """
        if self.settings.batch_split != AUTO:
            return self.settings.batch_split
        share, crop = -(-self.settings.batch // processes), self.resolution.crop
        recompute = self.settings.recompute
        return cost.split(self.architecture, share, memory, crop, recompute, amp != "off")

    def describe(self) -> str:
        """Return the plan as aligned lines."""
        return "\n".join(f"{title:14}{text}" for title, text in self.rows())

    def rows(self) -> list[tuple[str, str]]:
        """Return the plan as (title, text) of each line."""
        return description.rows(self)

    def to_dict(self) -> dict[str, Any]:
        """Return what a run's report needs of the plan, as plain values: for ``plan.json``."""
        return {
            "rows": [list(row) for row in self.rows()],
            "steps": self.schedule.steps,
            "schedule": asdict(self.schedule),
            "resolution": asdict(self.resolution),
            "mixup_alpha": self.mixup_alpha,
            "architecture": self.architecture.name,
            "training_images": len(self.subset),
            "validation_images": len(self.data.val),
            "classes": list(self.data.train.classes),
        }

    def notes(self) -> list[str]:
        """Return what the user should know of the data, a line each."""
        notes = [
            *self.start.notes,
            *self.data.notes,
            *self.settings.recipe.notes(len(self.subset), self.settings.batch),
            *suspicions(self.data.train.classes, self.flip, self.crops),
        ]
        if self.skipped:
            more = f" and {len(self.skipped) - 5:,} more" if len(self.skipped) > 5 else ""
            notes.append(
                f"{len(self.skipped):,} images cannot be read and are left out "
                f"(--on_bad_image skip): {'; '.join(self.skipped[:5])}{more}"
            )
        return notes

    @property
    def cache_bytes(self) -> int:
        """Memory for resized training images."""
        if self.settings.cache_gb is None:
            return environment.memory_bytes() // 4
        return int(self.settings.cache_gb * 1e9)

    @property
    def crops(self) -> bool:
        """Whether a training view is a part of the image."""
        return self.inception or self.resolution.precrop > self.resolution.crop

    @property
    def resolution_reason(self) -> str:
        """Why the resolution is what it is."""
        return resolution_reason(self.settings, self.image_size, self.data.resolution, self.crops)

    @cached_property
    def data_identity(self) -> dict[str, Any]:
        """What tells whether another run has the same images, wherever they are.

        Names and labels are compared, not contents.
        """
        train, val = self.data.train, self.data.val
        digest = hashlib.sha256()
        for images, indices in ((train, self.subset), (val, range(len(val)))):
            root = str(getattr(images, "root", ""))
            for index in indices:
                name = images.name(index).removeprefix(root)
                digest.update(f"{images.labels[index]} {name}\n".encode(errors="surrogateescape"))
        return {
            "training images": len(self.subset),
            "validation images": len(val),
            "classes": list(train.classes),
            "names and labels": digest.hexdigest()[:16],
        }


def make_plan(settings: Settings, start: folder.Start | None = None, fetch: bool = True) -> Plan:
    """Resolve ``settings``: open checkpoint and data, select images, apply the rule; no Paddle.

    ``start`` is the run's folder and what it goes on from. A published checkpoint that is not there
    is downloaded last, when all else is known to be right, and only with ``fetch``, and only for a
    run that starts from it.
    """
    if start is None:
        start = folder.Start(Path(settings.logdir, settings.name or folder.default_name(settings)))
    fetch = fetch and not start.checkpoints
    model = published.resolve(settings.model, pretrained=not settings.from_scratch)
    architecture = getattr(model, "architecture", model)
    checkpoint = model if isinstance(model, Path) else None
    if isinstance(model, published.Entry) and not settings.from_scratch:
        checkpoint = published.locate(model, settings.bit_pretrained_dir)
    if checkpoint is not None and checkpoint.is_file():
        architecture = _checked(checkpoint)
    elif checkpoint is not None and fetch and not model.packaged:
        ask(model.url)  # where nobody answers, that is said before the data are read
    data = registry.open_dataset(
        settings.dataset, settings.datadir, val_fraction=settings.val_fraction
    )
    train, skipped = data.train, []
    if settings.on_bad_image == "skip":  # before few-shot selection, which counts on its choice
        train, skipped = check.usable(train, settings.workers, every_class=True)
        val, skipped_too = check.usable(data.val, settings.workers, every_class=False)
        data, skipped = data._replace(train=train, val=val), skipped + skipped_too
    subset = np.arange(len(train))
    if settings.examples_per_class is not None:
        subset = fewshot.select(
            train.labels,
            settings.examples_per_class,
            settings.examples_per_class_seed,
            train.classes,
        )
    if settings.on_bad_image == "error":
        parts = [(train, subset), (data.val, np.arange(len(data.val)))]
        check.require_usable(parts, settings.workers)
    by_area = registry.sizes(train, subset)
    size = by_area[len(by_area) // 2]
    sides = SIDES[data.resolution] if data.resolution else size
    crops = _first(settings.random_crop, data.random_crop)
    if checkpoint is not None and not checkpoint.is_file() and fetch:
        checkpoint = published.obtain(model, settings.bit_pretrained_dir)
        architecture = _checked(checkpoint)
    return Plan(
        settings=settings,
        architecture=architecture,
        checkpoint=checkpoint,
        data=data,
        subset=subset,
        image_size=size,
        resolution=resolution_of(settings, *sides, architecture.name, crops),
        schedule=schedule_of(settings, len(subset)),
        mixup_alpha=settings.recipe.mixup_alpha(len(subset)),
        flip=_first(settings.flip, data.flip),
        inception=settings.recipe.inception_crops and crops,
        skipped=tuple(skipped),
        start=start,
    )


def resolution_of(
    settings: Settings, height: int, width: int, model: str, crops: bool
) -> hyperrule.Resolution:
    """Return the resolution for originals of ``height`` x ``width``, and a random crop or none."""
    if settings.crop is not None:
        found = hyperrule.Resolution(settings.precrop, settings.crop)
    else:
        found = settings.recipe.resolution(height, width, model)
    return found if crops else hyperrule.Resolution(found.crop, found.crop)


def resolution_reason(
    settings: Settings, size: tuple[int, int] | None, declared: str | None, crops: bool
) -> str:
    """Return why `resolution_of` is what it is; the recipe explains ``size`` and ``declared``."""
    if settings.crop is not None:
        return "by --precrop and --crop"
    reason = settings.recipe.resolution_reason(size, declared)
    return reason if crops else f"{reason}; no crop"


def schedule_of(settings: Settings, images: int) -> hyperrule.Schedule:
    """Return the schedule for ``images`` training images."""
    found = settings.recipe.schedule(images, settings.batch, settings.epochs)
    if settings.steps is not None:
        found = found.scaled(settings.steps)
    return found if settings.warmup is None else replace(found, warmup=settings.warmup)


def _first(setting: bool | None, otherwise: bool) -> bool:
    return otherwise if setting is None else setting


def suspicions(classes: Sequence[str], flip: bool, crops: bool) -> list[str]:
    """Return warnings where the names of ``classes`` suggest that a view changes the label.

    ``flip`` and ``crops`` say whether training views are mirrored and cut.
    """
    words = [set(re.findall(r"[a-z]+|\d+", name.lower())) for name in classes]
    every = set().union(*words)
    found = []
    if flip and {"left", "right"} <= every:
        found.append("classes tell left from right, which mirroring swaps: --no-flip?")
    elif flip and set(classes) >= set("0123456789") and len(classes) <= 36:
        found.append("if the classes are written digits, a mirrored one is none: --no-flip?")
    counts = [some for some in words if some & _NUMBERS and some & _COUNTED]
    if crops and len(counts) >= max(2, len(classes) // 2):
        found.append("classes seem to count things, of which a crop may cut some: --no-crop?")
    return found


_NUMBERS = {
    *map(str, range(21)),
    *["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
}

_COUNTED = {"object", "objects", "item", "items", "count", "people", "things", "pieces"}


def _checked(checkpoint: Path) -> Architecture:
    """Return the architecture of a file whose arrays are all as they should be."""
    with npz.CheckpointFile(checkpoint) as file:
        architecture = file.architecture()
        file.check(architecture, file.classes)
    return architecture
