"""Validation: the metrics of a model over all images of all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple

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
    """Return the tally of ``model``, in full precision, over ``batches``.

    Each process has its own of them. ``progress`` hears of each batch's size. Raises `Interrupted`
    if ``batches`` do in any process.
    """
    tally, fault = Tally(), None
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
    images, loss_sum, top1, top5 = distributed.agree(astuple(tally), fault)
    return Tally(int(images), loss_sum, int(top1), int(top5))
