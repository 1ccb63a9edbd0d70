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
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from bit_paddle.data.images import Images
from bit_paddle.data.transforms import evaluation_view, training_view
from bit_paddle.hyperrule import Resolution

ORDER, VIEW, MIXUP = range(3)  # separate streams of random numbers

View = Callable[[Image.Image], np.ndarray]  # -> uint8 [3, crop, crop]


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


def training_batches(
    images: Images,
    subset: np.ndarray,
    resolution: Resolution,
    batch: int,
    batch_split: int,
    seed: int,
    workers: int,
    start: int = 0,
) -> Iterator[list[MicroBatch]]:
    """Yield, without end, the micro-batches of each optimizer step from step ``start`` on.

    A batch of ``subset`` (indices into ``images``) is cut into ``batch_split`` parts of equal
    size; the smaller batch that ends an epoch into nearly equal ones, as many as have an image.
    """
    precrop, crop = resolution.precrop, resolution.crop

    def step_jobs(step: int) -> list[tuple[np.ndarray, list[View]]]:
        indices = subset[step_positions(len(subset), batch, seed, step)]
        random = generator(seed, VIEW, step)
        corners = random.integers(0, precrop - crop + 1, (len(indices), 2))
        flips = random.random(len(indices)) < 0.5
        views = [
            partial(training_view, precrop=precrop, crop=crop, top=top, left=left, flip=flip)
            for (top, left), flip in zip(corners, flips)
        ]
        return [
            (indices[part], [views[k] for k in part])
            for part in np.array_split(np.arange(len(indices)), min(batch_split, len(indices)))
        ]

    steps, again = itertools.tee(map(step_jobs, itertools.count(start)))
    every_job = itertools.chain.from_iterable(steps)
    with closing(_decoded(images, every_job, workers, ahead=batch_split + 1)) as stream:
        for jobs in again:
            yield list(itertools.islice(stream, len(jobs)))


def evaluation_batches(
    images: Images, crop: int, batch: int, workers: int, resize: int | None = None
) -> Iterator[MicroBatch]:
    """Yield all of ``images`` in order, ``batch`` at a time; the last batch may be smaller.

    ``crop`` and ``resize`` are those of `transforms.evaluation_view`.
    """
    view = partial(evaluation_view, crop=crop, resize=resize)
    jobs = (
        (part, [view] * len(part))
        for part in (
            np.arange(start, min(start + batch, len(images)))
            for start in range(0, len(images), batch)
        )
    )
    return _decoded(images, jobs, workers, ahead=2)


def _decoded(
    images: Images, jobs: Iterable[tuple[np.ndarray, list[View]]], workers: int, ahead: int
) -> Iterator[MicroBatch]:
    """Yield the micro-batch of each (indices, views), keeping ``ahead`` of them under way."""

    def decode(indices: np.ndarray, views: list[View]) -> list[np.ndarray]:
        return [view(images.image(index)) for index, view in zip(indices, views)]

    def batch(indices: np.ndarray, parts: Iterable[list[np.ndarray]]) -> MicroBatch:
        pixels = np.stack([pixels for part in parts for pixels in part])
        return MicroBatch(pixels, images.labels[indices], indices)

    if workers == 0:
        for indices, views in jobs:
            yield batch(indices, [decode(indices, views)])
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    under_way = deque()
    try:
        for indices, views in jobs:
            chunks = np.array_split(np.arange(len(indices)), min(workers, len(indices)))
            under_way.append(
                (
                    indices,
                    [
                        pool.submit(decode, indices[chunk], [views[k] for k in chunk])
                        for chunk in chunks
                    ],
                )
            )
            if len(under_way) > ahead:
                done, futures = under_way.popleft()
                yield batch(done, (future.result() for future in futures))
        for done, futures in under_way:
            yield batch(done, (future.result() for future in futures))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
