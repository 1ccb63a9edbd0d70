"""The settings of a detection: a frozen dataclass. Its recipe is `recipes.detection`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bit_paddle.config.run_settings import RunSettings
from bit_paddle.config.settings import FIELDS
from bit_paddle.config.types import (
    MODELS,
    file_path,
    fraction,
    number,
    one_of,
    positive,
    setting,
    whole,
)
from bit_paddle.data.boxes.annotations import ON_BAD_BOX
from bit_paddle.models.detection import cost
from bit_paddle.models.detection.anchors import SHAPES
from bit_paddle.models.detection.configuration import (
    BOX_LOSSES,
    KINDS,
    LARGEST,
    LARGEST_BASE,
    METHODS,
)
from bit_paddle.recipes import detection
from bit_paddle.recipes.hyperrule import Schedule

_what = functools.partial(setting, "what")
_how = functools.partial(setting, "how")
_path = functools.partial(_what, file_path, affects_result=False)


def _as_in_training(name: str, **changes: Any) -> Any:
    """Return the field that `settings.Settings` has, with ``changes`` of its default and help."""
    item = FIELDS[name]
    default = changes.pop("default", item.default)
    return field(default=default, metadata={**item.metadata, **changes})


@dataclass(frozen=True)
class DetectorSettings:
    """The model and the data of a detection, and its recipe."""

    model: str = _as_in_training(
        "model", help=f"backbone: {MODELS}; with --from_scratch also R<layers>x<width>"
    )
    boxes: str = _path(
        "boxes to train on: COCO's file (.json), a folder of Pascal VOC's files (.xml), or a "
        "folder of YOLO's files (.txt) with classes.txt or data.yaml in it or above it",
    )
    images: str | None = _path(
        "folder of the images to train on",
        None,
        default_help="images/ or JPEGImages/ beside the boxes, or the folder of the boxes; for "
        "COCO train2017/ beside the folder of instances_train2017.json",
    )
    val_boxes: str | None = _path(
        "boxes to validate on, in any of the formats",
        None,
        default_help="--val_fraction of the images is held out",
    )
    val_images: str | None = _path(
        "folder of the images to validate on", None, default_help="as for --images"
    )
    test_boxes: str | None = _path(
        "boxes to test on, once, at the end of the run; they decide nothing", None
    )
    test_images: str | None = _path(
        "folder of the images to test on", None, default_help="as for --images"
    )
    val_fraction: float | None = _what(
        fraction,
        "fraction of the images that is held out for validation without --val_boxes",
        None,
        default_help="0.1",
    )
    on_bad_box: str = _what(
        one_of(*ON_BAD_BOX),
        "handling of boxes without area, boxes outside their image, unknown classes and missing "
        "images. error: list them before training, and stop. skip: leave them out",
        "error",
    )
    bit_pretrained_dir: str | None = _as_in_training("bit_pretrained_dir")
    from_scratch: bool = _as_in_training("from_scratch")

    detector: str = _how(
        one_of(*KINDS),
        "retinanet: one stage, as in the paper. faster_rcnn: two stages, proposals and their "
        "classes; more time and memory",
        "retinanet",
    )
    recipe: str = _how(
        one_of(*SHAPES),
        "anchors, their matching, and the pyramid's P6. tpu: the code that the paper names; an "
        "anchor is positive from an overlap (IoU) of 0.5 on, negative below; P6 from P5. "
        "detectron: as Detectron2; negative below 0.4, ignored between; P6 from C5",
        "tpu",
    )
    box_loss: str = _how(
        one_of(*BOX_LOSSES),
        "RetinaNet's loss of the boxes. huber: of their codes, weight 50, as the code that the "
        "paper names. giou: 1 - GIoU, weight 1",
        "huber",
    )
    regions: str = _how(
        one_of(*METHODS),
        "content of a proposal for --detector faster_rcnn: RoI align, or RoI pooling",
        "align",
    )
    anchor_base: float = _how(
        number(lambda value: 0 < value <= LARGEST_BASE, f"above 0 and at most {LARGEST_BASE:g}"),
        "side of the smallest square anchor in units of 8 pixels. Smaller anchors find smaller "
        "objects; the plan tells what would reach all boxes",
        4.0,
    )
    side: int = _how(
        whole(32, most=LARGEST),
        "longer side of an image in pixels, in training and validation; views are padded to "
        "multiples of 128",
        detection.SIDE,
    )
    scale_min: float = _how(
        positive,
        "scale jitter: each training view is scaled by a random factor from --scale_min to "
        "--scale_max, then cropped or padded",
        1.0,
    )
    scale_max: float = _how(positive, "largest factor of the scale jitter", 1.0)
    flip: bool = _as_in_training(
        "flip", default=True, default_help="half of the images are mirrored"
    )
    channels: int = _how(
        whole(32, most=LARGEST), "channels of the pyramid and of the heads", cost.CHANNELS
    )
    depth: int = _how(
        whole(0, most=LARGEST),
        "convolutions of each of RetinaNet's heads before its last",
        cost.DEPTH,
    )
    learn: str = _as_in_training(
        "learn",
        help="what learns: all; the pyramid and the heads alone (head); or also a block of the "
        "backbone and all that follows (block4). What comes before is frozen: less time, less "
        "memory",
    )
    batch: int = _as_in_training(
        "batch", help="batch size: images per optimizer step", default=detection.BATCH
    )
    batch_split: int | str = _as_in_training("batch_split")
    recompute: str = _as_in_training(
        "recompute",
        help="activation recomputation: less memory, more time, the same result. Of the backbone "
        "only the inputs of the residual units (unit) or of the four blocks (block) are stored, of "
        "a head only its input; the backward pass computes the rest again",
    )
    amp: str = _as_in_training("amp")
    base_lr: float = _as_in_training(
        "base_lr",
        help="base learning rate, reached after the warm-up",
        default=detection.BASE_LR,
    )
    weight_decay: float = _as_in_training(
        "weight_decay",
        help="weight decay, added to the gradients of kernels",
        default=detection.WEIGHT_DECAY,
    )
    epochs: int | None = _as_in_training(
        "epochs",
        help="length of the run in passes over the training images",
        default_help=f"{detection.EPOCHS}",
    )
    steps: int | None = _as_in_training(
        "steps",
        help="length of the run in optimizer steps; the schedule is scaled in proportion",
        default_help="that of --epochs",
    )
    warmup: int | None = _as_in_training(
        "warmup", default_help="an epoch; with --steps in proportion"
    )
    seed: int = _as_in_training(
        "seed", help="seed of the data's order, scales, crops, flips and random weights"
    )


@dataclass(frozen=True)
class DetectionSettings(RunSettings, DetectorSettings):
    """All settings of a detection's run, as `settings.Settings` has those of a classification."""

    repeats: int = _as_in_training(
        "repeats",
        help="number of runs; each adds 1 to --seed. The lowest, median and highest average "
        "precision are reported: the paper reports the median of 5",
    )

    cache_gb: float | None = _as_in_training(
        "cache_gb",
        help="size of the in-memory cache of decoded training images, in gigabytes; used only if "
        "all of them fit",
    )

    task = "detection"
    prog = "python -m bit_paddle.detect train"
    size = "side"
    groups = {
        "what": "model and data",
        "how": "training recipe",
        "run": "run: files, checkpoints, hardware",
    }

    @classmethod
    def recipe_defaults(cls, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return the base learning rate, which is in proportion to the batch."""
        return {"base_lr": detection.base_lr(chosen.get("batch", detection.BATCH))}

    def recipe_schedule(self, images: int) -> Schedule:
        """Return the recipe's schedule for ``images`` training images."""
        return detection.schedule(images, self.batch, self.epochs or detection.EPOCHS)

    @property
    def data_options(self) -> dict[str, Any]:
        """The arguments of `data.boxes.parts.open_parts`."""
        parts = [f"{part}{kind}" for part in ("", "val_", "test_") for kind in ("boxes", "images")]
        return {name: getattr(self, name) for name in (*parts, "val_fraction", "on_bad_box")}

    @property
    def data_title(self) -> str:
        """The training boxes as they were given."""
        return self.boxes

    @property
    def data_name(self) -> str:
        """The names of the file or folder of boxes and of the folder around it, and repeats."""
        path = Path(self.boxes).resolve()
        name = f"{path.parent.name}-{path.stem}".strip("-")
        return f"{name}-x{self.repeats}" if self.repeats > 1 else name
