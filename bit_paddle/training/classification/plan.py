"""The plan of a classification: data, few-shot selection, views, MixUp, weights of classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bit_paddle.config.settings import Settings
from bit_paddle.data import check, copies, fewshot, identity
from bit_paddle.data.images import FileImages
from bit_paddle.data.labels import LabelSets, counts, every
from bit_paddle.data.readers import registry
from bit_paddle.data.shards.images import release_indexes
from bit_paddle.errors import ConfigError
from bit_paddle.models import cost, losses
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.recipes import hyperrule
from bit_paddle.recipes.recipe import SIDES
from bit_paddle.runs import folder
from bit_paddle.system import processes
from bit_paddle.training import initialization
from bit_paddle.training.classification import frozen, rows, teacher
from bit_paddle.training.classification.demand import demand_of
from bit_paddle.training.classification.teacher import Teacher
from bit_paddle.training.plan import Plan, schedule_of

if TYPE_CHECKING:
    from bit_paddle.runs.logbook import Logbook
    from bit_paddle.system.signals import Interrupt
    from bit_paddle.training.classification.task import Classification


@dataclass(frozen=True)
class ClassificationPlan(Plan):
    """All decisions about the training of a classifier before it starts."""

    settings: Settings
    data: registry.Dataset
    subset: np.ndarray  # indices of the used training images
    image_size: tuple[int, int]  # median (height, width) of the originals
    resolution: hyperrule.Resolution
    mixup_alpha: float
    flip: bool
    inception: bool  # training views are Inception crops, not crops of `resolution.precrop`
    teacher: Teacher | None = None  # whose outputs are learned; None: labels are

    def task(self, log: Logbook, stop: Interrupt) -> Classification:
        """Return the task; see `Plan`."""
        release_indexes(self.data.train, self.data.val, self.data.test)  # a step reads little
        if self.teacher is not None:
            from bit_paddle.training.classification.distillation import Distillation

            return Distillation(self, log, stop)
        from bit_paddle.training.classification.task import Classification

        return Classification(self, log, stop)

    @property
    def resize(self) -> int | None:
        """Length of the shorter side of a resized validation image; None: images are squashed."""
        return self.resolution.precrop if self.settings.recipe.evaluation_keeps_shape else None

    @property
    def labelled(self) -> bool:
        """Whether the labels of the data are the classes; else they are 0, and mean nothing."""
        return self.teacher is None or self.teacher.fits

    @property
    def demand(self) -> cost.Demand:
        """The bytes that training takes."""
        classes = len(self.data.train.classes)
        return demand_of(
            self.settings, self.architecture, self.resolution.largest, classes, self.teacher
        )

    def rows(self) -> list[tuple[str, str]]:
        """Return the plan as a (title, text) per line."""
        return rows.rows(self)

    def details(self) -> dict[str, Any]:
        """Return the part of a classification in ``plan.json``."""
        return {
            "resolution": asdict(self.resolution),
            "mixup_alpha": self.mixup_alpha,
            "architecture": self.architecture.name,
            "head": self.architecture.head,
            "training_images": len(self.subset),
            "training_images_per_class": self.class_counts.tolist() if self.labelled else None,
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

    def task_notes(self) -> list[str]:
        """Return notes for the user on the data and the recipe, one per line."""
        return [
            *self.data.notes,
            *self.settings.recipe.notes(len(self.subset), self.settings.batch),
            *frozen.notes(self),
            *(self.teacher.notes(self.resolution.crop) if self.teacher else ()),
            *suspicions(self.data.train.classes, self.flip, self.crops),
        ]

    @cached_property
    def class_counts(self) -> np.ndarray:
        """The number of used training images per class, int64 [K]."""
        train = self.data.train
        return counts(train.labels[self.subset], len(train.classes))

    @property
    def several(self) -> bool:
        """Whether an image may have several labels, or none."""
        return isinstance(self.data.train.labels, LabelSets)

    @property
    def head_bias(self) -> float:
        """The initial bias of a new head.

        With several labels per image it is the log-odds of a label, so that the first outputs are
        right on average. Of ImageNet-21k that is -10, which the authors take.
        """
        if not self.several:
            return losses.LOSSES[self.settings.loss].head_bias
        pairs = len(self.subset) * len(self.class_counts)
        share = np.clip(self.class_counts.sum() / pairs, 1 / (pairs + 1), pairs / (pairs + 1))
        return float(np.log(share / (1 - share)))

    @property
    def class_weights(self) -> np.ndarray | None:
        """The weight of each class in the loss, float64 [K]; None: all images weigh the same."""
        return losses.class_weights(self.class_counts, self.settings.balance)

    @cached_property
    def keeps_head(self) -> bool:
        """Whether a new run starts with the head of its file: of this kind, for these classes."""
        path = self.checkpoint
        if not self.settings.recipe.keeps_head or path is None or not path.exists():
            return False
        with CheckpointFile(path) as file:
            classes = file.notes().get("classes") if file.classes else None
            same = file.architecture().head == self.architecture.head
        return same and classes == list(self.data.train.classes)

    @property
    def crops(self) -> bool:
        """Whether training views are crops, not whole images."""
        return self.inception or self.resolution.precrop > self.resolution.crop

    @property
    def resolution_reason(self) -> str:
        """The reason for `resolution`, in words."""
        return resolution_reason(
            self.settings, self.image_size, self.data.resolution, self.crops, self.teacher
        )

    @cached_property
    def data_identity(self) -> dict[str, Any]:
        """The images' names and labels, which a resumed run compares with its checkpoint's.

        The identity depends neither on the folder of the data nor on the images' contents.
        """
        train, val = self.data.train, self.data.val
        span = train.pixel_range if isinstance(train, FileImages) else None
        return {
            "training images": len(self.subset),
            "validation images": len(val),
            "classes": list(train.classes),
            "names and labels": identity.digest((train, self.subset), (val, np.arange(len(val)))),
            "pixel range": span and list(span),
            **({"teacher": self.teacher.digest} if self.teacher else {}),
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

    @property
    def tested(self) -> bool:
        """Whether the data have test images."""
        return bool(self.data.test)

    @property
    def model_notes(self) -> dict[str, Any]:
        """The classes, and the view of an image, for the file of a model."""
        return {
            "classes": list(self.data.train.classes),
            "crop": self.resolution.crop,
            "resize": self.resize,
            "flip": self.flip,
        }


def make_plan(
    settings: Settings, start: folder.Start | None = None, fetch: bool = True
) -> ClassificationPlan:
    """Return the plan of ``settings``: opens checkpoint and data, selects images, applies the rule.

    ``start`` is the run's folder, with the checkpoints to resume from. A missing published
    checkpoint is downloaded last, after all other checks; only with ``fetch``, and only if the run
    starts from it.
    """
    if start is None:
        start = folder.unstarted(settings)
    download = fetch
    fetch = fetch and not start.checkpoints
    weights, taught = initialization.find(settings, start, fetch), teacher.find(settings)
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
    data, taught = teacher.with_classes(settings, data, taught)
    train = data.train
    subset = every(len(train))
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
        check.require_usable(parts, settings.workers, settings.check == "full")
    if not processes.rank():
        data = data._replace(notes=(*data.notes, *copies.notes(data, subset, settings.workers)))
    by_area = registry.sizes(train, subset)
    size = by_area[len(by_area) // 2]
    sides = SIDES[data.resolution] if data.resolution else size
    crops = _first(settings.random_crop, data.random_crop)
    if fetch:
        weights = weights.downloaded(settings.bit_pretrained_dir)
    if download and taught is not None:
        taught.download(settings.bit_pretrained_dir)
    return ClassificationPlan(
        settings=settings,
        architecture=replace(weights.architecture, head=settings.head),
        checkpoint=weights.checkpoint,
        data=data,
        subset=subset,
        image_size=size,
        resolution=resolution_of(settings, *sides, weights.architecture.name, crops, taught),
        schedule=schedule_of(settings, len(subset)),
        mixup_alpha=settings.recipe.mixup_alpha(len(subset)),
        flip=_first(settings.flip, data.flip),
        inception=settings.recipe.inception_crops and crops,
        skipped=tuple(skipped),
        start=start,
        teacher=taught,
    )


def resolution_of(
    settings: Settings,
    height: int,
    width: int,
    model: str,
    crops: bool,
    teacher: Teacher | None = None,
) -> hyperrule.Resolution:
    """Return the resolution for originals of ``height`` x ``width``, with or without a crop."""
    if settings.crop is not None:
        resolution = hyperrule.Resolution(settings.precrop, settings.crop)
    elif teacher is not None and teacher.resolution is not None:
        resolution = teacher.resolution
    else:
        resolution = settings.recipe.resolution(height, width, model)
    if settings.alternate_crop is not None and not crops:
        raise ConfigError(
            "--alternate_crop: without crops all views have one size, and the data set's file says "
            "random_crop: false; leave the flag out, or give --random_crop"
        )
    if not crops:
        return hyperrule.Resolution(resolution.crop, resolution.crop)
    return replace(resolution, alternate=settings.alternate_crop)


def resolution_reason(
    settings: Settings,
    size: tuple[int, int] | None,
    declared: str | None,
    crops: bool,
    teacher: Teacher | None = None,
) -> str:
    """Return the reason for `resolution_of`; see `Recipe.resolution_reason`."""
    if settings.crop is not None:
        return "by --precrop and --crop"
    reason = settings.recipe.resolution_reason(size, declared)
    if teacher is not None and teacher.resolution is not None:
        reason = "the teacher's"
    return reason if crops else f"{reason}; no crop"


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
