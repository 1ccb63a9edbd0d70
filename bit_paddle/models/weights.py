"""Create networks, fill them from checkpoints, and save them.

A model is filled array by array, so that loading needs little more memory than the model itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Union

import numpy as np
from paddle import Tensor

from bit_paddle.errors import ConfigError, MisfitError
from bit_paddle.models import heads, npz, published
from bit_paddle.models.checkpoint import FLOATS, CheckpointFile
from bit_paddle.models.names import parameter_name
from bit_paddle.models.network import dtype_of
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.models.stages import Stages, WithBackbone
from bit_paddle.system.hub import Repository
from bit_paddle.system.progress import progress_bar

AnyNetwork = Union[ResNetV2, WithBackbone]


def create_model(
    name: str | os.PathLike,
    num_classes: int | None = None,
    pretrained: bool = False,
    *,
    directory: str | os.PathLike | None = None,
    seed: int = 0,
    features_only: bool = False,
    activated: bool = False,
    head: str | None = None,
) -> ResNetV2 | Stages:
    """Return the network for a published name, ``R<layers>x<width>``, or a file of weights.

    The file is of any kind that `models.checkpoint` opens; a folder, or ``hf:OWNER/NAME`` of the
    Hugging Face hub, counts as a file. The architecture and the weights are then the file's. For a
    name, ``pretrained`` loads the published weights, and downloads them into ``directory``
    (default: the cache) if they are missing; otherwise the weights are random and depend only on
    ``seed``. ``num_classes`` None keeps the head of the file, or its published size; a number gives
    a new head of zeros; 0 gives no head. ``head`` is the kind of a new head, see docs/heads.md;
    None is "linear", as in the paper. Of other kinds only the last layer is zero.

    ``features_only`` returns the network as `Stages` instead: it has no head, and returns four
    feature maps, ``activated`` or not.

    Errors: `ConfigError` (an unknown name, a negative number), `MissingFileError`,
    `CheckpointError`, `DownloadError`.
    """
    if num_classes is not None and num_classes < 0:
        raise ConfigError(f"num_classes: is {num_classes}, expected 0 (features) or more")
    kind = _new_head(head, num_classes)
    if features_only:
        if num_classes:
            raise ConfigError(
                f"num_classes: is {num_classes}, but features_only leaves the head out"
            )
        network = create_model(name, 0, pretrained, directory=directory, seed=seed)
        return Stages(network, activated)
    if activated:
        raise ConfigError("activated: applies only with features_only=True")
    source = published.resolve(_address(name), pretrained)
    if isinstance(source, Repository) or (pretrained and isinstance(source, published.Entry)):
        source = published.obtain(source, directory)
    if isinstance(source, Path):
        with CheckpointFile(source) as file:
            file.check(file.architecture(), file.classes)  # before memory is taken for its shapes
            architecture, classes = file.architecture(), file.classes
            if num_classes is not None:
                architecture, classes = replace(architecture, head=kind), num_classes
            model = ResNetV2(architecture, classes)
            fill(model, file, "load" if num_classes is None else "zero", seed)
        return model
    if num_classes is None:
        if not isinstance(source, published.Entry):
            raise ConfigError(
                f"{name}: an architecture has no head of its own; give num_classes (0 for features)"
            )
        num_classes = source.classes
    architecture = getattr(source, "architecture", source)
    model = ResNetV2(replace(architecture, head=kind), num_classes)
    model.reset_parameters(seed)
    return model


def _new_head(head: str | None, num_classes: int | None) -> str:
    """Return the kind of a new head, which needs a number of classes."""
    if head is None:
        return heads.LINEAR
    if not num_classes:
        raise ConfigError(f"head: is {head!r}, which is for a new head; give num_classes, too")
    try:
        return heads.parse(head)
    except ConfigError as fault:
        raise ConfigError(f"head: {fault}") from None


def _address(name: str | os.PathLike) -> str:
    """Return ``name`` as `published.resolve` takes it: a path has a separator."""
    text = os.fspath(name)
    is_path = isinstance(name, os.PathLike) and not published.is_path(text)
    return os.path.join(".", text) if is_path else text


def load_npz(model: AnyNetwork, path: str | os.PathLike, head: str = "load") -> None:
    """Fill ``model`` from a checkpoint, float16 or float32, in any layout of `models.npz`.

    ``head`` "load" loads the head, "zero" makes it new, with a last layer of zeros; a model without
    a head ignores it. The whole file is checked before the first parameter changes. Errors:
    `MissingFileError`, `CheckpointError`, `ConfigError` (another ``head``).
    """
    with CheckpointFile(path) as file:
        fill(model, file, head)


def save_npz(
    model: AnyNetwork, path: str | os.PathLike, notes: dict[str, Any] | None = None
) -> None:
    """Write ``model`` in the published layout, which `load_npz` and the reference code read.

    ``notes`` (JSON) become an array that other readers ignore. An older file with this name stays
    until the new one is complete. Raises `WriteError`.
    """
    npz.write(path, _published_arrays(model), notes)


def fill(model: AnyNetwork, file: CheckpointFile, head: str, seed: int = 0) -> None:
    """Fill ``model`` from an open checkpoint, as `load_npz` does; ``seed`` is of a new head."""
    if head not in ("load", "zero"):
        raise ConfigError(f"head={head!r}: expected 'load' or 'zero'")
    load_head = head == "load" and model.num_classes > 0
    parameters = named_by_key(model)
    ignored = () if load_head else filter(heads.is_key, [*file.shapes, *parameters])
    try:
        file.check(model.architecture, model.num_classes, ignored)
    except MisfitError as error:
        if load_head and file.classes != model.num_classes:
            raise MisfitError(f"{error}\nFor a new head of zeros, load with head='zero'.") from None
        raise
    _check_detector(parameters, file)
    for key, parameter in _with_progress(parameters, "loading"):
        if load_head or not heads.is_key(key):
            array = to_paddle(key, file.array(key))
            parameter.set_value(np.ascontiguousarray(array, dtype=dtype_of(parameter)))
    if model.num_classes and not load_head:
        model.reset_head(seed)
    if model.frozen or not model.training:
        (model.train if model.training else model.eval)()  # standardizes the new kernels


def _published_arrays(model: AnyNetwork) -> Iterator[tuple[str, np.ndarray]]:
    for key, parameter in _with_progress(named_by_key(model), "saving"):
        if dtype_of(parameter) not in ("float32", "float64"):
            parameter = parameter.astype("float32")
        yield key, from_paddle(key, parameter.numpy())


def names_by_key(model: AnyNetwork) -> dict[str, str]:
    """Return {key in a file: name of the parameter} of all parameters of ``model``.

    A backbone has the published keys, also in a detector: so a detector's file is a file of its
    backbone too. The keys of the other parameters begin with `npz.DETECTOR`.
    """
    published = [key for key, _ in npz.shapes(model.architecture, model.num_classes)]
    if not isinstance(model, WithBackbone):
        return {key: parameter_name(key) for key in published}
    names = {key: f"backbone.{parameter_name(key)}" for key in published}
    own = [name for name, _ in model.named_parameters() if not name.startswith("backbone.")]
    return {**names, **{npz.DETECTOR + name.replace(".", "/"): name for name in own}}


def named_by_key(model: AnyNetwork) -> dict[str, Tensor]:
    """Return {key in a file: parameter} of all parameters of ``model``."""
    parameters = dict(model.named_parameters())
    return {key: parameters[name] for key, name in names_by_key(model).items()}


def _with_progress(parameters: dict[str, Tensor], action: str) -> Iterable[tuple[str, Tensor]]:
    """Return the items; iterating shows a progress bar after two seconds."""
    return progress_bar(iterable=parameters.items(), desc=action, unit="array", delay=2)


def _check_detector(parameters: dict[str, Tensor], file: CheckpointFile) -> None:
    """Raise `MisfitError` if the arrays beside the backbone's are not those of a detector."""
    expected = {
        key: tuple(from_paddle(key, np.empty(one.shape, np.bool_)).shape)
        for key, one in parameters.items()
        if key.startswith(npz.DETECTOR)
    }
    if not expected:
        return
    found = {
        key: one.shape if one.dtype in FLOATS else f"{one.shape} of {one.dtype}"
        for key, one in file.detector_arrays.items()
    }
    wrong = sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key))
    if not wrong:
        return
    lines = [
        f"  {key}: found {found.get(key, 'nothing')}, expected {expected.get(key, 'nothing')}"
        for key in wrong[:5]
    ]
    raise MisfitError(
        f"{file.path}: {len(wrong)} arrays are not those of this detector\n" + "\n".join(lines)
    )


def to_paddle(key: str, array: np.ndarray) -> np.ndarray:
    """Return the parameter of a published array: HWIO -> OIHW, the head [1, 1, C, K] -> [C, K]."""
    if key.endswith(npz.HEAD_KERNEL):
        return array[0, 0]
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def from_paddle(key: str, array: np.ndarray) -> np.ndarray:
    """Return the published array of a parameter; the inverse of `to_paddle`."""
    if key.endswith(npz.HEAD_KERNEL):
        return array[None, None]
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array
