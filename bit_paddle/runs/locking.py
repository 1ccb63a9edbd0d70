"""The lock on a run's folder: the kernel's, and beside it a lease for other machines."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from bit_paddle.runs import lease
from bit_paddle.system import files

LOCK, OWNER = "run.lock", "run.owner"  # the files of the lock and of the lease

# Why not `filelock`: on a file system without flock, its newer versions lock by a file's existence,
# and SIGKILL leaves that file behind; its older versions take an error such as NFS's ENOLCK for a
# held lock. Neither notices that another process has removed and recreated the folder.


class Lock(NamedTuple):
    """The open descriptor of the lock file, and the lease beside it; None if it is unwritable."""

    descriptor: int
    lease: lease.Lease | None


def take(folder: Path) -> Lock | None:
    """Lock ``folder``, which is created if missing; return None if another process holds the lock.

    Tries several times, because another process that has done nothing in the folder may remove it
    at the same moment.
    """
    reason = None
    for _ in range(100):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if folder.exists() and not folder.is_dir():
                raise files.unwritable(folder, "a file is in its place") from error
            if not isinstance(error, (FileNotFoundError, FileExistsError)):
                raise files.unwritable(folder, error.strerror) from error
            reason = error
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(folder / LOCK)):
                break
        except BlockingIOError:
            os.close(lock)
            return None
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(lock)
            raise files.unwritable(folder, f"it cannot be locked: {error.strerror}") from error
        os.close(lock)
    else:
        why = reason.strerror if reason else "other processes keep removing it"
        raise files.unwritable(folder, why) from reason
    try:
        held = lease.take(folder / OWNER, lock)
    except OSError:  # a full disk: the lock alone must do
        return Lock(lock, None)
    except BaseException:
        os.close(lock)
        raise
    if held is None:
        os.close(lock)
        return None
    return Lock(lock, held)


def release(folder: Path, lock: Lock) -> None:
    """Unlock ``folder``; remove it if the run has written nothing."""
    try:
        if lock.lease is not None:
            lock.lease.release()
        with suppress(OSError):
            if {path.name for path in folder.iterdir()} == {LOCK}:
                (folder / LOCK).unlink()
                folder.rmdir()  # fails if another process has just begun to use it
    finally:
        os.close(lock.descriptor)
