"""Find unreadable images before training starts."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bit_paddle.data import stamps
from bit_paddle.data.images import FileImages, Images
from bit_paddle.data.labels import counts
from bit_paddle.data.shards.images import ShardImages
from bit_paddle.errors import DataError
from bit_paddle.system.progress import progress_bar

CHOICES = ("error", "skip")

_KIND = "checks-2"  # the number changes with the format of the cached dates

_SHOWN = 10


def faults(
    images: Images, indices: np.ndarray, workers: int, thorough: bool = False
) -> dict[int, str]:
    """Return {index: fault} of the unusable images among ``indices``; see `FileImages.fault`.

    Images in memory have no faults, and those in shards only if ``thorough``: then the unusable
    ones are cached. The sizes and dates of sound files are cached, so that the next run checks only
    files that were broken or have changed.
    """
    if isinstance(images, ShardImages):
        return _in_shards(images, indices, workers) if thorough else {}
    if not isinstance(images, FileImages):
        return {}
    root = os.path.join(os.path.abspath(images.root), "")
    paths = [images.paths[index] for index in indices.tolist()]
    paths = [path if path[:1] == os.sep else root + path for path in paths]
    key = "\n".join([*paths, repr((thorough, images.pixel_range))])
    sizes, dates = stamps.sizes_and_dates(paths)
    unknown = np.flatnonzero(~_are_sound(key, sizes, dates))
    if not len(unknown):
        return {}
    started = time.time_ns()
    found = _look(images, indices[unknown], workers, thorough)
    dates[stamps.are_unsettled(dates, started) | np.isin(indices, list(found))] = 0
    stamps.remember(_KIND, key, {"sizes": sizes, "dates": dates})
    return found


def _in_shards(images: ShardImages, indices: np.ndarray, workers: int) -> dict[int, str]:
    """Return the faults of images in shards, whose contents are known by their digest."""
    key = images.digest(indices)
    known = stamps.remembered(_KIND, key, ("broken",))
    if known is not None:
        return _look(images, known[0], workers, True) if len(known[0]) else {}
    found = _look(images, indices, workers, True)
    stamps.remember(_KIND, key, {"broken": np.array(sorted(found), np.int64)})
    return found


def _look(
    images: FileImages | ShardImages, indices: np.ndarray, workers: int, thorough: bool
) -> dict[int, str]:
    """Return the faults of `faults` by reading every file."""
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
    return result


def _are_sound(key: str, sizes: np.ndarray, dates: np.ndarray) -> np.ndarray:
    """Return whether each file is known to be sound and still has its size and date, bool [N]."""
    known = stamps.remembered(_KIND, key, ("sizes", "dates"))
    if known is None or any(values.shape != sizes.shape for values in known):
        return np.zeros(len(sizes), bool)
    return (known[0] == sizes) & (known[1] == dates) & (dates != 0)


def usable(images: Images, workers: int, every_class: bool) -> tuple[Images, list[str]]:
    """Return the decodable images, and a line on the fault of each other image.

    Every image is decoded once. Raises `DataError` if no image is left, or with ``every_class`` if
    a class has none left.
    """
    broken = faults(images, np.arange(len(images)), workers, thorough=True)
    if not broken:
        return images, []
    kept = np.setdiff1d(np.arange(len(images)), list(broken))
    rest = images.chosen(kept, images.labels[kept], images.classes)
    before, after = (counts(part.labels, len(images.classes)) for part in (images, rest))
    lost = [images.classes[label] for label in np.flatnonzero((before > 0) & (after == 0))]
    if lost and (every_class or not len(rest)):
        raise DataError(
            f"--on_bad_image skip: no image of {', '.join(lost[:5])} can be read: "
            f"{broken[min(broken)]}"
        )
    return rest, [broken[index] for index in sorted(broken)]


def require_usable(
    parts: Sequence[tuple[Images, np.ndarray]], workers: int, thorough: bool = False
) -> None:
    """Raise one `DataError` that lists the unusable images of all ``parts``.

    A part is a set of images, and the indices of the images that the run needs. ``thorough``
    decodes every image.
    """
    texts: list[str] = []
    for images, indices in parts:
        broken = faults(images, indices, workers, thorough)
        texts += [broken[index] for index in sorted(broken)]
    if texts:
        listed = "\n  ".join(texts[:_SHOWN])
        more = f"\n  and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
        count = sum(len(indices) for _, indices in parts)
        raise DataError(
            f"{len(texts):,} of {count:,} images cannot be used; "
            f"--on_bad_image skip trains without them\n  {listed}{more}"
        )
