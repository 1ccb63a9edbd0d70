"""Validate a model: metrics over the images of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bit_paddle.data.loader import MicroBatch
from bit_paddle.inference.metrics import Tally
from bit_paddle.inference.predictor import infer
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.system.signals import Interrupted
from bit_paddle.training import distributed


def evaluate(
    model: ResNetV2,
    batches: Iterable[MicroBatch],
    progress: Callable[[int], object] = lambda images: None,
    loss: str = "softmax",
) -> Tally:
    """Return the metrics of ``model`` over the batches of all ranks, computed in full precision.

    ``batches`` are this rank's share. ``progress`` is called with the size of each batch. Raises
    `Interrupted` in all ranks if the iterator of any rank does.
    """
    tally, fault = Tally(model.num_classes), None
    before, model.amp = model.amp, "off"
    model.eval()
    try:
        for batch in batches:
            tally.add(infer(model, batch.images), batch.labels, loss)
            progress(len(batch.labels))
    except Interrupted:
        fault = Interrupted
    finally:
        model.train()
        model.amp = before
    return Tally.of_sums(distributed.agree(tally.sums(), fault))
