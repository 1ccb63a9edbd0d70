"""The operators of `plain`, compiled for a CPU: float32 and bfloat16.

Activations are [N, H, W, C], kernels [O, I, H, W] as in `plain`, which documents the functions.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import paddle
from paddle import Tensor, nn
from paddle.base import core
from paddle.profiler import RecordEvent

from bit_paddle.models.architecture import GROUPS
from bit_paddle.models.native import plain
from bit_paddle.models.native.plain import NORM_EPSILON, STANDARDIZATION_EPSILON, Kernels

ALONE, EARLY, LAST = range(3)  # the passes that use a kernel, as in operators.cc


class Standardized(NamedTuple):
    """A kernel that convolutions standardize while they pack it, which takes hardly any time.

    ``share`` says whether several passes use it. Then the early ones keep it packed, and sum its
    gradients out of Paddle's sight; the last one returns the sum to Paddle.
    """

    weight: Tensor
    share: int = ALONE


class Compiled:
    """The operators of operators.cc in ``library``; `build` loads them into Paddle first."""

    STANDARDIZES_AHEAD = False

    def __init__(self, library: ctypes.CDLL):
        self.library = library

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return self

    def enter(self, images: Tensor) -> Tensor:
        return images.transpose([0, 2, 3, 1])

    def leave(self, x: Tensor) -> Tensor:
        return x.transpose([0, 3, 1, 2])

    def standardize(self, weight: Tensor) -> Standardized:
        return Standardized(weight)

    @contextmanager
    def shared(self, weights: Sequence[Tensor]) -> Iterator[Kernels]:
        early, last = ([Standardized(one, share) for one in weights] for share in (EARLY, LAST))
        try:
            yield early, lambda: last
        finally:
            self.library.bit_forget_shared()

    def convolve(
        self,
        x: Tensor,
        kernel: Tensor | Standardized,
        stride: int,
        residual: Tensor | None = None,
    ) -> Tensor:
        share, epsilon = ALONE, -1.0
        if isinstance(kernel, Standardized):
            (kernel, share), epsilon = kernel, STANDARDIZATION_EPSILON
        if x.shape[-1] == 3 and x.stop_gradient:  # images that need no gradient
            return _run("bit_convolve_images", x, kernel, stride, epsilon)[0]
        if share == EARLY:
            if x.stop_gradient:  # then the way back would not come here without the kernel
                share = ALONE
            else:
                kernel = kernel.detach()
        if residual is None:
            return _run("bit_convolve", x, kernel, stride, epsilon, share)[0]
        return _run("bit_convolve_add", x, kernel, residual, stride, epsilon, share)[0]

    def normalize(self, x: Tensor, norm: nn.GroupNorm) -> Tensor:
        return self.enter(plain.normalize(self.leave(x), norm))

    def norm_relu(self, x: Tensor, norm: nn.GroupNorm) -> Tensor:
        return _normalize("bit_norm_relu", x, norm)[0]

    def norm_relu_twice(self, x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        return tuple(_normalize("bit_norm_relu_twice", x, norm)[:2])

    def norm_relu_beside(self, x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        return tuple(_normalize("bit_norm_relu_beside", x, norm)[:2])

    def pool(self, x: Tensor) -> Tensor:
        return _run("bit_pool", x)[0]

    def average(self, x: Tensor) -> Tensor:
        return x.astype("float32").mean(axis=[1, 2])

    def maximum(self, x: Tensor) -> Tensor:
        return plain.maximum_over(x.astype("float32"), [1, 2])

    def add_bias(self, x: Tensor, bias: Tensor) -> Tensor:
        return plain.in_float32(partial(paddle.add, y=bias), x)

    def add_upsampled(self, x: Tensor, coarse: Tensor) -> Tensor:
        return self.enter(plain.add_upsampled(self.leave(x), self.leave(coarse)))

    def rows(self, x: Tensor, size: int) -> Tensor:
        return x.reshape([x.shape[0], -1, size])

    def sums(self, tensors: Sequence[Tensor]) -> Tensor:
        return _run("bit_sums", list(tensors))[0]

    def momentum_step(
        self,
        parameter: Tensor,
        velocity: Tensor,
        gradient: Tensor,
        lr: float,
        momentum: float,
        decay: float,
    ) -> None:
        _run("bit_momentum_step", parameter, velocity, gradient, lr, momentum, decay)

    def prepare(
        self, images: Tensor, parameters: Sequence[Tensor], units: Sequence[int], half: bool
    ) -> Prepared:
        return Prepared(self.library, images, parameters, units, half)


class Prepared:
    """A network as one operator, see `plain.prepare`. It has its own copy of the parameters."""

    def __init__(
        self,
        library: ctypes.CDLL,
        images: Tensor,
        parameters: Sequence[Tensor],
        units: Sequence[int],
        half: bool,
    ):
        epsilons = NORM_EPSILON, STANDARDIZATION_EPSILON
        number = _run("bit_prepare", images, list(parameters), list(units), half, GROUPS, *epsilons)
        self._number = int(number[0].numpy()[0])
        weakref.finalize(self, library.bit_release, ctypes.c_int64(self._number))

    def __call__(self, images: Tensor, with_stages: bool = False) -> list[Tensor]:
        name = "bit_infer_stages" if with_stages else "bit_infer"
        return list(_run(name, images, self._number))

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        return self  # the copy of a model may use it too: it never changes


def _normalize(name: str, x: Tensor, norm: nn.GroupNorm) -> Sequence[Tensor]:
    return _run(name, x, norm.weight, norm.bias, GROUPS, NORM_EPSILON)


def _run(name: str, *arguments: Any) -> Sequence[Tensor]:
    if not paddle.is_grad_enabled():  # else Paddle lets custom operators save their inputs
        arguments = [value.detach() if isinstance(value, Tensor) else value for value in arguments]
    with RecordEvent(name):  # Paddle's profiler records only the backward pass of custom operators
        return core.eager._run_custom_op(name, *arguments)
