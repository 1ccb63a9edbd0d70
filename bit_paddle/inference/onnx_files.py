"""ONNX files as models: recognize them, read them, and keep facts in their metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bit_paddle.errors import CheckpointError, ConfigError, install_hint

FACTS, INT8 = "bit_paddle", "bit_paddle.int8"  # keys of the metadata

IMAGES, LOGITS, FEATURES, LAST = "images", "logits", "features", "last"  # tensors of a graph

_POOLED = "pooled"  # the features, where the last layer takes something else, see `with_features`


def is_onnx(path: str | os.PathLike) -> bool:
    """Return whether ``path`` is a file that ends in ``.onnx``."""
    return os.fspath(path).endswith(".onnx") and os.path.isfile(path)


def read(path: Path) -> Any:
    """Return the ``onnx.ModelProto`` in a file, which must be one that this package exported.

    Raises `ConfigError` if the package onnx is missing; `CheckpointError` for another file, and for
    one that names further files.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ConfigError(f"{path}: ONNX files need onnx; {install_hint('onnx')}") from error
    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as ONNX ({error}); export it again"
        ) from error
    if any(one.data_location == onnx.TensorProto.EXTERNAL for one in proto.graph.initializer):
        raise CheckpointError(f"{path}: its numbers are in other files; export it again, to one")
    return proto


def facts(proto: Any, path: Path, key: str = FACTS) -> dict[str, Any]:
    """Return what `add` has kept in the metadata of ``proto``, which was read from ``path``.

    Raises `CheckpointError` if there is nothing.
    """
    kept = {entry.key: entry.value for entry in proto.metadata_props}
    try:
        found = json.loads(kept[key])
    except (KeyError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path}: was not written by this version's `export --format onnx`, so its classes and "
            "preprocessing are unknown; export the checkpoint again"
        )
    return found


def add(proto: Any, key: str, content: dict[str, Any]) -> None:
    """Keep ``content`` as JSON in the metadata of ``proto``, under ``key``."""
    entry = proto.metadata_props.add()
    entry.key, entry.value = key, json.dumps(content, ensure_ascii=False)


def with_features(proto: Any) -> str:
    """Make the features [N, C] an output of the graph too; return the name of that output.

    They are the mean of the last activations over the image, as `ResNetV2.forward_features` gives
    them. The graph of a network without a head has this output already.
    """
    from onnx import TensorProto, helper

    if proto.graph.output[0].name == FEATURES:
        return FEATURES
    graph, mean = proto.graph, f"{_POOLED}_mean"
    graph.node.append(helper.make_node("GlobalAveragePool", [LAST], [mean]))
    graph.node.append(helper.make_node("Flatten", [mean], [_POOLED]))
    graph.output.append(helper.make_tensor_value_info(_POOLED, TensorProto.FLOAT, None))
    return _POOLED
