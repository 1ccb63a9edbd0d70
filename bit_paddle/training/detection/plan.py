"""The plan of a detection: data, detector, views, and the boxes that no anchor reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from bit_paddle.config.detection_settings import DetectionSettings
from bit_paddle.data.boxes.loader import held_bytes
from bit_paddle.data.boxes.parts import (
    BoxedParts,
    class_counts,
    digest,
    open_parts,
    require_usable,
    unseen,
    usable,
)
from bit_paddle.data.boxes.views import common_sides
from bit_paddle.models import cost
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.detection.configuration import Detector
from bit_paddle.models.detection.cost import training_memory
from bit_paddle.runs import folder
from bit_paddle.system import processes
from bit_paddle.training import initialization
from bit_paddle.training.detection import rows
from bit_paddle.training.detection.reach import Reach, reach_of
from bit_paddle.training.plan import Plan, schedule_of

if TYPE_CHECKING:
    from bit_paddle.runs.logbook import Logbook
    from bit_paddle.system.signals import Interrupt
    from bit_paddle.training.detection.task import Detection


@dataclass(frozen=True)
class DetectionPlan(Plan):
    """All decisions about the training of a detector before it starts."""

    settings: DetectionSettings
    data: BoxedParts
    detector: Detector
    sides: tuple[int, int]  # height and width of every training view
    scales: tuple[float, float]  # of the jitter
    flip: bool

    def task(self, log: Logbook, stop: Interrupt) -> Detection:
        """Return the task; see `Plan`."""
        from bit_paddle.training.detection.task import Detection

        return Detection(self, log, stop)

    @property
    def demand(self) -> cost.Demand:
        """The bytes that training takes."""
        return demand_of(self.settings, self.architecture, self.detector, self.sides)

    @property
    def held_bytes(self) -> int:
        """The bytes of each process's views and targets in two batches; see `Plan`."""
        share = -(-self.settings.batch // max(self.settings.nproc, processes.world_size()))
        return held_bytes(share, self.sides, self.detector.target_bytes(self.sides))

    def rows(self) -> list[tuple[str, str]]:
        """Return the plan as a (title, text) per line."""
        return rows.rows(self)

    def details(self) -> dict[str, Any]:
        """Return the part of a detection in ``plan.json``."""
        train, val, test, _ = self.data
        return {
            "task": self.settings.task,
            "sides": list(self.sides),
            "architecture": self.architecture.name,
            "training_images": len(train),
            "training_boxes_per_class": class_counts(train).tolist(),
            "validation_images": len(val),
            "test_images": len(test) if test else 0,
            "classes": list(train.classes),
        }

    def task_notes(self) -> list[str]:
        """Return notes for the user on the data and the recipe, one per line."""
        settings, images = self.settings, len(self.data.train)
        notes = [*self.data.notes, *unseen(self.data.train, self.data.val)]
        if settings.batch > images:
            notes.append(
                f"an epoch is one step of {settings.batch:,} images, "
                f"{settings.batch / images:.1f} times the training set; with a smaller --batch an "
                "epoch sees each image once"
            )
        if self.schedule.steps < _FEW_STEPS:
            notes.append(
                f"{self.schedule.steps:,} steps are few: the pyramid and the heads start from "
                "random weights; a smaller --batch, more --epochs or --steps give them more"
            )
        if self.held_bytes > self.process_memory // 4:
            notes.append(
                f"the views and targets of two batches take {self.held_bytes / 1e9:,.1f} of the "
                f"{self.process_memory / 1e9:,.1f} GB of memory that a process has; a smaller "
                "--batch or --side takes less"
            )
        if self._has_detector():
            notes.append(
                f"{self.checkpoint} is a detector: its backbone alone is taken, the pyramid and "
                "the heads start from random weights"
            )
        return [*notes, *self.reach.notes()]

    def _has_detector(self) -> bool:
        """Return whether the file of the initial weights has a detector, not only a network."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return False
        with CheckpointFile(self.checkpoint) as file:
            return "detector" in file.notes()

    @cached_property
    def reach(self) -> Reach:
        """Which training boxes the anchors reach, and what would reach all."""
        train = self.data.train
        boxes = [boxes[~crowd] for boxes, crowd in zip(train.boxes, train.crowd)]
        return reach_of(boxes, train.sizes, self.settings.side, self.detector.shapes)

    @cached_property
    def data_identity(self) -> dict[str, Any]:
        """The images' names and boxes, which a resumed run compares with its checkpoint's.

        The identity depends neither on the folder of the data nor on the images' contents.
        """
        train, val = self.data.train, self.data.val
        return {
            "training images": len(train),
            "validation images": len(val),
            "classes": list(train.classes),
            "names, boxes and labels": digest(train, val),
        }

    @cached_property
    def test_identity(self) -> dict[str, Any] | None:
        """The test images' names and boxes; None if there are none."""
        test = self.data.test
        return test and {"images": len(test), "names, boxes and labels": digest(test)}

    @property
    def tested(self) -> bool:
        """Whether the data have test images."""
        return self.data.test is not None

    @property
    def model_notes(self) -> dict[str, Any]:
        """The detector, its classes, and the longer side of an image, for the file of a model."""
        return {
            "detector": self.detector.notes(),
            "classes": list(self.detector.classes),
            "crop": self.settings.side,
            "flip": self.flip,
        }


_FEW_STEPS = 300


def make_plan(
    settings: DetectionSettings, start: folder.Start | None = None, fetch: bool = True
) -> DetectionPlan:
    """Return the plan of ``settings``: opens checkpoint and data, applies the recipe.

    ``start`` is the run's folder, with the checkpoints to resume from. A missing published
    checkpoint is downloaded last, after all other checks; only with ``fetch``, and only if the run
    starts from it.
    """
    if start is None:
        start = folder.unstarted(settings)
    fetch = fetch and not start.checkpoints
    weights = initialization.find(settings, start, fetch)
    data = open_parts(**settings.data_options)
    skipped: list[str] = []
    for name in ("train", "val", "test"):
        part = getattr(data, name)
        if part is not None and settings.on_bad_image == "skip":
            part, more = usable(part, settings.workers)
            data, skipped = data._replace(**{name: part}), skipped + more
    if settings.on_bad_image == "error" and not processes.rank():
        every = [part for part in data[:3] if part is not None]
        require_usable(every, settings.workers, settings.check == "full")
    if fetch:
        weights = weights.downloaded(settings.bit_pretrained_dir)
    return DetectionPlan(
        settings=settings,
        architecture=weights.architecture,
        checkpoint=weights.checkpoint,
        schedule=schedule_of(settings, len(data.train)),
        skipped=tuple(skipped),
        start=start,
        data=data,
        detector=detector_of(settings, data.train.classes),
        sides=common_sides(data.train.sizes, settings.side),
        scales=(settings.scale_min, settings.scale_max),
        flip=settings.flip,
    )


def demand_of(
    settings: DetectionSettings,
    architecture: Architecture,
    detector: Detector,
    sides: tuple[int, int],
) -> cost.Demand:
    """Return the bytes that training takes, for views of ``sides`` (height, width).

    The detector's own parameters count as one.
    """
    heads = detector.parameters(architecture) - architecture.parameters()
    return cost.Demand(
        partial(training_memory, architecture, heads, learn=settings.learn),
        partial(detector.activations, architecture, sides, learn=settings.learn),
        [*architecture.learned_tensors(0, settings.learn), heads],
    )


def detector_of(settings: DetectionSettings, classes: Sequence[str]) -> Detector:
    """Return the detector of ``settings`` for ``classes``."""
    return Detector(
        classes=tuple(classes),
        kind=settings.detector,
        regions=settings.regions,
        recipe=settings.recipe,
        base=settings.anchor_base,
        box_loss=settings.box_loss,
        p6_from_c5=settings.recipe == "detectron",
        channels=settings.channels,
        depth=settings.depth,
        side=settings.side,
    )
