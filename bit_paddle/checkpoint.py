"""Checkpoints into models and back.

A model is filled array by array, so that loading needs little more memory than the model itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from bit_paddle import catalog, download, npz
from bit_paddle.errors import CheckpointError, ConfigError
from bit_paddle.logbook import progress_bar
from bit_paddle.models import ResNetV2
from bit_paddle.sgd import Momentum

HEAD = (npz.HEAD_KERNEL, npz.HEAD_BIAS)
MOMENTUM = "bit_paddle/momentum/"  # before a published key: its velocity

Snapshot = list[tuple[str, np.ndarray]]  # (key, array in Paddle's layout)


def create_model(
    name: str | os.PathLike,
    num_classes: int | None = None,
    pretrained: bool = False,
    *,
    directory: str | os.PathLike | None = None,
    seed: int = 0,
) -> ResNetV2:
    """Return a network by its published name, by ``R<layers>x<width>``, or by an ``.npz`` file.

    A path reads the architecture off the file and loads its weights. ``num_classes`` None keeps the
    file's head (of a name: its published size), a number gives a new head of zeros, 0 gives none.
    With ``pretrained`` a name is filled from its file, in ``directory`` or as `download.locate` has
    it, which is downloaded if it is missing; else with random weights that ``seed`` alone decides.

    Errors: `ConfigError` (an unknown name, a negative number), `MissingFileError`,
    `CheckpointError`, `DownloadError`.
    """
    if num_classes is not None and num_classes < 0:
        raise ConfigError(f"num_classes: is {num_classes}, expected 0 (features) or more")
    found = catalog.resolve(os.fspath(name), pretrained)
    if isinstance(found, catalog.Entry) and pretrained:
        found = download.obtain(found, directory)
    if isinstance(found, Path):
        with npz.CheckpointFile(found) as file:
            classes = file.classes if num_classes is None else num_classes
            model = ResNetV2(file.architecture(), classes)
            _fill(model, file, head="load" if num_classes is None else "zero")
        return model
    if num_classes is None:
        if not isinstance(found, catalog.Entry):
            raise ConfigError(
                f"{name}: an architecture has no head of its own; give num_classes (0 for features)"
            )
        num_classes = found.classes
    model = ResNetV2(getattr(found, "architecture", found), num_classes)
    model.reset_parameters(seed)
    return model


def load_npz(model: ResNetV2, path: str | os.PathLike, head: str = "load") -> None:
    """Fill ``model`` from a checkpoint, float16 or float32, in any layout of `bit_paddle.npz`.

    ``head`` is "load", or "zero" for a new task; a model without a head takes none. The whole
    file is checked before the first parameter changes. Errors: `MissingFileError`,
    `CheckpointError`.
    """
    with npz.CheckpointFile(path) as file:
        _fill(model, file, head)


def save_npz(model: ResNetV2, path: str | os.PathLike, notes: dict[str, Any] | None = None) -> None:
    """Write ``model`` as a published checkpoint is written, for `load_npz` and the reference code.

    ``notes`` (JSON) go into an array that other readers ignore. Raises `WriteError`; an older file
    of that name stays until the new one is complete.
    """
    npz.write(path, _published_arrays(model), notes)


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
    content = ((key, _from_paddle(key, array)) for key, array in arrays)
    npz.write(path, content, {**notes, "momentum": momentum})


def restore(model: ResNetV2, optimizer: Momentum, path: str | os.PathLike) -> None:
    """Fill in the weights and velocities of `write_snapshot`, bit for bit.

    Raises `CheckpointError` if anything in the file is damaged or missing; the model may be filled
    in part then.
    """
    with npz.CheckpointFile(path) as file:
        _fill(model, file, head="load")
        if not file.notes().get("momentum"):
            return
        velocities = {}
        parameters = dict(model.named_parameters())
        for key in _keys(model, "loading momentum"):
            parameter = parameters[npz.parameter_name(key)]
            array = _to_paddle(key, file.array(MOMENTUM + key))
            if list(array.shape) != parameter.shape or array.dtype.kind != "f":
                raise CheckpointError(
                    f"{path}: {MOMENTUM + key} is {array.dtype} {list(array.shape)}, expected "
                    f"{parameter.shape}"
                )
            array = np.ascontiguousarray(array, dtype=_dtype(parameter))
            velocities[npz.parameter_name(key)] = paddle.to_tensor(array)
    optimizer.load_velocities(velocities[name] for name in parameters)


def _fill(model: ResNetV2, file: npz.CheckpointFile, head: str) -> None:
    if head not in ("load", "zero"):
        raise ConfigError(f"head={head!r}: expected 'load' or 'zero'")
    load_head = head == "load" and model.num_classes > 0
    try:
        file.check(model.architecture, model.num_classes, ignore=() if load_head else HEAD)
    except CheckpointError as error:
        if load_head and file.classes != model.num_classes:
            raise CheckpointError(
                f"{error}\nFor a new head of zeros, load with head='zero'."
            ) from None
        raise
    parameters = dict(model.named_parameters())
    for key in _keys(model, "loading"):
        parameter = parameters[npz.parameter_name(key)]
        if key in HEAD and not load_head:
            array = np.zeros(parameter.shape, np.float32)
        else:
            array = _to_paddle(key, file.array(key))
        parameter.set_value(np.ascontiguousarray(array, dtype=_dtype(parameter)))
    if not model.training:
        model.eval()  # standardizes anew


def _published_arrays(model: ResNetV2) -> Iterator[tuple[str, np.ndarray]]:
    parameters = dict(model.named_parameters())
    for key in _keys(model, "saving"):
        parameter = parameters[npz.parameter_name(key)]
        if _dtype(parameter) not in ("float32", "float64"):
            parameter = parameter.astype("float32")
        yield key, _from_paddle(key, parameter.numpy())


def _keys(model: ResNetV2, action: str) -> Iterable[str]:
    """Return the published keys of ``model``, with a progress bar where they take a while."""
    keys = [key for key, _ in npz.shapes(model.architecture, model.num_classes)]
    return progress_bar(iterable=keys, desc=action, unit="array", delay=2)


def _to_paddle(key: str, array: np.ndarray) -> np.ndarray:
    """Published array -> parameter: kernels HWIO -> OIHW, the head's [1, 1, C, K] -> [C, K]."""
    if key.endswith(npz.HEAD_KERNEL):
        return array[0, 0]
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def _from_paddle(key: str, array: np.ndarray) -> np.ndarray:
    if key.endswith(npz.HEAD_KERNEL):
        return array[None, None]
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).rpartition(".")[2]
