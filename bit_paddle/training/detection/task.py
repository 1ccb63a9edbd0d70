"""Detection: the batches, the loss and the measurements of a run. Imports Paddle."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import paddle
from paddle import Tensor

from bit_paddle.data.boxes import loader
from bit_paddle.data.boxes.annotations import BoxedImages
from bit_paddle.inference import average_precision
from bit_paddle.inference.average_precision import Scores
from bit_paddle.inference.parts import Parts
from bit_paddle.models import published, weights
from bit_paddle.models.detection.anchors import anchors_of, targets_of
from bit_paddle.models.detection.configuration import network
from bit_paddle.models.detection.faster_rcnn import FasterRCNN
from bit_paddle.models.detection.losses import losses
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.models.stages import WithBackbone
from bit_paddle.runs.logbook import Logbook
from bit_paddle.system import device, processes
from bit_paddle.system.signals import Interrupt
from bit_paddle.training import distributed
from bit_paddle.training.detection import validation
from bit_paddle.training.task import MicroBatchLoss, Task

if TYPE_CHECKING:
    from bit_paddle.training.detection.plan import DetectionPlan


class Detection(Task):
    """Each image has boxes; the best model has the highest average precision (COCO's AP)."""

    def __init__(self, plan: DetectionPlan, log: Logbook, stop: Interrupt):
        average_precision.check_installed()
        self._plan, self._log, self._stop = plan, log, stop
        self._parts = Parts(log.say)  # of validation, which takes other memory than a step
        self._dense = plan.detector.kind == "retinanet"
        dtype = np.dtype(paddle.get_default_dtype())
        self._anchors = anchors_of(*plan.sides, plan.detector.shapes, dtype)

    # --- The network ----------------------------------------------------------------------------

    def new_network(self) -> WithBackbone:
        """Return a detector of the classes."""
        return network(self._plan.detector, ResNetV2(self._plan.architecture))

    def initial_network(self) -> WithBackbone:
        """Return a detector with random heads on the pre-trained backbone, or on a random one."""
        settings, path = self._plan.settings, self._plan.checkpoint
        if path is None:
            backbone = ResNetV2(self._plan.architecture)
            backbone.reset_parameters(settings.seed)
        else:
            if not path.exists():  # a run that was to resume, of whose checkpoints none is whole
                source = published.resolve(settings.model)
                path = published.obtain(source, settings.bit_pretrained_dir)
            backbone = weights.create_model(path, 0)
        return network(self._plan.detector, backbone, settings.seed)

    # --- Batches and losses ---------------------------------------------------------------------

    def batches(self, start: int) -> Generator[loader.Batch, None, None]:
        """Yield this rank's share of the batch of each step from step ``start`` on, without end."""
        plan, settings = self._plan, self._plan.settings
        return loader.training_batches(
            plan.data.train,
            loader.Views(plan.sides, settings.side, plan.scales, plan.flip),
            self._targets_of,
            settings.batch,
            settings.seed,
            settings.workers,
            plan.cache_bytes,
            start,
            processes.rank(),
            processes.world_size(),
        )

    def _targets_of(self, boxes: np.ndarray, labels: np.ndarray) -> Sequence[np.ndarray]:
        """Return the aims of all anchors; a detector that samples its anchors needs none."""
        if not self._dense:
            return ()
        return targets_of(boxes, labels, self._anchors, self._plan.detector.matching)

    def prepare(self, model: WithBackbone, batch_split: int) -> None:
        """Do nothing: the views change from step to step."""

    def loss_of(self, batch: loader.Batch) -> MicroBatchLoss:
        """Return the loss of the micro-batches, divided by a number of the whole batch.

        That is the number of positive anchors, plus 1; of images, if the anchors are sampled.
        """
        normalizer = float(len(batch.indices))
        if self._dense:
            positive = sum(int((one.targets[0] >= 0).sum()) for one in batch.share)
            normalizer = float(distributed.total([positive])[0]) + 1
        return partial(self._loss, normalizer=normalizer)

    def _loss(self, model: WithBackbone, part: loader.MicroBatch, normalizer: float) -> Tensor:
        pixels = device.to_device(part.images)
        if isinstance(model, FasterRCNN):
            return sum(model.losses(pixels, *part[1:5], normalizer))
        logits, codes = model(pixels)
        classes, target_codes = map(paddle.to_tensor, part.targets)
        anchors = paddle.to_tensor(self._anchors, codes.dtype)
        target_codes, box_loss = target_codes.astype(codes.dtype), self._plan.detector.box_loss
        return sum(losses(logits, codes, classes, target_codes, anchors, normalizer, box_loss))

    def trial_loss(self, model: WithBackbone, images: int) -> Tensor:
        """Return the loss of grey images with a box each."""
        height, width = self._plan.sides
        boxes, labels = np.array([[0, 0, width, height]], np.float32), np.zeros(1, np.int64)
        pixels = np.full((3, height, width), 128, np.uint8)
        targets = self._targets_of(boxes, labels)
        one = loader.Example(pixels, boxes, labels, self._plan.sides, 0, targets)
        (part,) = loader.Batch(np.arange(images), [one] * images).micro_batches(1)
        return self._loss(model, part, float(images))

    def names(self, batch: loader.Batch) -> list[str]:
        """Return the paths of the images of the whole batch."""
        train = self._plan.data.train
        return [str(train.root / train.paths[index]) for index in batch.indices]

    # --- Measurements ---------------------------------------------------------------------------

    def validate(self, model: WithBackbone, batch_split: int, last: bool) -> Scores:
        """Measure ``model`` on all validation images."""
        return self._measure(model, self._plan.data.val, batch_split, "validation")

    def test(self, model: WithBackbone, batch_split: int) -> Scores:
        """Measure ``model`` on all test images."""
        return self._measure(model, self._plan.data.test, batch_split, "test")

    def _measure(
        self, model: WithBackbone, images: BoxedImages, batch_split: int, part: str
    ) -> Scores:
        return validation.measure(
            self._plan, model, images, batch_split, self._log, self._stop, part, self._parts
        )
