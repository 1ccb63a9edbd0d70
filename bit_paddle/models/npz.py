"""The ``.npz`` checkpoints of BiT: keys, layouts and shapes, a reader and a writer.

Three layouts are read, and translated to the first one:

- ``resnet/block1/unit01/a/standardized_conv2d/kernel``: the published files, written from
  TensorFlow;
- the same with numbered layers (``standardized_conv2d_7``), in some of the published files;
- ``block1/unit01/conv1/kernel``, ``…/gn1/scale``, ``norm-pre-head/bias``, ``conv_head/kernel``:
  trees of the JAX code, whose GroupNorm arrays are [1, 1, 1, C] and whose head is [C, K].

Kernels are HWIO on disk. Arrays are read one at a time, so that a 4 GB file needs only the memory
of its largest array. Keys that begin with ``bit_paddle/`` hold notes of this package; other readers
ignore them.
"""

from __future__ import annotations

import json
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bit_paddle.errors import CheckpointError, MissingFileError
from bit_paddle.models.architecture import Architecture
from bit_paddle.system import files

NOTES = "bit_paddle/notes"

HEAD_KERNEL, HEAD_BIAS = "resnet/head/conv2d/kernel", "resnet/head/conv2d/bias"

_ROOT_KERNEL = "resnet/root_block/standardized_conv2d/kernel"

_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    OSError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    MemoryError,
    OverflowError,
    TypeError,
)  # errors that a damaged zip or .npy header can raise


# (pattern in the JAX tree, part of the published key): applied in order to keys without "resnet/"
_FROM_JAX = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"root_block/conv_root/kernel", "root_block/standardized_conv2d/kernel"),
        (r"/conv_proj/kernel", "/a/proj/standardized_conv2d/kernel"),
        (r"/conv1/kernel", "/a/standardized_conv2d/kernel"),
        (r"/conv2/kernel", "/b/standardized_conv2d/kernel"),
        (r"/conv3/kernel", "/c/standardized_conv2d/kernel"),
        (r"/gn1/", "/a/group_norm/"),
        (r"/gn2/", "/b/group_norm/"),
        (r"/gn3/", "/c/group_norm/"),
        (r"^norm-pre-head/", "group_norm/"),
        (r"^(conv_)?head/(?=kernel|bias)", "head/conv2d/"),
        (r"group_norm/scale$", "group_norm/gamma"),
        (r"group_norm/bias$", "group_norm/beta"),
    )
]


def shapes(architecture: Architecture, classes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (key, shape) for every array of a checkpoint, in the published layout, root to head.

    ``classes`` 0 means no head.
    """
    channels = architecture.root_channels
    yield _ROOT_KERNEL, (7, 7, 3, channels)
    for block, units in enumerate(architecture.units, 1):
        middle = architecture.root_channels * 2 ** (block - 1)
        for unit in range(1, units + 1):
            prefix = f"resnet/block{block}/unit{unit:02d}"
            if unit == 1:
                yield f"{prefix}/a/proj/standardized_conv2d/kernel", (1, 1, channels, 4 * middle)
            for letter, shape in (
                ("a", (1, 1, channels, middle)),
                ("b", (3, 3, middle, middle)),
                ("c", (1, 1, middle, 4 * middle)),
            ):
                yield f"{prefix}/{letter}/group_norm/gamma", (shape[2],)
                yield f"{prefix}/{letter}/group_norm/beta", (shape[2],)
                yield f"{prefix}/{letter}/standardized_conv2d/kernel", shape
            channels = 4 * middle
    yield "resnet/group_norm/gamma", (channels,)
    yield "resnet/group_norm/beta", (channels,)
    if classes:
        yield HEAD_KERNEL, (1, 1, channels, classes)
        yield HEAD_BIAS, (classes,)


def canonical(key: str) -> str:
    """Return the published key for a checkpoint key of any layout."""
    key = re.sub(r"(standardized_conv2d|group_norm|conv2d)_\d+(?=/)", r"\1", key)
    if key.startswith(("resnet/", "bit_paddle/")):
        return key
    for pattern, replacement in _FROM_JAX:
        key = pattern.sub(replacement, key)
    return "resnet/" + key


def parameter_name(key: str) -> str:
    """Return the name of the model's parameter for a published key.

    ``resnet/block1/unit01/a/group_norm/gamma`` is ``block1.unit01.a.norm.weight``.
    """
    key = key[len("resnet/") :].replace("/a/proj/", "/proj/").replace("head/conv2d/", "head/")
    for part, name in (
        ("group_norm/gamma", "norm/weight"),
        ("group_norm/beta", "norm/bias"),
        ("standardized_conv2d/kernel", "conv/weight"),
        ("kernel", "weight"),
    ):
        key = key.replace(part, name)
    return key.replace("/", ".")


def _canonical_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the published shape of an array of any layout; they differ in axes of length 1."""
    if key == HEAD_KERNEL and len(shape) == 2:
        return (1, 1, *shape)
    if not key.endswith("kernel") and len(shape) == 4 and shape[:3] == (1, 1, 1):
        return shape[3:]
    return shape


class CheckpointFile:
    """An open checkpoint: all shapes, and arrays one at a time. Use it in a ``with`` statement.

    Errors: `MissingFileError`; `CheckpointError` for a file that is not an ``.npz`` file, is
    damaged, or contains Python objects (they are never unpickled).
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            raise MissingFileError(f"{path}: no such checkpoint file")
        if not zipfile.is_zipfile(self.path):
            with open(self.path, "rb") as stream:
                start = stream.read(20)
            raise CheckpointError(
                f"{path}: not a readable .npz file, it starts with {start!r}. If it is an .npz "
                "file that was cut short, download or copy it again; other formats cannot be read"
            )
        try:
            self._npz = np.load(self.path, allow_pickle=False)
        except _BROKEN as error:
            raise CheckpointError(
                f"{path}: not a readable .npz file ({_reason(error)}); "
                "it may be cut short: download or copy it again"
            ) from error
        try:
            self._members = {}  # published key -> (key in the file, shape in the file, dtype)
            for member in self._npz.zip.namelist():
                if not member.endswith(".npy"):
                    raise CheckpointError(f"{path}: contains {member!r}, which is not an array")
                with self._reading(member), self._npz.zip.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    read_header = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read_header(stream)
                name = member[: -len(".npy")]
                if dtype.hasobject:
                    raise CheckpointError(
                        f"{path}: {name} contains Python objects, which are never "
                        "loaded; expected arrays of numbers"
                    )
                key = canonical(name)
                if key in self._members:
                    raise CheckpointError(
                        f"{path}: {name} and {self._members[key][0]} both stand for {key}"
                    )
                self._members[key] = (name, shape, dtype)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except _BROKEN as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{self.path}: {name} is damaged ({_reason(error)}); "
                "download or copy the file again"
            ) from error

    def __enter__(self) -> CheckpointFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._npz.close()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{published key: published shape} of all arrays, without the notes of this package."""
        return {
            key: _canonical_shape(key, shape)
            for key, (_, shape, _) in self._members.items()
            if not key.startswith("bit_paddle/")
        }

    def array(self, key: str) -> np.ndarray:
        """Return the array of a published key in its published shape, with the file's dtype."""
        if key not in self._members:
            raise CheckpointError(f"{self.path}: has no {key}")
        name, shape, _ = self._members[key]
        with self._reading(name):
            return self._npz[name].reshape(_canonical_shape(key, shape))

    def notes(self) -> dict[str, Any]:
        """Return the notes that `write` wrote (class names, for example); {} for other files."""
        if NOTES not in self._members:
            return {}
        with self._reading(NOTES):
            notes = json.loads(self.array(NOTES).astype(np.uint8).tobytes().decode())
            if not isinstance(notes, dict):
                raise ValueError(f"it contains a {type(notes).__name__}, expected an object")
            return notes

    @property
    def classes(self) -> int:
        """The number of outputs of the head; 0 without a head."""
        return self.shapes.get(HEAD_BIAS, (0,))[-1]

    def architecture(self) -> Architecture:
        """Return the architecture; depth and width follow from the shapes."""
        shapes = self.shapes
        units = [0, 0, 0, 0]
        for key in shapes:
            match = re.match(r"resnet/block([1-4])/unit(\d+)/", key)
            if match:
                units[int(match[1]) - 1] = max(units[int(match[1]) - 1], int(match[2]))
        root = shapes.get(_ROOT_KERNEL, ())
        if len(root) != 4 or not all(units):
            examples = ", ".join(list(shapes)[:3]) or "nothing"
            raise CheckpointError(
                f"{self.path}: not a BiT checkpoint. Expected arrays such as "
                f"{_ROOT_KERNEL} [7, 7, 3, C] and units of block1 to block4; "
                f"found {len(shapes)} arrays: {examples} …"
            )
        return Architecture(tuple(units), root[3] / 64)

    def check(self, architecture: Architecture, classes: int, ignore: Iterable[str] = ()) -> None:
        """Raise one `CheckpointError` that lists all missing, unexpected and wrongly shaped arrays.

        Arrays in ``ignore`` are not checked (the head, for example, if a new one replaces it).
        """
        ignore = set(ignore)
        expected = {key: shape for key, shape in shapes(architecture, classes) if key not in ignore}
        found = {key: shape for key, shape in self.shapes.items() if key not in ignore}
        report = []
        for title, keys, describe in (
            ("missing", expected.keys() - found.keys(), lambda key: f"{key} {list(expected[key])}"),
            ("unexpected", found.keys() - expected.keys(), lambda key: f"{key} {list(found[key])}"),
            (
                "wrong shape",
                [key for key in expected if found.get(key, expected[key]) != expected[key]],
                lambda key: f"{key}: found {list(found[key])}, expected {list(expected[key])}",
            ),
            (
                "not numbers",
                [key for key in expected if key in found and self._members[key][2].kind != "f"],
                lambda key: f"{key}: found {self._members[key][2]}, expected float16 or float32",
            ),
        ):
            if keys:
                report.append(f"  {title} ({len(keys)}):")
                report.extend(f"    {describe(key)}" for key in sorted(keys))
        if report:
            head = f"{classes} outputs" if classes else "no head"
            raise CheckpointError(
                "\n".join(
                    [
                        f"{self.path}: its arrays are not those of {architecture.name} with {head}",
                        *report,
                    ]
                )
            )


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def write(
    path: str | os.PathLike,
    arrays: Iterable[tuple[str, np.ndarray]],
    notes: dict[str, Any] | None = None,
) -> None:
    """Write (published key, array) pairs as an ``.npz`` file, with one array in memory at a time.

    The file gets its name only when it is complete and on the disk; until then an older file stays.
    ``notes`` must be JSON. Raises `WriteError`.
    """

    def fill(stream: BinaryIO) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for key, array in arrays:
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
            if notes:
                text = np.frombuffer(json.dumps(notes).encode(), np.uint8)
                with archive.open(f"{NOTES}.npy", "w") as member:
                    np.lib.format.write_array(member, text, allow_pickle=False)

    files.write(path, fill)
