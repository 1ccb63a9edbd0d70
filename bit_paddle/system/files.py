"""Write files completely or not at all: write a temporary file, sync it, rename it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from bit_paddle.errors import ConfigError, MissingFileError, WriteError


def write(path: str | os.PathLike, fill: Callable[[BinaryIO], object]) -> None:
    """Write the file ``path`` by a call of ``fill(binary stream)``.

    An older file stays until the new file is complete and on the disk; its permissions remain.
    Raises `WriteError`.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as stream:
            with suppress(OSError):  # there is no older file, or the file system has no permissions
                shutil.copymode(path, partial)
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


def fill_folder(folder: Path, fill: Callable[[Path], Path | None]) -> None:
    """Make ``folder`` by ``fill(empty folder)``; it gets its name when it is complete.

    ``fill`` may return a folder inside, which then becomes ``folder``. Nothing is done if
    ``folder`` exists. Several processes may call this: one fills, and the others wait. After an
    error nothing is left.
    """
    from filelock import FileLock  # imported here, because most commands fill no folder

    partial = folder.with_name(f".{folder.name}.unpacking")
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():  # another process was faster
            return
        shutil.rmtree(partial, ignore_errors=True)  # left over from a killed process
        try:
            partial.mkdir()
            os.rename(fill(partial) or partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Sync ``folder`` to the disk; otherwise a power failure may undo a rename in it."""
    with suppress(OSError):  # some file systems do not support it
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
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(item) for item in value]
        return value if not isinstance(value, float) or math.isfinite(value) else None

    return json.dumps(finite(content), indent=2) + "\n"


def expanded(path: str) -> str:
    """Return ``path`` with ``~`` and ``$VARIABLES`` replaced, as a shell does it.

    The path of an existing file stays as it is, and so do a web address and a variable that is not
    set.
    """
    if "://" in path or os.path.exists(path):
        return path
    return os.path.expanduser(os.path.expandvars(path))


def read_yaml(path: str | os.PathLike, title: str, example: str) -> dict[Any, Any]:
    """Return the content of a YAML file of ``key: value`` lines; {} for an empty file.

    Raises `MissingFileError` and `ConfigError`; their messages begin with ``title`` and show
    ``example``, a valid line of such a file.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        repr(content)  # fails for a number with thousands of digits, which Python cannot print
    except FileNotFoundError:
        raise MissingFileError(f"{title}: no such file") from None
    except _BROKEN_YAML as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{title}: cannot be read as YAML ({text})") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(
            f"{title}: contains a {type(content).__name__}, expected lines such as {example!r}"
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
)  # the last ones are raised for values such as '!!bool x' and '!!timestamp x'


def csv_line(cells: Iterable[object]) -> str:
    """Return ``cells`` as one line of CSV, quoted if necessary."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()


def make_folder(folder: Path, flag: str) -> None:
    """Create ``folder``, the value of ``flag``, if it is missing. Raises `ConfigError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{flag} {folder}: cannot be created ({error.strerror})") from error


def create_folder(logdir: str, default: str, first_file: str) -> Path:
    """Create and return a new folder: ``logdir/default``, with a number if that is in use.

    Concurrent processes get different folders: the process that creates ``first_file`` owns the
    folder. Raises `ConfigError` if the folder cannot be created or written.
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
    raise AssertionError("numbered is infinite")


def numbered(logdir: str, name: str) -> Iterator[Path]:
    """Yield ``logdir/name``, ``logdir/name-2``, ``logdir/name-3`` …"""
    yield Path(logdir, name)
    yield from (Path(logdir, f"{name}-{number}") for number in itertools.count(2))


def unwritable(folder: Path, reason: str | None) -> ConfigError:
    """Return the error for a folder of results that cannot be created or written."""
    return ConfigError(
        f"--logdir {folder.parent}: {folder} cannot be written ({reason}); "
        "choose another folder with --logdir"
    )
