"""The command lines of `bit_paddle.detect`: train, plan, evaluate, predict."""

from __future__ import annotations

import argparse
from typing import Any

from bit_paddle.config import parsing
from bit_paddle.config.detection_settings import DetectionSettings
from bit_paddle.config.run_settings import fields_of, help_of
from bit_paddle.config.types import BadValue, file_path, positive, share, whole
from bit_paddle.data import check
from bit_paddle.data.boxes.annotations import ON_BAD_BOX
from bit_paddle.recipes import detection

PROG = "python -m bit_paddle.detect"

COMMANDS = {
    "train": "train a detector on images with boxes",
    "plan": "estimate the time and memory of a run on GPUs, before training",
    "evaluate": "measure a detector on images with boxes: COCO's average precision",
    "predict": "find the objects in images",
}

_TRAIN = f"""\
examples:
  {PROG} train --model BiT-Mini --boxes cells/train.json --side 384 --batch 8
      trains on COCO's file, whose images are beside it in images/; a tenth is held out
  {PROG} train --model BiT-M-R50x1 --boxes voc/train --val_boxes voc/val \\
      --batch 16 --dry-run
      prints the plan for folders of Pascal VOC's .xml, and stops. The plan tells how many boxes are
      too small for the anchors, and which --side or --anchor_base would reach them
  {PROG} train --model BiT-M-R50x1 --boxes yolo/labels/train \\
      --batch 16 --learn head
      trains pyramid and heads alone on YOLO's files: less time, less memory
  {PROG} train --model BiT-M-R101x3 \\
      --boxes coco/annotations/instances_train2017.json \\
      --val_boxes coco/annotations/instances_val2017.json
      trains as the paper: {detection.EPOCHS} epochs of {detection.BATCH} images of \
{detection.SIDE} pixels

The run writes bit_logs/<name>/, as python -m bit_paddle.train does. If it was stopped, the same
command resumes it from its newest checkpoint. The best model is that with the highest average
precision (AP) of COCO on the validation images.
"""

_PLAN = f"""\
The command also takes all flags of {PROG} train, which explains them:
{{flags}}

examples:
  {PROG} plan --model BiT-M-R50x1 --boxes voc/train --batch 16 --gpu_memory 16
      shows whether the run fits on a GPU of 16 GiB, and with which micro-batches
  {PROG} plan --model BiT-M-R101x3 --training_images 118287 --classes 80 \\
      --gpus 4 --images_per_second 10
      estimates a run on COCO, which is not on this machine
"""

_EVALUATE = f"""\
writes into --output: metrics.json (AP, AP50, AP75, by size, AR), per_class.csv, detections.json
(COCO's file of results), precision.png (precision-recall curves), pictures of the worst mistakes

examples:
  {PROG} evaluate --model bit_logs/cells --boxes cells/val.json
  {PROG} evaluate --model bit_logs/cells --boxes cells/val.json \\
      --scales 0.8,1,1.25 --flip
      multi-scale testing: all boxes of six views of each image are merged
"""

_PREDICT = f"""\
An image that cannot be read is skipped and reported at the end. The exit status is then 1.

examples:
  {PROG} predict photo.jpg photos/ --model bit_logs/cells
  {PROG} predict photos/ --model bit_logs/cells --pictures drawn --least_score 0.5
  {PROG} predict photos/ --model bit_logs/cells --format json --output found.json
"""

PLAN_FLAGS = ("--gpu_memory", "--gpus", "--images_per_second", "--training_images", "--classes")

# A test compares these with what `inference.detecting` and `inference.objects` offer.
SUPPRESSIONS, FORMATS = ("nms", "soft-nms"), ("csv", "json", "table")

BATCH = 8  # views that are computed at once


def parser() -> parsing.Parser:
    """Return the parser of the command, with one of each of its own commands."""
    about = f"Find objects with boxes, with a detector on a BiT backbone.\n{PROG} COMMAND --help"
    result = parsing.Parser(PROG, description=f"{about} explains a command.")
    commands = result.add_subparsers(title="commands", metavar="COMMAND")
    every: list[Any] = [train_parser(), plan_parser(), evaluate_parser(), predict_parser()]
    for (name, help), one in zip(COMMANDS.items(), every):
        commands.add_parser(
            name, help=help, parents=[one], add_help=False, conflict_handler="resolve"
        )
    return result


def train_parser() -> parsing.Parser:
    """Return the parser of train: all settings of a detection."""
    about = "Train a detector (RetinaNet or Faster R-CNN) on a BiT backbone, by the paper's recipe."
    defaults = {"base_lr": f"{detection.BASE_LR} per {detection.BATCH} images of the batch"}
    return parsing.parser(DetectionSettings.prog, about, _TRAIN, defaults, DetectionSettings)


def plan_parser() -> parsing.Parser:
    """Return the parser of plan's own flags; the rest are those of `train_parser`."""
    result = parsing.outer_parser(
        f"{PROG} plan",
        usage=f"{PROG} plan --model NAME [--boxes PATH] [--gpu_memory GiB] [--gpus N]\n"
        "         [--images_per_second X] [--training_images N --classes N] [any flag of train]",
        description="Estimate a run on GPUs before it starts: parameters, operations, memory by "
        "part, the split\nof a batch, and the time. Loads no Paddle and downloads no checkpoint.",
        epilog=_PLAN,
        kind=DetectionSettings,
    )
    parsing.add_gpu_flags(result)
    for flag, text in (("training_images", "training images"), ("classes", "classes")):
        result.add_argument(
            f"--{flag}", type=whole(1), metavar="N",
            help=f"number of {text}, if the data are not on this machine",
        )  # fmt: skip
    return result


def evaluate_parser() -> parsing.Parser:
    """Return the parser of evaluate."""
    about = "Measure a detector on images with boxes."
    result = parsing.Parser(f"{PROG} evaluate", description=about, epilog=_EVALUATE)
    _add_flags(result)
    fields = fields_of(DetectionSettings)
    result.add_argument(
        "--boxes", type=file_path, metavar="PATH", required=True,
        help=fields["boxes"].metadata["help"].replace("train on", "measure on"),
    )  # fmt: skip
    result.add_argument("--images", type=file_path, metavar="DIR", help="folder of these images")
    result.add_argument(
        "--on_bad_box", choices=ON_BAD_BOX, default="error", help=help_of(fields["on_bad_box"])
    )
    result.add_argument(
        "--on_bad_image", choices=check.CHOICES, default="error",
        help=help_of(fields["on_bad_image"]).replace("training", "measuring"),
    )  # fmt: skip
    result.add_argument("--output", type=file_path, metavar="DIR", help="folder of the results")
    return result


def predict_parser() -> parsing.Parser:
    """Return the parser of predict."""
    about = "Find the objects in images."
    result = parsing.Parser(f"{PROG} predict", description=about, epilog=_PREDICT)
    result.add_argument(
        "images", type=file_path, nargs="+",
        help="image files, folders, web addresses, quoted patterns, and - for the standard input",
    )  # fmt: skip
    _add_flags(result)
    result.add_argument(
        "--least_score", type=share, default=0.3, metavar="X",
        help="smallest score of an object (default: 0.3)",
    )  # fmt: skip
    result.add_argument("--format", choices=FORMATS, default="table")
    result.add_argument("--output", type=file_path, metavar="FILE", help="write into this file")
    result.add_argument(
        "--pictures", type=file_path, metavar="DIR", help="draw each image with its objects"
    )
    return result


def _add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the commands that run a trained detector."""
    for flag, parse, default, metavar, text in (
        ("model", file_path, None, "PATH", "run's folder, or model.npz of one"),
        ("side", whole(32), None, "N", "longer side of an image in pixels (default: the model's)"),
        ("scales", _scales, (1.0,), "X,Y", "factors of --side: several views of each image"),
    ):
        required = flag == "model"
        parser.add_argument(
            f"--{flag}", type=parse, default=default, metavar=metavar, help=text, required=required
        )
    parser.add_argument("--flip", action="store_true", help="also the mirrored views")
    parser.add_argument(
        "--suppression", choices=SUPPRESSIONS, default="nms",
        help="what becomes of boxes that overlap a better one of their class (default: nms)",
    )  # fmt: skip
    parsing.add_machine_flags(parser, BATCH)


def _scales(word: str) -> tuple[float, ...]:
    try:
        return tuple(positive(one) for one in word.split(","))
    except BadValue:
        raise BadValue(f"is {word!r}, expected positive numbers such as 0.8,1,1.25") from None
