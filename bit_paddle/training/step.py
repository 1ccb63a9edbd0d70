"""One update: the passes over all micro-batches, the checks, the optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from bit_paddle import errors
from bit_paddle.data import loader
from bit_paddle.system.signals import Interrupted
from bit_paddle.training import profiling

if TYPE_CHECKING:
    from paddle import Tensor

    from bit_paddle.models.resnetv2 import ResNetV2
    from bit_paddle.training.distributed import GradientSums
    from bit_paddle.training.optimizer import Momentum


# --- One update ---------------------------------------------------------------------------------


def update(
    model: ResNetV2,
    optimizer: Momentum,
    sums: GradientSums,
    micro_batches: Iterable[loader.MicroBatch],
    images: int,
    lr: float,
    lam: float = 1.0,
    loss_scale: float = 1.0,
    checked: Callable[[Iterator], Iterator] = iter,
    loss_name: str = "softmax",
) -> float:
    """Make one optimizer step with the mean loss over ``images``, of all processes; return that.

    ``micro_batches`` are this process's share of them, mixed by ``lam``. Their gradients, weighted
    by their sizes, add up to that of the mean loss. ``loss_scale``, a power of two, multiplies the
    gradients while they are in half precision. ``checked`` goes through the micro-batches, and may
    raise `Interrupted` before one. ``loss_name`` is one of `losses.LOSSES`.

    Raises, in all processes and with the weights as they were: `Interrupted` if one of them was
    told to end before it had seen all of its micro-batches, `OutOfMemoryError`, `NonFiniteError` if
    the loss or a gradient is not a finite number, and `GradientOverflow` for the latter where a
    lower ``loss_scale`` may do.
    """
    from bit_paddle.system import device
    from bit_paddle.training import distributed
    from bit_paddle.training.optimizer import non_finite, unscale

    losses: list[Tensor] = []
    try:
        with ExitStack() as stack:
            # --- All passes but the last one's way back ---
            fault: type[BaseException] | None = None
            try:
                with device.memory_errors():
                    last_pass = stack.enter_context(model.standardized_once())
                    for part, last in checked(_with_last(micro_batches)):
                        if last:
                            last_pass()
                        with profiling.part("forward pass"):
                            losses.append(
                                loss_of(model, part, lam, loss_name) * (len(part.labels) / images)
                            )
                        if not last:
                            with profiling.part("backward pass"):
                                (losses[-1] * loss_scale).backward()
            except (Interrupted, MemoryError) as error:
                fault = Interrupted if isinstance(error, Interrupted) else MemoryError
                losses.clear()
            (loss,) = distributed.agree([sum(map(float, losses))], fault)
            if not np.isfinite(loss):
                raise errors.NonFiniteError(f"the loss is {loss}")

            # --- Its way back, beside which the sums over all processes are made ---
            with sums.exchanged() as give_up:
                try:
                    with device.memory_errors(), profiling.part("backward pass"):
                        if losses:
                            (losses[-1] * loss_scale).backward()
                except MemoryError:
                    fault = MemoryError
                    losses.clear()
                if fault is not None:  # out of the handler, whose error may hold memory
                    give_up()
        bad = non_finite(model.parameters())
        (count,) = distributed.agree([sum(bad)], fault)
        if count:
            if loss_scale > 1:
                raise errors.GradientOverflow(f"gradients overflow at a loss scale of {loss_scale}")
            named = [name for name, _ in model.named_parameters()]
            names = [name for name, found in zip(named, distributed.total(bad)) if found][:3]
            raise errors.NonFiniteError(f"the gradient of {' and '.join(names)} is not finite")

        # --- The step ---
        if loss_scale != 1:
            unscale(model.parameters(), loss_scale)
        optimizer.set_lr(lr)
        with profiling.part("optimizer"):
            optimizer.step()
            sums.share_parameters()
    finally:
        losses.clear()  # activations hang on them
        optimizer.clear_grad(set_to_zero=False)
    return loss


def _with_last(parts: Iterable[loader.MicroBatch]) -> Iterator[tuple[loader.MicroBatch, bool]]:
    """Yield each of ``parts`` with whether it is the last one."""
    parts = iter(parts)
    part = next(parts, None)
    while part is not None:
        following = next(parts, None)
        yield part, following is None
        part = following


def loss_of(model: ResNetV2, part: loader.MicroBatch, lam: float, name: str = "softmax") -> Tensor:
    """Return the mean loss over a micro-batch, mixed with its partners."""
    from bit_paddle.models import losses as models_losses
    from bit_paddle.system import device

    images, loss = device.to_device(part.images), models_losses.LOSSES[name]
    if lam == 1.0:
        return loss(model(images), part.labels)
    images = models_losses.mix(images, device.to_device(part.partner_images), lam)
    return models_losses.mixed(loss, model(images), part.labels, part.partner_labels, lam)
