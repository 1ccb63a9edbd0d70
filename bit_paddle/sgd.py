"""SGD with momentum, exactly as PyTorch's: v = 0.9 v + g; w = w - lr v. No weight decay."""

from __future__ import annotations

from typing import Any

import paddle


class Momentum(paddle.optimizer.Momentum):
    """Paddle's optimizer, without the fused kernel that rounds both its factors to float32.

    In float64 that rounding is 3e-8 of a step; in float32 the two agree. Everything else, such as
    the state and its place, stays Paddle's, so that whatever wraps Paddle's optimizers can wrap
    this one.
    """

    def _append_optimize_op(self, block: Any, parameter_and_gradient: Any) -> None:
        parameter, gradient = parameter_and_gradient
        velocity = self._get_accumulator_master(self._velocity_acc_str, parameter)
        velocity.scale_(self._momentum)
        velocity.add_(gradient)
        parameter.subtract_(velocity * self.get_lr())
