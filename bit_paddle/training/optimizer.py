"""The optimizers: SGD with momentum (`Momentum`), exactly as in PyTorch, and `Adam`.

SGD is v = 0.9 v + g + decay w; w = w - lr v. Both optimizers have the state of each parameter by
name (`state`), a checkpoint's; the loop does not know which of them it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

import numpy as np
import paddle
from paddle import Tensor

from bit_paddle.models.native import plain

State = dict[str, Sequence[Union[Tensor, None]]]  # {slot: its tensor of each parameter}


class Momentum(paddle.optimizer.Momentum):
    """Paddle's Momentum, without its fused kernel, which rounds momentum and rate to float32.

    In float64 that rounding changes a step by 3e-8 of its size; in float32 both give the same. All
    else, such as the state and where it is stored, is Paddle's, so that wrappers of Paddle's
    optimizers work on this one. ``weight_decay`` applies to kernels only, not to GroupNorm or
    biases. ``whole`` is False if an error ended a step halfway, with only some weights updated.
    ``made`` counts the steps before the next one; SGD does the same in each. ``operators`` are
    those of the network: compiled ones make the step in one pass over the memory, with the same
    bits.
    """

    slots = ("momentum",)  # names of the tensors that belong to a parameter

    def __init__(
        self, *arguments: Any, weight_decay: float = 0.0, operators: Any = plain, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.whole, self.made, self._decay, self._operators = True, 0, weight_decay, operators
        self._is_new = True  # whether no step has created the velocities yet
        self._loaded: dict[str, Tensor] = {}  # Paddle's state_dict lacks them before the first step

    def step(self) -> None:
        self.whole = False
        super().step()
        self.whole, self._is_new, self._loaded = True, False, {}

    def reserve(self) -> None:
        """Allocate, and free again, the tensors that the next step adds. Raises if memory runs out.

        Nothing else changes.
        """
        _allocate(self._parameter_list, self.state() if self._is_new else {}, 1)

    def velocities(self) -> list[Tensor | None]:
        """Return each parameter's velocity, in the parameters' order; None before its update."""
        state = {**self._loaded, **self.state_dict()}
        return [state.get(key) for key in map(self._key, self._parameter_list)]

    def load_velocities(self, velocities: Iterable[Tensor | None]) -> None:
        """Set the velocities, in the parameters' order; must be called before the first step."""
        pairs = zip(map(self._key, self._parameter_list), velocities)
        self._loaded = {key: velocity for key, velocity in pairs if velocity is not None}
        self.set_state_dict(dict(self._loaded))

    def state(self) -> State:
        """Return the tensors of each slot, in the parameters' order; None before the first step."""
        return {"momentum": self.velocities()}

    def load_state(self, state: Mapping[str, Iterable[Tensor | None]]) -> None:
        """Set the tensors of each slot; must be called before the first step."""
        self.load_velocities(state["momentum"])

    def _key(self, parameter: Tensor) -> str:
        return f"{parameter.name}_{self._velocity_acc_str}_0"

    def _append_optimize_op(self, block: Any, parameter_and_gradient: Any) -> None:
        parameter, gradient = parameter_and_gradient
        velocity = self._get_accumulator_master(self._velocity_acc_str, parameter)
        decay = self._decay if parameter.ndim > 1 else 0.0
        self._operators.momentum_step(
            parameter, velocity, gradient, self.get_lr(), self._momentum, decay
        )


class Adam:
    """Adam (arXiv 1412.6980) with decoupled weight decay (arXiv 1711.05101), of kernels only.

    With the ``mean`` and the ``variance`` of the gradients g, and t = 1, 2, … for the steps:

        mean = b1 mean + (1 - b1) g;  variance = b2 variance + (1 - b2) g^2
        w = w - lr (mean / (1 - b1^t)) / (sqrt(variance / (1 - b2^t)) + epsilon)
              - (lr / base_lr) weight_decay w

    So weight decay follows the schedule, but not ``base_lr``; see `recipes.distill`. Parameters
    without a gradient stay as they are (with --shard those of other ranks). ``whole`` and ``made``
    are those of `Momentum`; t is ``made`` + 1. A skipped step counts, so that a resumed run knows t
    from its step.
    """

    slots = ("mean", "variance")

    def __init__(
        self,
        base_lr: float,
        parameters: Iterable[Tensor],
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.whole, self.made = True, 0
        self._base_lr, self._lr, self._parameters = base_lr, base_lr, list(parameters)
        self._betas, self._epsilon, self._decay = betas, epsilon, weight_decay
        self._state: State = {slot: [None] * len(self._parameters) for slot in self.slots}

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next steps."""
        self._lr = lr

    @paddle.no_grad()
    def step(self) -> None:
        """Update the parameters that have a gradient."""
        self.whole = False
        for index, parameter in enumerate(self._parameters):
            if parameter.grad is not None:
                self._update(index, parameter, parameter.grad)
        self.whole, self.made = True, self.made + 1

    def reserve(self) -> None:
        """Allocate, and free again, the tensors that the next step adds. Raises if memory runs out.

        Nothing else changes.
        """
        _allocate(self._parameters, self._state, 4)

    def clear_grad(self, set_to_zero: bool = False) -> None:
        """Free the gradients, or set them to zero."""
        for parameter in self._parameters:
            parameter.clear_gradient(set_to_zero)

    def state(self) -> State:
        """Return the tensors of each slot, in the parameters' order; None before the first step."""
        return {slot: list(tensors) for slot, tensors in self._state.items()}

    def load_state(self, state: Mapping[str, Iterable[Tensor | None]]) -> None:
        """Set the tensors of each slot."""
        self._state = {slot: list(state[slot]) for slot in self.slots}

    def _update(self, index: int, parameter: Tensor, gradient: Tensor) -> None:
        mean, variance = (self._moment(slot, index, parameter) for slot in self.slots)
        decay, square_decay = self._betas
        mean.scale_(decay)
        mean.add_(gradient * (1 - decay))
        variance.scale_(square_decay)
        variance.add_(gradient * gradient * (1 - square_decay))
        time = self.made + 1
        scale = (variance * (1 / (1 - square_decay**time))).sqrt() + self._epsilon
        change = mean / scale * (self._lr / (1 - decay**time))
        if self._decay and parameter.ndim > 1:
            change.add_(parameter * (self._decay * self._lr / self._base_lr))
        parameter.subtract_(change)

    def _moment(self, slot: str, index: int, parameter: Tensor) -> Tensor:
        moment = self._state[slot][index]
        if moment is None:
            moment = self._state[slot][index] = paddle.zeros_like(parameter)
        return moment


def _allocate(parameters: Sequence[Tensor], state: State, workspaces: int) -> None:
    """Allocate, and free, all that ``state`` lacks, and the largest parameter's ``workspaces``."""
    updated = [index for index, parameter in enumerate(parameters) if parameter.grad is not None]
    held = [
        paddle.zeros_like(parameters[index])
        for tensors in state.values()
        for index in updated
        if tensors[index] is None
    ]
    if updated:
        largest = max((parameters[index] for index in updated), key=lambda one: one.size)
        held += [paddle.empty_like(largest) for _ in range(workspaces)]


Optimizer = Union[Momentum, Adam]


@paddle.no_grad()
def non_finite(parameters: Iterable[Tensor], operators: Any) -> list[bool]:
    """Return for each parameter whether its gradient has a value that is not finite.

    One such value makes the sum of a gradient not finite, so a single pass is enough.
    """
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sums = iter(operators.sums(gradients).numpy() if gradients else ())
    return [parameter.grad is not None and not np.isfinite(next(sums)) for parameter in parameters]


@paddle.no_grad()
def unscale(parameters: Iterable[Tensor], scale: float) -> None:
    """Divide every gradient by ``scale``, exactly, as it is a power of two."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.scale_(1 / scale)
