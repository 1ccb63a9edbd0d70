"""Micro-batches for training and evaluation, decoded ahead by a pool of threads.

Pillow decodes and resizes without Python's lock, so threads use the cores, share memory without
``/dev/shm``, and end with the process. Every random number depends on (seed, step) and the
position in the step's batch alone: the number of workers changes nothing, and any step can be
made without the ones before it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache, partial
from typing import NamedTuple, TypeVar

import numpy as np

from bit_paddle.data.images import Images
from bit_paddle.data.transforms import evaluation_view, inception_view, resized, training_view
from bit_paddle.recipes.hyperrule import Resolution

ORDER, VIEW, MIXUP, INCEPTION = range(4)  # separate streams of random numbers


View = Callable[[np.ndarray], None]  # fills uint8 [3, crop, crop]

Job = TypeVar("Job")


class MicroBatch(NamedTuple):
    """``images`` uint8 [N, 3, crop, crop], ``labels`` int64 [N], reader's ``indices`` [N].

    With MixUp, the images and labels of the partners as well.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    partner_images: np.ndarray | None = None
    partner_labels: np.ndarray | None = None


class Batch(NamedTuple):
    """One process's share of an optimizer step.

    ``indices`` are those of the whole step, of all processes, and so are ``labels`` and
    ``partners``, for each image the place of the one that it is mixed with; ``lam`` is MixUp's
    lambda, 1 for no MixUp. ``pixels`` [N, 3, crop, crop] uint8 are those of ``places``: of this
    process's ``share``, and of the partners that it needs beside them.
    """

    indices: np.ndarray
    labels: np.ndarray
    lam: float
    partners: np.ndarray
    share: np.ndarray
    places: np.ndarray
    pixels: np.ndarray

    def micro_batches(self, split: int) -> Iterator[MicroBatch]:
        """Yield the share in ``split`` nearly equal parts; in fewer where it has fewer images."""
        row = np.empty(len(self.indices), np.int64)  # of each place that is made here
        row[self.places] = np.arange(len(self.places))
        for places in np.array_split(self.share, min(split, len(self.share)) or 1):
            if not len(places):
                continue
            rows = slice(row[places[0]], row[places[-1]] + 1)
            own = self.pixels[rows], self.labels[places], self.indices[places]
            if self.lam == 1.0:
                yield MicroBatch(*own)
            else:
                partners = self.partners[places]
                yield MicroBatch(*own, self.pixels[row[partners]], self.labels[partners])


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


def draw_mixup(alpha: float, size: int, generator: np.random.Generator) -> tuple[float, np.ndarray]:
    """Return lambda ~ Beta(alpha, alpha), and a partner for each of the ``size`` images of a batch.

    MixUp (arXiv 1710.09412) as BiT does it: one lambda a step; the partners are a permutation of
    the batch. The reference code permutes each micro-batch by itself, so its result depends on how
    a batch is split. Without MixUp (``alpha`` 0) lambda is 1, which changes nothing.
    """
    lam = float(generator.beta(alpha, alpha)) if alpha else 1.0
    return lam, generator.permutation(size)


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
    seed: int,
    workers: int,
    flip: bool = True,
    mixup_alpha: float = 0.0,
    memory: int = 0,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    inception: bool = False,
) -> Iterator[Batch]:
    """Yield, without end, the batch of each optimizer step from step ``start`` on.

    A batch of ``subset`` (indices into ``images``) is cut into a share for each of ``world_size``
    processes, nearly equal ones, of which this one makes that of ``rank``. Put together, the shares
    are the batch of one process: partners for MixUp are drawn over the whole batch, and a process
    makes those of others that its own images are mixed with. Without ``flip`` no image is mirrored;
    ``memory`` is that of `ResizedImages`. ``inception`` takes `transforms.inception_view` instead
    of cutting ``resolution.crop`` out of ``resolution.precrop``.
    """
    precrop, crop = resolution.precrop, resolution.crop
    source = ResizedImages(images, precrop, len(subset), memory)

    def view(index: int, top: int, left: int, mirrored: bool, out: np.ndarray) -> None:
        training_view(source(index), top, left, mirrored, out)

    def cut(index: int, seeds: Sequence[int], mirrored: bool, out: np.ndarray) -> None:
        inception_view(images.image(index), np.random.default_rng(seeds), mirrored, out)

    def job(step: int) -> tuple[tuple, list[View]]:
        indices = subset[step_positions(len(subset), batch, seed, step)]
        random = generator(seed, VIEW, step)
        corners = random.integers(0, precrop - crop + 1, (len(indices), 2)).tolist()
        flips = ((random.random(len(indices)) < 0.5) & flip).tolist()
        lam, partners = draw_mixup(mixup_alpha, len(indices), generator(seed, MIXUP, step))
        share = np.array_split(np.arange(len(indices)), world_size)[rank]
        others = np.setdiff1d(partners[share], share) if lam != 1.0 else share[:0]
        places = np.concatenate([share, others])
        rows = indices.tolist()
        views = [
            partial(cut, rows[k], (seed, INCEPTION, step, k), flips[k])
            if inception
            else partial(view, rows[k], *corners[k], flips[k])
            for k in places.tolist()
        ]
        return (indices, images.labels[indices], lam, partners, share, places), views

    with closing(_made(map(job, itertools.count(start)), crop, workers, ahead=1)) as stream:
        for fields, pixels in stream:
            yield Batch(*fields, pixels)


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
    with closing(_made(jobs, crop, workers, ahead=2)) as stream:
        for part, pixels in stream:
            yield MicroBatch(pixels, images.labels[part], part)


def _made(
    jobs: Iterable[tuple[Job, list[View]]], crop: int, workers: int, ahead: int
) -> Iterator[tuple[Job, np.ndarray]]:
    """Yield each job with the pixels of its views, keeping ``ahead`` of them under way."""

    def make(views: list[View], out: np.ndarray) -> None:
        for view, place in zip(views, out):
            view(place)

    def empty(views: list[View]) -> np.ndarray:
        return np.empty((len(views), 3, crop, crop), np.uint8)

    if workers == 0:
        for job, views in jobs:
            pixels = empty(views)
            make(views, pixels)
            yield job, pixels
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    under_way: deque[tuple[Job, np.ndarray, list[Future]]] = deque()

    def next_done() -> tuple[Job, np.ndarray]:
        job, pixels, futures = under_way.popleft()
        for future in futures:
            future.result()
        return job, pixels

    try:
        for job, views in jobs:
            pixels = empty(views)
            cuts = np.linspace(0, len(views), min(workers, len(views)) + 1).astype(int)
            futures = [
                pool.submit(make, views[low:high], pixels[low:high])
                for low, high in zip(cuts, cuts[1:])
            ]
            under_way.append((job, pixels, futures))
            if len(under_way) > ahead:
                yield next_done()
        while under_way:
            yield next_done()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
