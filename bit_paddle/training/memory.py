"""Choose the number of micro-batches: by estimate on a CPU, by trial passes on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import paddle
import paddle.distributed
from paddle import Tensor

from bit_paddle import errors
from bit_paddle.config.types import AUTO
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.runs import logbook
from bit_paddle.system import environment, processes
from bit_paddle.system.device import free_memory, memory_errors
from bit_paddle.system.text import plural
from bit_paddle.training import distributed
from bit_paddle.training.plan import Plan
from bit_paddle.training.task import Task


def smallest_split(estimate: int, images: int, fits: Callable[[int], bool]) -> int:
    """Return the smallest number of parts of ``images`` whose parts fit in memory, by bisection.

    ``fits(split)`` is called with ``estimate`` first; if it is true for a split, it must be true
    for every larger one. Returns ``images`` if not even one image fits. Each call is a training
    pass, so the search ends when parts could only grow by less than an eighth.
    """
    fails, works = 0, estimate  # 0 parts never work
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
    loss: Callable[[], Tensor],
    several: bool,
    without_velocity: Sequence[paddle.Tensor] = (),
) -> bool:
    """Return whether a pass with the ``loss`` of a micro-batch fits in memory, by trying it.

    The trial holds all that training holds at that time: the gradients of the micro-batch before
    if there are ``several``, and velocities for the parameters ``without_velocity``, which do not
    have one yet. The model does not change.
    """
    enough, velocities = False, []
    with suppress(MemoryError), memory_errors():
        velocities += [paddle.zeros_like(parameter) for parameter in without_velocity]
        with model.standardized_once() as last_pass:
            if several:
                loss().backward()
            last_pass()
            loss().backward()
        enough = True
    del velocities
    release(model)
    return enough


@contextmanager
def advice(part: str, size: str) -> Iterator[None]:
    """Say in an `OutOfMemoryError` of the context which ``part`` of a run it ended.

    ``size`` is the setting to make smaller. The part has tried one image at a time.
    """
    try:
        yield
    except errors.OutOfMemoryError:
        raise errors.OutOfMemoryError(
            f"{part}: out of memory with one image at a time; take a smaller --{size}"
        ) from None


def release(model: ResNetV2) -> None:
    """Free the gradients' memory, and all that nothing uses any more."""
    for parameter in model.parameters():
        parameter.clear_gradient(False)
    free_memory()


def activation_memory(plan: Plan, device: str, amp: str = "off", shared: int = 1) -> int:
    """Return the bytes that activations may take, by estimate: a part of the device's memory.

    The rest is for weights, gradients, momentum and workspaces; on a CPU, also for other programs.
    """
    if device == "gpu":
        memory = paddle.device.cuda.get_device_properties().total_memory
        return plan.activation_memory(memory, amp != "off", shared)
    return int(0.3 * environment.memory_bytes())


def find_split(
    plan: Plan,
    task: Task,
    device: str,
    known_split: int,
    model: ResNetV2,
    without_velocity: Sequence[Tensor],
    log: logbook.Logbook,
) -> int:
    """Return the number of micro-batches of each rank, the same in all.

    It is --batch_split if that is a number. With auto, it is estimated on a CPU; on a GPU it is
    ``known_split``, the number of an earlier run, or found by trial passes if that is 0.
    ``without_velocity``: see `fits`.
    """
    settings, world_size = plan.settings, processes.world_size()
    if settings.batch_split != AUTO:
        return settings.batch_split
    if device == "gpu" and known_split:
        return known_split
    shared = world_size if settings.shard else 1
    memory = activation_memory(plan, device, model.amp, shared)
    estimate = plan.batch_split(memory, model.amp, world_size)
    if device != "gpu":
        return int(distributed.largest(max(estimate, known_split)))
    share = -(-settings.batch // world_size)
    tried: list[str] = []

    def enough(split: int) -> bool:
        images = -(-share // split)
        loss = partial(task.trial_loss, model, images)
        fitted = fits(model, loss, split > 1, without_velocity)
        tried.append(f"{images}" if fitted else f"{images} (too many)")
        return fitted

    # The rank with the least memory decides.
    split = int(distributed.largest(smallest_split(estimate, share, enough)))
    log.say(
        f"--batch_split {split}: tried micro-batches of {', '.join(tried)} images; each has "
        f"{-(-share // split)}"
    )
    return split


def split_further(plan: Plan, batch_split: int) -> int:
    """Return the --batch_split to retry with after ``batch_split`` ran out of memory.

    Raises `OutOfMemoryError` if the user has set --batch_split, or a micro-batch is one image.
    """
    share = -(-plan.settings.batch // processes.world_size())
    images = -(-share // batch_split)
    advice = f"a smaller --{plan.settings.size}, or --recompute unit if it is off"
    if plan.settings.batch_split != AUTO:
        advice = f"--batch_split auto, more parts than {batch_split}, {advice}"
    elif images > 1:
        return min(2 * batch_split, share)
    raise errors.OutOfMemoryError(
        f"out of memory with {plural(images, 'image')} per micro-batch; take {advice}"
    )
