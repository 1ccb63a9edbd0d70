"""SGD with momentum, exactly as PyTorch's: v = 0.9 v + g + decay w; w = w - lr v."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import paddle
from paddle import Tensor


class Momentum(paddle.optimizer.Momentum):
    """Paddle's optimizer, without the fused kernel that rounds both its factors to float32.

    In float64 that rounding is 3e-8 of a step; in float32 the two agree. Everything else, such as
    the state and its place, stays Paddle's, so that whatever wraps Paddle's optimizers can wrap
    this one. ``weight_decay`` is of kernels alone: of GroupNorms and biases there is none.
    ``whole`` is False if an error has ended a step halfway: some weights have been updated then and
    others not.
    """

    def __init__(self, *arguments: Any, weight_decay: float = 0.0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.whole, self._decay = True, weight_decay
        self._loaded: dict[str, Tensor] = {}  # Paddle shows them again from the first step on

    def step(self) -> None:
        self.whole = False
        super().step()
        self.whole, self._loaded = True, {}

    def velocities(self) -> list[Tensor | None]:
        """Return the velocity of each parameter, in their order; None for one without updates."""
        state = {**self._loaded, **self.state_dict()}
        return [state.get(key) for key in map(self._key, self._parameter_list)]

    def load_velocities(self, velocities: Iterable[Tensor | None]) -> None:
        """Start from ``velocities``, in the order of the parameters; before the first step."""
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
    """Return of each parameter whether its gradient is not finite.

    A sum of numbers shows whether one of them is infinite or none, in one pass.
    """
    parameters = list(parameters)
    gradients = [one.grad for one in parameters if one.grad is not None]
    sums = iter(paddle.stack([one.sum() for one in gradients]).numpy() if gradients else ())
    return [one.grad is not None and not np.isfinite(next(sums)) for one in parameters]


@paddle.no_grad()
def unscale(parameters: Iterable[Tensor], scale: float) -> None:
    """Divide every gradient by ``scale``, a power of two: exact."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.scale_(1 / scale)
