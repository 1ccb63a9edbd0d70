"""How many images a micro-batch can have: found by trying, where estimates are only a start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import paddle

from bit_paddle import parallel
from bit_paddle.data.loader import MicroBatch
from bit_paddle.models import ResNetV2

Loss = Callable[[ResNetV2, MicroBatch, float], paddle.Tensor]


def smallest_split(estimate: int, images: int, fits: Callable[[int], bool]) -> int:
    """Return the smallest number of parts of ``images`` each of which ``fits``, by bisection.

    ``fits(split)`` is asked first of ``estimate``, and stays true once it is. Where not even one
    image fits, the answer is ``images`` all the same. Ends when parts would grow by less than an
    eighth: each question is a training pass.
    """
    fails, works = 0, estimate  # no number of parts below 1 will do
    while not fits(works):
        if works >= images:
            return images
        fails, works = works, min(2 * works, images)
    while fails < works - 1 and (works - fails) * 8 > works:
        middle = (fails + works) // 2
        fails, works = (fails, middle) if fits(middle) else (middle, works)
    return works


def fits(
    model: ResNetV2,
    loss: Loss,
    crop: int,
    images: int,
    several: bool,
    moved: Sequence[paddle.Tensor] = (),
) -> bool:
    """Return whether a training pass over ``images`` fits in memory, by making one over zeros.

    With all that training holds beside it: with ``several`` micro-batches, the gradients of the one
    before, and velocities for the parameters ``moved`` that have none yet. Changes nothing.
    """
    enough, held = False, []
    with suppress(MemoryError), parallel.memory_errors():
        pixels, labels = np.zeros((images, 3, crop, crop), np.uint8), np.zeros(images, np.int64)
        part = MicroBatch(pixels, labels, labels, pixels, labels)
        held += [paddle.zeros_like(one) for one in moved]
        with model.standardized_once() as last_pass:
            if several:
                loss(model, part, 0.5).backward()
            last_pass()
            loss(model, part, 0.5).backward()
        enough = True
    del held
    release(model)
    return enough


def release(model: ResNetV2) -> None:
    """Give back the memory of gradients, and what Paddle keeps of it on a GPU."""
    for parameter in model.parameters():
        parameter.clear_gradient(False)
    if paddle.get_device().startswith("gpu"):
        paddle.device.cuda.empty_cache()
