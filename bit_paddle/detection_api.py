"""Detection in Python: `train_detector`, and `open_detector` of `inference.detecting`.

run = bit.train_detector("BiT-Mini", "boxes.json", name="birds", steps=250)
run.result["ap50"], run.best.detect("photo.jpg")
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

from bit_paddle import train
from bit_paddle.api import RunFolder
from bit_paddle.config import contradictions, detection_cli, parsing
from bit_paddle.config.detection_settings import DetectionSettings
from bit_paddle.config.run_settings import fields_of
from bit_paddle.inference.arguments import address
from bit_paddle.inference.detecting import DetectorModel, open_detector
from bit_paddle.training import embedded
from bit_paddle.training.detection.plan import make_plan

__all__ = ["DetectorRun", "open_detector", "train_detector"]


def train_detector(
    model: str | os.PathLike, boxes: str | os.PathLike, *, force: bool = False, **settings: Any
) -> DetectorRun:
    """Train a detector on images with boxes, as ``bit_paddle detect train`` does; return the run.

    ``model`` is the backbone, as for `fine_tune`. ``boxes`` is COCO's file (.json), a folder of
    Pascal VOC's files (.xml), or a folder of YOLO's files (.txt). ``settings`` are the flags of the
    command by name: ``val_boxes="val.json", side=256, batch=8, steps=250``. Sides are in pixels.
    ``force`` resumes a run although settings or data have changed.

    Stopped runs and signals are handled as in `fine_tune`: the same call resumes the run. Errors:
    those of `bit_paddle.errors`; one `ConfigError` lists all wrong settings, one `DataError` all
    faults of the boxes.

        run = bit_paddle.train_detector("BiT-Mini", "boxes.json", side=256, batch=8, steps=250)
        run.best.detect("photo.jpg")
    """
    taken = {"model": address(model), "boxes": os.fspath(boxes)}
    every = fields_of(DetectionSettings)
    words = embedded.words_of("train_detector", taken, settings, every, force)
    parsed, _ = parsing.parse_as(
        DetectionSettings, detection_cli.train_parser(), words, contradictions.of_detection
    )
    ended = embedded.carry_out(lambda: train.train(parsed, words, force, True, make_plan))
    return DetectorRun(ended.folder, ended.result)


class DetectorRun(RunFolder):
    """A run of `train_detector`: its ``folder`` and its ``result``.

    ``result`` is a dictionary of steps, loss and COCO's scores (ap, ap50, ap75 and others, from 0
    to 1) on the validation images after the last step. If there are test images,
    ``result["test"]`` has the same of "best" and "last". With ``repeats`` it holds the lowest,
    median and highest of these. It is None if the run is not complete.
    """

    @cached_property
    def best(self) -> DetectorModel:
        """The detector with the highest average precision on the validation images so far."""
        return open_detector(self._best_path())

    @cached_property
    def model(self) -> DetectorModel:
        """The detector after the last step; for a stopped run, the newest checkpoint."""
        return open_detector(self._newest_path())
