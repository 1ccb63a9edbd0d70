"""Micro-batches for training and evaluation, decoded ahead by a pool of threads.

Pillow decodes and resizes without Python's lock, so threads use the cores, share memory without
``/dev/shm``, and end with the process. Every random number depends on (seed, step) and the
position in the step's batch alone: the number of workers changes nothing, and any step can be
made without the ones before it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from bit_paddle.data.images import Images
from bit_paddle.data.transforms import evaluation_view, resized, training_view
from bit_paddle.hyperrule import Resolution

ORDER, VIEW, MIXUP = range(3)  # separate streams of random numbers

View = Callable[[np.ndarray], None]  # fills uint8 [3, crop, crop]


class MicroBatch(NamedTuple):
    """``images`` uint8 [N, 3, crop, crop], ``labels`` int64 [N], reader's ``indices`` [N]."""

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


def generator(seed: int, stream: int, count: int) -> np.random.Generator:
    """Return the random numbers of one stream for one step (or, of ORDER, one epoch)."""
    return np.random.default_rng([seed, stream, count])


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, ORDER, epoch).permutation(size)


def step_positions(dataset_size: int, batch: int, seed: int, step: int) -> np.ndarray:
    """Return which of ``dataset_size`` images make the batch of ``step``.

    Each epoch is a new permutation; its last batch is what is left of it. A set smaller than the
    batch is sampled with replacement, so that few-shot runs train on full batches as in the
    paper.
    """
    if dataset_size < batch:
        return generator(seed, ORDER, step).integers(0, dataset_size, batch)
    epoch, place = divmod(step, -(-dataset_size // batch))
    return _permutation(dataset_size, seed, epoch)[place * batch : (place + 1) * batch]


def resized_bytes(count: int, side: int) -> int:
    """Return the memory that ``count`` images of ``side`` x ``side`` pixels take."""
    return count * 3 * side * side


class ResizedImages:
    """Images as three bands uint8 [side, side], kept once they are made if ``memory`` holds all.

    ``memory`` is in bytes, of ``count`` images. What is kept spares decoding and resizing from the
    second epoch on, and changes nothing else.
    """

    def __init__(self, images: Images, side: int, count: int, memory: int):
        self._images, self._side = images, side
        self._keeps = resized_bytes(count, side) <= memory
        self._kept: dict[int, list[np.ndarray]] = {}

    def __call__(self, index: int) -> list[np.ndarray]:
        bands = self._kept.get(index)
        if bands is None:
            bands = resized(self._images.image(index), self._side)
            if self._keeps:
                self._kept[index] = bands
        return bands


def training_batches(
    images: Images,
    subset: np.ndarray,
    resolution: Resolution,
    batch: int,
    batch_split: int,
    seed: int,
    workers: int,
    flip: bool = True,
    memory: int = 0,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[list[MicroBatch]]:
    """Yield, without end, the micro-batches of each optimizer step from step ``start`` on.

    A batch of ``subset`` (indices into ``images``) is cut into a share for each of ``world_size``
    processes, and that of ``rank`` into ``batch_split`` parts of equal size; the smaller batch that
    ends an epoch into nearly equal ones, as many as have an image. Put together, the shares are the
    batch of one process. Without ``flip`` no image is mirrored; ``memory`` is that of
    `ResizedImages`.
    """
    precrop, crop = resolution.precrop, resolution.crop
    source = ResizedImages(images, precrop, len(subset), memory)

    def step_jobs(step: int) -> list[tuple[np.ndarray, list[View]]]:
        indices = subset[step_positions(len(subset), batch, seed, step)]
        random = generator(seed, VIEW, step)
        corners = random.integers(0, precrop - crop + 1, (len(indices), 2)).tolist()
        flips = ((random.random(len(indices)) < 0.5) & flip).tolist()

        def view(index: int, top: int, left: int, mirrored: bool, out: np.ndarray) -> None:
            training_view(source(index), top, left, mirrored, out)

        views = [
            partial(view, index, top, left, mirrored)
            for index, (top, left), mirrored in zip(indices.tolist(), corners, flips)
        ]
        share = np.array_split(np.arange(len(indices)), world_size)[rank]
        return [
            (indices[part], [views[k] for k in part])
            for part in np.array_split(share, min(batch_split, len(share)) or 1)
            if len(part)
        ]

    steps, again = itertools.tee(map(step_jobs, itertools.count(start)))
    every_job = itertools.chain.from_iterable(steps)
    with closing(_made(images, every_job, crop, workers, ahead=batch_split + 1)) as stream:
        for jobs in again:
            yield list(itertools.islice(stream, len(jobs)))


def evaluation_batches(
    images: Images,
    crop: int,
    batch: int,
    workers: int,
    resize: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[MicroBatch]:
    """Yield all of ``images`` in order, ``batch`` at a time; the last batch may be smaller.

    Of ``world_size`` processes, that of ``rank`` has a share, and no image is in two. ``crop`` and
    ``resize`` are those of `transforms.evaluation_view`.
    """

    def view(index: int, out: np.ndarray) -> None:
        out[:] = evaluation_view(images.image(index), crop, resize)

    share = np.array_split(np.arange(len(images)), world_size)[rank]
    parts = (share[start : start + batch] for start in range(0, len(share), batch))
    jobs = ((part, [partial(view, index) for index in part]) for part in parts)
    return _made(images, jobs, crop, workers, ahead=2)


def _made(
    images: Images,
    jobs: Iterable[tuple[np.ndarray, list[View]]],
    crop: int,
    workers: int,
    ahead: int,
) -> Iterator[MicroBatch]:
    """Yield the micro-batch of each (indices, views), keeping ``ahead`` of them under way."""

    def make(views: list[View], out: np.ndarray) -> None:
        for view, place in zip(views, out):
            view(place)

    def empty(indices: np.ndarray) -> MicroBatch:
        pixels = np.empty((len(indices), 3, crop, crop), np.uint8)
        return MicroBatch(pixels, images.labels[indices], indices)

    if workers == 0:
        for indices, views in jobs:
            batch = empty(indices)
            make(views, batch.images)
            yield batch
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    under_way: deque[tuple[MicroBatch, list[Future]]] = deque()

    def next_done() -> MicroBatch:
        batch, futures = under_way.popleft()
        for future in futures:
            future.result()
        return batch

    try:
        for indices, views in jobs:
            batch = empty(indices)
            cuts = np.linspace(0, len(indices), min(workers, len(indices)) + 1).astype(int)
            futures = [
                pool.submit(make, views[low:high], batch.images[low:high])
                for low, high in zip(cuts, cuts[1:])
            ]
            under_way.append((batch, futures))
            if len(under_way) > ahead:
                yield next_done()
        while under_way:
            yield next_done()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
