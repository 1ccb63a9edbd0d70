"""One update: the passes over all micro-batches, the checks, the optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

import numpy as np
from paddle import Tensor

from bit_paddle import errors
from bit_paddle.data import loader
from bit_paddle.models import losses as models_losses
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.system import device
from bit_paddle.system.signals import Interrupted
from bit_paddle.training import distributed, profiling
from bit_paddle.training.distributed import GradientSums
from bit_paddle.training.optimizer import Momentum, non_finite, unscale


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
    """Make one optimizer step on a batch of ``images`` images in all processes; return the loss.

    ``micro_batches`` are this process's share of the batch, mixed by ``lam``. Each gradient is
    weighted by the size of its micro-batch; the sum is the gradient of the mean loss.
    ``loss_scale``, a power of two, multiplies gradients while they are in half precision.
    ``checked`` iterates over the micro-batches and may raise `Interrupted` before each.
    ``loss_name`` is one of `losses.LOSSES`.

    Errors are raised in all processes, and the weights are unchanged then: `Interrupted` (a signal
    reached one process before its last micro-batch), `OutOfMemoryError`, `NonFiniteError` (the
    loss or a gradient), `GradientOverflow` (a gradient, where a lower ``loss_scale`` may help).
    """
    losses: list[Tensor] = []
    try:
        with ExitStack() as stack:
            fault = _passes(
                model, micro_batches, images, lam, loss_scale, checked, loss_name, losses, stack
            )
            (loss,) = distributed.agree([sum(map(float, losses))], fault)
            if not np.isfinite(loss):
                raise errors.NonFiniteError(f"the loss is {loss}")
            fault = _last_backward(sums, losses, loss_scale)
        _require_finite_gradients(model, fault, loss_scale)
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


def _passes(
    model: ResNetV2,
    micro_batches: Iterable[loader.MicroBatch],
    images: int,
    lam: float,
    loss_scale: float,
    checked: Callable[[Iterator], Iterator],
    loss_name: str,
    losses: list[Tensor],
    stack: ExitStack,
) -> type[BaseException] | None:
    """Make all passes but the last backward pass, which the all-reduce overlaps with.

    Fills ``losses``, weighted by size. Returns `Interrupted`, MemoryError, or None if all is well:
    the type and not the error, which may hold memory. ``stack`` is closed after the last pass.
    """
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
        losses.clear()
        return Interrupted if isinstance(error, Interrupted) else MemoryError
    return None


def _last_backward(
    sums: GradientSums, losses: list[Tensor], loss_scale: float
) -> type[BaseException] | None:
    """Make the last backward pass, overlapped with the all-reduce; return MemoryError or None."""
    fault = None
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
    return fault


def _require_finite_gradients(
    model: ResNetV2, fault: type[BaseException] | None, loss_scale: float
) -> None:
    """Raise in all processes where one has met ``fault`` or a gradient that is not finite."""
    bad = non_finite(model.parameters())
    (count,) = distributed.agree([sum(bad)], fault)
    if not count:
        return
    if loss_scale > 1:
        raise errors.GradientOverflow(f"gradients overflow at a loss scale of {loss_scale}")
    names = [name for name, _ in model.named_parameters()]
    names = [name for name, is_bad in zip(names, distributed.total(bad)) if is_bad][:3]
    raise errors.NonFiniteError(f"the gradient of {' and '.join(names)} is not finite")


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
    images, loss = device.to_device(part.images), models_losses.LOSSES[name]
    if lam == 1.0:
        return loss(model(images), part.labels)
    images = models_losses.mix(images, device.to_device(part.partner_images), lam)
    return models_losses.mixed(loss, model(images), part.labels, part.partner_labels, lam)
