"""The members of .zip and .tar archives, checked: nothing leads outside, nothing fills the disk."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Callable, NamedTuple

from bit_paddle.data.text import encoding_of_names
from bit_paddle.errors import DataError, WriteError

ALWAYS_ALLOWED = 256_000_000  # bytes of an unpacked archive, however small the archive is

MOST_TIMES = 100  # the size of the archive; photos shrink by a few percent, zeros a thousand times

_LARGEST_READ = 1 << 24  # bytes; longer is only the name or header of a tar that fills the memory

_HEADER = 512  # bytes that a member counts at least, because even an empty file needs an entry

_CHUNK = 1 << 18

_LEFT_OUT = "__MACOSX"  # macOS puts copies of its own attributes there, one per file

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\0": "lzma"}  # how a file starts


class Member(NamedTuple):
    """A file or folder in an archive."""

    name: str  # with / between folders
    is_plain: bool  # False: a link, a device or a pipe
    is_folder: bool
    size: int  # bytes, by the archive
    open: Callable[[], Any]

    def path(self) -> PurePath:
        """Return the relative path. Raises `DataError` if it leads outside, or is no plain file."""
        path = PurePath(self.name)
        if path.anchor or ".." in path.parts or not self.is_plain:
            raise DataError(
                f"{self.name!r} is neither a file nor a folder, or leads outside; an archive with "
                "links, devices, absolute paths or .. is not unpacked"
            )
        return path


class Budget:
    """The bytes that an archive may unpack to, by its own size and by the free disk space."""

    def __init__(self, archive: Path, folder: Path):
        self.size, self.folder, self.used = archive.stat().st_size, folder, 0
        self.limit = max(ALWAYS_ALLOWED, MOST_TIMES * self.size)

    def check(self, total: int) -> None:
        """Raise `DataError` if ``total`` unpacked bytes are too many for the archive."""
        if total > self.limit:
            raise DataError(
                f"unpacks to {total / 1e6:,.0f} MB or more from {self.size / 1e6:,.1f} MB, over "
                f"{MOST_TIMES} times its size; an archive that was made to fill a disk does so. If "
                "you trust it, unpack it yourself, and give the folder"
            )

    def take(self, count: int) -> None:
        """Count unpacked bytes. Raises `DataError` as `check`."""
        self.used += count
        self.check(self.used)

    def reserve(self, count: int) -> None:
        """Check ``count`` more bytes before they are written. Raises `DataError`, `WriteError`."""
        self.check(self.used + count)
        free = shutil.disk_usage(self.folder).free if count > _CHUNK else count
        if count > free:
            raise WriteError(
                f"{self.folder}: too little space: {count / 1e9:.2f} GB are needed, "
                f"{free / 1e9:.2f} GB are free"
            )


def write_member(member: Member, folder: Path, budget: Budget) -> None:
    """Write ``member`` below ``folder``, counting its real bytes. Errors: as of `Budget`."""
    path = member.path()
    if _LEFT_OUT in path.parts:
        return
    budget.take(_HEADER)
    target = folder / path
    (target if member.is_folder else target.parent).mkdir(parents=True, exist_ok=True)
    if member.is_folder:
        return
    budget.reserve(member.size)
    with member.open() as source, open(target, "wb") as sink:
        while chunk := source.read(_CHUNK):
            budget.take(len(chunk))
            sink.write(chunk)


@contextmanager
def opened(archive: Path, folder: Path, budget: Budget) -> Iterator[Iterator[Member]]:
    """Yield the members of an archive that is unpacked to ``folder``; its content tells its kind.

    Errors: those of `tarfile`, `zipfile` and the decompressors; `DataError` for an encrypted file.
    """
    if zipfile.is_zipfile(archive) and not _starts_as_tar(archive):
        with zipfile.ZipFile(archive) as file:
            yield _zip_members(file, budget)
        return
    with (
        _decompressed(archive) as stream,
        tarfile.open(fileobj=_Measured(stream, budget), mode="r:") as file,
    ):
        yield _tar_members(file, folder)


def _starts_as_tar(archive: Path) -> bool:
    """Return whether a file is a .tar; a .zip inside of it may be what `is_zipfile` finds."""
    with open(archive, "rb") as stream:
        return stream.read(262)[257:] == b"ustar"


def _zip_members(file: zipfile.ZipFile, budget: Budget) -> Iterator[Member]:
    infos = file.infolist()
    budget.reserve(sum(info.file_size for info in infos))
    for info, name in zip(infos, _zip_names(infos)):
        if info.flag_bits & 1:
            raise DataError(
                f"{name!r} is encrypted; unpack the archive with its password, and give the folder"
            )
        kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0  # 3: Unix
        yield Member(
            name,
            kind in (0, stat.S_IFREG, stat.S_IFDIR),
            info.is_dir() or name.endswith("/"),
            info.file_size,
            lambda info=info: file.open(info),
        )


def _zip_names(infos: list[zipfile.ZipInfo]) -> list[str]:
    """Return the members' names, which Windows writes in its own encoding and with backslashes.

    `zipfile` takes a name without the mark of UTF-8 for cp437, the encoding of DOS.
    """
    raw: dict[int, bytes] = {}
    for place, info in enumerate(infos):
        if not info.flag_bits & 0x800 and not info.filename.isascii():
            try:
                raw[place] = info.filename.encode("cp437")
            except UnicodeEncodeError:  # `zipfile` has found the name in UTF-8 elsewhere
                continue
    encoding = encoding_of_names(raw.values(), "cp437") if raw else ""
    names = [
        raw[place].decode(encoding) if place in raw else info.filename
        for place, info in enumerate(infos)
    ]
    return [name.replace("\\", "/") for name in names]


def _tar_members(file: tarfile.TarFile, folder: Path) -> Iterator[Member]:
    for info in file:
        member = Member(
            info.name,
            info.isreg() or info.isdir(),
            info.isdir(),
            info.size,
            lambda info=info: file.extractfile(info),
        )
        member.path()
        if hasattr(tarfile, "data_filter"):  # Python's own check, of 3.9.17 and newer
            tarfile.data_filter(info, str(folder))
        yield member
    # tarfile takes a damaged header for the end of the archive; gzip's checksum is at the very end
    stream: Any = file.fileobj
    stream.seek(file.offset)
    if stream.read(tarfile.BLOCKSIZE) not in (b"", bytes(tarfile.BLOCKSIZE)):
        raise tarfile.ReadError(f"no header at byte {file.offset:,}")
    while stream.read(1 << 20):
        pass


def _decompressed(archive: Path) -> BinaryIO:
    with open(archive, "rb") as stream:
        start = stream.read(6)
    for mark, module in _COMPRESSED.items():
        if start.startswith(mark):
            return __import__(module).open(archive)
    return open(archive, "rb")


class _Measured:
    """A decompressed tar whose length is checked while it is read: headers may fill a disk too."""

    def __init__(self, stream: BinaryIO, budget: Budget):
        self.stream, self.budget, self.tell = stream, budget, stream.tell

    def read(self, size: int) -> bytes:
        if size > _LARGEST_READ:
            raise tarfile.ReadError(f"a header has {size:,} bytes")
        content = self.stream.read(size)
        self.budget.check(self.stream.tell())
        return content

    def seek(self, position: int) -> int:
        self.budget.check(position)
        return self.stream.seek(position)
