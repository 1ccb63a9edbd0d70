"""Sizes and dates of files, which tell whether one has changed, and arrays cached beside them."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bit_paddle.data.readers.listing import SETTLED
from bit_paddle.system import fetch, files


def sizes_and_dates(paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return sizes (-1: no file) and ctimes in nanoseconds (0: no file), int64 [N].

    No tool can set a ctime, unlike an mtime.
    """
    sizes, dates = array("q"), array("q")
    stat, add_size, add_date = os.stat, sizes.append, dates.append  # a tenth of the time
    for path in paths:
        try:
            status = stat(path)
        except (OSError, ValueError):  # ValueError: a name with a null byte
            add_size(-1)
            add_date(0)
        else:
            add_size(status.st_size)
            add_date(status.st_ctime_ns)
    return np.array(sizes, np.int64), np.array(dates, np.int64)


def are_unsettled(dates: np.ndarray, now: int) -> np.ndarray:
    """Return for each of ``dates`` whether another change could have the same date, bool [N].

    ``now`` is the time in nanoseconds at which the files were read.
    """
    return dates > now - SETTLED


# --- The cache between runs ---------------------------------------------------------------------


def remembered(kind: str, key: str, names: Sequence[str]) -> list[np.ndarray] | None:
    """Return the cached arrays of ``key`` by their ``names``; None if any is missing or damaged."""
    try:
        with np.load(io.BytesIO(_place(kind, key).read_bytes()), allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None


def remember(kind: str, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Cache ``arrays`` for the next run; do nothing if the cache cannot be written."""
    try:
        place = _place(kind, key)
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write(place, lambda stream: np.savez(stream, **arrays))
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        pass


def _place(kind: str, key: str) -> Path:
    digest = hashlib.sha1(key.encode(errors="surrogateescape")).hexdigest()
    return fetch.cache_dir() / kind / f"{digest}.npz"
