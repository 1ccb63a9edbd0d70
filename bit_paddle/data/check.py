"""Broken images are found before training, not in the middle of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bit_paddle.data.images import FileImages, Images
from bit_paddle.data.readers.listing import remember, remembered
from bit_paddle.errors import DataError
from bit_paddle.system.progress import progress_bar

CHOICES = ("error", "skip")

_SHOWN = 10


def faults(
    images: Images, indices: np.ndarray, workers: int, thorough: bool = False
) -> dict[int, str]:
    """Return {index: what is wrong} of the images of ``indices`` that cannot be used.

    `FileImages.fault` says how it looks, and what ``thorough`` means. Images in memory have no
    fault. What is found is remembered until the list of files or a folder's date is another; what
    was broken is looked at again.
    """
    if not isinstance(images, FileImages):
        return {}
    key = _key(images, indices, thorough)
    broken = remembered("checks", key)
    if isinstance(broken, list):
        again = set(broken)
        indices = np.array([k for k in indices if images.paths[k] in again], np.int64)
    found = {}
    chunks = np.array_split(indices, max(1, len(indices) // 64))

    def look(chunk: np.ndarray) -> list[tuple[int, str | None]]:
        return [(int(index), images.fault(index, thorough)) for index in chunk]

    with (
        progress_bar(desc="checking images", unit="img", total=len(indices), delay=2) as bar,
        ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        for chunk in pool.map(look, chunks):
            found.update((index, fault) for index, fault in chunk if fault)
            bar.update(len(chunk))
    paths = [images.paths[index] for index in sorted(found)]
    if paths != broken:
        remember("checks", key, paths)
    return found


def _key(images: FileImages, indices: np.ndarray, thorough: bool) -> str:
    """Return what a check is remembered by: the files' names, and the dates of their folders."""
    root = os.path.abspath(images.root)
    paths = [images.paths[index] for index in indices]
    dates = []
    for folder in sorted({os.path.dirname(path) for path in paths}):
        with contextlib.suppress(OSError):
            dates.append(os.stat(os.path.join(root, folder)).st_ctime_ns)
    content = "\n".join([root, *paths, repr(dates), str(thorough)])
    return hashlib.sha1(content.encode(errors="surrogateescape")).hexdigest()


def usable(images: Images, workers: int, every_class: bool) -> tuple[Images, list[str]]:
    """Return ``images`` without those that cannot be decoded, and what is wrong with these.

    Every image is decoded once, for a run must not stop at one. Raises `DataError` if none is left,
    or with ``every_class`` if a class has none left.
    """
    found = faults(images, np.arange(len(images)), workers, thorough=True)
    if not found:
        return images, []
    rest = images.subset(np.setdiff1d(np.arange(len(images)), list(found)))
    before, after = (
        np.bincount(some.labels, minlength=len(images.classes)) for some in (images, rest)
    )
    lost = [images.classes[label] for label in np.flatnonzero((before > 0) & (after == 0))]
    if lost and (every_class or not len(rest)):
        raise DataError(
            f"--on_bad_image skip: no image of {', '.join(lost[:5])} can be read: "
            f"{found[min(found)]}"
        )
    return rest, [found[index] for index in sorted(found)]


def require_usable(parts: Sequence[tuple[Images, np.ndarray]], workers: int) -> None:
    """Raise `DataError` that names the images of all ``parts`` which cannot be used.

    A part is a set of images and the indices of those that are needed.
    """
    texts: list[str] = []
    for images, indices in parts:
        found = faults(images, indices, workers)
        texts += [found[index] for index in sorted(found)]
    if texts:
        listed = "\n  ".join(texts[:_SHOWN])
        more = f"\n  and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
        count = sum(len(indices) for _, indices in parts)
        raise DataError(
            f"{len(texts):,} of {count:,} images cannot be used; "
            f"--on_bad_image skip goes on without them\n  {listed}{more}"
        )
