"""Copy, write and restore the arrays of a checkpoint: weights and momentum."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import Tensor

from bit_paddle.errors import CheckpointError
from bit_paddle.models import npz
from bit_paddle.models.architecture import frozen_parts
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.names import parameter_name
from bit_paddle.models.network import dtype_of
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.models.weights import fill, from_paddle, keys, to_paddle

MOMENTUM = "bit_paddle/momentum/"  # prefix of a published key, for the velocity of that weight


class Optimizer(Protocol):
    """An optimizer with momentum, as `restore` uses it."""

    def load_velocities(self, velocities: Iterable[Tensor | None]) -> None: ...


Snapshot = list[tuple[str, np.ndarray]]  # (key, array in Paddle's layout)


def snapshot(model: ResNetV2, velocities: Iterable[Tensor | None]) -> Snapshot:
    """Return copies of the weights and the velocities, for `write_snapshot`."""
    parameters = dict(model.named_parameters())
    pairs = zip(model.learned(), velocities)
    copies = {name: velocity.numpy() for name, velocity in pairs if velocity is not None}
    keys = [key for key, _ in npz.shapes(model.architecture, model.num_classes)]
    names = [(key, parameter_name(key)) for key in keys]
    return [(key, parameters[name].numpy()) for key, name in names] + [
        (MOMENTUM + key, copies[name]) for key, name in names if name in copies
    ]


def write_snapshot(path: str | os.PathLike, arrays: Snapshot, notes: dict[str, Any]) -> None:
    """Write a checkpoint for `restore`, which every command that takes a model can read too.

    It is an ``.npz`` in the published layout; other readers ignore the velocities. The zip format
    stores a checksum of each array. Raises `WriteError`.
    """
    momentum = any(key.startswith(MOMENTUM) for key, _ in arrays)
    content = ((key, from_paddle(key, array)) for key, array in arrays)
    npz.write(path, content, {**notes, "momentum": momentum})


def restore(model: ResNetV2, optimizer: Optimizer, path: str | os.PathLike) -> None:
    """Load the weights and velocities that `write_snapshot` wrote, bit for bit.

    What learns now, and was frozen in the run of the file, has no velocity there: it starts at 0.

    Raises `CheckpointError` if anything in the file is damaged or missing; some of the weights may
    have been replaced then.
    """
    with CheckpointFile(path) as file:
        fill(model, file, head="load")
        if not file.notes().get("momentum"):
            return
        velocities = {}
        parameters = model.learned()
        before = frozen_parts(file.notes().get("settings", {}).get("learn", "all"))
        for key in keys(model, "loading momentum"):
            parameter = parameters.get(parameter_name(key))
            if parameter is None:
                continue
            if parameter_name(key).startswith(before):
                velocities[parameter_name(key)] = paddle.zeros_like(parameter)
                continue
            array = to_paddle(key, file.array(MOMENTUM + key))
            if list(array.shape) != parameter.shape or array.dtype.kind != "f":
                raise CheckpointError(
                    f"{path}: {MOMENTUM + key} is {array.dtype} {list(array.shape)}, expected "
                    f"{parameter.shape}"
                )
            array = np.ascontiguousarray(array, dtype=dtype_of(parameter))
            velocities[parameter_name(key)] = paddle.to_tensor(array)
    optimizer.load_velocities(velocities[name] for name in parameters)
