"""One update: forward and backward passes of all micro-batches, checks, optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
from paddle import Tensor

from bit_paddle import errors
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.system import device
from bit_paddle.system.signals import Interrupted
from bit_paddle.training import distributed, profiling
from bit_paddle.training.distributed import GradientSums
from bit_paddle.training.optimizer import Optimizer, non_finite, unscale
from bit_paddle.training.task import MicroBatchLoss


def update(
    model: ResNetV2,
    optimizer: Optimizer,
    sums: GradientSums,
    micro_batches: Iterable[Any],
    loss_of: MicroBatchLoss,
    lr: float,
    loss_scale: float = 1.0,
    checked: Callable[[Iterator], Iterator] = iter,
) -> float:
    """Make one optimizer step on a batch over all ranks; return the loss.

    ``micro_batches`` are this rank's share of the batch, for gradient accumulation. ``loss_of``
    computes the loss of each; the sum over all of them and over all ranks is the loss of the step.
    ``loss_scale``, a power of two, scales the gradients while they are in half precision.
    ``checked`` wraps the iterator of micro-batches and may raise `Interrupted` before each.

    An error is raised in all ranks and leaves the weights unchanged: `Interrupted` (a signal
    reached a rank before its last micro-batch), `OutOfMemoryError`, `NonFiniteError` (in the loss
    or a gradient), `GradientOverflow` (in a gradient; a smaller ``loss_scale`` may help).
    """
    losses: list[Tensor] = []
    try:
        with ExitStack() as stack:
            fault = _passes(model, micro_batches, loss_of, loss_scale, checked, losses, stack)
            (loss,) = distributed.agree([sum(map(float, losses))], fault)
            if not np.isfinite(loss):
                raise errors.NonFiniteError(f"the loss is {loss}")
            fault = _last_backward(sums, losses, loss_scale)
        losses.clear()  # they hold the activations
        fault = fault or _no_room(optimizer)
        _require_finite_gradients(model, fault, loss_scale)
        if loss_scale != 1:
            unscale(model.parameters(), loss_scale)
        optimizer.set_lr(lr)
        with profiling.part("optimizer"):
            sums.clip()
            optimizer.step()
            sums.share_parameters()
    finally:
        losses.clear()
        optimizer.clear_grad(set_to_zero=False)
    return loss


def _passes(
    model: ResNetV2,
    micro_batches: Iterable[Any],
    loss_of: MicroBatchLoss,
    loss_scale: float,
    checked: Callable[[Iterator], Iterator],
    losses: list[Tensor],
    stack: ExitStack,
) -> type[BaseException] | None:
    """Make all forward passes, and all backward passes but the last, which overlaps the all-reduce.

    Appends each loss to ``losses``. Returns None, or the type `Interrupted` or MemoryError; the
    error itself may hold memory. The caller closes ``stack`` after the last backward pass.
    """
    try:
        with device.memory_errors():
            last_pass = stack.enter_context(model.standardized_once())
            for part, last in checked(_with_last(micro_batches)):
                if last:
                    last_pass()
                with profiling.part("forward pass"):
                    losses.append(loss_of(model, part))
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
    """Make the last backward pass, overlapped with the all-reduce; return None or MemoryError."""
    fault = None
    with sums.exchanged() as give_up:
        try:
            with device.memory_errors(), profiling.part("backward pass"):
                if losses:
                    (losses[-1] * loss_scale).backward()
        except MemoryError:
            fault = MemoryError
            losses.clear()
        if fault is not None:  # not in the handler above, where the error may hold memory
            give_up()
    return fault


def _no_room(optimizer: Optimizer) -> type[BaseException] | None:
    """Return MemoryError if the optimizer's step would run out of memory, else None.

    So a step that begins also ends, and no weight is updated without the others.
    """
    for _ in range(2):
        with suppress(MemoryError), device.memory_errors():
            optimizer.reserve()
            return None
        device.free_memory()
    return MemoryError


def _require_finite_gradients(
    model: ResNetV2, fault: type[BaseException] | None, loss_scale: float
) -> None:
    """Raise in all ranks if any rank has a ``fault`` or a gradient that is not finite."""
    bad = non_finite(model.parameters(), model.operators)
    (count,) = distributed.agree([sum(bad)], fault)
    if not count:
        return
    if loss_scale > 1:
        raise errors.GradientOverflow(f"gradients overflow at a loss scale of {loss_scale}")
    names = [name for name, _ in model.named_parameters()]
    names = [name for name, is_bad in zip(names, distributed.total(bad)) if is_bad][:3]
    raise errors.NonFiniteError(f"the gradient of {' and '.join(names)} is not finite")


def _with_last(parts: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Yield (part, whether it is the last one)."""
    parts = iter(parts)
    part = next(parts, None)
    while part is not None:
        following = next(parts, None)
        yield part, following is None
        part = following
