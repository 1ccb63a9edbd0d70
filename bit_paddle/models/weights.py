"""Checkpoints into models and back.

A model is filled array by array, so that loading needs little more memory than the model itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from paddle import Tensor

from bit_paddle.errors import CheckpointError, ConfigError
from bit_paddle.models import npz, published
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.system.progress import progress_bar

HEAD = (npz.HEAD_KERNEL, npz.HEAD_BIAS)


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
    found = published.resolve(_address(name), pretrained)
    if isinstance(found, published.Entry) and pretrained:
        found = published.obtain(found, directory)
    if isinstance(found, Path):
        with npz.CheckpointFile(found) as file:
            classes = file.classes if num_classes is None else num_classes
            model = ResNetV2(file.architecture(), classes)
            fill(model, file, head="load" if num_classes is None else "zero")
        return model
    if num_classes is None:
        if not isinstance(found, published.Entry):
            raise ConfigError(
                f"{name}: an architecture has no head of its own; give num_classes (0 for features)"
            )
        num_classes = found.classes
    model = ResNetV2(getattr(found, "architecture", found), num_classes)
    model.reset_parameters(seed)
    return model


def _address(name: str | os.PathLike) -> str:
    """Return ``name`` as `published.resolve` takes it: a path has a separator."""
    text = os.fspath(name)
    is_path = isinstance(name, os.PathLike) and not published.is_path(text)
    return os.path.join(".", text) if is_path else text


def load_npz(model: ResNetV2, path: str | os.PathLike, head: str = "load") -> None:
    """Fill ``model`` from a checkpoint, float16 or float32, in any layout of `bit_paddle.npz`.

    ``head`` is "load", or "zero" for a new task; a model without a head takes none. The whole
    file is checked before the first parameter changes. Errors: `MissingFileError`,
    `CheckpointError`.
    """
    with npz.CheckpointFile(path) as file:
        fill(model, file, head)


def save_npz(model: ResNetV2, path: str | os.PathLike, notes: dict[str, Any] | None = None) -> None:
    """Write ``model`` as a published checkpoint is written, for `load_npz` and the reference code.

    ``notes`` (JSON) go into an array that other readers ignore. Raises `WriteError`; an older file
    of that name stays until the new one is complete.
    """
    npz.write(path, _published_arrays(model), notes)


def fill(model: ResNetV2, file: npz.CheckpointFile, head: str) -> None:
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
    for key in keys(model, "loading"):
        parameter = parameters[npz.parameter_name(key)]
        if key in HEAD and not load_head:
            array = np.zeros(parameter.shape, np.float32)
        else:
            array = to_paddle(key, file.array(key))
        parameter.set_value(np.ascontiguousarray(array, dtype=dtype_of(parameter)))
    if not model.training:
        model.eval()  # standardizes anew


def _published_arrays(model: ResNetV2) -> Iterator[tuple[str, np.ndarray]]:
    parameters = dict(model.named_parameters())
    for key in keys(model, "saving"):
        parameter = parameters[npz.parameter_name(key)]
        if dtype_of(parameter) not in ("float32", "float64"):
            parameter = parameter.astype("float32")
        yield key, from_paddle(key, parameter.numpy())


def keys(model: ResNetV2, action: str) -> Iterable[str]:
    """Return the published keys of ``model``, with a progress bar where they take a while."""
    keys = [key for key, _ in npz.shapes(model.architecture, model.num_classes)]
    return progress_bar(iterable=keys, desc=action, unit="array", delay=2)


def to_paddle(key: str, array: np.ndarray) -> np.ndarray:
    """Published array -> parameter: kernels HWIO -> OIHW, the head's [1, 1, C, K] -> [C, K]."""
    if key.endswith(npz.HEAD_KERNEL):
        return array[0, 0]
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def from_paddle(key: str, array: np.ndarray) -> np.ndarray:
    if key.endswith(npz.HEAD_KERNEL):
        return array[None, None]
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array


def dtype_of(tensor: Tensor) -> str:
    return str(tensor.dtype).rpartition(".")[2]
