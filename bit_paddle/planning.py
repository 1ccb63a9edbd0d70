"""The plan of a run: everything that is decided before it starts, without loading Paddle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bit_paddle import catalog, config, download, hyperrule, logbook, npz
from bit_paddle.architecture import Architecture
from bit_paddle.data import fewshot, readers


@dataclass(frozen=True)
class Plan:
    """Everything that a run has decided before it starts."""

    settings: config.Settings
    architecture: Architecture
    checkpoint: Path | None  # None: random weights
    data: readers.Dataset
    subset: np.ndarray  # indices of the training images that are used
    image_size: tuple[int, int]  # median (height, width) of the originals
    resolution: hyperrule.Resolution
    schedule: hyperrule.Schedule
    mixup_alpha: float

    def batch_split(self, memory: int) -> int:
        """Return in how many parts to compute a batch, with ``memory`` bytes for activations."""
        if self.settings.batch_split != config.AUTO:
            return self.settings.batch_split
        fits = memory // (4 * self.architecture.activations(self.resolution.crop))
        return -(-self.settings.batch // min(max(1, fits), self.settings.batch))

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
        by = (
            "--precrop and --crop"
            if settings.crop
            else (f"the {settings.rule} rule for originals of {height} x {width}")
        )
        rows = {
            "model": f"{self.architecture.name}, {self.architecture.features} features, "
            f"a new head of {len(classes)} outputs starting at zero",
            "weights": self._weights(),
            "data": f"{settings.dataset}{f' in {settings.datadir}' if settings.datadir else ''}: "
            f"{len(self.subset):,} training images{few}, {len(self.data.val):,} validation "
            f"images, {len(classes)} classes ({', '.join(classes[:4])}"
            f"{', …' if len(classes) > 4 else ''})",
            "resolution": f"resize to {resolution.precrop}, crop {resolution.crop}, by {by}",
            "preprocessing": "training: resize to a square (bilinear), random crop, random flip, "
            f"x / 127.5 - 1; validation: resize to {resolution.crop}, x / 127.5 - 1",
            "schedule": f"{schedule.steps:,} steps{own}: warm-up {schedule.warmup}, "
            f"a tenth after each of {drops}; base learning rate {settings.base_lr:g}",
            "batch": f"{settings.batch} images a step, split: {settings.batch_split}"
            + (
                ", sampled with replacement: there are fewer training images"
                if len(self.subset) < settings.batch
                else ""
            ),
            "MixUp": f"Beta({self.mixup_alpha}, {self.mixup_alpha})"
            if self.mixup_alpha
            else f"none below {hyperrule.SMALL_TASK:,} training images",
            "optimizer": f"SGD, momentum {hyperrule.MOMENTUM}, no weight decay",
            "validation": (f"every {settings.eval_every} steps and " if settings.eval_every else "")
            + "at the end, on all validation images",
            "files": f"{self.next_folder()}/: train.log, "
            "metrics.jsonl, VisualDL, config.yaml" + (", model.npz" if settings.save else ""),
        }
        return "\n".join(f"{title:14}{text}" for title, text in rows.items())

    def _weights(self) -> str:
        if self.checkpoint is None:
            return f"random, by seed {self.settings.seed}"
        if self.checkpoint.is_file():
            return str(self.checkpoint)
        entry = catalog.find(self.settings.model)
        return f"{self.checkpoint}, to be downloaded: {entry.bytes / 1e9:.2f} GB from {entry.url}"

    def next_folder(self) -> Path:
        """Return the folder that the run would get now. Raises `ConfigError` if it is taken."""
        return logbook.next_folder(self.settings.logdir, self.settings.name, self.default_name)

    @property
    def default_name(self) -> str:
        """The run's folder where --name gives none: the model's and the data's names."""
        data = (
            Path(self.settings.datadir).resolve().name
            if self.settings.dataset == "folder"
            else self.settings.dataset
        )
        few = f"-{self.settings.examples_per_class}shot" if self.settings.examples_per_class else ""
        return f"{Path(self.settings.model).name.replace('.npz', '')}-{data}{few}"


def make_plan(settings: config.Settings, fetch: bool = True) -> Plan:
    """Resolve ``settings``: open checkpoint and data, select images, apply the rule; no Paddle.

    A published checkpoint that is not there is downloaded last, when all else is known to be
    right, and only with ``fetch``.
    """
    model = catalog.resolve(settings.model, pretrained=not settings.from_scratch)
    architecture = getattr(model, "architecture", model)
    checkpoint = model if isinstance(model, Path) else None
    if isinstance(model, catalog.Entry) and not settings.from_scratch:
        checkpoint = download.locate(model, settings.bit_pretrained_dir)
    if checkpoint is not None and checkpoint.is_file():
        architecture = _checked(checkpoint)
    elif checkpoint is not None and fetch:
        download.ask(model.url)  # where nobody answers, that is said before the data are read
    if settings.name:
        logbook.next_folder(settings.logdir, settings.name, settings.name)
    data = readers.open_dataset(settings.dataset, settings.datadir)
    train = data.train
    subset = np.arange(len(train))
    if settings.examples_per_class is not None:
        subset = fewshot.select(
            train.labels,
            settings.examples_per_class,
            settings.examples_per_class_seed,
            train.classes,
        )
    size = readers.median_size(train)
    resolution = hyperrule.resolution(*size, settings.rule, architecture.name)
    if settings.crop is not None:
        resolution = hyperrule.Resolution(settings.precrop, settings.crop)
    schedule = hyperrule.schedule(len(subset), settings.rule)
    if settings.steps is not None:
        schedule = schedule.scaled(settings.steps)
    if checkpoint is not None and not checkpoint.is_file() and fetch:
        _checked(download.obtain(model, settings.bit_pretrained_dir))
    return Plan(
        settings,
        architecture,
        checkpoint,
        data,
        subset,
        size,
        resolution,
        schedule,
        hyperrule.mixup_alpha(len(subset)),
    )


def _checked(checkpoint: Path) -> Architecture:
    """Return the architecture of a file whose arrays are all as they should be."""
    with npz.CheckpointFile(checkpoint) as file:
        architecture = file.architecture()
        file.check(architecture, file.classes)
    return architecture
