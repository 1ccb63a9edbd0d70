"""The image files below a folder, listed once: the next start asks each folder for its date alone.

A list is kept in the cache (`catalog.cache_dir`). A folder is read again if its ctime is another,
which unlike its date no tool can set; so is one that changed within two seconds of being read, as a
further change may not show. What files hold is not looked at here.
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

_KIND = "listing-2"  # another number for another content

_SETTLED = 2_000_000_000  # nanoseconds; the coarsest dates, those of FAT, count in two seconds


class Listed(NamedTuple):
    """The files below a folder, at any depth."""

    images: dict[str, list[str]]  # sorted relative paths, by first folder ("": in none)
    others: Counter[str]  # how many that are no images lie in folders, by suffix


def list_images(root: Path) -> Listed:
    """Return the files below ``root``.

    An image is known by its suffix, in any case; names that start with a dot are left out. Links
    are followed, unless they lead back. Raises `DataError` if a folder cannot be read.
    """
    home = os.path.realpath(root)
    cached = remembered(_KIND, home)
    cached = cached if isinstance(cached, dict) else {}
    folders: dict[str, list] = {}  # relative path -> [date, images, folders, {suffix: others}]
    with progress_bar(desc=f"listing {root}", unit=" files", delay=2) as bar:
        waiting: list[tuple[str, frozenset]] = [("", frozenset())]  # folder, those it is in
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
    return [date if date < now - _SETTLED else 0, images, folders, others]


# --- What is remembered between runs ------------------------------------------------------------


def remembered(kind: str, key: str) -> Any:
    """Return what was remembered under ``key``; None where that is nothing, or damaged."""
    try:
        return json.loads(_memory(kind, key).read_bytes().decode(errors="surrogateescape"))
    except (OSError, ValueError, RuntimeError):  # the last: there is no home folder
        return None


def remember(kind: str, key: str, value: Any) -> None:
    """Keep ``value`` for the next run; where the cache cannot be written, it does without."""
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
