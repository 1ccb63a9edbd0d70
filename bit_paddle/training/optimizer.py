"""SGD with momentum, exactly as in PyTorch: v = 0.9 v + g + decay w; w = w - lr v."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import paddle
from paddle import Tensor


class Momentum(paddle.optimizer.Momentum):
    """Paddle's Momentum, without its fused kernel, which rounds momentum and rate to float32.

    In float64 that rounding changes a step by 3e-8 of its size; in float32 both give the same. All
    else, such as the state and where it is stored, is Paddle's, so that wrappers of Paddle's
    optimizers work on this one. ``weight_decay`` applies to kernels only, not to GroupNorm or
    biases. ``whole`` is False if an error ended a step halfway, with only some weights updated.
    """

    def __init__(self, *arguments: Any, weight_decay: float = 0.0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.whole, self._decay = True, weight_decay
        self._loaded: dict[str, Tensor] = {}  # Paddle's state_dict lacks them before the first step

    def step(self) -> None:
        self.whole = False
        super().step()
        self.whole, self._loaded = True, {}

    def velocities(self) -> list[Tensor | None]:
        """Return each parameter's velocity, in the parameters' order; None before its update."""
        state = {**self._loaded, **self.state_dict()}
        return [state.get(key) for key in map(self._key, self._parameter_list)]

    def load_velocities(self, velocities: Iterable[Tensor | None]) -> None:
        """Set the velocities, in the parameters' order; must be called before the first step."""
        pairs = zip(map(self._key, self._parameter_list), velocities)
        self._loaded = {key: velocity for key, velocity in pairs if velocity is not None}
        self.set_state_dict(dict(self._loaded))

    def _key(self, parameter: Tensor) -> str:
        return f"{parameter.name}_{self._velocity_acc_str}_0"

    def _append_optimize_op(self, block: Any, parameter_and_gradient: Any) -> None:
        parameter, gradient = parameter_and_gradient
        velocity = self._get_accumulator_master(self._velocity_acc_str, parameter)
        velocity.scale_(self._momentum)
        velocity.add_(gradient)
        if self._decay and parameter.ndim > 1:
            velocity.add_(parameter * self._decay)
        parameter.subtract_(velocity * self.get_lr())


def non_finite(parameters: Iterable[Tensor]) -> list[bool]:
    """Return for each parameter whether its gradient has a value that is not finite.

    One such value makes the sum of a gradient not finite, so a single pass is enough.
    """
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sums = iter(paddle.stack([grad.sum() for grad in gradients]).numpy() if gradients else ())
    return [parameter.grad is not None and not np.isfinite(next(sums)) for parameter in parameters]


@paddle.no_grad()
def unscale(parameters: Iterable[Tensor], scale: float) -> None:
    """Divide every gradient by ``scale``, exactly, as it is a power of two."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.scale_(1 / scale)
