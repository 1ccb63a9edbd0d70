"""The network as an ONNX graph, written node by node.

paddle2onnx is not used: with Paddle 3.3, its versions 2.0.1 and 2.1.0 read the epsilon of GroupNorm
and the value of the padding from uninitialized memory (paddle2onnx issue 1646).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bit_paddle.inference import activations, onnx_data, onnx_files
from bit_paddle.inference.activations import Activations, Head, Inspect
from bit_paddle.inference.onnx_data import Store
from bit_paddle.inference.onnx_files import FEATURES, IMAGES, LAST, LOGITS
from bit_paddle.models import heads
from bit_paddle.models.architecture import GROUPS

if TYPE_CHECKING:
    from bit_paddle.models.resnetv2 import ResNetV2


class _Graph:
    """The nodes and constants of a graph that is being written; each method returns a name."""

    def __init__(self, model: ResNetV2, store: Store):
        self.store = store
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.parameters = dict(model.named_parameters())
        self.grouped_shape = self.constant("grouped_shape", np.array([0, GROUPS, -1]))
        self.ones = self.constant("ones", np.ones(GROUPS, np.float32))
        self.zeros = self.constant("zeros", np.zeros(GROUPS, np.float32))

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(self.store(value, name))
        return name

    def parameter(self, name: str, *shape: int) -> str:
        from bit_paddle.models.native.plain import standardize

        value = self.parameters[name]
        value = (standardize(value) if name.endswith("conv.weight") else value).numpy()
        return self.constant(name, value.reshape(shape or value.shape))

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def conv(self, x: str, name: str, stride: int = 1, padding: int = 0) -> str:
        weight = self.parameter(f"{name}conv.weight")
        return self.node("Conv", x, weight, strides=[stride] * 2, pads=[padding] * 4)

    def norm_relu(self, x: str, name: str, output: str = "") -> str:
        # Not GroupNormalization: it is new in opset 18, and its definition was wrong before 21.
        node = self.node
        grouped = node("Reshape", x, self.grouped_shape)  # [N, 32, C / 32 * H * W]
        normal = node("InstanceNormalization", grouped, self.ones, self.zeros, epsilon=1e-5)
        normal = node("Reshape", normal, node("Shape", x))
        scaled = node("Mul", normal, self.parameter(f"{name}norm.weight", -1, 1, 1))
        bias = self.parameter(f"{name}norm.bias", -1, 1, 1)
        return node("Relu", node("Add", scaled, bias), output=output)

    def head(self, head: str, third: str, last: str) -> str:
        """Write ``head`` on the activated stage 3 and last stage."""
        if heads.channels_of(head):
            last = self.norm_relu(self.conv(last, "head.projection."), "head.projection.")
        if head in (heads.MAX_MEAN, heads.LOCAL):
            kinds = ("ReduceMax", "ReduceMean")
            parts = [self.node(kind, last, axes=[2, 3], keepdims=0) for kind in kinds]
            parts += [self.attended(third, last)] if head == heads.LOCAL else []
            x = self.node("Concat", *parts, output=FEATURES, axis=1)
        else:
            x = self.mean(last)
        path = heads.last_path(head)
        weights = [self.parameter(f"{path}.{name}") for name in ("weight", "bias")]
        return self.node("Gemm", x, *weights, output=LOGITS)

    def mean(self, x: str) -> str:
        return self.node("ReduceMean", x, output=FEATURES, axes=[2, 3], keepdims=0)

    def attended(self, third: str, last: str) -> str:
        """Write the weighted mean of stage 3, as `layers.LocalHead` does."""
        node = self.node
        score = node("Conv", third, self.parameter("head.attention3.weight"))
        coarse = node("Conv", last, self.parameter("head.attention4.weight"))
        square = self.constant("square", np.ones((1, 1, 2, 2), np.float32))
        fine = node("ConvTranspose", coarse, square, strides=[2, 2])  # each place four times
        edges = [self.constant("edges", np.array([2])), self.constant("sides", np.array([4]))]
        size = node("Slice", node("Shape", score), *edges)
        begin = self.constant("begin", np.array([0, 0]))
        cut = node("Slice", fine, begin, size, self.constant("axes", np.array([2, 3])))
        shape = self.constant("places", np.array([0, 0, -1]))
        weights = node("Softmax", node("Reshape", node("Add", score, cut), shape), axis=2)
        weights = node("Transpose", weights, perm=[0, 2, 1])
        product = node("MatMul", node("Reshape", third, shape), weights)
        return node("Squeeze", product, edges[0])


def onnx_model(model: ResNetV2, store: Store = onnx_data.inline) -> Any:
    """Return an ``onnx.ModelProto`` of opset 17, with ``images`` [batch, 3, height, width].

    ``store`` turns each array into an ``onnx.TensorProto``, and may put its numbers elsewhere.
    """
    from onnx import TensorProto, helper

    graph = _Graph(model, store)
    node, conv, norm_relu = graph.node, graph.conv, graph.norm_relu
    first = graph.constant("first", np.array([0]))
    around = graph.constant("around", np.array([0, 0, 0, 1, 1, 0, 0, 0, 1, 1]))
    x, third = conv(IMAGES, "root_block.", stride=2, padding=3), ""
    # The optimizers of onnxruntime, onnxoptimizer and onnxsim merge Pad and MaxPool. That is wrong:
    # the zeros of Pad are pixels for the pool, its own padding is not. They do not merge a Pad in
    # five dimensions.
    x = node("Squeeze", node("Pad", node("Unsqueeze", x, first), around), first)
    x = node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
    for block, units in enumerate(model.architecture.units, 1):
        for unit in range(1, units + 1):
            name, stride = f"block{block}.unit{unit:02d}.", 2 if block > 1 and unit == 1 else 1
            activated = norm_relu(x, f"{name}a.")
            third = activated if (block, unit) == (4, 1) else third
            shortcut = conv(activated, f"{name}proj.", stride) if unit == 1 else x
            x = conv(activated, f"{name}a.")
            x = conv(norm_relu(x, f"{name}b."), f"{name}b.", stride, padding=1)
            x = conv(norm_relu(x, f"{name}c."), f"{name}c.")
            end = activations.STAGES[block - 1] if unit == units else ""
            x = node("Add", x, shortcut, output=end)
    last = norm_relu(x, "", output=LAST)
    x = graph.head(model.architecture.head, third, last) if model.num_classes else graph.mean(last)

    kind, outputs = TensorProto.FLOAT, model.num_classes or model.architecture.features
    proto = helper.make_graph(
        graph.nodes,
        model.architecture.name,
        [helper.make_tensor_value_info(IMAGES, kind, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info(x, kind, ["batch", outputs])],
        graph.constants,
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(proto, opset_imports=[opset], ir_version=8, producer_name="bit_paddle")


def inspect(path: Path, model: ResNetV2, head: Head | None) -> Inspect:
    """Return the function that computes the activations of the ONNX file by onnxruntime.

    The output is that of the file as it is. The other activations are outputs of a changed file
    beside it. Raises `DifferenceError` if the head in the file is not the model's.
    """

    def inspect_batches(batches: Sequence[np.ndarray]) -> list[Activations]:
        keys = [activations.OUTPUT]
        result = [dict(zip(keys, found)) for found in _run(path, None, batches)]
        keys = [*activations.STAGES, activations.FEATURES]
        names, keys = list(keys), [*keys, *([activations.RANDOM] if head else [])]
        names += [LOGITS] if head else []
        beside = path.with_name(f"{path.name}.widened")
        try:
            beside.write_bytes(_widened(path, names, model, head).SerializeToString())
            for activation, found in zip(result, _run(beside, names, batches)):
                activation.update(zip(keys, found))
        finally:
            beside.unlink(missing_ok=True)
        return result

    return inspect_batches


def _run(
    path: Path, names: list[str] | None, batches: Sequence[np.ndarray]
) -> list[list[np.ndarray]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(names, {IMAGES: batch}) for batch in batches]


def _widened(path: Path, names: Sequence[str], model: ResNetV2, head: Head | None) -> Any:
    """Return the file's graph with the outputs ``names``, and with ``head`` if there is one.

    It names the same data file.
    """
    from onnx import TensorProto, helper, numpy_helper

    proto = onnx_files.read(path)
    arrays = onnx_data.arrays(proto, path)
    if model.num_classes:
        stored = {constant.name: constant for constant in proto.graph.initializer}
        layer = heads.last_path(model.architecture.head)
        last = [stored[f"{layer}.{name}"] for name in ("weight", "bias")]
        found = [
            arrays[one.name] if one.name in arrays else numpy_helper.to_array(one) for one in last
        ]
        activations.require_same_head(tuple(found), model)
        for constant, array in zip(last, head or ()):
            constant.CopyFrom(onnx_data.inline(array, constant.name))
    del proto.graph.output[:]
    kind = TensorProto.FLOAT
    proto.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name in names)
    return proto
