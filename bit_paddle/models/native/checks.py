"""Compare compiled operators with `plain` on small networks: outputs and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from paddle import nn

from bit_paddle.models.architecture import GROUPS, Architecture
from bit_paddle.models.native import plain
from bit_paddle.models.native.plain import NORM_EPSILON
from bit_paddle.models.resnetv2 import ResNetV2

# Mean absolute error, relative to the mean absolute value. bfloat16 has three digits.
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.1}


def check(operators: Any, dtype: str) -> None:
    """Raise RuntimeError if ``operators`` in ``dtype`` differ from `plain` in float32."""
    expected, outcomes = (
        {**_outcomes(each, precision), **_inference(each, precision)}
        for each, precision in ((plain, "float32"), (operators, dtype))
    )
    for name, value in expected.items():
        error = float(np.abs(outcomes[name] - value).mean() / np.abs(value).mean())
        if not error < TOLERANCES[dtype]:
            raise RuntimeError(f"{name} in {dtype} has a relative error of {error:.2g}")


def passes(operators: Any, dtype: str) -> bool:
    """Return whether `check` passes; a processor may not support ``dtype``."""
    try:
        check(operators, dtype)
    except (RuntimeError, OSError):  # the types of an exception in an operator
        return False
    return True


def _inference(operators: Any, dtype: str) -> dict[str, np.ndarray]:
    """Return the feature maps of a whole network without gradients."""
    model = ResNetV2(Architecture.parse("R14x0.5"))
    model.reset_parameters()
    model.compute_with(operators)
    model.amp = "bf16" if dtype == "bfloat16" else "off"
    model.eval()
    images = np.random.default_rng(1).uniform(-1, 1, (3, 3, 49, 70)).astype(np.float32)
    with paddle.no_grad():
        stages = model.forward_stages(paddle.to_tensor(images), activated=True)
    return {f"map {k}": stage.astype("float32").numpy() for k, stage in enumerate(stages)}


def _outcomes(operators: Any, dtype: str) -> dict[str, np.ndarray]:
    """Return {name: float32 array}: outputs and gradients of a root block and two units."""
    random = np.random.default_rng(0)

    def parameter(name: str, *shape: int) -> paddle.Tensor:
        values = random.standard_normal(shape).astype(np.float32)
        parameters[name] = paddle.create_parameter(
            shape, "float32", default_initializer=nn.initializer.Assign(values)
        )
        return parameters[name]

    def norm(name: str, channels: int) -> nn.GroupNorm:
        layer = nn.GroupNorm(GROUPS, channels, NORM_EPSILON)
        layer.weight, layer.bias = (
            parameter(f"{name}.scale", channels),
            parameter(f"{name}.bias", channels),
        )
        return layer

    def kernel(name: str, *shape: int) -> paddle.Tensor:
        return operators.standardize(parameter(name, *shape))

    parameters: dict[str, paddle.Tensor] = {}
    images = random.standard_normal((3, 3, 17, 22)).astype(np.float32)
    x = operators.enter(paddle.to_tensor(images)).astype(dtype)
    x = operators.pool(operators.convolve(x, kernel("root", 64, 3, 7, 7), 2))
    y, shortcut = operators.norm_relu_twice(x, norm("first", 64))
    shortcut = operators.convolve(shortcut, kernel("projection", 96, 64, 1, 1), 2)
    x = operators.convolve(y, kernel("strided", 96, 64, 3, 3), 2, shortcut)
    y, shortcut = operators.norm_relu_beside(x, norm("second", 96))
    x = operators.convolve(y, kernel("pointwise", 96, 96, 1, 1), 1, shortcut)
    y = operators.average(operators.norm_relu(x, norm("last", 96)))
    (y * y).sum().backward()
    outcomes = {"output": y.numpy(), "stage": operators.leave(x).astype("float32").numpy()}
    for name, tensor in parameters.items():
        outcomes[f"gradient of {name}"] = tensor.grad.numpy()
    return outcomes
