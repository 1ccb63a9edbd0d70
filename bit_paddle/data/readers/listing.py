"""List the image files below a folder; later starts only check the date of each folder.

The list is cached in `fetch.cache_dir`. A folder is read again if its ctime has changed (no tool
can set the ctime, unlike the mtime), or if it changed within two seconds before it was read, as
another change may have the same date. The files themselves are not opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from bit_paddle.data.decoding import HEIF_SUFFIXES, SUFFIXES, heif_is_installed
from bit_paddle.errors import DataError
from bit_paddle.system import fetch, files
from bit_paddle.system.progress import progress_bar

# Names that operating systems, network drives and notebooks create, in lower case. Names with a
# dot in front, such as .ipynb_checkpoints and macOS's ._photo.jpg, are left out as well.
SYSTEM_NAMES = frozenset(
    {
        *("$recycle.bin", "system volume information", "found.000", "thumbs.db"),  # Windows
        *("desktop.ini", "ehthumbs.db", "picasa.ini"),
        *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
        *("lost+found", "lost.dir"),  # Linux, Android
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),  # NAS
        "__pycache__",
    }
)

_KIND = "listing-3"  # the number changes with the format of the cached list

SETTLED = 2_000_000_000  # nanoseconds: FAT, with the coarsest dates, counts in two seconds


class Listed(NamedTuple):
    """The files below a folder, at any depth."""

    images: dict[str, list[str]]  # sorted relative paths by first folder ("": in no folder)
    others: Counter[str]  # number of other files in folders, by extension
    left_out: Counter[str]  # number of hidden and system files and folders, by name


def is_left_out(name: str) -> bool:
    """Return whether a file or folder is hidden, or a system made it (`SYSTEM_NAMES`)."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def list_images(root: Path) -> Listed:
    """Return the files below ``root``.

    The extension, in any case, tells whether a file is an image. HEIC files are images only if
    pillow-heif is installed. Hidden and system names (`is_left_out`) are only counted. Links are
    followed unless they lead back. Raises `DataError` for an unreadable folder.
    """
    home = os.path.realpath(root)
    cached = remembered(_KIND, home)
    cached = cached if isinstance(cached, dict) else {}
    # relative path -> [date, images, folders, {suffix: others}, HEIC files, {name: left out}]
    folders: dict[str, list] = {}
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
    return _joined(folders)


def _joined(folders: dict[str, list]) -> Listed:
    """Return the content of all ``folders``, whose format is that of the cached list."""
    by_folder: dict[str, list[str]] = {name: [] for name in sorted(folders[""][2])}
    others: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for folder, (_, images, _, rest, heif, left) in folders.items():
        if heif and heif_is_installed():
            images = images + heif
        elif heif and folder:
            others.update(os.path.splitext(name)[1].lower() for name in heif)
        others.update(rest if folder else {})
        left_out.update(left)
        first = folder.split(os.sep, 1)[0]
        prefix = os.path.join(folder, "")
        by_folder.setdefault(first, []).extend(prefix + name for name in images)
    for paths in by_folder.values():
        paths.sort()
    return Listed(by_folder, others, left_out)


def _read_folder(path: str, date: int) -> list:
    images, folders, others, heif, left_out = [], [], Counter(), [], Counter()
    now = time.time_ns()
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                if entry.is_dir():
                    left_out[name] += 1
                elif suffix in SUFFIXES or suffix in HEIF_SUFFIXES:
                    left_out["._*" if name.startswith("._") else ".*"] += 1
            elif entry.is_dir():
                if is_left_out(name):
                    left_out[name] += 1
                else:
                    folders.append(name)
            elif suffix in SUFFIXES:
                images.append(name)
            elif suffix in HEIF_SUFFIXES:
                heif.append(name)
            elif is_left_out(name):
                left_out[name] += 1
            else:
                others[suffix] += 1
    return [date if date < now - SETTLED else 0, images, folders, others, heif, left_out]


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
    encoding = sys.getfilesystemencoding()  # the names of files in it are other strings in another
    key = key if encoding == "utf-8" else f"{key}\0{encoding}"
    digest = hashlib.sha1(key.encode(errors="surrogateescape")).hexdigest()
    return fetch.cache_dir() / kind / f"{digest}.json"
