"""How many images a micro-batch can have: found by trying, where estimates are only a start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import paddle
import paddle.distributed
from paddle import Tensor

from bit_paddle import errors
from bit_paddle.config.settings import AUTO
from bit_paddle.data.loader import MicroBatch
from bit_paddle.models import cost, resnetv2
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.runs import logbook
from bit_paddle.system import environment, processes
from bit_paddle.system.device import memory_errors
from bit_paddle.system.text import plural
from bit_paddle.training import distributed
from bit_paddle.training.plan import Plan

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
    with suppress(MemoryError), memory_errors():
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


def activation_memory(
    device: str, architecture: Architecture, classes: int, amp: str = "off", shared: int = 1
) -> int:
    """Return the bytes to plan with for activations: a share of the GPU's or machine's memory.

    The rest is for weights, gradients, momentum, workspaces and, on a CPU, for other programs.
    """
    if device == "gpu":
        memory = paddle.device.cuda.get_device_properties().total_memory
        return cost.room(architecture, memory, classes, amp != "off", shared)
    return int(0.3 * environment.memory_bytes())


def find_split(
    plan: Plan,
    device: str,
    known_split: int,
    model: resnetv2.ResNetV2,
    loss: Loss,
    moved: Sequence[Tensor],
    log: logbook.Logbook,
) -> int:
    """Return in how many parts each process computes its share of a batch, the same in all.

    As --batch_split says; else by estimate on a CPU, and by trying on a GPU unless it is known from
    before. ``moved`` are parameters whose velocities are still to come.
    """
    settings, world_size = plan.settings, processes.world_size()
    if settings.batch_split != AUTO:
        return settings.batch_split
    if device == "gpu" and known_split:
        return known_split
    shared, classes = world_size if settings.shard else 1, len(plan.data.train.classes)
    memory = activation_memory(device, plan.architecture, classes, model.amp, shared)
    estimate = plan.batch_split(memory, model.amp, world_size)
    if device != "gpu":
        return int(distributed.largest(max(estimate, known_split)))
    share, crop = -(-settings.batch // world_size), plan.resolution.crop
    tried: list[str] = []

    def enough(split: int) -> bool:
        images = -(-share // split)
        found = fits(model, loss, crop, images, split > 1, moved)
        tried.append(f"{images}{'' if found else ' (too many)'}")
        return found

    found = smallest_split(estimate, share, enough)
    split = int(distributed.largest(found))  # of the process with the least memory
    log.say(
        f"--batch_split {split}: tried micro-batches of {', '.join(tried)} images; each has "
        f"{-(-share // split)}"
    )
    return split


def split_further(plan: Plan, batch_split: int) -> int:
    """Return the next --batch_split where memory was not enough for ``batch_split``.

    Raises `OutOfMemoryError` if the user has chosen that, or a part has one image already.
    """
    share = -(-plan.settings.batch // processes.world_size())
    images = -(-share // batch_split)
    then = "a smaller --crop, or --recompute unit where it is off"
    if plan.settings.batch_split != AUTO:
        then = f"--batch_split auto, more parts than {batch_split}, {then}"
    elif images > 1:
        return min(2 * batch_split, share)
    raise errors.OutOfMemoryError(
        f"out of memory with {plural(images, 'image')} per micro-batch; take {then}"
    )
