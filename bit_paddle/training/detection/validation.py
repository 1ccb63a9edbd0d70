"""Validate or test a detector: COCO's scores over the images of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bit_paddle.data.boxes.annotations import BoxedImages
from bit_paddle.data.boxes.looks import Looks
from bit_paddle.inference.average_precision import Scores, scores_of
from bit_paddle.inference.detecting import BATCH, detections_of
from bit_paddle.inference.parts import Parts
from bit_paddle.models.detection.detections import MOST, Detections
from bit_paddle.models.stages import WithBackbone
from bit_paddle.runs.logbook import Logbook
from bit_paddle.system import processes
from bit_paddle.system.progress import progress_bar
from bit_paddle.system.signals import Interrupt, Interrupted
from bit_paddle.training import distributed, memory

if TYPE_CHECKING:
    from bit_paddle.training.detection.plan import DetectionPlan


def measure(
    plan: DetectionPlan,
    model: WithBackbone,
    images: BoxedImages,
    batch_split: int,
    log: Logbook,
    stop: Interrupt,
    part: str = "validation",
    parts: Parts | None = None,
) -> Scores:
    """Return the scores of ``model`` on all ``images``, which the ranks share, in full precision.

    ``part`` of the data names the bar and the time in the log. ``parts`` computes the batches, in
    smaller parts where memory runs out; it may have done so before. Raises in all ranks:
    `Interrupted` if a signal has come to any of them, `OutOfMemoryError`.
    """
    rows, fault = np.zeros((len(images), MOST, 6)), None
    world_size = processes.world_size()
    share = np.array_split(np.arange(len(images)), world_size)[processes.rank()].tolist()
    batch = min(BATCH, -(-plan.settings.batch // (batch_split * world_size)))
    before, model.amp = model.amp, "off"
    model.eval()
    try:
        with log.timed(part), progress_bar(desc=part, unit="img", total=len(share)) as bar:
            for index, one in detections_of(
                model,
                images.files(),
                stop.checked(share),
                Looks(plan.settings.side),
                batch=batch,
                workers=plan.settings.workers,
                parts=parts or Parts(log.say),
            ):
                found = np.concatenate([one.boxes, one.scores[:, None], one.classes[:, None]], 1)
                rows[index, : len(found)] = found
                bar.update()
    except Interrupted:
        fault = Interrupted
    except MemoryError:
        fault = MemoryError
    finally:
        model.train()
        model.amp = before
    with memory.advice(part, plan.settings.size):
        distributed.agree([], fault)
    distributed.add_up(rows)
    return scores_of(images, [_detections(one) for one in rows])


def _detections(rows: Sequence[np.ndarray]) -> Detections:
    """Return the detections in ``rows`` [MOST, 6]; a score of 0 is none."""
    kept = rows[rows[:, 4] > 0]
    return Detections(kept[:, :4], kept[:, 4], kept[:, 5].astype(np.int64))
