"""Copy, write and restore the arrays of a checkpoint: weights and the optimizer's state."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, Union

import numpy as np
import paddle
from paddle import Tensor

from bit_paddle.errors import CheckpointError, MisfitError
from bit_paddle.models import npz
from bit_paddle.models.architecture import frozen_parts
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.network import dtype_of
from bit_paddle.models.weights import AnyNetwork, fill, from_paddle, names_by_key, to_paddle
from bit_paddle.system.progress import progress_bar

MOMENTUM = "bit_paddle/momentum/"  # prefix of a published key, for the velocity of that weight

SLOTS = ("momentum", "mean", "variance")  # of all optimizers

State = Mapping[str, Iterable[Union[Tensor, None]]]  # {slot of the optimizer: a tensor per weight}


class Optimizer(Protocol):
    """An optimizer, as `restore` uses it. ``slots`` names the tensors that each weight has."""

    slots: tuple[str, ...]

    def load_state(self, state: State) -> None: ...


Snapshot = list[tuple[str, np.ndarray]]  # (key, array in Paddle's layout)


def snapshot(model: AnyNetwork, state: State) -> Snapshot:
    """Return copies of the weights and of the optimizer's ``state``, for `write_snapshot`.

    SGD has the slot "momentum": the velocities.
    """
    parameters = dict(model.named_parameters())
    names = names_by_key(model).items()
    arrays = [(key, parameters[name].numpy()) for key, name in names]
    for slot, tensors in state.items():
        pairs = zip(model.learned(), tensors)
        copies = {name: one.numpy() for name, one in pairs if one is not None}
        arrays += [(prefix(slot) + key, copies[name]) for key, name in names if name in copies]
    return arrays


def prefix(slot: str) -> str:
    """Return the prefix of a published key, for the tensor of that weight in ``slot``."""
    return f"bit_paddle/{slot}/"


def write_snapshot(path: str | os.PathLike, arrays: Snapshot, notes: dict[str, Any]) -> None:
    """Write a checkpoint for `restore`, which every command that takes a model can read too.

    It is an ``.npz`` in the published layout; other readers ignore the optimizer's state. The zip
    format stores a checksum of each array. Raises `WriteError`.
    """
    slots = [slot for slot in SLOTS if any(key.startswith(prefix(slot)) for key, _ in arrays)]
    content = ((key, from_paddle(key, array)) for key, array in arrays)
    others = {"optimizer": slots} if slots and slots != ["momentum"] else {}
    npz.write(path, content, {**notes, "momentum": bool(slots), **others})


def restore(model: AnyNetwork, optimizer: Optimizer, path: str | os.PathLike) -> None:
    """Load the weights and the state that `write_snapshot` wrote, bit for bit.

    What learns now, and was frozen in the run of the file, has no state there: it starts at 0.

    Raises `CheckpointError` if anything in the file is damaged or missing; some of the weights may
    have been replaced then. It is a `MisfitError` if the state is another optimizer's.
    """
    with CheckpointFile(path) as file:
        fill(model, file, head="load")
        if file.notes().get("momentum"):
            found = tuple(file.notes().get("optimizer", ("momentum",)))
            if found != optimizer.slots:
                raise MisfitError(
                    f"{path}: has the state of another optimizer: {', '.join(found)}; expected "
                    f"{', '.join(optimizer.slots)}"
                )
            before = frozen_parts(file.notes().get("settings", {}).get("learn", "all"))
            optimizer.load_state(
                {slot: _tensors(model, file, slot, before) for slot in optimizer.slots}
            )


def _tensors(
    model: AnyNetwork, file: CheckpointFile, slot: str, before: tuple[str, ...]
) -> list[Tensor]:
    """Return the tensors of ``slot`` in a checkpoint, in the order of what learns.

    ``before`` are the parts that were frozen in the run of the checkpoint.
    """
    parameters, tensors = model.learned(), {}
    names = names_by_key(model).items()
    for key, name in progress_bar(iterable=names, desc=f"loading {slot}", delay=2):
        parameter = parameters.get(name)
        if parameter is None:
            continue
        if before and name.removeprefix("backbone.").startswith(before):
            tensors[name] = paddle.zeros_like(parameter)
            continue
        array = to_paddle(key, file.array(prefix(slot) + key))
        if list(array.shape) != parameter.shape or array.dtype.kind != "f":
            raise CheckpointError(
                f"{file.path}: {prefix(slot) + key} is {array.dtype} {list(array.shape)}, expected "
                f"{parameter.shape}"
            )
        array = np.ascontiguousarray(array, dtype=dtype_of(parameter))
        tensors[name] = paddle.to_tensor(array)
    return [tensors[name] for name in parameters]
