"""The operators of the network in pure Paddle, for any device and precision.

Activations are [N, C, H, W], kernels [O, I, H, W]. `compiled` has the same functions for a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer

from bit_paddle.models.architecture import GROUPS

STANDARDIZATION_EPSILON = 1e-10  # timm and Hugging Face use 1e-8

NORM_EPSILON = 1e-5

HALF = (paddle.float16, paddle.bfloat16)


def in_float32(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return ``function(*inputs)`` in their precision, computed in float32 where that is half."""
    dtype = inputs[0].dtype
    if dtype not in HALF:
        return function(*inputs)
    return function(*(one.astype("float32") for one in inputs)).astype(dtype)


def as_tensor_cores(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return ``function(*inputs)`` in their precision, on any device.

    Paddle has no such kernels in half precision for a CPU. There the sums are made in float32, as
    those of a tensor core are, and the result is rounded: no faster, but the same arithmetic.
    """
    if inputs[0].dtype in HALF and inputs[0].place.is_cpu_place():
        return in_float32(function, *inputs)
    return function(*inputs)


class _Recomputed(PyLayer):
    """``function(x)``, of which a backward pass keeps ``x`` alone and computes the rest again.

    Paddle's own `recompute` does that too; but Paddle never frees what it hands to a layer whose
    backward pass fails, and here that fails where memory runs out, to be tried again with less.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        output = function(x)
        ctx.x, ctx.function = x, function  # last: Paddle never frees the ctx of what fails
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, ctx.x = ctx.x.detach(), None
        x.stop_gradient = False
        try:
            with paddle.enable_grad():
                output = ctx.function(x)
            paddle.autograd.backward([output], [gradient])
        except Exception:
            gradient._clear_data()
            raise
        return x.grad


def recompute(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``function(x)``, keeping only ``x`` for the gradients where they are wanted."""
    return _Recomputed.apply(x, function) if paddle.is_grad_enabled() else function(x)


# --- What `compiled` has too --------------------------------------------------------------------


def enter(images: Tensor) -> Tensor:
    """Return ``images`` [N, 3, H, W] in the layout of the other functions."""
    return images


def leave(x: Tensor) -> Tensor:
    """Return ``x`` as [N, C, H, W]."""
    return x


def standardize(weight: Tensor) -> Tensor:
    """Return ``weight`` [O, I, H, W] with mean 0 and variance 1 over each output's [I, H, W].

    One fused operation instead of the four of its formula, (w - mean) / sqrt(var +
    1e-10) with the biased variance. The epsilon underflows in half precision, so that is widened
    to float32.
    """
    if weight.dtype in HALF:
        weight = weight.astype("float32")
    flat = weight.reshape([1, weight.shape[0], -1])
    return F.instance_norm(flat, eps=STANDARDIZATION_EPSILON).reshape(weight.shape)


def convolve(x: Tensor, kernel: Tensor, stride: int, residual: Tensor | None = None) -> Tensor:
    """Return ``x`` convolved with ``kernel``, plus ``residual``.

    Padded with zeros by half of the kernel's size.
    """
    convolution = partial(F.conv2d, stride=stride, padding=kernel.shape[-1] // 2)
    y = as_tensor_cores(convolution, x, kernel.astype(x.dtype))
    if residual is None:
        return y
    if y.dtype in HALF or not paddle.in_dynamic_mode():
        return as_tensor_cores(paddle.add, y, residual)
    return y.add_(residual)  # nobody else has seen y, and a convolution's gradients do without


def norm_relu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Return ``x`` normalized by ``norm``, in 32 groups, then ReLU."""
    if x.dtype in HALF:  # float32 inside, of which nothing is kept for the gradients
        return recompute(partial(in_float32, partial(_norm_relu, norm=norm)), x)
    return _norm_relu(x, norm)


def norm_relu_twice(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Return the result of `norm_relu` for two users, whose gradients are added up."""
    y = norm_relu(x, norm)
    return y, y


def norm_relu_beside(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Return the result of `norm_relu`, and ``x`` for another user; gradients are added up."""
    return norm_relu(x, norm), x


def _norm_relu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    if norm.training and _loses_gradients(x, norm):
        normalized = F.instance_norm(x.reshape([x.shape[0], GROUPS, -1]), eps=NORM_EPSILON)
        scale, bias = norm.weight.reshape([-1, 1, 1]), norm.bias.reshape([-1, 1, 1])
        return F.relu(normalized.reshape(x.shape) * scale + bias)
    return F.relu(nn.GroupNorm.forward(norm, x))


def _loses_gradients(x: Tensor, norm: nn.GroupNorm) -> bool:
    """Whether Paddle's GroupNorm would miss the gradient of a scale.

    That of a CPU takes the normalized input from (output - bias) / scale, so it finds nothing
    for a scale of zero, and rounding errors for one that is small beside its bias.
    """
    if not x.place.is_cpu_place():
        return False
    return bool((norm.weight.abs() <= 1e-3 * norm.bias.abs()).any())


def pool(x: Tensor) -> Tensor:
    """Return the maxima of 3 x 3 pixels, at every second one, beside which zeros compete."""
    return in_float32(_pool, x)  # not every GPU build pools bf16


def _pool(x: Tensor) -> Tensor:
    # max_pool2d's own padding would not compete. With all axes named Paddle pads 20 times as fast;
    # but an exported model that does so crashes in Paddle Inference with oneDNN (2.6.2 and 3.3.1).
    x = F.pad(x, [0, 0, 0, 0, 1, 1, 1, 1] if paddle.in_dynamic_mode() else [1, 1, 1, 1])
    return F.max_pool2d(x, kernel_size=3, stride=2)


def average(x: Tensor) -> Tensor:
    """Return the means [N, C] over space, in float32 where ``x`` is half."""
    return (x.astype("float32") if x.dtype in HALF else x).mean(axis=[2, 3])
