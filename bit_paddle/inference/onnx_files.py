"""ONNX files as models: recognize, write and read them, and keep facts in their metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bit_paddle.errors import CheckpointError, ConfigError, install_hint
from bit_paddle.inference import onnx_data
from bit_paddle.inference.onnx_data import Store

FACTS, INT8 = "bit_paddle", "bit_paddle.int8"  # keys of the metadata

IMAGES, LOGITS, FEATURES, LAST = "images", "logits", "features", "last"  # tensors of a graph

_POOLED = "pooled"  # the features, where the last layer takes something else, see `with_features`


def is_onnx(path: str | os.PathLike) -> bool:
    """Return whether ``path`` is a file that ends in ``.onnx``."""
    return os.fspath(path).endswith(".onnx") and os.path.isfile(path)


def write(path: Path, size: int, build: Callable[[Store], Any]) -> None:
    """Write the ``onnx.ModelProto`` of ``build(store)``, whose arrays have ``size`` bytes.

    Above `onnx_data.MOST_INLINE` they go into the file `onnx_data.path_of`, one after another, so
    that ``build`` need not hold them all.
    """
    if size <= onnx_data.MOST_INLINE:
        proto = build(onnx_data.inline)
    else:
        file = onnx_data.path_of(path)
        with open(file, "wb") as stream:
            writer = onnx_data.Writer(stream, file.name)
            proto = build(writer.store)
            stream.flush()
            os.fsync(stream.fileno())
        add(proto, onnx_data.DATA, writer.facts())
    path.write_bytes(proto.SerializeToString())


def rewrite(proto: Any, path: Path) -> None:
    """Write ``proto``, which holds all its numbers, as `write` does; keep its other metadata."""
    from onnx import numpy_helper

    kept = [entry for entry in proto.metadata_props if entry.key != onnx_data.DATA]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)

    def build(store: Store) -> Any:
        for tensor in proto.graph.initializer:
            tensor.CopyFrom(store(numpy_helper.to_array(tensor), tensor.name))
        return proto

    write(path, sum(len(one.raw_data) for one in proto.graph.initializer), build)


def move(proto: Any, source: Path, target: Path) -> None:
    """Write ``proto``, read from ``source`` and then changed, as ``target``; move its data file."""
    if onnx_data.referring(proto):
        onnx_data.relocate(proto, onnx_data.path_of(target).name)
        os.rename(onnx_data.path_of(source), onnx_data.path_of(target))
    source.unlink()
    target.write_bytes(proto.SerializeToString())


def read(path: Path) -> Any:
    """Return the ``onnx.ModelProto`` in a file, which must be one that this package exported.

    The numbers in a data file stay there, see `onnx_data.arrays`. Raises `ConfigError` if the
    package onnx is missing; `CheckpointError` for another file, and as `onnx_data.check` does.
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
    onnx_data.check(proto, path)
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


def arrays_as_inputs(proto: Any) -> None:
    """Make the arrays that the graph lacks its inputs, for a library that cannot be given them."""
    from onnx import helper

    graph = proto.graph
    graph.input.extend(
        helper.make_tensor_value_info(one.name, one.data_type, one.dims)
        for one in onnx_data.referring(proto)
    )
    inside = [one for one in graph.initializer if one.data_location != one.EXTERNAL]
    del graph.initializer[:]
    graph.initializer.extend(inside)


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
