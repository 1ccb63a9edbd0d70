"""Estimate a detection on GPUs: parameters, operations, memory, the split of a batch, the time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bit_paddle.config.detection_settings import DetectionSettings
from bit_paddle.data.boxes.loader import held_bytes
from bit_paddle.data.boxes.views import fitting_sides
from bit_paddle.models.detection.configuration import Detector
from bit_paddle.runs.folder import Start
from bit_paddle.training import initialization
from bit_paddle.training.description import aligned
from bit_paddle.training.detection.plan import demand_of, detector_of, make_plan
from bit_paddle.training.detection.rows import TITLES
from bit_paddle.training.estimate import GIB, gpu_rows
from bit_paddle.training.plan import schedule_of


class Sizes(NamedTuple):
    """The sizes of a detection's training data."""

    images: int
    detector: Detector
    sides: tuple[int, int]  # of a view: height, width
    origin: str  # source of these


def opened_sizes(settings: DetectionSettings) -> Sizes:
    """Return the sizes of the data of ``settings``. Errors: those of `make_plan`."""
    plan = make_plan(replace(settings, name=None), fetch=False)
    return Sizes(len(plan.data.train), plan.detector, plan.sides, settings.boxes)


def known_sizes(settings: DetectionSettings, images: int, classes: int) -> Sizes:
    """Return the sizes for so many images of every shape, whose views are square."""
    sides = fitting_sides((settings.side, settings.side), settings.side)
    names = [str(number) for number in range(1, classes + 1)]
    return Sizes(images, detector_of(settings, names), sides, "not opened")


def describe(
    settings: DetectionSettings,
    sizes: Sizes,
    memory: int,
    gpus: int = 1,
    images_per_second: float | None = None,
) -> str:
    """Return the estimate for ``gpus`` GPUs with ``memory`` bytes each, as aligned lines.

    ``images_per_second`` is the training speed of one GPU. No checkpoint is downloaded.
    """
    architecture = initialization.find(settings, Start(Path()), fetch=False).architecture
    detector = sizes.detector
    parameters = detector.parameters(architecture)
    steps, (height, width) = schedule_of(settings, sizes.images).steps, sizes.sides
    total, share = steps * settings.batch, -(-settings.batch // gpus)
    operations = detector.multiply_adds(architecture, round((height * width) ** 0.5)) / 1e9
    return aligned(
        [
            ("model", f"{TITLES[detector.kind]} on {architecture.name}: {parameters:,} parameters"),
            (
                "data",
                f"{sizes.origin}: {sizes.images:,} training images, {len(detector.classes):,} "
                f"classes; "
                f"views of {height} x {width} pixels",
            ),
            (
                "schedule",
                f"{steps:,} steps of {settings.batch} images: {total:,} images, "
                f"{total / sizes.images:,.1f} epochs",
            ),
            ("operations", f"{operations:,.1f} G multiply-adds per image forward"),
            (
                "host memory",
                f"{held_bytes(share, sizes.sides, detector.target_bytes(sizes.sides)) / GIB:,.2f} "
                f"GiB per GPU for the views and targets of two batches",
            ),
            *gpu_rows(
                settings,
                demand_of(settings, architecture, detector, sizes.sides),
                steps,
                memory,
                gpus,
                images_per_second,
            ),
        ]
    )
