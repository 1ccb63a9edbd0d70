"""SGD with momentum, exactly as PyTorch's: v = 0.9 v + g; w = w - lr v. No weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn


class Momentum(paddle.optimizer.Momentum):
    """Paddle's optimizer, without the fused kernel that rounds both its factors to float32.

    In float64 that rounding is 3e-8 of a step; in float32 the two agree. Everything else, such as
    the state and its place, stays Paddle's, so that whatever wraps Paddle's optimizers can wrap
    this one. ``whole`` is False if an error has ended a step halfway: some weights have been
    updated then and others not.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.whole = True
        self._loaded: dict[str, Tensor] = {}  # Paddle shows them again from the first step on

    def step(self) -> None:
        self.whole = False
        super().step()
        self.whole, self._loaded = True, {}

    def velocities(self) -> list[Tensor]:
        """Return the velocity of each parameter, in their order; none before the first step."""
        state = {**self._loaded, **self.state_dict()}
        keys = map(self._key, self._parameter_list)
        return [state[key] for key in keys if key in state]

    def load_velocities(self, velocities: Iterable[Tensor]) -> None:
        """Start from ``velocities``, in the order of the parameters; before the first step."""
        self._loaded = dict(zip(map(self._key, self._parameter_list), velocities))
        self.set_state_dict(dict(self._loaded))

    def _key(self, parameter: Tensor) -> str:
        return f"{parameter.name}_{self._velocity_acc_str}_0"

    def _append_optimize_op(self, block: Any, parameter_and_gradient: Any) -> None:
        parameter, gradient = parameter_and_gradient
        velocity = self._get_accumulator_master(self._velocity_acc_str, parameter)
        velocity.scale_(self._momentum)
        velocity.add_(gradient)
        parameter.subtract_(velocity * self.get_lr())


def non_finite(model: nn.Layer) -> list[str]:
    """Return the names of parameters with a gradient that is not finite, the first three of them.

    A sum of numbers shows whether one of them is infinite or none, in one pass.
    """
    found = [(name, one.grad) for name, one in model.named_parameters() if one.grad is not None]
    sums = paddle.stack([gradient.sum() for _, gradient in found]).numpy()
    return [name for (name, _), one in zip(found, sums) if not np.isfinite(one)][:3]
