"""Collectives between the processes of a run: all-reduce, broadcast, sharded gradients (ZeRO 2)."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from typing import Any

import numpy as np
import paddle
import paddle.distributed
from paddle import Tensor

from bit_paddle.errors import OutOfMemoryError
from bit_paddle.system import peers, processes
from bit_paddle.system.signals import Interrupted
from bit_paddle.training.traffic import owners

_PART = 1 << 26  # bytes of a large array that are exchanged at once

_PRECISIONS = ("off", "fp16", "bf16")  # a GPU that computes in one computes in those before it


def join() -> None:
    """Initialize `paddle.distributed`; a single process needs no initialization."""
    peers.meet()  # Paddle is loaded in all
    if processes.world_size() > 1:
        with redirect_stderr(io.StringIO()):  # Paddle prints a list of its flags
            paddle.distributed.init_parallel_env()


def total(values: Sequence[float]) -> np.ndarray:
    """Return the sum of each of ``values`` over all ranks, in float64 (all-reduce)."""
    tensor = paddle.to_tensor(np.asarray(values, np.float64))
    _for_each([tensor], paddle.distributed.all_reduce)
    return tensor.numpy()


def add_up(rows: np.ndarray) -> None:
    """Replace ``rows`` by its sum over all ranks, in its own precision and part by part."""
    if processes.world_size() > 1 and rows.size:
        for part in np.array_split(rows, -(-rows.nbytes // _PART)):  # views
            tensor = paddle.to_tensor(part)
            _for_each([tensor], paddle.distributed.all_reduce)
            part[:] = tensor.numpy()


def largest(value: float) -> float:
    """Return the maximum of ``value`` over all ranks (all-reduce)."""
    tensor = paddle.to_tensor(np.asarray([value], np.float64))
    all_reduce_max = partial(paddle.distributed.all_reduce, op=paddle.distributed.ReduceOp.MAX)
    _for_each([tensor], all_reduce_max)
    return tensor.item()


def agree(values: Sequence[float], fault: type[BaseException] | None = None) -> list[float]:
    """Return the sum of each of ``values`` over all ranks, or raise where any rank has a ``fault``.

    The error is raised in all ranks: `Interrupted`, or `OutOfMemoryError` for MemoryError.
    """
    flags = [fault is Interrupted, fault is MemoryError]
    *sums, interrupted, exhausted = total([*values, *flags]).tolist()
    if interrupted:
        raise Interrupted
    if exhausted:
        raise OutOfMemoryError("out of memory")
    return sums


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Broadcast the tensors of rank 0 to all ranks, in place."""
    _for_each(tensors, lambda tensor: paddle.distributed.broadcast(tensor, 0))


def amp_of_all(amp: str) -> str:
    """Return the ``amp`` that the GPUs of all ranks can compute in, where they differ."""
    return _PRECISIONS[int(-largest(-_PRECISIONS.index(amp)))]


def from_first(values: Sequence[float]) -> np.ndarray:
    """Return the ``values`` of rank 0 in all ranks, in float64 (broadcast)."""
    tensor = paddle.to_tensor(np.asarray(values, np.float64))
    broadcast([tensor])
    return tensor.numpy()


def _for_each(tensors: Iterable[Tensor], collective: Callable[[Tensor], object]) -> None:
    if processes.world_size() > 1:
        peers.meet()
        with _peers():
            for tensor in tensors:
                collective(tensor)


@contextmanager
def _peers() -> Iterator[None]:
    """Translate a failed collective into `PeerError`."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise peers.lost(error) from error


class GradientSums:
    """Sums the gradients of ``parameters`` over all ranks, overlapped with the backward pass.

    The all-reduce of a gradient starts as soon as the backward pass has computed it and the
    all-reduces of all later parameters have started. The order is fixed because all ranks must
    call the same collectives in the same order.

    With ``shard``, each gradient is reduced to one rank, its owner (`owners`); ``own`` lists the
    parameters of this rank. The optimizer then updates only these and holds only their velocities,
    and `share_parameters` broadcasts the updated parameters (ZeRO 2, arXiv 1910.02054). Sums whose
    norm over all parameters is above ``clip_norm`` are scaled down to it by `clip`. Paddle's
    group sharding does not run on a CPU, and reduces gradients in every micro-batch.

    With a ``reduce_dtype`` of bf16 each rank rounds its gradient to bf16, and each addition of the
    all-reduce rounds its sum (to the nearest, ties to even): at most n times for n ranks, by 2^-8.
    """

    AHEAD = 8  # collectives in flight at once; before another starts, the oldest must complete

    def __init__(
        self,
        parameters: Sequence[Tensor],
        shard: bool = False,
        clip_norm: float | None = None,
        reduce_dtype: str = "float32",
    ):
        self._parameters, self._clip_norm = list(parameters), clip_norm
        self._rounds = reduce_dtype == "bf16"
        rank, world_size = processes.rank(), processes.world_size()
        sizes = [parameter.size for parameter in parameters]
        self._owners = owners(sizes, world_size) if shard else None
        indices = range(len(self._parameters))
        self._own_indices = {k for k in indices if self._owners is None or self._owners[k] == rank}
        self.own = [self._parameters[index] for index in sorted(self._own_indices)]
        self._open, self._zeros = False, None
        if world_size > 1:
            for index, parameter in enumerate(self._parameters):
                parameter._register_backward_hook(partial(self._on_gradient, index))

    @contextmanager
    def exchanged(self) -> Iterator[Callable[[], None]]:
        """All-reduce the gradients during the backward pass inside, the last one of a step.

        Yields `give_up`, to be called if that pass runs out of memory. Raises `PeerError` if
        another process has ended.
        """
        if processes.world_size() == 1:
            yield self.give_up
            return
        self._next = len(self._parameters) - 1  # a backward pass computes the last one first
        self._ready: set[int] = set()
        self._in_flight: deque[tuple[int, Any, Tensor]] = deque()
        self._failure: Exception | None = None
        self._open = True
        try:
            yield self.give_up
        finally:
            self._open = False
        with _peers():
            self._ready.update(range(len(self._parameters)))  # zeros for those without a gradient
            self._start_ready()
            while self._in_flight:
                self._complete_oldest()
            self._zeros = None
            if self._failure is not None:
                raise self._failure

    def give_up(self) -> None:
        """Drop the gradients after a backward pass that ran out of memory.

        The other ranks still wait for the collectives that have not started, so those are called
        on zeros, which all share one tensor.
        """
        if processes.world_size() > 1:
            self._failure = None  # a hook may have run out of memory too
            for parameter in self._parameters[: self._next + 1]:
                parameter.clear_gradient(False)
            largest = max(self._parameters, key=lambda parameter: parameter.size)
            self._zeros = paddle.zeros_like(largest).reshape([-1])

    def _on_gradient(self, index: int, *_: object) -> None:
        """Start all collectives that are ready; Paddle calls this when a gradient is complete."""
        if not self._open or self._failure is not None:
            return
        self._ready.add(index)
        try:
            self._start_ready()
        except Exception as error:  # Paddle loses errors of hooks; `exchanged` raises it
            self._failure = error

    def _start_ready(self) -> None:
        while self._next in self._ready and self._failure is None:
            parameter = self._parameters[self._next]
            if self._zeros is not None:
                gradient = self._zeros[: parameter.size]
            else:
                if parameter.grad is None:
                    parameter.grad = paddle.zeros_like(parameter)
                gradient = parameter.grad
            if self._rounds:
                gradient = gradient.astype("bfloat16")
            if self._owners is None:
                task = paddle.distributed.all_reduce(gradient, sync_op=False)
            else:
                owner = self._owners[self._next]
                task = paddle.distributed.reduce(gradient, owner, sync_op=False)
            self._in_flight.append((self._next, task, gradient))
            self._next -= 1
            while len(self._in_flight) > (self.AHEAD if self._zeros is None else 0):
                self._complete_oldest()

    def _complete_oldest(self) -> None:
        index, task, gradient = self._in_flight.popleft()
        task.wait()
        parameter = self._parameters[index]
        if index not in self._own_indices:
            parameter.clear_gradient(False)
        elif self._rounds and parameter.grad is not None:  # None after `give_up`
            paddle.assign(gradient.astype(parameter.dtype), parameter.grad)

    @paddle.no_grad()
    def clip(self) -> None:
        """Scale the summed gradients so that the norm of all is ``clip_norm``, if it is larger.

        All ranks must call this, after `exchanged`. The sum of squares has the same order with
        ``shard``, so the result has the same bits.
        """
        if self._clip_norm is None:
            return
        squares = np.zeros(len(self._parameters))
        own = [k for k in sorted(self._own_indices) if self._parameters[k].grad is not None]
        gradients = [self._parameters[k].grad for k in own]
        if own:
            squares[own] = paddle.stack([(one * one).sum() for one in gradients]).numpy()
        if self._owners is not None:
            squares = total(squares)
        norm = float(np.sqrt(squares.sum()))
        if norm > self._clip_norm:
            for gradient in gradients:
                gradient.scale_(self._clip_norm / norm)

    def share_parameters(self) -> None:
        """Broadcast each parameter from its owner to all ranks; no-op without ``shard``."""
        if self._owners is None or processes.world_size() == 1:
            return
        with _peers():
            tasks = [
                paddle.distributed.broadcast(parameter, owner, sync_op=False)
                for parameter, owner in zip(self._parameters, self._owners)
            ]
            for task in tasks:
                task.wait()

    def gathered(self, values: Sequence[Tensor | None]) -> Iterator[Tensor]:
        """Yield the owner's value for each parameter, in the parameter's shape.

        All ranks must iterate to the end, as each value is broadcast. Yields nothing if no rank has
        a value yet.
        """
        if self._owners is None:
            yield from values
        elif total([any(value is not None for value in values)])[0]:
            for parameter, owner, value in zip(self._parameters, self._owners, values):
                value = paddle.zeros_like(parameter) if value is None else value
                _for_each([value], partial(paddle.distributed.broadcast, src=owner))
                yield value

    def scattered(self, values: Sequence[Tensor] | None) -> list[Tensor | None]:
        """Broadcast the values of rank 0; return those for this rank's own parameters.

        The list has one item per parameter; it is None where another rank owns the parameter.
        """
        own_values = []
        for index, parameter in enumerate(self._parameters):
            value = values[index] if values else paddle.zeros_like(parameter)
            broadcast([value])
            own_values.append(value if index in self._own_indices else None)
        return own_values
