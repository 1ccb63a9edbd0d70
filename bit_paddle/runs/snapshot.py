"""The state of a run as arrays: weights and momentum, copied, written, and restored."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import Tensor

from bit_paddle.errors import CheckpointError
from bit_paddle.models import npz
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.models.weights import dtype_of, fill, from_paddle, keys, to_paddle

MOMENTUM = "bit_paddle/momentum/"  # before a published key: its velocity


class Optimizer(Protocol):
    """What `restore` needs of an optimizer with momentum."""

    def load_velocities(self, velocities: Iterable[Tensor | None]) -> None: ...


Snapshot = list[tuple[str, np.ndarray]]  # (key, array in Paddle's layout)


def snapshot(model: ResNetV2, velocities: Iterable[Tensor | None]) -> Snapshot:
    """Return copies of the weights and of their velocities, for `write_snapshot`."""
    parameters = dict(model.named_parameters())
    pairs = zip(parameters, velocities)
    copies = {name: velocity.numpy() for name, velocity in pairs if velocity is not None}
    keys = [key for key, _ in npz.shapes(model.architecture, model.num_classes)]
    return [(key, parameters[npz.parameter_name(key)].numpy()) for key in keys] + [
        (MOMENTUM + key, copies[npz.parameter_name(key)]) for key in keys if copies
    ]


def write_snapshot(path: str | os.PathLike, arrays: Snapshot, notes: dict[str, Any]) -> None:
    """Write a checkpoint that `restore` reads, and that everything that takes a model takes too.

    It is a published-layout ``.npz`` whose velocities other readers ignore; a zip file holds a
    checksum of each array. Raises `WriteError`.
    """
    momentum = any(key.startswith(MOMENTUM) for key, _ in arrays)
    content = ((key, from_paddle(key, array)) for key, array in arrays)
    npz.write(path, content, {**notes, "momentum": momentum})


def restore(model: ResNetV2, optimizer: Optimizer, path: str | os.PathLike) -> None:
    """Fill in the weights and velocities of `write_snapshot`, bit for bit.

    Raises `CheckpointError` if anything in the file is damaged or missing; the model may be filled
    in part then.
    """
    with npz.CheckpointFile(path) as file:
        fill(model, file, head="load")
        if not file.notes().get("momentum"):
            return
        velocities = {}
        parameters = dict(model.named_parameters())
        for key in keys(model, "loading momentum"):
            parameter = parameters[npz.parameter_name(key)]
            array = to_paddle(key, file.array(MOMENTUM + key))
            if list(array.shape) != parameter.shape or array.dtype.kind != "f":
                raise CheckpointError(
                    f"{path}: {MOMENTUM + key} is {array.dtype} {list(array.shape)}, expected "
                    f"{parameter.shape}"
                )
            array = np.ascontiguousarray(array, dtype=dtype_of(parameter))
            velocities[npz.parameter_name(key)] = paddle.to_tensor(array)
    optimizer.load_velocities(velocities[name] for name in parameters)
