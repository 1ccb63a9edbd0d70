"""Distillation by function matching: the task of ``--rule distill``. Imports Paddle.

Teacher and student see exactly the same view: the same crop, mirrored or not, blended with the same
partner by the same lambda. The loss is KL(teacher || student); see `recipes.distill`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from bit_paddle.data import loader
from bit_paddle.inference.metrics import Tally
from bit_paddle.models import losses, weights
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.runs.logbook import Logbook
from bit_paddle.system import device
from bit_paddle.system.signals import Interrupt
from bit_paddle.training.classification.task import Classification

if TYPE_CHECKING:
    from bit_paddle.training.classification.plan import ClassificationPlan


class TeacherNetwork:
    """A trained network that only computes: no gradients, and always in evaluation mode.

    Views of another side than ``side``, if that is given, are resized to it, bilinearly.
    `validation.evaluate` takes it in place of a network.
    """

    def __init__(self, path: Path, side: int | None):
        self.network = weights.create_model(path)
        self.network.eval()
        self.num_classes, self.amp, self._side = self.network.num_classes, "off", side

    def beside(self, student: ResNetV2) -> TeacherNetwork:
        """Return itself, which from now on computes as ``student`` does: operators, precision."""
        if self.network.operators is not student.operators:
            self.network.compute_with(student.operators)
        self.amp = student.amp
        return self

    @paddle.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the logits [N, K] of views [N, 3, H, W]."""
        self.network.amp = self.amp
        side = self._side or pixels.shape[-1]
        if pixels.shape[-1] != side:
            pixels = F.interpolate(pixels, [side, side], mode="bilinear")
        return self.network(pixels)

    def eval(self) -> None:
        """Do nothing: it always evaluates."""

    train = eval


class Agreement(Tally):
    """Metrics of a student on images whose labels are the teacher's classes of highest logit."""

    def __str__(self) -> str:
        return f"agreement with the teacher: {super().__str__()}"

    def summary(self) -> dict[str, float]:
        """Return the metrics; top-1 is the agreement."""
        return {**super().summary(), "agreement": self.top1}


class Distillation(Classification):
    """A student learns a teacher's outputs; labels are used for validation only, if they fit."""

    def __init__(self, plan: ClassificationPlan, log: Logbook, stop: Interrupt):
        super().__init__(plan, log, stop)
        self._loss = self._divergence
        self._answered: set[str] = set()  # parts of the data whose labels are the teacher's

    @cached_property
    def _teacher(self) -> TeacherNetwork:
        teacher = self._plan.teacher
        return TeacherNetwork(teacher.file.path, teacher.crop)

    def _divergence(
        self, model: ResNetV2, part: loader.MicroBatch, images: int, lam: float = 1.0
    ) -> Tensor:
        """Return the part of a micro-batch in the mean divergence over so many ``images``."""
        pixels = device.to_device(part.images)
        if lam != 1.0:
            pixels = losses.mix(pixels, device.to_device(part.partner_images), lam)
        wanted = self._teacher.beside(model)(pixels)
        return losses.divergence(model(pixels), wanted).sum() / images

    def validate(self, model: ResNetV2, batch_split: int, last: bool) -> Tally:
        """Measure ``model`` on all validation images: top-1, or the agreement with the teacher."""
        self._answer("val", model, batch_split)
        return self._named(super().validate(model, batch_split, last))

    def test(self, model: ResNetV2, batch_split: int) -> Tally:
        """Measure ``model`` on all test images, as `validate` does."""
        self._answer("test", model, batch_split)
        return self._named(super().test(model, batch_split))

    def _named(self, tally: Tally) -> Tally:
        return tally if self._plan.teacher.fits else Agreement.of_sums(tally.sums())

    def _answer(self, part: str, model: ResNetV2, batch_split: int) -> None:
        """Label the images of a ``part`` of the data by the teacher, once, if it must be so."""
        plan = self._plan
        if plan.teacher.fits or part in self._answered:
            return
        images = getattr(plan.data, part)
        logits = np.zeros((len(images), len(images.classes)), np.float32)
        teacher = self._teacher.beside(model)
        self._measure(teacher, images, batch_split, "teacher", logits)
        labelled = images.chosen(np.arange(len(images)), logits.argmax(axis=1), images.classes)
        self._plan = replace(plan, data=plan.data._replace(**{part: labelled}))
        self._answered.add(part)
