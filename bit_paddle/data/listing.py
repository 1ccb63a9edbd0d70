"""The image files below a folder, listed once: the next start asks each folder for its date alone.

A list is kept in the cache (`catalog.cache_dir`). A folder whose date of change is another is read
again; so is one that changed within two seconds of being read, as its date may not show a further
change. What files hold is not looked at here.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from bit_paddle import catalog, files
from bit_paddle.data.images import SUFFIXES
from bit_paddle.errors import DataError, WriteError
from bit_paddle.logbook import progress_bar

_SETTLED = 2_000_000_000  # nanoseconds; the coarsest dates, those of FAT, count in two seconds


def list_images(root: Path) -> dict[str, list[str]]:
    """Return the image files below ``root``, at any depth, by first folder ("": in none).

    Paths are relative to ``root`` and sorted. An image is known by its suffix, in any case; names
    that start with a dot are left out. Links are followed, each folder once. Raises `DataError` if
    a folder cannot be read.
    """
    home = os.path.realpath(root)
    cached = remembered("listing", home)
    cached = cached if isinstance(cached, dict) else {}
    folders: dict[str, list] = {}  # relative path -> [date, images, folders]
    seen = set()
    with progress_bar(desc=f"listing {root}", unit=" files", delay=2) as bar:
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            path = os.path.join(home, folder)
            try:
                status = os.stat(path)
                if (status.st_dev, status.st_ino) in seen:  # a link that leads back
                    continue
                seen.add((status.st_dev, status.st_ino))
                entry = cached.get(folder)
                if not isinstance(entry, list) or entry[0] != status.st_mtime_ns:
                    entry = _read_folder(path, status.st_mtime_ns)
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror})") from error
            folders[folder] = entry
            bar.update(len(entry[1]))
            waiting += [os.path.join(folder, inner) for inner in entry[2]]
    if folders != cached:
        remember("listing", home, folders)
    by_folder: dict[str, list[str]] = {name: [] for name in sorted(folders[""][2])}
    for folder, (_, images, _) in folders.items():
        first = folder.split(os.sep, 1)[0]
        by_folder.setdefault(first, []).extend(os.path.join(folder, name) for name in images)
    for paths in by_folder.values():
        paths.sort()
    return by_folder


def _read_folder(path: str, date: int) -> list:
    images, folders = [], []
    now = time.time_ns()
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                images.append(entry.name)
    return [date if date < now - _SETTLED else 0, images, folders]


# --- What is remembered between runs ------------------------------------------------------------


def remembered(kind: str, key: str) -> Any:
    """Return what was remembered under ``key``; None where that is nothing, or damaged."""
    try:
        return json.loads(_memory(kind, key).read_bytes().decode(errors="surrogateescape"))
    except (OSError, ValueError):
        return None


def remember(kind: str, key: str, value: Any) -> None:
    """Keep ``value`` for the next run; where the cache cannot be written, it does without."""
    path = _memory(kind, key)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, lambda stream: stream.write(text.encode(errors="surrogateescape")))
    except (OSError, WriteError):
        pass


def _memory(kind: str, key: str) -> Path:
    digest = hashlib.sha1(key.encode(errors="surrogateescape")).hexdigest()
    return catalog.cache_dir() / kind / f"{digest}.json"
