"""Unpack an archive atomically: its folder appears under its name only when it is complete."""

from __future__ import annotations

import os
import shutil
import tarfile
import zlib
from pathlib import Path, PurePath

from bit_paddle.errors import DataError, WriteError
from bit_paddle.system.progress import progress_bar

_FAULTS = (OSError, EOFError, tarfile.TarError, zlib.error, ValueError)


def unpacked(archive: Path, folder: Path) -> Path:
    """Return ``folder``, unpacked from the tar ``archive`` if it does not exist.

    The archive, compressed or not, must hold a folder of the same name, such as ``jpg/…`` for
    ``data/jpg``. Several processes may call this for one folder; they wait for one another. Errors:
    `DataError` (a damaged archive; a link, a device or a path that leads outside), `WriteError`.
    After an error nothing of ``folder`` is left.
    """
    from filelock import FileLock  # imported here, because most commands unpack nothing

    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{folder.name}.unpacking")
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if folder.is_dir():  # another process was faster
                return folder
            shutil.rmtree(partial, ignore_errors=True)  # left over from a killed process
            try:
                with tarfile.open(archive, "r:*") as tar:
                    _extract(tar, partial, archive.name)
                if not (partial / folder.name).is_dir():
                    raise tarfile.TarError(f"it holds no folder {folder.name}/")
                os.rename(partial / folder.name, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except _FAULTS as error:
        if isinstance(error, OSError) and error.errno is not None:  # damage raises without one
            raise WriteError(
                f"{archive}: cannot be unpacked to {folder} ({error.strerror}); its folder must be "
                "writable, and the disk must have room for the files"
            ) from error
        text = " ".join(str(error).split())
        raise DataError(
            f"{archive}: is damaged, or not the official archive ({text}); remove it to download "
            "it again"
        ) from error
    return folder


def _extract(tar: tarfile.TarFile, folder: Path, title: str) -> None:
    for member in progress_bar(iterable=tar, desc=title, unit="file", delay=2):
        path = PurePath(member.name)
        if path.anchor or ".." in path.parts or not (member.isreg() or member.isdir()):
            raise tarfile.TarError(
                f"{member.name!r} is neither a file nor a folder, or leads outside"
            )
        target = folder / path
        (target if member.isdir() else target.parent).mkdir(parents=True, exist_ok=True)
        if member.isreg():
            with tar.extractfile(member) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink)
    # tarfile takes a damaged header for the end of the archive; gzip's checksum is at the very end
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) not in (b"", bytes(tarfile.BLOCKSIZE)):
        raise tarfile.ReadError(f"no header at byte {tar.offset:,}")
    while tar.fileobj.read(1 << 20):
        pass
