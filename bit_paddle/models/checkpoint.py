"""Open a model's file, whichever library wrote it, and offer its arrays in the published layout.

The kind of a file follows from its content, never from its name. Depth, width and number of outputs
follow from the shapes of its arrays.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle.errors import CheckpointError, ConfigError, MisfitError, MissingFileError
from bit_paddle.models import facts, heads, names, npz
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.containers.base import Container, Stored
from bit_paddle.models.containers.folder import ModelFolder
from bit_paddle.models.containers.keras import KerasFile
from bit_paddle.models.containers.npz import NpzFile
from bit_paddle.models.containers.paddle import PdparamsFile
from bit_paddle.models.containers.safetensors import SafetensorsFile
from bit_paddle.models.containers.torch import TorchFile

# PyTorch's before those of which its files are a special case: zip archives, and pickles
KINDS = (SafetensorsFile, TorchFile, NpzFile, PdparamsFile, KerasFile)

_ALSO = (".safetensors", ".pth", ".pth.tar", ".bin", ".pdparams", ".h5 of Keras 2")

_OTHERS = (  # what people give by mistake
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"<", "a web page"),
    (b"{", "a JSON file: give the folder of the weights"),
    (b"version https://git-lfs", "a pointer of git-lfs: get the file itself with git lfs pull"),
)

_MOST = 1000  # lines of a report; R152x4 has 459 arrays

FLOATS = ("float16", "bfloat16", "float32", "float64")


def open_container(path: Path) -> Container:
    """Return the open file or folder of arrays at ``path``. Errors: those of `CheckpointFile`."""
    if os.path.isdir(path):
        return ModelFolder(path, open_container)
    if not os.path.isfile(path):
        special = "not a regular file, which a model must be"
        fault = special if os.path.exists(path) else "no such checkpoint file"
        raise MissingFileError(f"{path}: {fault}")
    try:
        kind = next((kind for kind in KINDS if kind.matches(path)), None)
        with open(path, "rb") as stream:
            start = stream.read(20)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if kind is not None:
        return kind(path)
    if not start:
        raise CheckpointError(f"{path}: is empty; download or copy it again")
    known = next((about for magic, about in _OTHERS if start.lstrip().startswith(magic)), None)
    raise CheckpointError(
        f"{path}: not a readable .npz file, nor one of {', '.join(_ALSO)}; it "
        + (
            f"is {known}"
            if known
            else f"starts with {start!r}. If it was cut short, download or copy it again"
        )
        + "; other formats cannot be read"
    )


class CheckpointFile:
    """An open model: all shapes, and arrays one at a time. Use it in a ``with`` statement.

    ``path`` is a file or a folder. ``facts`` is what lies beside the weights.

    Errors: `MissingFileError`; `CheckpointError` for a file that is of another kind, is damaged, or
    contains Python objects (they are never unpickled).
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.facts = facts.beside(self.path)
        self._container = open_container(self.path)
        try:
            self._names: dict[str, str] = {}  # published key -> name in the file
            for name in names.weights_among(self._container.arrays):
                key = names.published_key(name)
                if key in self._names:
                    raise CheckpointError(
                        f"{path}: {name} and {self._names[key]} both stand for {key}"
                    )
                self._names[key] = name
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> CheckpointFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{published key: published shape} of all arrays, without the notes of this package."""
        return {
            key: names.published_shape(name, self._container.arrays[name].shape)
            for key, name in self._names.items()
            if not key.startswith("bit_paddle/")
        }

    @cached_property
    def detector_arrays(self) -> dict[str, Stored]:
        """{key: shape and dtype} of the arrays of a detector beside those of its backbone."""
        return {
            key: self._container.arrays[name]
            for key, name in self._names.items()
            if key.startswith(npz.DETECTOR)
        }

    def array(self, key: str) -> np.ndarray:
        """Return the array of a published key in its published shape, with the file's dtype."""
        if key not in self._names:
            raise CheckpointError(f"{self.path}: has no {key}")
        name = self._names[key]
        return names.to_published(name, self._container.read(name))

    def notes(self) -> dict[str, Any]:
        """Return the notes that `npz.write` wrote (class names, for example); {} without them."""
        return self._container.notes()

    @property
    def is_npz(self) -> bool:
        """Whether it is one ``.npz`` file, which can hold notes of this package."""
        return isinstance(self._container, NpzFile)

    @property
    def averaged(self) -> str | None:
        """The entry of a training checkpoint whose averaged weights are taken, else None."""
        wrapper = getattr(self._container, "wrapper", None)
        return wrapper if wrapper and "ema" in wrapper else None

    @property
    def classes(self) -> int:
        """The number of outputs of the head; 0 without a head."""
        return heads.found(self.shapes)[1]

    def architecture(self) -> Architecture:
        """Return the architecture; depth, width and kind of head follow from keys and shapes."""
        shapes = self.shapes
        units = [0, 0, 0, 0]
        for key in shapes:
            match = re.match(r"resnet/block([1-4])/unit(\d{1,4})/", key)
            if match:
                units[int(match[1]) - 1] = max(units[int(match[1]) - 1], int(match[2]))
        root = shapes.get(npz.ROOT_KERNEL, ())
        if len(root) != 4 or not all(units) or sum(units) > len(shapes):
            examples = ", ".join(list(self._names.values())[:3]) or "nothing"
            raise CheckpointError(
                f"{self.path}: not a BiT checkpoint. Expected arrays such as "
                f"{npz.ROOT_KERNEL} [7, 7, 3, C], or stem.conv.weight in timm's names, and units "
                f"of all four blocks; found {len(shapes)} arrays: {examples} …"
            )
        try:
            return Architecture(tuple(units), root[3] / 64, heads.found(shapes)[0])
        except ConfigError as error:
            raise CheckpointError(f"{self.path}: not a BiT checkpoint: {error}") from None

    def check(self, architecture: Architecture, classes: int, ignore: Iterable[str] = ()) -> None:
        """Raise one `MisfitError` that lists all missing, unexpected and wrongly shaped arrays.

        Arrays in ``ignore`` are not checked (the head, for example, if a new one replaces it).
        """
        ignore = set(ignore)
        expected = {
            key: shape for key, shape in npz.shapes(architecture, classes) if key not in ignore
        }
        found = {key: shape for key, shape in self.shapes.items() if key not in ignore}
        dtypes = {key: self._container.arrays[self._names[key]].dtype for key in found}
        report = []
        for title, keys, describe in (
            ("missing", expected.keys() - found.keys(), lambda key: f"{key} {list(expected[key])}"),
            (
                "unexpected",
                found.keys() - expected.keys(),
                lambda key: f"{self._in_file(key)} {list(found[key])}",
            ),
            (
                "wrong shape",
                [key for key in expected if found.get(key, expected[key]) != expected[key]],
                lambda key: (
                    f"{self._in_file(key)}: found {list(found[key])}, expected "
                    f"{list(expected[key])}"
                ),
            ),
            (
                "not numbers",
                [key for key in expected if key in found and dtypes[key] not in FLOATS],
                lambda key: f"{key}: found {dtypes[key]}, expected one of {', '.join(FLOATS)}",
            ),
        ):
            if keys:
                report.append(f"  {title} ({len(keys)}):")
                report.extend(f"    {describe(key)}" for key in sorted(keys)[:_MOST])
                report += ["    …"] * (len(keys) > _MOST)
        if report:
            kind = heads.noun(architecture.head)
            head = f"{classes} outputs" if classes else "no head"
            head = head if kind == "head" or not classes else f"a {kind} of {head}"
            raise MisfitError(
                "\n".join(
                    [
                        f"{self.path}: its arrays are not those of {architecture.name} with {head}",
                        *report,
                    ]
                )
            )

    def _in_file(self, key: str) -> str:
        """Return the published key, with the name in the file if that is another one."""
        name = self._names[key]
        return key if names.published_key(name) == name else f"{key} ({name} in the file)"


def fault_of(path: Path, architecture: Architecture, classes: int) -> str | None:
    """Return what is wrong with a file that should hold ``architecture``, or None.

    Names, shapes and the archive's checksum of every array are checked.
    """
    try:
        with CheckpointFile(path) as file:
            file.check(architecture, classes)
            for key in file.shapes:
                file.array(key)
    except CheckpointError as error:
        return str(error).splitlines()[0]
    return None
