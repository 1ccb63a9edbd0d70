"""Classification: the batches, the loss and the measurements of a run. Imports Paddle."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from paddle import Tensor

from bit_paddle.data import loader
from bit_paddle.data.images import Images
from bit_paddle.data.labels import targets
from bit_paddle.inference import predictions
from bit_paddle.inference.parts import Parts
from bit_paddle.models import losses, published, weights
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.runs.logbook import Logbook
from bit_paddle.system import device, processes
from bit_paddle.system.signals import Interrupt
from bit_paddle.training import memory
from bit_paddle.training.classification import frozen, validation
from bit_paddle.training.classification.validation import Measured
from bit_paddle.training.task import MicroBatchLoss, Task

if TYPE_CHECKING:
    from bit_paddle.training.classification.plan import ClassificationPlan


def loss_of(
    model: ResNetV2,
    part: loader.MicroBatch,
    images: int,
    lam: float = 1.0,
    name: str = losses.DEFAULT,
    class_weights: np.ndarray | None = None,
    outputs: frozen.Outputs | None = None,
) -> Tensor:
    """Return the part of a micro-batch in the mean loss over a batch of so many ``images``.

    MixUp with ``lam`` comes before, unless that is 1. ``name`` is a key of `losses.LOSSES`.
    ``class_weights``: see `losses.Loss`. With the ``outputs`` of the model's frozen parts, the
    pixels are not used.
    """
    loss, share = losses.LOSSES[name], len(part.labels) / images
    labels = targets(part.labels, model.num_classes)
    if outputs is not None:
        logits = model.learned_part(outputs(part.indices))
        return loss(logits, labels, class_weights) * share
    pixels = device.to_device(part.images)
    if lam == 1.0:
        return loss(model(pixels), labels, class_weights) * share
    pixels = losses.mix(pixels, device.to_device(part.partner_images), lam)
    partner_labels = targets(part.partner_labels, model.num_classes)
    return losses.mixed(loss, model(pixels), labels, partner_labels, lam, class_weights) * share


class Classification(Task):
    """Each image has one class, or any number of labels.

    The best model has the highest top-1 accuracy, or mean average precision.
    """

    def __init__(self, plan: ClassificationPlan, log: Logbook, stop: Interrupt):
        self._plan, self._log, self._stop = plan, log, stop
        self._parts = Parts(log.say)  # of validation, which takes other memory than a step
        self._loss = partial(loss_of, name=plan.settings.loss, class_weights=plan.class_weights)

    def new_network(self) -> ResNetV2:
        """Return a network with a head for the classes."""
        return ResNetV2(self._plan.architecture, len(self._plan.data.train.classes))

    def initial_network(self) -> ResNetV2:
        """Return the pre-trained network with a new head or its own, or a random network."""
        settings, path = self._plan.settings, self._plan.checkpoint
        if path is None:
            model = self.new_network()
            model.reset_parameters(settings.seed)
        else:
            if not path.exists():  # a run that was to resume, of whose checkpoints none is whole
                source = published.resolve(settings.model)
                path = published.obtain(source, settings.bit_pretrained_dir)
            if self._plan.keeps_head:
                return weights.create_model(path)
            classes = len(self._plan.data.train.classes)
            model = weights.create_model(path, classes, head=settings.head, seed=settings.seed)
        bias = self._plan.head_bias
        if bias:
            model.last_linear.bias.set_value(np.full(model.last_linear.bias.shape, bias, "f4"))
        return model

    def batches(self, start: int) -> Generator[loader.Batch, None, None]:
        """Yield this rank's share of the batch of each step from step ``start`` on, without end."""
        plan, settings = self._plan, self._plan.settings
        return loader.training_batches(
            plan.data.train,
            plan.subset,
            plan.resolution,
            settings.batch,
            settings.seed,
            settings.workers,
            plan.flip,
            plan.mixup_alpha,
            plan.cache_bytes,
            start,
            processes.rank(),
            processes.world_size(),
            plan.inception,
            decoded=not frozen.are_remembered(plan),
        )

    def prepare(self, model: ResNetV2, batch_split: int) -> None:
        """Compute the outputs of frozen parts once, if they never change."""
        if frozen.are_remembered(self._plan):
            with memory.advice("frozen parts", self._plan.settings.size):
                outputs = frozen.compute(
                    self._plan, model, batch_split, self._log, self._stop, self._parts
                )
            self._loss = partial(self._loss, outputs=outputs)

    def loss_of(self, batch: loader.Batch) -> MicroBatchLoss:
        """Return the loss of the micro-batches, weighted by their sizes: together the mean loss."""
        return partial(self._loss, images=len(batch.indices), lam=batch.lam)

    def trial_loss(self, model: ResNetV2, images: int) -> Tensor:
        """Return the loss of black images with MixUp."""
        crop, first = self._plan.resolution.largest, np.zeros(images, np.int64)
        pixels, labels = np.zeros((images, 3, crop, crop), np.uint8), self._plan.data.train.labels
        part = loader.MicroBatch(pixels, labels[first], first, pixels, labels[first])
        return self._loss(model, part, images=images, lam=0.5)

    def names(self, batch: loader.Batch) -> list[str]:
        """Return the names of the images of the whole batch."""
        return [self._plan.data.train.name(index) for index in batch.indices]

    def validate(self, model: ResNetV2, batch_split: int, last: bool) -> Measured:
        """Measure ``model`` on all validation images.

        In a run of --folds, the last model's predictions are written.
        """
        plan, logits = self._plan, None
        if plan.settings.fold and last:
            logits = np.zeros((len(plan.data.val), len(plan.data.train.classes)))
        tally = self._measure(model, plan.data.val, batch_split, "validation", logits)
        if logits is not None and processes.rank() == 0:
            settings, path = plan.settings, self._log.folder / predictions.PREDICTIONS
            predictions.write(
                path, plan.data.val, logits, settings.loss, settings.fold, plan.data.datadir
            )
        return tally

    def test(self, model: ResNetV2, batch_split: int) -> Measured:
        """Measure ``model`` on all test images."""
        return self._measure(model, self._plan.data.test, batch_split, "test")

    def _measure(
        self,
        model: ResNetV2,
        images: Images,
        batch_split: int,
        part: str,
        logits: np.ndarray | None = None,
    ) -> Measured:
        options = {"logits": logits, "parts": self._parts}
        return validation.measure(
            self._plan, model, images, batch_split, self._log, self._stop, part, **options
        )
