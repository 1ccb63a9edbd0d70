"""Devices, and what processes tell each other: the only module that knows where tensors live."""

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

from bit_paddle.errors import OutOfMemoryError, PeerError
from bit_paddle.system import processes
from bit_paddle.system.signals import Interrupted

_PRECISIONS = ("off", "fp16", "bf16")  # each needs what the one before does, and more


# --- Between processes --------------------------------------------------------------------------


def join() -> None:
    """Meet the other processes of this run, of which `processes` knows; one alone meets nobody."""
    paddle.disable_signal_handler()  # Paddle's answer to SIGTERM is a stack trace
    if processes.world_size() > 1:
        with redirect_stderr(io.StringIO()):  # a list of Paddle's own flags
            paddle.distributed.init_parallel_env()


def total(values: Sequence[float]) -> np.ndarray:
    """Return the sums of ``values`` over all processes, in float64."""
    tensor = paddle.to_tensor(np.asarray(values, np.float64))
    _each([tensor], paddle.distributed.all_reduce)
    return tensor.numpy()


def largest(value: float) -> float:
    """Return the largest ``value`` of any process."""
    tensor = paddle.to_tensor(np.asarray([value], np.float64))
    highest = partial(paddle.distributed.all_reduce, op=paddle.distributed.ReduceOp.MAX)
    _each([tensor], highest)
    return tensor.item()


def agree(values: Sequence[float], fault: type[BaseException] | None = None) -> list[float]:
    """Return the sums of ``values`` over all processes, unless one of them has met a ``fault``.

    Raises that in all of them then: `Interrupted`, or `OutOfMemoryError` for MemoryError.
    """
    flags = [fault is Interrupted, fault is MemoryError]
    *sums, interrupted, exhausted = total([*values, *flags]).tolist()
    if interrupted:
        raise Interrupted
    if exhausted:
        raise OutOfMemoryError("memory has run out")
    return sums


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the values that the first one has."""
    _each(tensors, lambda tensor: paddle.distributed.broadcast(tensor, 0))


def amp_of_all(amp: str) -> str:
    """Return the ``amp`` that all processes can do, where their GPUs differ."""
    return _PRECISIONS[int(-largest(-_PRECISIONS.index(amp)))]


def from_first(values: Sequence[float]) -> np.ndarray:
    """Return the ``values`` that the first process has, in float64."""
    tensor = paddle.to_tensor(np.asarray(values, np.float64))
    broadcast([tensor])
    return tensor.numpy()


def _each(tensors: Iterable[Tensor], exchange: Callable[[Tensor], object]) -> None:
    if processes.world_size() > 1:
        with _peers():
            for tensor in tensors:
                exchange(tensor)


@contextmanager
def _peers() -> Iterator[None]:
    """Say of a connection that has broken what it means."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise PeerError("another process of the run has gone") from error


class GradientSums:
    """The gradients of ``parameters``, summed over all processes while they are computed.

    Each is sent as soon as the backward pass has it and has sent those before it, so that the
    exchange goes on beside the pass; the order is fixed, as all processes must send the same at
    once. With ``shard`` a process keeps the sums for its own share of the parameters alone
    (`owners`, listed as ``own``); as nothing else has a gradient then, the optimizer steps on that
    share, holds the velocities of that share, and `share_parameters` gives the others what it has
    made of it (ZeRO 2, arXiv 1910.02054). Paddle's group sharding would refuse to run on a CPU, and
    exchange gradients once a micro-batch.
    """

    AHEAD = 8  # gradients under way at once; before more are sent, the oldest is waited for

    def __init__(self, parameters: Sequence[Tensor], shard: bool = False):
        self._parameters = list(parameters)
        rank, world_size = processes.rank(), processes.world_size()
        self._owners = owners([one.size for one in parameters], world_size) if shard else None
        places = range(len(self._parameters))
        self._own = {k for k in places if self._owners is None or self._owners[k] == rank}
        self.own = [self._parameters[place] for place in sorted(self._own)]
        self._open, self._nothing = False, None
        if world_size > 1:
            for place, parameter in enumerate(self._parameters):
                parameter._register_backward_hook(partial(self._arrived, place))

    @contextmanager
    def exchanged(self) -> Iterator[Callable[[], None]]:
        """Exchange what a backward pass inside adds to gradients: the last pass of a step.

        Call what this yields where that pass has failed for want of memory: what is not yet sent is
        then sent as nothing, from one piece of memory, and no sums are kept.
        """
        if processes.world_size() == 1:
            yield self.give_up
            return
        self._next = len(self._parameters) - 1  # from the last one, which a pass has first
        self._there: set[int] = set()
        self._under_way: deque[tuple[int, Any]] = deque()
        self._failure: Exception | None = None
        self._open = True
        try:
            yield self.give_up
        finally:
            self._open = False
        with _peers():
            self._there.update(range(len(self._parameters)))  # zeros where no pass has come by
            self._send()
            while self._under_way:
                self._settle()
            self._nothing = None
            if self._failure is not None:
                raise self._failure

    def give_up(self) -> None:
        """See `exchanged`."""
        if processes.world_size() > 1:
            self._failure = None  # such as want of memory, in a hook
            for parameter in self._parameters[: self._next + 1]:
                parameter.clear_gradient(False)
            largest = max(self._parameters, key=lambda parameter: parameter.size)
            self._nothing = paddle.zeros_like(largest).reshape([-1])

    def _arrived(self, place: int, *_: object) -> None:
        """Note that the gradient of the parameter at ``place`` is complete; called by Paddle."""
        if not self._open or self._failure is not None:
            return
        self._there.add(place)
        try:
            self._send()
        except Exception as error:  # Paddle cannot pass it on from here
            self._failure = error

    def _send(self) -> None:
        while self._next in self._there and self._failure is None:
            parameter = self._parameters[self._next]
            if self._nothing is not None:
                gradient = self._nothing[: parameter.size]
            else:
                if parameter.grad is None:
                    parameter.grad = paddle.zeros_like(parameter)
                gradient = parameter.grad
            if self._owners is None:
                task = paddle.distributed.all_reduce(gradient, sync_op=False)
            else:
                owner = self._owners[self._next]
                task = paddle.distributed.reduce(gradient, owner, sync_op=False)
            self._under_way.append((self._next, task))
            self._next -= 1
            while len(self._under_way) > (self.AHEAD if self._nothing is None else 0):
                self._settle()

    def _settle(self) -> None:
        place, task = self._under_way.popleft()
        task.wait()
        if place not in self._own:
            self._parameters[place].clear_gradient(False)

    def share_parameters(self) -> None:
        """Give all processes the parameters that each has updated; without ``shard``, nothing."""
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
        """Yield one tensor a parameter, of its shape: that of its owner; to be gone through by all.

        Nothing if there are none yet.
        """
        if self._owners is None:
            yield from values
        elif total([any(value is not None for value in values)])[0]:
            for parameter, owner, value in zip(self._parameters, self._owners, values):
                value = paddle.zeros_like(parameter) if value is None else value
                _each([value], partial(paddle.distributed.broadcast, src=owner))
                yield value

    def scattered(self, values: Sequence[Tensor] | None) -> list[Tensor | None]:
        """Return, of those that the first process has, the values of this one's parameters."""
        kept = []
        for place, parameter in enumerate(self._parameters):
            value = values[place] if values else paddle.zeros_like(parameter)
            broadcast([value])
            kept.append(value if place in self._own else None)
        return kept


def owners(sizes: Sequence[int], count: int) -> list[int]:
    """Return who of ``count`` processes owns each parameter: shares as equal as can be."""
    loads, found = [0] * count, [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        found[place] = loads.index(min(loads))
        loads[found[place]] += sizes[place]
    return found
