"""A lease on a folder: a file that its process renews, for machines that no lock keeps apart.

`flock` is a lock of the kernel. On some network file systems it does not reach another machine.
There the lease tells that the folder is in use. A lease that is not renewed any more is stale: the
process was killed, or its machine has lost the network.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from bit_paddle.system.signals import held

RENEWAL, STALE = 10.0, 60.0  # seconds: between two renewals; without one, until a lease is stale

_POLL = 0.2  # seconds between two looks at the lease of another machine


class Lease:
    """The lease in the file ``path``, renewed by a thread until `release`."""

    def __init__(self, path: Path, content: bytes):
        self._path, self._content, self._released = path, content, threading.Event()
        with held(signal.SIGTERM):  # for good in the thread: the main thread alone gets it
            threading.Thread(target=self._renew, daemon=True, name="lease").start()

    def release(self) -> None:
        """Remove the file, unless another process has taken the folder over."""
        self._released.set()
        with suppress(OSError):
            if self._path.read_bytes() == self._content:
                self._path.unlink()

    def _renew(self) -> None:
        while not self._released.wait(RENEWAL):
            with suppress(OSError):  # the server is away, or somebody has removed the file
                found = self._path.read_bytes()
                if found == self._content:
                    os.utime(self._path)
                elif found and not self._released.is_set():
                    print(
                        f"error: {self._path.parent}: {owner(found)} has taken this run over, as "
                        f"this process did not renew its lease for {STALE:.0f} s. It ends",
                        file=sys.stderr,
                    )
                    os.kill(os.getpid(), signal.SIGTERM)
                    return


def take(path: Path, lock: int) -> Lease | None:
    """Take the lease in the file ``path``; return None while a process of another machine has it.

    This process holds ``lock``, the open file of a lock beside it. So a lease of this machine is a
    leftover. For one of another machine it waits until that is renewed, or stale. Raises `OSError`
    if the file cannot be written.
    """
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    text = f"process {os.getpid()} on {socket.gethostname()} since {since}\nkernel {_kernel()}\n"
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            if not _freed(path, lock):
                return None
            continue
        try:
            with open(descriptor, "wb") as stream:
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            path.unlink()
            raise
        return Lease(path, text.encode())


def owner(content: bytes) -> str:
    """Return the process that a lease names, in words."""
    return content.decode(errors="replace").partition("\n")[0]


def _kernel() -> str:
    """Return a name of the running kernel, all of whose processes share its locks."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return socket.gethostname()


def _read(path: Path) -> tuple[bytes, int] | None:
    """Return the content of a lease and its date in nanoseconds; None if it has gone.

    To open a file makes a network file system ask the server.
    """
    try:
        with open(path, "rb") as stream:
            return stream.read(), os.fstat(stream.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _freed(path: Path, lock: int) -> bool:
    """Remove a lease that nobody holds any more; return False if somebody does."""
    before = _read(path)
    if before is None:
        return True
    content, date = before
    kernel = content.partition(b"\nkernel ")[2].strip()
    of_older_version = bool(content) and not kernel  # which wrote no lease, only its name
    if kernel != _kernel().encode() and not of_older_version:
        os.utime(lock)  # the file system's own clock tells the age
        age = (os.fstat(lock).st_mtime_ns - date) / 1e9
        deadline = time.monotonic() + min(STALE, STALE - age)
        if age < STALE:
            print(f"waiting: does {owner(content)} still use {path.parent}?", file=sys.stderr)
        while time.monotonic() < deadline:
            time.sleep(_POLL)
            now = _read(path)
            if now != before:
                return now is None
    return _removed(path, content)


def _removed(path: Path, content: bytes) -> bool:
    """Remove the lease of this ``content``; return False if another process has replaced it."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        os.rename(path, aside)  # of several processes, one succeeds
    except FileNotFoundError:
        return True
    same = aside.read_bytes() == content
    if not same:  # a process was quicker, and this is its lease
        with suppress(OSError):
            os.link(aside, path)
    aside.unlink()
    return same
