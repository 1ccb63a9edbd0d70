"""List the image files below a folder; later starts only check the date of each folder.

The list is cached in `fetch.cache_dir`. A folder is read again if its ctime has changed (no tool
can set the ctime, unlike the mtime), or if it changed within two seconds before it was read, as
another change may have the same date. The files themselves are not opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from bit_paddle.data.images import SUFFIXES
from bit_paddle.errors import DataError
from bit_paddle.system import fetch, files
from bit_paddle.system.progress import progress_bar

_KIND = "listing-2"  # the number changes with the format of the cached list

SETTLED = 2_000_000_000  # nanoseconds: FAT, with the coarsest dates, counts in two seconds


class Listed(NamedTuple):
    """The files below a folder, at any depth."""

    images: dict[str, list[str]]  # sorted relative paths by first folder ("": in no folder)
    others: Counter[str]  # number of other files in folders, by extension


def list_images(root: Path) -> Listed:
    """Return the files below ``root``.

    The extension, in any case, tells whether a file is an image. Names that start with a dot are
    skipped. Links are followed unless they lead back. Raises `DataError` for an unreadable folder.
    """
    home = os.path.realpath(root)
    cached = remembered(_KIND, home)
    cached = cached if isinstance(cached, dict) else {}
    folders: dict[str, list] = {}  # relative path -> [date, images, folders, {suffix: others}]
    with progress_bar(desc=f"listing {root}", unit=" files", delay=2) as bar:
        waiting: list[tuple[str, frozenset]] = [("", frozenset())]  # folder, its parents
        while waiting:
            folder, outer = waiting.pop()
            path = os.path.join(home, folder)
            try:
                status = os.stat(path)
                itself = (status.st_dev, status.st_ino)
                if itself in outer:  # a link that leads back
                    continue
                entry = cached.get(folder)
                if not isinstance(entry, list) or entry[:1] != [status.st_ctime_ns]:
                    entry = _read_folder(path, status.st_ctime_ns)
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror})") from error
            folders[folder] = entry
            bar.update(len(entry[1]))
            waiting += [(os.path.join(folder, inner), outer | {itself}) for inner in entry[2]]
    if folders != cached:
        remember(_KIND, home, folders)
    by_folder: dict[str, list[str]] = {name: [] for name in sorted(folders[""][2])}
    others: Counter[str] = Counter()
    for folder, (_, images, _, rest) in folders.items():
        others.update(rest if folder else {})
        first = folder.split(os.sep, 1)[0]
        prefix = os.path.join(folder, "")
        by_folder.setdefault(first, []).extend(prefix + name for name in images)
    for paths in by_folder.values():
        paths.sort()
    return Listed(by_folder, others)


def _read_folder(path: str, date: int) -> list:
    images, folders, others = [], [], Counter()
    now = time.time_ns()
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                folders.append(entry.name)
            elif suffix in SUFFIXES:
                images.append(entry.name)
            else:
                others[suffix] += 1
    return [date if date < now - SETTLED else 0, images, folders, others]


# --- The cache between runs ----------------------------------------------------------------------


def remembered(kind: str, key: str) -> Any:
    """Return the cached value of ``key``; None if it is missing or damaged."""
    try:
        return json.loads(_memory(kind, key).read_bytes().decode(errors="surrogateescape"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home folder
        return None


def remember(kind: str, key: str, value: Any) -> None:
    """Cache ``value`` for the next run; do nothing if the cache cannot be written."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        path = _memory(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, lambda stream: stream.write(text.encode(errors="surrogateescape")))
    except (OSError, RuntimeError):
        pass


def _memory(kind: str, key: str) -> Path:
    digest = hashlib.sha1(key.encode(errors="surrogateescape")).hexdigest()
    return fetch.cache_dir() / kind / f"{digest}.json"
