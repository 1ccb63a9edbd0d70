"""The operators of the network in pure Paddle, for any device and precision.

Activations are [N, C, H, W], kernels [O, I, H, W]. `compiled` has the same functions for a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer

from bit_paddle.models.architecture import GROUPS

STANDARDIZATION_EPSILON = 1e-10  # timm and Hugging Face use 1e-8

NORM_EPSILON = 1e-5

STANDARDIZES_AHEAD = (
    True  # whether `standardize` computes, which is worth doing once for many passes
)

HALF = (paddle.float16, paddle.bfloat16)

# Kernels for passes but the last, and the function that returns those for the last; see `shared`.
Kernels = tuple[Sequence[Any], Callable[[], Sequence[Any]]]


def in_float32(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return ``function(*inputs)`` in the inputs' precision; half is computed in float32."""
    dtype = inputs[0].dtype
    if dtype not in HALF:
        return function(*inputs)
    return function(*(x.astype("float32") for x in inputs)).astype(dtype)


def as_tensor_cores(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return ``function(*inputs)`` in the inputs' precision, on any device.

    Paddle has no half-precision kernels for a CPU. There the function is computed in float32 and
    rounded, which is the arithmetic of a tensor core, but not faster than float32.
    """
    if inputs[0].dtype in HALF and inputs[0].place.is_cpu_place():
        return in_float32(function, *inputs)
    return function(*inputs)


class _Recomputed(PyLayer):
    """``function(*inputs)`` that saves only the inputs and is recomputed in the backward pass.

    Not Paddle's own `recompute`: Paddle never frees the tensors of a layer whose backward pass
    fails. Here it fails when out of memory, and the step is retried in smaller parts.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        output = function(*inputs)
        # Last: Paddle never frees the ctx of a failed pass.
        ctx.inputs, ctx.function = inputs, function
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        inputs, ctx.inputs = [x.detach() for x in ctx.inputs], None
        for x in inputs:
            x.stop_gradient = False
        try:
            with paddle.enable_grad():
                output = ctx.function(*inputs)
            paddle.autograd.backward([output], [gradient])
        except Exception:
            gradient._clear_data()
            raise
        return tuple(x.grad for x in inputs)


def recompute(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return ``function(*inputs)``; with gradients enabled, only the inputs are saved for them."""
    return _Recomputed.apply(function, *inputs) if paddle.is_grad_enabled() else function(*inputs)


# --- The operators, also in `compiled` ----------------------------------------------------------


def enter(images: Tensor) -> Tensor:
    """Return ``images`` [N, 3, H, W] in the layout that the other operators use."""
    return images


def leave(x: Tensor) -> Tensor:
    """Return ``x`` as [N, C, H, W]."""
    return x


def standardize(weight: Tensor) -> Tensor:
    """Return ``weight`` [O, I, H, W] with mean 0 and variance 1 over each output's [I, H, W].

    The formula is (w - mean) / sqrt(var + 1e-10) with the biased variance, here as one fused
    operation. Half precision is widened to float32, because the epsilon underflows in it.
    """
    if weight.dtype in HALF:
        weight = weight.astype("float32")
    flat = weight.reshape([1, weight.shape[0], -1])
    return F.instance_norm(flat, eps=STANDARDIZATION_EPSILON).reshape(weight.shape)


@contextmanager
def shared(weights: Sequence[Tensor]) -> Iterator[Kernels]:
    """Standardize ``weights`` for all passes within; yield (kernels, function), see `Kernels`.

    Backward passes with the kernels add their gradients there. The function returns kernels for the
    last backward pass, which propagates the sums through the standardization to the weights.
    """
    kernels = [standardize(weight) for weight in weights]
    leaves = [kernel.detach() for kernel in kernels]  # these sum the gradients
    for leaf, kernel in zip(leaves, kernels):
        leaf.stop_gradient = kernel.stop_gradient

    def last() -> Sequence[Tensor]:
        for leaf, kernel in zip(leaves, kernels):
            if not kernel.stop_gradient:
                kernel.register_hook(partial(_with_earlier, leaf))
        return kernels

    yield leaves, last


def _with_earlier(leaf: Tensor, gradient: Tensor) -> Tensor:
    """Return ``gradient`` plus the gradient of ``leaf``, and free the latter."""
    if leaf.grad is None:
        return gradient
    total = gradient + leaf.grad
    leaf.clear_gradient(False)  # False frees the memory; Paddle ignores the keyword
    return total


def convolve(x: Tensor, kernel: Tensor, stride: int, residual: Tensor | None = None) -> Tensor:
    """Return ``x`` convolved with ``kernel``, plus ``residual`` if there is one.

    ``x`` is padded with zeros by half of the kernel's size.
    """
    convolution = partial(F.conv2d, stride=stride, padding=kernel.shape[-1] // 2)
    y = as_tensor_cores(convolution, x, kernel.astype(x.dtype))
    if residual is None:
        return y
    if y.dtype in HALF or not paddle.in_dynamic_mode():
        return as_tensor_cores(paddle.add, y, residual)
    return y.add_(residual)  # safe: nothing else uses y, and its gradients do not need it


def normalize(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Return ``x`` normalized by ``norm`` in 32 groups."""
    return _saving_half(partial(_normalize, norm=norm), x)


def norm_relu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Return ReLU of the result of `normalize`."""
    return _saving_half(partial(_norm_relu, norm=norm), x)


def norm_relu_twice(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Return the result of `norm_relu` twice, for two users; their gradients are added."""
    y = norm_relu(x, norm)
    return y, y


def norm_relu_beside(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Return the result of `norm_relu`, and ``x`` for a second user; their gradients are added."""
    return norm_relu(x, norm), x


def _saving_half(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``function(x)``; of half precision it saves no float32 tensor for the gradients."""
    return recompute(partial(in_float32, function), x) if x.dtype in HALF else function(x)


def _norm_relu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    return F.relu(_normalize(x, norm))


def _normalize(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    if norm.training and _loses_gradients(x, norm):
        normalized = F.instance_norm(x.reshape([x.shape[0], GROUPS, -1]), eps=NORM_EPSILON)
        scale, bias = norm.weight.reshape([-1, 1, 1]), norm.bias.reshape([-1, 1, 1])
        return normalized.reshape(x.shape) * scale + bias
    return nn.GroupNorm.forward(norm, x)


def _loses_gradients(x: Tensor, norm: nn.GroupNorm) -> bool:
    """Return whether Paddle's GroupNorm would compute a wrong gradient of a scale.

    On a CPU, Paddle recovers the normalized input as (output - bias) / scale. That fails for a
    scale of zero, and is inexact for a scale that is small compared to its bias.
    """
    if not x.place.is_cpu_place():
        return False
    return bool((norm.weight.abs() <= 1e-3 * norm.bias.abs()).any())


def pool(x: Tensor) -> Tensor:
    """Return the maxima of 3 x 3 pixels at a stride of 2; the padding's zeros count as pixels."""
    return in_float32(_pool, x)  # not every GPU build pools bf16


def _pool(x: Tensor) -> Tensor:
    # max_pool2d ignores the zeros of its own padding. Paddle pads 20 times as fast if all axes are
    # given, but such an exported model crashes in Paddle Inference with oneDNN (2.6.2 and 3.3.1).
    x = F.pad(x, [0, 0, 0, 0, 1, 1, 1, 1] if paddle.in_dynamic_mode() else [1, 1, 1, 1])
    return F.max_pool2d(x, kernel_size=3, stride=2)


def average(x: Tensor) -> Tensor:
    """Return the means [N, C] over height and width; float32 if ``x`` is in half precision."""
    return (x.astype("float32") if x.dtype in HALF else x).mean(axis=[2, 3])


def maximum(x: Tensor) -> Tensor:
    """Return the maxima [N, C] over height and width; float32 if ``x`` is in half precision.

    Equal maxima share the gradient.
    """
    return maximum_over(x.astype("float32") if x.dtype in HALF else x, [2, 3])


def maximum_over(x: Tensor, axes: list[int]) -> Tensor:
    """Return the maxima of ``x`` over ``axes``; equal maxima share the gradient."""
    # The gradient of amax over one place is unwritten memory with Paddle 2.6.2.
    if paddle.in_dynamic_mode() and all(x.shape[axis] == 1 for axis in axes):
        return x.squeeze(axes)
    return x.amax(axis=axes)


def add_bias(x: Tensor, bias: Tensor) -> Tensor:
    """Return ``x`` plus ``bias`` [C]."""
    return in_float32(partial(paddle.add, y=bias.reshape([-1, 1, 1])), x)


def add_upsampled(x: Tensor, coarse: Tensor) -> Tensor:
    """Return ``x`` plus ``coarse``, each of its pixels repeated 2 x 2.

    If a side of ``x`` is odd, the last row or column of the repeated pixels is cut off.
    """
    return in_float32(_add_upsampled, x, coarse)


def _add_upsampled(x: Tensor, coarse: Tensor) -> Tensor:
    n, c, h, w = coarse.shape
    pixels = coarse.reshape([n, c, h, 1, w, 1]).expand([n, c, h, 2, w, 2])
    return x + pixels.reshape([n, c, 2 * h, 2 * w])[:, :, : x.shape[2], : x.shape[3]]


def rows(x: Tensor, size: int) -> Tensor:
    """Return the values at all places as rows [N, H W C / size, size]."""
    return x.transpose([0, 2, 3, 1]).reshape([x.shape[0], -1, size])


def sums(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sums [n] of n tensors."""
    return paddle.stack([one.sum() for one in tensors])


def momentum_step(
    parameter: Tensor,
    velocity: Tensor,
    gradient: Tensor,
    lr: float,
    momentum: float,
    decay: float,
) -> None:
    """Set v = momentum v + g + decay w, then w = w - lr v, in place."""
    velocity.scale_(momentum)
    velocity.add_(gradient)
    if decay:
        velocity.add_(parameter * decay)
    parameter.subtract_(velocity * lr)


def prepare(
    images: Tensor, parameters: Sequence[Tensor], units: Sequence[int], half: bool
) -> Callable[[Tensor, bool], list[Tensor]] | None:
    """Return the network of these parameters for inference as one operator; None if there is none.

    The operator takes images [N, 3, H, W] float32, and whether all stages are wanted. It returns
    the last stage, activated; before it, if they are wanted, the outputs of all stages.
    ``parameters`` are in the order of the data, each norm before the convolution that follows it,
    a projection before the other convolutions of its unit. ``images`` has the expected size,
    ``units`` the number of units per stage. ``half``: activations and kernels are bfloat16.
    """
    return None
