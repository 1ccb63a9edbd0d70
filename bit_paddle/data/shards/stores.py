"""Where shards are: in a folder, or at an address from which a bounded cache gets them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from bit_paddle.data.shards import transfer
from bit_paddle.data.shards.index import Shard
from bit_paddle.errors import DataError, DownloadError
from bit_paddle.system import environment

_MOST_OPEN = 128  # files; systems allow a process 1,024 and more

_READ_AHEAD = 1 << 22  # bytes that are asked from the disk at once


class OpenShard:
    """An open file. It is closed when the last thread that reads it has let it go."""

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):  # it could not be opened
            os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset`` on, fewer if the file ends before."""
        return os.pread(self._descriptor, length, offset)

    def read_ahead(self) -> None:
        """Read the whole file in large blocks, so that it is in the system's memory."""
        block, place = bytearray(_READ_AHEAD), 0
        while length := os.preadv(self._descriptor, [block], place):
            place += length


class Store(Protocol):
    """Gives shards by number."""

    title: str

    def name(self, number: int) -> str:
        """Return the place of a shard for messages."""

    def open(self, number: int) -> OpenShard:
        """Return a shard. Raises `DataError` or `DownloadError`, which name it."""

    def read_ahead(self) -> None:
        """Begin to read all shards, in the background."""

    def prefetch(self, now: list[int], later: list[int]) -> None:
        """Begin to get the shards ``later``, in the background; they are needed after ``now``."""


class Folder:
    """Shards in a folder of this machine. Raises `DataError` for one that is missing or cut."""

    def __init__(self, folder: Path, shards: Sequence[Shard]):
        self.title, self._folder, self._shards = str(folder), folder, shards
        faults = [fault for number in range(len(shards)) if (fault := self._fault(number))]
        if faults:
            more = f"\n  and {len(faults) - 5:,} more" if len(faults) > 5 else ""
            raise DataError(
                f"{folder}: {len(faults):,} of {len(shards):,} shards cannot be used; copy them "
                "again from where they are whole, or pack the data again\n  "
                + "\n  ".join(faults[:5])
                + more
            )
        self.open = lru_cache(maxsize=_MOST_OPEN)(self._open)

    def name(self, number: int) -> str:
        """Return the path of a shard."""
        return os.path.join(self._folder, self._shards[number].name)

    def read_ahead(self) -> None:
        """Begin to read all shards, if the system can keep them in its memory.

        A disk gives large blocks many times as fast as small images here and there.
        """
        if sum(shard.size for shard in self._shards) <= environment.memory_bytes() // 2:
            threading.Thread(target=self._read_all, daemon=True, name="read ahead").start()

    def prefetch(self, now: list[int], later: list[int]) -> None:
        """Do nothing: all shards are here."""

    def _read_all(self) -> None:
        with suppress(DataError, OSError):  # who needs the image reports it
            for number in range(len(self._shards)):
                self.open(number).read_ahead()

    def _fault(self, number: int) -> str | None:
        expected = self._shards[number].size
        try:
            size = os.stat(self.name(number)).st_size
        except OSError as error:
            return f"{self.name(number)}: cannot be read ({error.strerror})"
        if size == expected:
            return None
        return f"{self.name(number)}: has {size:,} bytes, expected {expected:,} by the index"

    def _open(self, number: int) -> OpenShard:
        try:
            return OpenShard(Path(self.name(number)))
        except OSError as error:
            raise DataError(f"{self.name(number)}: cannot be read ({error.strerror})") from error


class Cache:
    """Shards at an address; ``most`` of them stay in ``folder``, those that were used last.

    Threads and processes share the folder; each may have one more shard under way. A shard arrives
    completely and verified, or not at all; after an interruption only the rest is transferred.
    """

    def __init__(self, address: str, shards: Sequence[Shard], folder: Path, most: int):
        self.title, self._address, self._shards = address, address, shards
        self._folder, self._most = folder, most
        self._asked: deque[int] = deque(maxlen=max(1, most // 2))  # of `prefetch`: a window
        self.open = lru_cache(maxsize=most)(self._open)

    def name(self, number: int) -> str:
        """Return the address of a shard."""
        return f"{self._address}/{self._shards[number].name}"

    def path(self, number: int) -> Path:
        """Return the file of a shard in the cache. Raises `DownloadError`, which names it."""
        shard, path = self._shards[number], self._folder / self._shards[number].name
        expected = {"bytes": shard.size, "crc32c": shard.crc32c}
        known = {kind: value for kind, value in expected.items() if value is not None}
        try:
            transfer.fetch(self.name(number), path, known)
        except DownloadError as error:
            raise DownloadError(f"the shard cannot be read: {error}") from error
        self._remove_oldest()
        return path

    def _open(self, number: int) -> OpenShard:
        while True:
            with suppress(FileNotFoundError):  # another thread or process needed the room
                path = self.path(number)
                opened = OpenShard(path)
                os.utime(path)
                return opened

    def read_ahead(self) -> None:
        """Do nothing: a shard is transferred as a whole when its first image is needed."""

    def prefetch(self, now: list[int], later: list[int]) -> None:
        """Begin to transfer the shards ``later``; the oldest leave the cache, but not ``now``."""
        new = [number for number in later if number not in self._asked]
        if new:
            self._asked.extend(new)
            threading.Thread(target=self._transfer, args=(now, new), daemon=True).start()

    def _transfer(self, now: list[int], new: list[int]) -> None:
        for number in now:  # they stay; one that has left, or is not there yet, is its reader's
            with suppress(OSError):
                os.utime(self._folder / self._shards[number].name)
        with suppress(DataError, DownloadError, OSError):  # who needs the image reports it
            for number in new:
                if number in self._asked:  # else this thread is late: the window has moved on
                    os.utime(self.path(number))

    def _remove_oldest(self) -> None:
        """Leave the ``most`` shards that were used last."""
        dates = {}
        for path in self._folder.glob("[!.]*.tar"):
            with suppress(FileNotFoundError):
                dates[path] = path.stat().st_mtime_ns
        for path in sorted(dates, key=dates.__getitem__)[: -self._most]:
            path.unlink(missing_ok=True)  # a process that reads it keeps its content
