"""Find unreadable images before training starts."""

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
    """Return {index: fault} of the unusable images among ``indices``; see `FileImages.fault`.

    Images in memory have no faults. The result is cached until the list of files or the date of a
    folder changes; images that were broken are checked again each time.
    """
    if not isinstance(images, FileImages):
        return {}
    key = _key(images, indices, thorough)
    broken = remembered("checks", key)
    if broken == []:
        return {}
    if isinstance(broken, list):
        broken_before = set(broken)
        indices = np.array([k for k in indices if images.paths[k] in broken_before], np.int64)
    result = {}
    chunks = np.array_split(indices, max(1, len(indices) // 64))

    def look(chunk: np.ndarray) -> list[tuple[int, str | None]]:
        return [(int(index), images.fault(index, thorough)) for index in chunk]

    with (
        progress_bar(desc="checking images", unit="img", total=len(indices), delay=2) as bar,
        ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        for chunk in pool.map(look, chunks):
            result.update((index, fault) for index, fault in chunk if fault)
            bar.update(len(chunk))
    paths = [images.paths[index] for index in sorted(result)]
    if paths != broken:
        remember("checks", key, paths)
    return result


def _key(images: FileImages, indices: np.ndarray, thorough: bool) -> str:
    """Return the cache key of a check: a hash of the files' names and their folders' dates."""
    root = os.path.abspath(images.root)
    paths = [images.paths[index] for index in indices.tolist()]
    dates = []
    for folder in sorted({path.rpartition(os.sep)[0] for path in paths}):
        with contextlib.suppress(OSError):
            dates.append(os.stat(os.path.join(root, folder)).st_ctime_ns)
    content = "\n".join([root, *paths, repr(dates), str(thorough)])
    return hashlib.sha1(content.encode(errors="surrogateescape")).hexdigest()


def usable(images: Images, workers: int, every_class: bool) -> tuple[Images, list[str]]:
    """Return the decodable images, and a line on the fault of each other image.

    Every image is decoded once. Raises `DataError` if no image is left, or with ``every_class`` if
    a class has none left.
    """
    broken = faults(images, np.arange(len(images)), workers, thorough=True)
    if not broken:
        return images, []
    rest = images.subset(np.setdiff1d(np.arange(len(images)), list(broken)))
    before, after = (
        np.bincount(part.labels, minlength=len(images.classes)) for part in (images, rest)
    )
    lost = [images.classes[label] for label in np.flatnonzero((before > 0) & (after == 0))]
    if lost and (every_class or not len(rest)):
        raise DataError(
            f"--on_bad_image skip: no image of {', '.join(lost[:5])} can be read: "
            f"{broken[min(broken)]}"
        )
    return rest, [broken[index] for index in sorted(broken)]


def require_usable(parts: Sequence[tuple[Images, np.ndarray]], workers: int) -> None:
    """Raise one `DataError` that lists the unusable images of all ``parts``.

    A part is a set of images, and the indices of the images that the run needs.
    """
    texts: list[str] = []
    for images, indices in parts:
        broken = faults(images, indices, workers)
        texts += [broken[index] for index in sorted(broken)]
    if texts:
        listed = "\n  ".join(texts[:_SHOWN])
        more = f"\n  and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
        count = sum(len(indices) for _, indices in parts)
        raise DataError(
            f"{len(texts):,} of {count:,} images cannot be used; "
            f"--on_bad_image skip trains without them\n  {listed}{more}"
        )
