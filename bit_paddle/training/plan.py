"""The plan of a run: all decisions before it starts, made without loading Paddle."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle.config.settings import AUTO, Settings
from bit_paddle.data import check, copies, fewshot, identity
from bit_paddle.data.readers import registry
from bit_paddle.errors import CheckpointError, MissingFileError
from bit_paddle.models import cost, losses, published
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.recipes import hyperrule
from bit_paddle.recipes.recipe import SIDES
from bit_paddle.runs import folder
from bit_paddle.system import environment, processes
from bit_paddle.system.hub import Repository
from bit_paddle.system.text import plural
from bit_paddle.training import description, frozen


@dataclass(frozen=True)
class Plan:
    """All decisions about a run before it starts."""

    settings: Settings
    architecture: Architecture
    checkpoint: Path | None  # None: random weights
    data: registry.Dataset
    subset: np.ndarray  # indices of the used training images
    image_size: tuple[int, int]  # median (height, width) of the originals
    resolution: hyperrule.Resolution
    schedule: hyperrule.Schedule
    mixup_alpha: float
    flip: bool
    inception: bool  # training views are Inception crops, not crops of `resolution.precrop`
    skipped: tuple[str, ...]  # the fault of each skipped image
    start: folder.Start

    @property
    def resize(self) -> int | None:
        """Length of the shorter side of a resized validation image; None: images are squashed."""
        return self.resolution.precrop if self.settings.recipe.evaluation_keeps_shape else None

    def batch_split(self, memory: int, amp: str = "off", processes: int = 1) -> int:
        """Return the number of micro-batches in the share of each of ``processes``.

        A process has ``memory`` bytes for activations, which are float32 if ``amp`` is off.
        """
        if self.settings.batch_split != AUTO:
            return self.settings.batch_split
        share, crop = -(-self.settings.batch // processes), self.resolution.crop
        recompute = self.settings.recompute
        half, learn = amp != "off", self.settings.learn
        return cost.split(self.architecture, share, memory, crop, recompute, half, learn)

    def describe(self) -> str:
        """Return the plan as aligned lines."""
        return description.aligned(self.rows())

    def rows(self) -> list[tuple[str, str]]:
        """Return the plan as a (title, text) per line."""
        return description.rows(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, for ``plan.json``, which the report of a run reads."""
        return {
            "rows": [list(row) for row in self.rows()],
            "steps": self.schedule.steps,
            "schedule": asdict(self.schedule),
            "resolution": asdict(self.resolution),
            "mixup_alpha": self.mixup_alpha,
            "architecture": self.architecture.name,
            "training_images": len(self.subset),
            "training_images_per_class": self.class_counts.tolist(),
            "balance": self.settings.balance,
            "validation_images": len(self.data.val),
            "test_images": len(self.data.test) if self.data.test else 0,
            "classes": list(self.data.train.classes),
        }

    @property
    def steps_of_all_folds(self) -> int:
        """The number of steps that all runs of --folds make together."""
        total, few = sum(self.data.folds), self.settings.examples_per_class
        images = (len(self.subset) if few else total - size for size in self.data.folds)
        return sum(schedule_of(self.settings, count).steps for count in images)

    def notes(self) -> list[str]:
        """Return notes for the user on the start, the data and the recipe, one per line."""
        notes = [
            *self.start.notes,
            *self._test_notes(),
            *self.data.notes,
            *self.settings.recipe.notes(len(self.subset), self.settings.batch),
            *frozen.notes(self),
            *suspicions(self.data.train.classes, self.flip, self.crops),
            *_foreign(self.checkpoint),
        ]
        if self.skipped:
            more = f" and {len(self.skipped) - 5:,} more" if len(self.skipped) > 5 else ""
            notes.append(
                f"{plural(len(self.skipped), 'unreadable image')} skipped (--on_bad_image skip): "
                f"{'; '.join(self.skipped[:5])}{more}"
            )
        return notes

    @cached_property
    def class_counts(self) -> np.ndarray:
        """The number of used training images per class, int64 [K]."""
        train = self.data.train
        return np.bincount(train.labels[self.subset], minlength=len(train.classes))

    @property
    def class_weights(self) -> np.ndarray | None:
        """The weight of each class in the loss, float64 [K]; None: all images weigh the same."""
        return losses.class_weights(self.class_counts, self.settings.balance)

    @property
    def cache_bytes(self) -> int:
        """Size of the cache of resized training images, in bytes."""
        if self.settings.cache_gb is None:
            return environment.memory_bytes() // 4
        return int(self.settings.cache_gb * 1e9)

    @property
    def crops(self) -> bool:
        """Whether training views are crops, not whole images."""
        return self.inception or self.resolution.precrop > self.resolution.crop

    @property
    def resolution_reason(self) -> str:
        """The reason for `resolution`, in words."""
        return resolution_reason(self.settings, self.image_size, self.data.resolution, self.crops)

    @cached_property
    def data_identity(self) -> dict[str, Any]:
        """The images' names and labels, which a resumed run compares with its checkpoint's.

        The identity depends neither on the folder of the data nor on the images' contents.
        """
        train, val = self.data.train, self.data.val
        return {
            "training images": len(self.subset),
            "validation images": len(val),
            "classes": list(train.classes),
            "names and labels": identity.digest((train, self.subset), (val, np.arange(len(val)))),
        }

    @cached_property
    def test_identity(self) -> dict[str, Any] | None:
        """The test images' names and labels; None if there are none.

        A run resumes with other test images too, as they decide nothing; a note reports it.
        """
        test = self.data.test
        if not test:
            return None
        every = np.arange(len(test))
        return {"images": len(test), "names and labels": identity.digest((test, every))}

    def _test_notes(self) -> list[str]:
        """Return a note if the test images are not those of the run's checkpoint."""
        if not self.start.checkpoints:
            return []
        before, now = self.start.checkpoints[0].notes.get("test"), self.test_identity
        if before == now:
            return []
        counts = [part["images"] if part else 0 for part in (before, now)]
        return [
            f"the test images have changed since the run's checkpoint ({counts[0]:,} -> "
            f"{counts[1]:,}); the run resumes, as they decide nothing, and measures the new ones"
        ]


def make_plan(settings: Settings, start: folder.Start | None = None, fetch: bool = True) -> Plan:
    """Return the plan of ``settings``: opens checkpoint and data, selects images, applies the rule.

    ``start`` is the run's folder, with the checkpoints to resume from. A missing published
    checkpoint is downloaded last, after all other checks; only with ``fetch``, and only if the run
    starts from it.
    """
    if start is None:
        start = folder.Start(Path(settings.logdir, settings.name or folder.default_name(settings)))
    fetch = fetch and not start.checkpoints
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
    data = registry.open_dataset(settings.dataset, **settings.data_options)
    train, skipped = data.train, []
    if settings.on_bad_image == "skip":  # before few-shot selection, which takes readable images
        train, skipped = check.usable(train, settings.workers, every_class=True)
        data = data._replace(train=train)
        for part in ("val", "test"):
            images = getattr(data, part)
            if images:
                images, more = check.usable(images, settings.workers, every_class=False)
                data, skipped = data._replace(**{part: images}), skipped + more
    subset = np.arange(len(train))
    if settings.examples_per_class is not None:
        subset = fewshot.select(
            train.labels,
            settings.examples_per_class,
            settings.examples_per_class_seed,
            train.classes,
        )
    if settings.on_bad_image == "error":
        parts = [(train, subset)]
        parts += [(part, np.arange(len(part))) for part in (data.val, data.test) if part]
        check.require_usable(parts, settings.workers)
    if not processes.rank():
        data = data._replace(notes=(*data.notes, *copies.notes(data, subset, settings.workers)))
    by_area = registry.sizes(train, subset)
    size = by_area[len(by_area) // 2]
    sides = SIDES[data.resolution] if data.resolution else size
    crops = _first(settings.random_crop, data.random_crop)
    if checkpoint is not None and not checkpoint.exists() and fetch:
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
    """Return the resolution for originals of ``height`` x ``width``, with or without a crop."""
    if settings.crop is not None:
        resolution = hyperrule.Resolution(settings.precrop, settings.crop)
    else:
        resolution = settings.recipe.resolution(height, width, model)
    return resolution if crops else hyperrule.Resolution(resolution.crop, resolution.crop)


def resolution_reason(
    settings: Settings, size: tuple[int, int] | None, declared: str | None, crops: bool
) -> str:
    """Return the reason for `resolution_of`; see `Recipe.resolution_reason`."""
    if settings.crop is not None:
        return "by --precrop and --crop"
    reason = settings.recipe.resolution_reason(size, declared)
    return reason if crops else f"{reason}; no crop"


def schedule_of(settings: Settings, images: int) -> hyperrule.Schedule:
    """Return the schedule for ``images`` training images."""
    schedule = settings.recipe.schedule(images, settings.batch, settings.epochs)
    if settings.steps is not None:
        schedule = schedule.scaled(settings.steps)
    return schedule if settings.warmup is None else replace(schedule, warmup=settings.warmup)


def _first(setting: bool | None, otherwise: bool) -> bool:
    return otherwise if setting is None else setting


def suspicions(classes: Sequence[str], flip: bool, crops: bool) -> list[str]:
    """Return warnings if the names of ``classes`` suggest that augmentation changes a label.

    ``flip`` and ``crops`` tell whether training views are mirrored and cropped.
    """
    words = [set(re.findall(r"[a-z]+|\d+", name.lower())) for name in classes]
    every = set().union(*words)
    warnings = []
    if flip and {"left", "right"} <= every:
        warnings.append("class names mention left and right, which mirroring swaps: --no-flip?")
    elif flip and set(classes) >= set("0123456789") and len(classes) <= 36:
        warnings.append(
            "the classes may be written digits, and a mirrored digit is no digit: --no-flip?"
        )
    counts = [parts for parts in words if parts & _NUMBERS and parts & _COUNTED]
    if crops and len(counts) >= max(2, len(classes) // 2):
        warnings.append("classes seem to count things, and a crop may cut some off: --no-crop?")
    return warnings


_NUMBERS = {
    *map(str, range(21)),
    *["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
}

_COUNTED = {"object", "objects", "item", "items", "count", "people", "things", "pieces"}


def _foreign(checkpoint: Path | None) -> list[str]:
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
