"""A task that is no classification: the area of the boxes in an image.

Its batches have lists of boxes, and an image may have none. The loss is a sum over boxes, divided
by the number of boxes in the whole batch of all processes, as in a detector. The metric has no
accuracy. Images and boxes are random, but the same in every process.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle

from bit_paddle.config.settings import Settings
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.cost import Demand
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.runs import folder
from bit_paddle.runs.checkpoints import readable
from bit_paddle.system import device, processes
from bit_paddle.training import distributed
from bit_paddle.training.plan import Plan, schedule_of
from bit_paddle.training.task import Task

IMAGES, SIDE = 24, 32


class Part(NamedTuple):
    images: np.ndarray
    boxes: list  # of each image [n, 4], from 0 to 1


class Batch(NamedTuple):
    indices: np.ndarray
    part: Part

    def micro_batches(self, split):
        images, boxes = self.part
        for rows in np.array_split(np.arange(len(images)), min(split, len(images)) or 1):
            if len(rows):
                yield Part(images[rows], [boxes[row] for row in rows])


@dataclass(frozen=True)
class Found:
    """The mean error of an image."""

    error: float

    @property
    def score(self):
        return 1 / (1 + self.error)

    def summary(self):
        return {"error": self.error}

    def __str__(self):
        return f"error {self.error:.4f}"


class Areas(Task):
    def __init__(self, plan):
        self.plan, random = plan, np.random.default_rng(0)
        self.images = random.integers(0, 256, (IMAGES, 3, SIDE, SIDE)).astype(np.uint8)
        self.boxes = [np.sort(random.random((n, 4))) for n in random.integers(0, 4, IMAGES)]
        self.prepared, self.normalizers = 0, []

    def _part(self, rows):
        return Part(self.images[rows], [self.boxes[row] for row in rows])

    def new_network(self):
        return ResNetV2(self.plan.architecture, 1)

    def initial_network(self):
        model = self.new_network()
        model.reset_parameters(self.plan.settings.seed)
        return model

    def batches(self, start):
        for step in range(start, 10**9):
            rows = np.random.default_rng(step).permutation(IMAGES)[: self.plan.settings.batch]
            share = np.array_split(rows, processes.world_size())[processes.rank()]
            yield Batch(rows, self._part(share))

    def prepare(self, model, batch_split):
        self.prepared += 1

    def loss_of(self, batch):
        (boxes,) = distributed.total([sum(map(len, batch.part.boxes))])
        self.normalizers.append(boxes)
        return lambda model, part: _sum_of_squares(model, part) / (boxes + 1)

    def trial_loss(self, model, images):
        zeros = np.zeros((images, 3, SIDE, SIDE), np.uint8)
        return _sum_of_squares(model, Part(zeros, [np.zeros((1, 4))] * images))

    def names(self, batch):
        return [f"image {index}" for index in batch.indices]

    def validate(self, model, batch_split, last):
        share = np.array_split(np.arange(IMAGES), processes.world_size())[processes.rank()]
        with paddle.no_grad():
            error = float(_sum_of_squares(model, self._part(share)))
        return Found(distributed.total([error])[0] / IMAGES)

    def test(self, model, batch_split):
        return self.validate(model, batch_split, True)


def _sum_of_squares(model, part):
    """The sum over boxes of (output - area)^2."""
    areas = [(box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in part.boxes]
    columns = np.array([(len(each), each.sum(), (each**2).sum()) for each in areas])
    count, total, squares = paddle.to_tensor(columns, paddle.get_default_dtype()).T
    output = model(device.to_device(part.images))[:, 0]
    return (count * output**2 - 2 * total * output + squares).sum()


class AreasPlan(Plan):
    tested = True
    data_identity = {"images": IMAGES}
    test_identity = {"images": IMAGES}
    model_notes = {"crop": SIDE}
    demand = Demand(lambda half, shared: {}, lambda recompute, half: 1)  # all fits

    def task(self, log, stop):
        return Areas(self)

    def rows(self):
        return [("task", "areas of boxes")]

    def details(self):
        return {}

    def task_notes(self):
        return []


def plan_of(logdir, name, **changes):
    """Return the plan of 4 steps of 6 images; it resumes from the checkpoints that are there."""
    values = {"base_lr": 0.01, "batch": 6, "steps": 4, "warmup": 1, "eval_every": 2,
              "save_every": "1", "amp": "off", "device": "cpu", **changes}  # fmt: skip
    settings = Settings(
        "R14x0.5", "boxes", from_scratch=True, logdir=str(logdir), name=name, **values
    )
    place = Path(logdir, name)
    return AreasPlan(
        settings=settings,
        architecture=Architecture.parse("R14x0.5"),
        checkpoint=None,
        schedule=schedule_of(settings, IMAGES),
        skipped=(),
        start=folder.Start(place, tuple(readable(place)[0])),
    )
