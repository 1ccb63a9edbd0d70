"""Unpack an archive atomically: its folder appears under its name only when it is complete."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from bit_paddle.data.readers import members
from bit_paddle.errors import BitPaddleError, DataError, WriteError
from bit_paddle.system import fetch, files
from bit_paddle.system.progress import progress_bar

SUFFIXES = (*(".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tbz"),)

_FAULTS = (
    *(OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error),
    *(ValueError, NotImplementedError),  # the latter: a compression that Python does not know
)

_CLASHES = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST)  # a file and a folder have one name


def is_archive(path: Path) -> bool:
    """Return whether ``path`` is a file with the extension of an archive."""
    return stem(path.name) != path.name and path.is_file()


def stem(name: str) -> str:
    """Return the name of an archive without its extension; other names as they are."""
    end = next((end for end in SUFFIXES if name.lower().endswith(end)), "")
    return name[: len(name) - len(end)] or name


def cached(archive: Path) -> Path:
    """Return the folder of the cache with the content of ``archive``, unpacked at the first call.

    It is unpacked again if its path, its size or its date changes. Several processes may call this;
    one unpacks, and the others wait. Errors: `DataError` (damaged, encrypted, leads outside, far
    larger than the archive), `WriteError`. After an error nothing is left.
    """
    state = archive.stat()
    key = f"{os.path.realpath(archive)}\n{state.st_size}\n{state.st_mtime_ns}"
    digest = hashlib.sha1(key.encode(errors="surrogateescape")).hexdigest()[:16]
    folder = fetch.cache_dir() / "archives" / f"{stem(archive.name)[:50]}-{digest}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"{archive}: cannot be unpacked to {folder} ({error.strerror}); the variable "
            "BIT_PADDLE_HOME names another folder"
        ) from error
    return _unpack(archive, folder, "", "is damaged, or not an archive", "")


def unpacked(archive: Path, folder: Path) -> Path:
    """Return ``folder``, unpacked from the official ``archive`` if it does not exist.

    The archive must hold a folder of the same name, such as ``jpg/…`` for ``data/jpg``. Errors: as
    of `cached`.
    """
    return _unpack(
        archive,
        folder,
        folder.name,
        "is damaged, or not the official archive",
        "; remove it to download it again",
    )


def _unpack(archive: Path, folder: Path, inner: str, fault: str, advice: str) -> Path:
    """Return ``folder``, which gets the content of the folder ``inner`` of the archive."""
    if folder.is_dir():
        return folder

    def fill(partial: Path) -> Path:
        _extract(archive, partial)
        if not (partial / inner).is_dir():
            raise tarfile.TarError(f"it holds no folder {inner}/")
        return partial / inner

    try:
        files.fill_folder(folder, fill)
    except WriteError as error:
        raise WriteError(f"{archive}: {error}") from error
    except BitPaddleError as error:
        raise DataError(f"{archive}: {error}") from error
    except faults() as error:
        # damage raises without a number
        if isinstance(error, OSError) and error.errno not in (None, *_CLASHES):
            raise WriteError(
                f"{archive}: cannot be unpacked to {folder} ({error.strerror}); its folder must be "
                "writable, and the disk must have room for the files"
            ) from error
        text = " ".join(str(error).split())
        raise DataError(f"{archive}: {fault} ({text}){advice}") from error
    return folder


def faults() -> tuple[type[Exception], ...]:
    """Return the errors that a damaged archive may raise."""
    try:
        from lzma import LZMAError
    except ImportError:  # Python may be built without it
        return _FAULTS
    return (*_FAULTS, LZMAError)


def _extract(archive: Path, folder: Path) -> None:
    budget = members.Budget(archive, folder)
    with members.opened(archive, folder, budget) as every:
        for member in progress_bar(iterable=every, desc=archive.name, unit="file", delay=2):
            members.write_member(member, folder, budget)
