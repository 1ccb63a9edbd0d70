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
from bit_paddle.models.network import dtype_of
from bit_paddle.models.weights import AnyNetwork, fill, from_paddle, names_by_key, to_paddle
from bit_paddle.system.progress import progress_bar

MOMENTUM = "bit_paddle/momentum/"  # prefix of a published key, for the velocity of that weight


class Optimizer(Protocol):
    """An optimizer with momentum, as `restore` uses it."""

    def load_velocities(self, velocities: Iterable[Tensor | None]) -> None: ...


Snapshot = list[tuple[str, np.ndarray]]  # (key, array in Paddle's layout)


def snapshot(model: AnyNetwork, velocities: Iterable[Tensor | None]) -> Snapshot:
    """Return copies of the weights and the velocities, for `write_snapshot`."""
    parameters = dict(model.named_parameters())
    pairs = zip(model.learned(), velocities)
    copies = {name: velocity.numpy() for name, velocity in pairs if velocity is not None}
    names = names_by_key(model).items()
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


def restore(model: AnyNetwork, optimizer: Optimizer, path: str | os.PathLike) -> None:
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
        names = names_by_key(model).items()
        for key, name in progress_bar(iterable=names, desc="loading momentum", delay=2):
            parameter = parameters.get(name)
            if parameter is None:
                continue
            if before and name.removeprefix("backbone.").startswith(before):
                velocities[name] = paddle.zeros_like(parameter)
                continue
            array = to_paddle(key, file.array(MOMENTUM + key))
            if list(array.shape) != parameter.shape or array.dtype.kind != "f":
                raise CheckpointError(
                    f"{path}: {MOMENTUM + key} is {array.dtype} {list(array.shape)}, expected "
                    f"{parameter.shape}"
                )
            array = np.ascontiguousarray(array, dtype=dtype_of(parameter))
            velocities[name] = paddle.to_tensor(array)
    optimizer.load_velocities(velocities[name] for name in parameters)
