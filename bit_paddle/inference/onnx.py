"""The network as an ONNX graph, written node by node.

paddle2onnx is not used: with Paddle 3.3, its versions 2.0.1 and 2.1.0 read the epsilon of GroupNorm
and the value of the padding from uninitialized memory (paddle2onnx issue 1646).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bit_paddle.inference import activations
from bit_paddle.inference.activations import Activations, Head, Inspect
from bit_paddle.models.architecture import GROUPS

if TYPE_CHECKING:
    from bit_paddle.models.resnetv2 import ResNetV2


def onnx_model(model: ResNetV2) -> Any:
    """Return an ``onnx.ModelProto`` of opset 17, with ``images`` [batch, 3, height, width]."""
    from onnx import TensorProto, helper, numpy_helper

    from bit_paddle.models.native.plain import standardize

    nodes, constants = [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    def parameter(name: str, *shape: int) -> str:
        value = parameters[name]
        value = (standardize(value) if name.endswith("conv.weight") else value).numpy()
        return constant(name, value.reshape(shape or value.shape))

    def node(operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{operator}_{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def conv(x: str, name: str, stride: int = 1, padding: int = 0) -> str:
        weight = parameter(f"{name}conv.weight")
        return node("Conv", x, weight, strides=[stride] * 2, pads=[padding] * 4)

    def norm_relu(x: str, name: str) -> str:
        # Not GroupNormalization: it is new in opset 18, and its definition was wrong before 21.
        grouped = node("Reshape", x, grouped_shape)  # [N, 32, C / 32 * H * W]
        normal = node("InstanceNormalization", grouped, ones, zeros, epsilon=1e-5)
        normal = node("Reshape", normal, node("Shape", x))
        scaled = node("Mul", normal, parameter(f"{name}norm.weight", -1, 1, 1))
        return node("Relu", node("Add", scaled, parameter(f"{name}norm.bias", -1, 1, 1)))

    parameters = dict(model.named_parameters())
    grouped_shape = constant("grouped_shape", np.array([0, GROUPS, -1]))
    ones = constant("ones", np.ones(GROUPS, np.float32))
    zeros = constant("zeros", np.zeros(GROUPS, np.float32))
    first = constant("first", np.array([0]))
    around = constant("around", np.array([0, 0, 0, 1, 1, 0, 0, 0, 1, 1]))

    x = conv("images", "root_block.", stride=2, padding=3)
    # The optimizers of onnxruntime, onnxoptimizer and onnxsim merge Pad and MaxPool. That is wrong:
    # the zeros of Pad are pixels for the pool, its own padding is not. They do not merge a Pad in
    # five dimensions.
    x = node("Squeeze", node("Pad", node("Unsqueeze", x, first), around), first)
    x = node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
    for block, units in enumerate(model.architecture.units, 1):
        for unit in range(1, units + 1):
            name, stride = f"block{block}.unit{unit:02d}.", 2 if block > 1 and unit == 1 else 1
            activated = norm_relu(x, f"{name}a.")
            shortcut = conv(activated, f"{name}proj.", stride) if unit == 1 else x
            x = conv(activated, f"{name}a.")
            x = conv(norm_relu(x, f"{name}b."), f"{name}b.", stride, padding=1)
            x = conv(norm_relu(x, f"{name}c."), f"{name}c.")
            end = activations.STAGES[block - 1] if unit == units else ""
            x = node("Add", x, shortcut, output=end)
    x = node("ReduceMean", norm_relu(x, ""), output="features", axes=[2, 3], keepdims=0)
    if model.num_classes:
        x = node("Gemm", x, parameter("head.weight"), parameter("head.bias"), output="logits")

    kind, outputs = TensorProto.FLOAT, model.num_classes or model.architecture.features
    graph = helper.make_graph(
        nodes,
        model.architecture.name,
        [helper.make_tensor_value_info("images", kind, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info(x, kind, ["batch", outputs])],
        constants,
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8, producer_name="bit_paddle")


def inspect(path: Path, model: ResNetV2, head: Head | None) -> Inspect:
    """Return the function that computes the activations of the ONNX file by onnxruntime.

    The output is that of the file as it is. The other activations are added as outputs in memory.
    Raises `DifferenceError` if the head in the file is not the model's.
    """

    def inspect_batches(batches: Sequence[np.ndarray]) -> list[Activations]:
        keys = [activations.OUTPUT]
        result = [dict(zip(keys, found)) for found in _run(str(path), None, batches)]
        keys = [*activations.STAGES, activations.FEATURES]
        names, keys = list(keys), [*keys, *([activations.RANDOM] if head else [])]
        names += ["logits"] if head else []
        for activation, found in zip(
            result, _run(_widened(path, names, model, head), names, batches)
        ):
            activation.update(zip(keys, found))
        return result

    return inspect_batches


def _run(
    source: str | bytes, names: list[str] | None, batches: Sequence[np.ndarray]
) -> list[list[np.ndarray]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return [session.run(names, {"images": batch}) for batch in batches]


def _widened(path: Path, names: Sequence[str], model: ResNetV2, head: Head | None) -> bytes:
    """Return the file's graph with the outputs ``names``, and with ``head`` if there is one."""
    import onnx
    from onnx import helper, numpy_helper

    proto = onnx.load(path)
    if model.num_classes:
        stored = {constant.name: constant for constant in proto.graph.initializer}
        arrays = [stored["head.weight"], stored["head.bias"]]
        activations.require_same_head(tuple(map(numpy_helper.to_array, arrays)), model)
        for constant, array in zip(arrays, head or ()):
            constant.CopyFrom(numpy_helper.from_array(array, constant.name))
    del proto.graph.output[:]
    kind = onnx.TensorProto.FLOAT
    proto.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name in names)
    return proto.SerializeToString()
