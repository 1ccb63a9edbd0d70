"""The plan of a run: everything that is decided before it starts, without loading Paddle."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle.config.settings import AUTO, Settings
from bit_paddle.data import check, fewshot, loader
from bit_paddle.data.readers import registry
from bit_paddle.models import cost, npz, published
from bit_paddle.models.architecture import Architecture
from bit_paddle.recipes import hyperrule
from bit_paddle.recipes.recipe import SIDES
from bit_paddle.runs import folder
from bit_paddle.system import environment
from bit_paddle.system.fetch import ask

_HALF = "half precision from layer to layer and in convolutions, float32 elsewhere"

_PRECISION = {
    "off": "float32",
    "auto": f"float32 on a CPU; on a GPU with tensor cores {_HALF}",
    "bf16": f"bf16: {_HALF}",
    "fp16": f"fp16: {_HALF}, loss scaled",
}


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
        settings, resolution, schedule = self.settings, self.resolution, self.schedule
        classes = self.data.train.classes
        height, width = self.image_size
        few = (
            f", {settings.examples_per_class} a class by seed {settings.examples_per_class_seed}"
            if settings.examples_per_class
            else ""
        )
        drops = ", ".join(map(str, schedule.drops))
        own = "" if settings.steps is None else " (--steps; the rule's proportions)"
        own = f" ({settings.epochs} epochs)" if settings.epochs is not None else own
        scaled = "x / 127.5 - 1"
        squashed = f"resize to {resolution.precrop} x {resolution.precrop} (bilinear)"
        if self.inception:
            squashed = "crop of 5 to 100 % of the area, 3:4 to 4:3, resized to "
            squashed += f"{resolution.crop} x {resolution.crop} (bilinear)"
        elif self._crops:
            squashed += f", random crop of {resolution.crop}"
        training = f"{squashed}{', random flip' if self.flip else ''}, {scaled}"
        validation = f"resize to {resolution.crop} x {resolution.crop}"
        if self.resize is not None:
            validation = f"resize the shorter side to {self.resize}, centre of {resolution.crop}"
        kept = loader.resized_bytes(len(self.subset), resolution.precrop)
        rows = {
            "model": f"{self.architecture.name}, {self.architecture.features} features, "
            f"a new head of {len(classes)} outputs starting at zero",
            "weights": self._weights(),
            "data": f"{settings.dataset}{f' in {settings.datadir}' if settings.datadir else ''}: "
            f"{len(self.subset):,} training images{few}, {len(self.data.val):,} validation "
            f"images, {len(classes)} classes ({', '.join(classes[:4])}"
            f"{', …' if len(classes) > 4 else ''})",
            "originals": f"{height} x {width} pixels (the median by area of a sample)",
            "resolution": f"{resolution.precrop} -> {resolution.crop}, {self.resolution_reason}",
            "preprocessing": f"training: {training}; validation: {validation}, {scaled}",
            "schedule": f"{schedule.steps:,} steps{own}: warm-up {schedule.warmup}, "
            f"a tenth after each of {drops}; base learning rate {settings.base_lr:g}",
            "batch": f"{settings.batch} images a step, split: {settings.batch_split}"
            + (
                ", sampled with replacement: there are fewer training images"
                if len(self.subset) < settings.batch
                else ""
            ),
            "precision": _PRECISION[settings.amp],
            "MixUp": self.settings.recipe.mixup_reason(len(self.subset)),
            "memory": f"{kept / 1e6:,.1f} MB keep the resized training images"
            if kept <= self.cache_bytes and not self.inception
            else "crops are cut out of the originals, which are decoded each time"
            if self.inception
            else f"resized training images ({kept / 1e6:,.1f} MB) are made anew each time; "
            "--cache_gb keeps them",
            "loss": f"{settings.loss} cross-entropy",
            "optimizer": f"SGD, momentum {hyperrule.MOMENTUM}, "
            + (
                f"weight decay {settings.weight_decay:g} of kernels"
                if settings.weight_decay
                else "no weight decay"
            ),
            "validation": (f"every {settings.eval_every} steps and " if settings.eval_every else "")
            + "at the end, on all validation images",
            "checkpoints": f"every {settings.save_every.replace('m', ' minutes')}"
            f"{'' if settings.save_every.endswith('m') else ' steps'}, the last {settings.keep} "
            "and the best are kept"
            if settings.save
            else "none (--no-save)",
            "files": f"{self.start.folder}/: train.log, metrics.jsonl, VisualDL, config.yaml, "
            f"result.json{', checkpoints, model.npz' if settings.save else ''}",
        }
        if settings.nproc > 1:
            rows["processes"] = f"{settings.nproc}, each with a share of every batch" + (
                ", of summed gradients and of momentum" if settings.shard else ""
            )
        if settings.repeats > 1:
            rows["files"] = f"{self.start.folder}/: repeats.txt, repeats.json, a folder a run"
            rows["runs"] = (
                f"{settings.repeats}, seeds {settings.seed} to "
                f"{settings.seed + settings.repeats - 1}; lowest, median and highest are reported"
            )
        lines = [*rows.items(), *(("note", note) for note in self.notes())]
        return "\n".join(f"{title:14}{text}" for title, text in lines)

    def notes(self) -> list[str]:
        """Return what the user should know of the data, a line each."""
        notes = [
            *self.start.notes,
            *self.data.notes,
            *self.settings.recipe.notes(len(self.subset), self.settings.batch),
            *suspicions(self.data.train.classes, self.flip, self._crops),
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
    def _crops(self) -> bool:
        return self.inception or self.resolution.precrop > self.resolution.crop

    @property
    def resolution_reason(self) -> str:
        """Why the resolution is what it is."""
        return resolution_reason(self.settings, self.image_size, self.data.resolution, self._crops)

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

    def _weights(self) -> str:
        if self.start.checkpoints:
            newest = self.start.checkpoints[0]
            return f"{newest.path}: the run goes on after step {newest.progress.step}"
        if self.checkpoint is None:
            return f"random, by seed {self.settings.seed}"
        if self.checkpoint.is_file():
            return str(self.checkpoint)
        entry = published.find(self.settings.model)
        return f"{self.checkpoint}, to be downloaded: {entry.bytes / 1e9:.2f} GB from {entry.url}"


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
        architecture = _checked(published.obtain(model, settings.bit_pretrained_dir))
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
