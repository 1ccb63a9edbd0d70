"""What each library calls the arrays of BiT's ResNetV2, and how it lays them out.

A *published key* is the name in the authors' ``.npz`` files, whose layout is `models.npz`'s. Names
of these libraries are translated to it, and back where the package writes them:

- ``resnet/block1/unit01/a/standardized_conv2d/kernel``: the published files, written from
  TensorFlow; in some of them with numbered layers (``standardized_conv2d_7``);
- ``block1/unit01/a/standardized_conv2d/kernel``, ``head/dense/kernel``: the authors' TensorFlow 2
  code (bit_tf2/models.py), whose head is [C, K];
- ``block1/unit01/conv1/kernel``: trees of the JAX code, whose GroupNorm arrays are [1, 1, 1, C] and
  whose head is [C, K]; in checkpoints of big_vision (models/bit_paper.py) below ``params`` or
  ``opt/target``, beside the optimizer's arrays;
- ``block1.unit01.a.conv.weight``: this package's parameters, as ``.pdparams`` holds them;
- ``body.block1.unit01.conv1.weight``: the authors' PyTorch code (bit_pytorch/models.py);
- ``stages.0.blocks.0.conv1.weight``: timm (timm/models/resnetv2.py);
- ``bit.encoder.stages.0.layers.0.conv1.weight``: transformers (models/bit/modeling_bit.py).

Kernels are HWIO in TensorFlow and JAX, and OIHW elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np

from bit_paddle.models import npz


def _compiled(*pairs: tuple[str, str | Callable[[re.Match], str]]) -> list:
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


def _translated(name: str, rules: list) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name


# --- To published keys ---------------------------------------------------------------------------

_FROM_JAX = _compiled(
    (r"^(params|opt/target)/", ""),
    (r"root_block/conv_root/kernel", "root_block/standardized_conv2d/kernel"),
    (r"/conv_proj/kernel", "/a/proj/standardized_conv2d/kernel"),
    (r"/conv1/kernel", "/a/standardized_conv2d/kernel"),
    (r"/conv2/kernel", "/b/standardized_conv2d/kernel"),
    (r"/conv3/kernel", "/c/standardized_conv2d/kernel"),
    (r"/gn1/", "/a/group_norm/"),
    (r"/gn2/", "/b/group_norm/"),
    (r"/gn3/", "/c/group_norm/"),
    (r"^norm-pre-head/", "group_norm/"),
    (r"^(conv_)?head/(dense/)?(?=kernel|bias)", "head/conv2d/"),
    (r"group_norm/scale$", "group_norm/gamma"),
    (r"group_norm/bias$", "group_norm/beta"),
)

_TO_PARAMETER = _compiled(  # names of transformers, timm and the authors' PyTorch code
    (r"^bit\.(?=encoder\.|embedder\.|norm\.)", ""),
    (r"^(embedder\.convolution|stem\.conv|root\.conv)\.", "root_block.conv."),
    (
        r"^(?:encoder\.)?stages\.(\d+)\.(?:layers|blocks)\.(\d+)\.",
        lambda match: f"block{int(match[1]) + 1}.unit{int(match[2]) + 1:02d}.",
    ),
    (r"^body\.(?=block\d)", ""),
    (r"^head\.gn\.", "norm."),
    (r"^(head\.fc|head\.conv|classifier\.1)\.", "head."),
    (r"(?<=\d\.)(conv|norm|gn)([123])\.", lambda m: f"{'_abc'[int(m[2])]}.{m[1]}."),
    (r"(?<=[abc]\.)gn\.", "norm."),
    (r"(?<=\d\.)downsample\.(conv\.)?", "proj.conv."),
)

_FROM_PARAMETER = _compiled(
    (r"\.", "/"),
    (r"(?<=\d/)proj/", "a/proj/"),
    (r"conv/weight$", "standardized_conv2d/kernel"),
    (r"norm/weight$", "group_norm/gamma"),
    (r"norm/bias$", "group_norm/beta"),
    (r"^head/weight$", "head/conv2d/kernel"),
    (r"^head/bias$", "head/conv2d/bias"),
    (r"^head/(\w+)/weight$", r"head/\1/kernel"),  # of this package's other heads
)


def published_key(name: str) -> str:
    """Return the published key for a name of any library; other names stay recognizable."""
    name = re.sub(r"(standardized_conv2d|group_norm|conv2d)_\d+(?=/)", r"\1", name)
    if name.startswith(("resnet/", "bit_paddle/")):
        return name
    if "/" in name or "." not in name:
        return "resnet/" + _translated(name, _FROM_JAX)
    return "resnet/" + _translated(_translated(name, _TO_PARAMETER), _FROM_PARAMETER)


def weights_among(stored: Iterable[str]) -> list[str]:
    """Return the names of a model's arrays; checkpoints of big_vision have an optimizer's, too."""
    stored = list(stored)
    for tree in ("params/", "opt/target/"):  # of its newer and its older trainer
        if any(name.startswith(tree) for name in stored):
            return [name for name in stored if name.startswith(tree)]
    return stored


# --- From published keys -------------------------------------------------------------------------


def parameter_name(key: str) -> str:
    """Return the name of the model's parameter for a published key.

    ``resnet/block1/unit01/a/group_norm/gamma`` is ``block1.unit01.a.norm.weight``.
    """
    key = key[len("resnet/") :].replace("/a/proj/", "/proj/").replace("head/conv2d/", "head/")
    for part, name in (
        ("group_norm/gamma", "norm/weight"),
        ("group_norm/beta", "norm/bias"),
        ("standardized_conv2d/kernel", "conv/weight"),
        ("kernel", "weight"),
    ):
        key = key.replace(part, name)
    return key.replace("/", ".")


def timm_name(key: str) -> str:
    """Return the name in timm's ``resnetv2_*_bit`` of the parameter with a published key.

    ``resnet/block1/unit01/a/group_norm/gamma`` is ``stages.0.blocks.0.norm1.weight``.
    """
    name = parameter_name(key)
    unit = re.match(r"block(\d+)\.unit(\d+)\.", name)
    if unit:
        layer = name[unit.end() :].replace("proj.", "downsample.")
        layer = re.sub(r"^([abc])\.(conv|norm)", lambda m: m[2] + str(" abc".index(m[1])), layer)
        return f"stages.{int(unit[1]) - 1}.blocks.{int(unit[2]) - 1}.{layer}"
    return name.replace("root_block.", "stem.").replace("head.", "head.fc.")


_TO_HUGGINGFACE = _compiled(  # from timm's names
    (r"^stages\.(\d+)\.blocks\.", r"bit.encoder.stages.\1.layers."),
    (r"^stem\.conv\.", "bit.embedder.convolution."),
    (r"^norm\.", "bit.norm."),
    (r"^head\.fc\.", "classifier.1."),
)


def huggingface_name(key: str) -> str:
    """Return the name in transformers' ``BitForImageClassification`` for a published key.

    ``resnet/block1/unit01/a/group_norm/gamma`` is ``bit.encoder.stages.0.layers.0.norm1.weight``.
    """
    return _translated(timm_name(key), _TO_HUGGINGFACE)


# --- Layouts -------------------------------------------------------------------------------------


def _layout(name: str, axes: int) -> tuple[int | None, ...]:
    """Return which axes of an array become the axes of the published one; None is a new axis."""
    if name.startswith("bit_paddle/"):  # this package's own arrays
        return tuple(range(axes))
    is_head = published_key(name) == npz.HEAD_KERNEL
    if name.endswith(".weight") and axes == 4:  # OIHW
        return 2, 3, 1, 0
    if is_head and axes == 2:  # [K, C] in PyTorch's linear layers, [C, K] elsewhere
        linear = name.endswith(".weight") and name != "head.weight"
        return (None, None, 1, 0) if linear else (None, None, 0, 1)
    if not name.endswith(("kernel", ".weight")) and axes == 4:
        return (3,)
    return tuple(range(axes))


def published_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the published shape of an array of ``shape`` that a library calls ``name``.

    Kernels are HWIO, the head is [1, 1, C, K], and vectors are [C].
    """
    layout = _layout(name, len(shape))
    if any(shape[axis] != 1 for axis in set(range(len(shape))) - {*layout}):
        return shape
    return tuple(1 if axis is None else shape[axis] for axis in layout)


def to_published(name: str, array: np.ndarray) -> np.ndarray:
    """Return ``array`` in the shape of `published_shape`; it is a view."""
    shape = published_shape(name, array.shape)
    kept = [axis for axis in _layout(name, array.ndim) if axis is not None]
    order = [*(axis for axis in range(array.ndim) if axis not in kept), *kept]
    return array.transpose(order).reshape(shape)
