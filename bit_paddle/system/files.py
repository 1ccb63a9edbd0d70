"""Files are complete or absent: they are written beside their place, synced, and renamed."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from bit_paddle.errors import ConfigError, MissingFileError, WriteError


def write(path: str | os.PathLike, fill: Callable[[BinaryIO], object]) -> None:
    """Call ``fill(binary stream)``, and put what it has written in the place of ``path``.

    An older file stays until the new file is complete and on the disk. Raises `WriteError`.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Write the names in ``folder`` to the disk: without this a power cut may undo a rename."""
    with suppress(OSError):  # some file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` in UTF-8, completely or not at all. Raises `WriteError`."""
    write(path, lambda stream: stream.write(text.encode(errors="backslashreplace")))


def to_json(content: Any) -> str:
    """Return ``content`` as JSON; infinities and NaN, which JSON lacks, become null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(one) for key, one in value.items()}
        if isinstance(value, list):
            return [finite(one) for one in value]
        return value if not isinstance(value, float) or math.isfinite(value) else None

    return json.dumps(finite(content), indent=2) + "\n"


def read_yaml(path: str | os.PathLike, title: str, example: str) -> dict[Any, Any]:
    """Return the content of a YAML file of ``key: value`` lines; {} for an empty file.

    Raises `MissingFileError` and `ConfigError`, whose messages begin with ``title``; ``example`` is
    a line that such a file may have.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        repr(content)  # Python refuses to print a number with thousands of digits
    except FileNotFoundError:
        raise MissingFileError(f"{title}: no such file") from None
    except _BROKEN_YAML as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{title}: cannot be read as YAML ({text})") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(
            f"{title}: holds a {type(content).__name__}, expected lines such as {example!r}"
        )
    return content or {}


_BROKEN_YAML = (
    OSError,
    yaml.YAMLError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    OverflowError,
    RecursionError,
)  # the last ones come from the constructors of '!!bool x', '!!timestamp x' and others


def csv_line(cells: Iterable[object]) -> str:
    """Return ``cells`` as a line of CSV, with quotes where they are needed."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()


def make_folder(folder: Path, flag: str) -> None:
    """Make ``folder``, the value of ``flag``, if it is missing. Raises `ConfigError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{flag} {folder}: cannot be made ({error.strerror})") from error


def create_folder(logdir: str, default: str, first_file: str) -> Path:
    """Make a new folder for results: ``logdir/default``, with a number if that exists.

    Several processes at the same time get different folders: the one that creates ``first_file``
    owns the folder. Raises `ConfigError` if the folder cannot be made or written.
    """
    for folder in numbered(logdir, default):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not any(folder.iterdir()):
                os.close(os.open(folder / first_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                return folder
        except FileExistsError:
            if not folder.is_dir():
                raise unwritable(folder, "a file is in its place") from None
        except OSError as error:
            raise unwritable(folder, error.strerror) from error
    raise AssertionError("numbers do not end")


def numbered(logdir: str, name: str) -> Iterator[Path]:
    """Yield ``logdir/name``, ``logdir/name-2``, ``logdir/name-3`` …"""
    yield Path(logdir, name)
    yield from (Path(logdir, f"{name}-{number}") for number in itertools.count(2))


def unwritable(folder: Path, reason: str | None) -> ConfigError:
    """Return the error for a folder of results that cannot be made or written."""
    return ConfigError(
        f"--logdir {folder.parent}: {folder} cannot be written ({reason}); "
        "name another with --logdir"
    )
