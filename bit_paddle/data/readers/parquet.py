"""Images and labels in parquet files, as `datasets` of Hugging Face writes them.

An image is a struct of ``bytes`` (a JPEG, a PNG …) and ``path``; the class names are in the
metadata of the schema. `pyarrow` reads the files. Nothing in them is executed.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bit_paddle.data.readers import members
from bit_paddle.errors import ConfigError, DataError, WriteError, did_you_mean, install_hint
from bit_paddle.system.progress import progress_bar

HINT = f"parquet files need the package pyarrow: {install_hint('parquet')}"

OLDEST = [14, 0, 1]  # older versions of pyarrow unpickle

_BATCH = 32  # rows in memory; a photo has some MB at most

_LONGEST_NAME = 100  # characters of a file's name; file systems allow 255 bytes

_STARTS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif"}


class Columns(NamedTuple):
    """The columns to read, and the class names of the labels."""

    image: str
    label: str
    names: tuple[str, ...] | None  # None: the labels themselves name the classes
    are_numbers: bool  # whether the labels are integers


def check_installed() -> None:
    """Raise `ConfigError` if pyarrow is missing or unsafe."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(HINT)
    version = importlib.metadata.version("pyarrow")
    numbers = [int(number) for number in re.findall(r"\d+", version)]
    if numbers < OLDEST:
        raise ConfigError(
            f"pyarrow {version} unpickles what a parquet file asks it to (CVE-2023-47248); update "
            f"it: {install_hint('parquet')}"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a parquet file. Raises `DataError` if it is damaged, or no parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise DataError(f"{path}: is damaged, or no parquet file ({text})") from error


# --- Columns ------------------------------------------------------------------------------------


def find_columns(
    path: Path, described: Mapping[str, Any], image: str | None, label: str | None
) -> Columns:
    """Return the columns of images and labels of a parquet file.

    ``described`` are the columns that README.md describes (`hub_layout.class_names`), which
    counts more than the file's metadata. ``image`` and ``label`` choose a column; None: the file
    has one. Errors: `DataError`, `ConfigError` (no such column, or several).
    """
    import pyarrow

    with _opened(path) as file:
        schema = file.schema_arrow
        described = {**_features(schema.metadata or {}), **described}
    types = {field.name: field.type for field in schema}

    def is_image(name: str) -> bool:
        kind = types[name]
        if pyarrow.types.is_struct(kind):
            return {"bytes", "path"} <= {kind.field(k).name for k in range(kind.num_fields)}
        binary = pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)
        return binary and (name == image or described.get(name, ()) is None)

    def is_number(name: str) -> bool:
        return pyarrow.types.is_integer(types[name])

    def is_text(name: str) -> bool:
        kind = types[name]
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)

    image = _one(path, types, "image", image, [list(filter(is_image, types))])
    labels = [name for name in types if is_number(name) or is_text(name)]
    classes = [name for name in labels if described.get(name)]
    named = [name for name in labels if name == "label"]
    label = _one(path, types, "label", label, [classes, named, labels], labels)
    names = described.get(label) if is_number(label) else None
    return Columns(image, label, tuple(names) if names else None, is_number(label))


def _one(
    path: Path,
    types: Mapping[str, Any],
    key: str,
    given: str | None,
    choices: Sequence[list[str]],
    possible: Sequence[str] | None = None,
) -> str:
    """Return the only column of the first of ``choices`` that has any; ``given`` if it is right."""
    possible = choices[0] if possible is None else possible
    expected = "a struct of bytes and path" if key == "image" else "numbers or texts"
    has = ", ".join(f"{name} ({_short(kind)})" for name, kind in types.items()) or "no columns"
    if given is not None:
        if given not in types:
            raise ConfigError(
                f"{key}: is {given!r}, not a column of {path}; {did_you_mean(given, types)}"
            )
        if given not in possible:
            raise ConfigError(
                f"{key}: the column {given!r} of {path} is {_short(types[given])}, expected "
                f"{expected}"
            )
        return given
    found = next(filter(None, choices), [])
    if not found:
        raise DataError(f"{path}: has no column of {key}s, expected {expected}; it has {has}")
    if len(found) > 1:
        raise ConfigError(
            f"{path}: {len(found)} columns may be the {key}: {', '.join(found)}. Choose one with "
            f"the key {key} in a data set's .yaml file, such as `{key}: {found[0]}`"
        )
    return found[0]


def _short(kind: Any) -> str:
    text = str(kind)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, list[str] | None]:
    """Return {column: class names} of a schema's metadata; None for an image column."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        kinds = {name: (value or {}).get("_type") for name, value in features.items()}
        found: dict[str, list[str] | None] = {}
        for name, kind in kinds.items():
            if kind == "Image":
                found[name] = None
            elif kind == "ClassLabel" and isinstance(features[name].get("names"), list):
                found[name] = [str(text) for text in features[name]["names"]]
        return found
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}  # other programs write no such metadata


# --- Unpacking ----------------------------------------------------------------------------------


class Unpacked(NamedTuple):
    """The result of `unpack`."""

    images: int
    bytes: int
    empty: int  # images that are null; their files are empty


def unpack(paths: Sequence[Path], columns: Columns, folder: Path, table: Path) -> Unpacked:
    """Write the images of parquet files to ``folder``, and "path,label" lines to ``table``.

    A file has the name of its ``path`` in the parquet file, else the number of its row. A missing
    label is an empty text. A few rows are in memory at a time. Errors: `DataError`, `WriteError`.
    """
    limit = _check_space(paths, folder)
    names, total, empty, row = _Names(), 0, 0, 0
    try:
        folder.mkdir()
        with open(table, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            lines = csv.writer(stream, lineterminator="\n")
            for path in paths:
                for number, (content, name, label) in enumerate(_rows(path, columns)):
                    if content is None and name is not None:
                        raise DataError(
                            f"{path}: the image of row {number} has no bytes, but only the path "
                            f"{name}; push_to_hub of `datasets` writes the images into the "
                            "file, to_parquet does not; or read the folder of the images"
                        )
                    content = content or b""
                    if total + len(content) > limit:
                        raise DataError(_bomb(path, limit))
                    place = names.claim(name, row, content)
                    file = folder / place
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
                    lines.writerow((place, "" if label is None else label))
                    total, empty, row = total + len(content), empty + (not content), row + 1
    except OSError as error:
        if isinstance(error, WriteError) or error.errno is None:
            raise
        raise WriteError(
            f"{folder}: cannot be written ({error.strerror}); BIT_PADDLE_HOME names another cache"
        ) from error
    return Unpacked(row, total, empty)


def _rows(path: Path, columns: Columns) -> Iterator[tuple[bytes | None, str | None, Any]]:
    """Yield (bytes, path, label) of each image of a parquet file."""
    with _opened(path) as file:
        wanted = [name for name in file.schema_arrow.names if name in columns[:2]]
        if columns.image not in wanted:
            raise DataError(f"{path}: has no column {columns.image!r}, which other files have")
        batches = file.iter_batches(batch_size=_BATCH, columns=wanted, use_threads=False)
        with progress_bar(desc=path.name, total=file.metadata.num_rows, unit="image") as bar:
            for batch in batches:
                images = batch.column(columns.image).to_pylist()
                labels = [None] * len(images)
                if columns.label in wanted:
                    labels = batch.column(columns.label).to_pylist()
                for image, label in zip(images, labels):
                    if isinstance(image, bytes):
                        image = {"bytes": image}
                    yield (image or {}).get("bytes"), (image or {}).get("path"), label
                bar.update(len(images))


def _check_space(paths: Sequence[Path], folder: Path) -> int:
    """Return how many bytes the images may have; check the sizes that the files declare.

    Errors: `WriteError` if they do not fit on the disk; `DataError` if they are far larger than the
    files, because images hardly shrink.
    """
    need = 0
    size = sum(path.stat().st_size for path in paths)
    limit = max(members.ALWAYS_ALLOWED, members.MOST_TIMES * size)
    for path in paths:
        with _opened(path) as file:
            for group in range(file.metadata.num_row_groups):
                # damaged facts about a column end the process, so pyarrow is not asked for them
                need += file.metadata.row_group(group).total_byte_size
    if need > limit:
        raise DataError(_bomb(paths[0], limit))
    free = shutil.disk_usage(folder.parent).free
    if need > free:
        raise WriteError(
            f"{folder.parent}: too little space: the images need {need / 1e9:.2f} GB, "
            f"{free / 1e9:.2f} GB are free; BIT_PADDLE_HOME names another cache"
        )
    return limit


def _bomb(path: Path, limit: int) -> str:
    return (
        f"{path}: its images have more than {limit / 1e9:.2f} GB, {members.MOST_TIMES} times the "
        "size of the files; images do not shrink so much, so the file is not unpacked"
    )


class _Names:
    """Names for the files of images: each once, and none outside the folder."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.folders: set[str] = set()
        self.times: dict[str, int] = {}

    def claim(self, path: str | None, row: int, content: bytes) -> str:
        """Return the name of the image of ``row``; the second ``a.jpg`` is ``a~2.jpg``."""
        parts = [part for part in _parts(path or "") if part]
        name = "/".join(parts) or f"{row:07d}"
        stem, dot, end = name.rpartition(".")
        if not dot or not stem or "/" in end:
            stem, end = name, _ending(content)
        else:
            end = f".{end}"
        name, folders = stem + end, _folders(stem)
        if folders & self.files:  # a file has the name of a folder
            stem = stem.replace("/", "_")
            name, folders = stem + end, set()
        while name in self.files or name in self.folders:
            self.times[stem] = self.times.get(stem, 1) + 1
            name = f"{stem}~{self.times[stem]}{end}"
        self.files.add(name)
        self.folders |= folders
        return name


def _folders(path: str) -> set[str]:
    parts = path.split("/")
    return {"/".join(parts[:k]) for k in range(1, len(parts))}


def _parts(path: str) -> list[str]:
    """Return the folders and the name of an image's path; of an absolute path the name alone."""
    path = path.replace("\\", "/")
    parts = path.split("/")
    if re.match(r"/|[A-Za-z]:|\w+://", path):  # of the machine that wrote the file
        parts = parts[-1:]
    printable = ("".join(c for c in part if c.isprintable()) for part in parts)
    return [part[-_LONGEST_NAME:] for part in printable if part not in (".", "..")]


def _ending(content: bytes) -> str:
    return next((end for start, end in _STARTS.items() if content.startswith(start)), ".img")
