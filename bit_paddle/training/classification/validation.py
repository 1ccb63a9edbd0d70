"""Validate or test a model: metrics over the images of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Union

import numpy as np

from bit_paddle.data import loader
from bit_paddle.data.images import Images
from bit_paddle.data.labels import LabelSets
from bit_paddle.data.loader import MicroBatch
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.inference import label_scores
from bit_paddle.inference.label_scores import LabelScores
from bit_paddle.inference.metrics import Tally
from bit_paddle.inference.parts import Parts
from bit_paddle.inference.predictor import infer
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.runs.logbook import Logbook
from bit_paddle.system import processes
from bit_paddle.system.progress import progress_bar
from bit_paddle.system.signals import Interrupt, Interrupted
from bit_paddle.training import distributed, memory

if TYPE_CHECKING:
    from bit_paddle.training.classification.plan import ClassificationPlan


Measured = Union[Tally, LabelScores]


def measure(
    plan: ClassificationPlan,
    model: ResNetV2,
    images: Images,
    batch_split: int,
    log: Logbook,
    stop: Interrupt,
    part: str = "validation",
    logits: np.ndarray | None = None,
    parts: Parts | None = None,
) -> Measured:
    """Return the metrics of ``model`` on all ``images``, which the ranks share.

    ``part`` of the data names the bar and the time in the log. ``logits``, zeros [N, K], is filled
    with the outputs for all images, in all ranks. ``parts`` are those of `evaluate`, as are the
    errors.
    """
    settings, world_size = plan.settings, processes.world_size()
    batches = loader.evaluation_batches(
        images,
        Preprocessing(plan.resolution.crop, plan.resize),
        -(-settings.batch // (batch_split * world_size)),
        settings.workers,
        processes.rank(),
        world_size,
    )
    several = isinstance(images.labels, LabelSets)
    if several and logits is None:  # a ranking needs all images at once
        logits = np.zeros((len(images), model.num_classes), np.float32)
    with (
        memory.advice(part, settings.size),
        log.timed(part),
        progress_bar(desc=part, unit="img", total=len(images)) as bar,
    ):
        batches = stop.checked(batches)
        tally = evaluate(model, batches, bar.update, settings.loss, logits, parts)
        if several:
            return label_scores.measure(logits, images.labels, settings.loss)
        return tally


def evaluate(
    model: ResNetV2,
    batches: Iterable[MicroBatch],
    progress: Callable[[int], object] = lambda images: None,
    loss: str = "softmax",
    logits: np.ndarray | None = None,
    parts: Parts | None = None,
) -> Tally:
    """Return the metrics of ``model`` over the batches of all ranks, computed in full precision.

    Images with several labels are not in them; their scores need the ``logits`` of all images.
    ``batches`` are this rank's share. ``progress`` is called with the size of each batch. ``parts``
    computes each batch, in smaller parts where memory runs out; it may have done so before. Raises
    in all ranks if any rank does: `Interrupted` of the iterator, `OutOfMemoryError`.
    """
    tally, fault = Tally(model.num_classes), None
    parts = parts or Parts(print)
    before, model.amp = model.amp, "off"
    model.eval()
    compute = partial(infer, model)
    try:
        for batch in batches:
            outputs = np.concatenate(parts.of(compute, batch.images))
            if not isinstance(batch.labels, LabelSets):
                tally.add(outputs, batch.labels, loss)
            if logits is not None:
                logits[batch.indices] = outputs
            progress(len(batch.labels))
    except Interrupted:
        fault = Interrupted
    except MemoryError:
        fault = MemoryError
    finally:
        model.train()
        model.amp = before
    sums = distributed.agree(tally.sums(), fault)
    if logits is not None and processes.world_size() > 1:
        distributed.add_up(logits)
    return Tally.of_sums(sums)
