"""Exact copies: files with the same content, within and across the parts of a data set.

Only files of one size can be copies, so only those are read. Their hashes are cached by path, size
and date, in one file per data set.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from bit_paddle.data import stamps
from bit_paddle.data.images import Dataset, FileImages
from bit_paddle.system.progress import progress_bar
from bit_paddle.system.text import plural

_KIND = "hashes-1"  # the number changes with the format of the cached hashes

_BLOCK = 1 << 24  # bytes of a file that are read at once


class Part(NamedTuple):
    """A part of a data set: its name, its images, and their absolute paths."""

    title: str
    images: FileImages
    paths: list[str]


def parts_of(data: Dataset, subset: np.ndarray | None = None) -> list[Part]:
    """Return the parts of ``data`` that are files; of training images only those of ``subset``."""
    parts = []
    for title, images in (("training", data.train), ("validation", data.val), ("test", data.test)):
        if isinstance(images, FileImages):
            root = os.path.join(os.path.realpath(images.root or ""), "")
            chosen = images.paths
            if title == "training" and subset is not None:
                chosen = map(images.paths.__getitem__, subset.tolist())
            paths = [path if path[:1] == os.sep else root + path for path in chosen]
            parts.append(Part(title, images, paths))
    return parts


def notes(data: Dataset, subset: np.ndarray, workers: int) -> list[str]:
    """Return a note for each part of ``data`` whose images are copies of images in earlier parts.

    Of the training images those of ``subset`` count. A file that is in both parts under one path is
    no copy; the reader of lists reports it. Images in memory are not compared.
    """
    parts = parts_of(data, subset)
    if len(parts) < 2:
        return []
    paths = [path for part in parts for path in part.paths]
    numbers = np.repeat(np.arange(len(parts)), [len(part.paths) for part in parts])
    hashes = content_hashes(paths, numbers, cache_key(parts), workers)
    found = []
    for number, part in enumerate(parts[1:], 1):
        earlier = np.flatnonzero((numbers < number) & (hashes != 0))
        own = np.flatnonzero(numbers == number)
        copies = own[np.isin(hashes[own], hashes[earlier])]
        same = {paths[index] for index in earlier} if len(copies) else set()
        count = sum(paths[index] not in same for index in copies)
        if count:
            others = " or ".join(before.title for before in parts[:number])
            verb = "is a copy" if count == 1 else "are copies"
            found.append(
                f"{plural(count, f'{part.title} image')} {verb} of {others} images: the "
                f"{part.title} accuracy is too high by them; bit_paddle audit lists them, and "
                "writes a file for --exclude"
            )
    return found


def cache_key(parts: Sequence[Part]) -> str:
    """Return the key under which the hashes of a data set are cached: its folders."""
    return "\n".join(sorted({os.path.realpath(part.images.root or "") for part in parts}))


# --- Hashes of files ----------------------------------------------------------------------------


class _Hashes(NamedTuple):
    """Files, their sizes and dates (int64 [N]), and hashes of their content (uint64 [N]).

    The hash is 0 for a file that was not read, and the date is 0 for one that is not settled.
    """

    paths: bytes  # joined by zeros
    sizes: np.ndarray
    dates: np.ndarray
    hashes: np.ndarray


def content_hashes(paths: Sequence[str], groups: np.ndarray, key: str, workers: int) -> np.ndarray:
    """Return a hash of the content of each file, uint64 [N]; 0 for a file without a copy.

    Only copies in different ``groups``, int64 [N], matter: a file is read if its size occurs in
    another group too. The hashes are cached under ``key``. By chance, two of a million different
    files have the same hash with a probability of 3e-8.
    """
    sizes, dates = stamps.sizes_and_dates(paths)
    hashes, shared = np.zeros(len(paths), np.uint64), _shared(sizes, groups)
    joined = "\0".join(paths).encode(errors="surrogateescape")
    now, cached = _Hashes(joined, sizes, dates, hashes), _cached(key)
    if cached is not None:
        hashes[:] = _known(now, cached, paths)
    missing = np.flatnonzero(shared & (hashes == 0))
    if len(missing):
        started = time.time_ns()
        hashes[missing] = _read([paths[k] for k in missing], sizes[missing].tolist(), workers)
        dates[stamps.are_unsettled(dates, started)] = 0
    if cached is None or len(missing) or now.paths != cached.paths:
        _cache(key, now, cached)
    return np.where(shared, hashes, 0)


def _shared(sizes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return whether each size occurs in several groups."""
    distinct, places = np.unique(sizes, return_inverse=True)
    lowest, highest = np.full(len(distinct), len(sizes) + 1), np.full(len(distinct), -1)
    np.minimum.at(lowest, places, groups)
    np.maximum.at(highest, places, groups)
    return (lowest != highest)[places] & (sizes > 0)


def _read(paths: Sequence[str], sizes: Sequence[int], workers: int) -> np.ndarray:
    """Return the hashes of files; 0 for those that cannot be read."""
    result = np.zeros(len(paths), np.uint64)
    chunks = np.array_split(np.arange(len(paths)), max(1, len(paths) // 512))

    def look(chunk: np.ndarray) -> tuple[np.ndarray, list[int]]:
        return chunk, [_hash(paths[k], sizes[k]) for k in chunk.tolist()]

    with (
        progress_bar(desc="looking for copies", unit="img", total=len(paths), delay=2) as bar,
        ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        for chunk, values in pool.map(look, chunks):
            result[chunk] = values
            bar.update(len(chunk))
    return result


def _hash(path: str, size: int) -> int:
    """Return 8 bytes of the SHA-256 of a file of ``size`` bytes; 0 if it cannot be read.

    `os.read` of the known size takes half the time of a file object, for small files.
    """
    digest = hashlib.sha256()
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            while size > 0 and (block := os.read(descriptor, min(size, _BLOCK))):
                digest.update(block)
                size -= len(block)
        finally:
            os.close(descriptor)
    except OSError:
        return 0
    return int.from_bytes(digest.digest()[:8], "little") or 1


# --- The cache between runs ---------------------------------------------------------------------


def _known(now: _Hashes, cached: _Hashes, paths: Sequence[str]) -> np.ndarray:
    """Return the cached hash of each file whose size and date are unchanged, else 0."""
    rows = np.arange(len(paths))
    if now.paths != cached.paths:
        row_of = {path: row for row, path in enumerate(_names(cached))}
        rows = np.array([row_of.get(path, -1) for path in paths], np.int64)
    same = (rows >= 0) & (cached.sizes[rows] == now.sizes) & (cached.dates[rows] == now.dates)
    return np.where(same & (now.dates != 0), cached.hashes[rows], 0).astype(np.uint64)


def _names(hashes: _Hashes) -> list[str]:
    return hashes.paths.decode(errors="surrogateescape").split("\0")


def _cached(key: str) -> _Hashes | None:
    """Return the cached hashes of a data set; None if they are missing or damaged."""
    arrays = stamps.remembered(_KIND, key, _Hashes._fields)
    if arrays is None:
        return None
    result = _Hashes(arrays[0].tobytes(), *arrays[1:])
    count = result.paths.count(b"\0") + 1
    whole = all(values.shape == (count,) and values.dtype.itemsize == 8 for values in result[1:])
    return result if whole else None


def _cache(key: str, now: _Hashes, cached: _Hashes | None) -> None:
    """Cache ``now``, and the files of ``cached`` that it lacks; nothing if that is impossible."""
    if cached is not None and now.paths != cached.paths:
        own, before = set(_names(now)), _names(cached)
        rows = [row for row, path in enumerate(before) if path not in own]
        paths = [now.paths, *(before[row].encode(errors="surrogateescape") for row in rows)]
        now = _Hashes(
            b"\0".join(paths),
            *(np.concatenate([new, old[rows]]) for new, old in zip(now[1:], cached[1:])),
        )
    stamps.remember(_KIND, key, {**now._asdict(), "paths": np.frombuffer(now.paths, np.uint8)})
