"""Micro-batches for training and evaluation, decoded ahead by a pool of threads.

Pillow decodes and resizes without Python's lock, so threads use the cores, share memory without
``/dev/shm``, and end with the process. Every random number depends only on (seed, step) and the
position in the step's batch: the number of workers does not change the result, and any step can be
computed without the steps before it.
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
from bit_paddle.data.preprocessing import Look, Preprocessing
from bit_paddle.data.transforms import evaluation_view, inception_view, resized, training_view
from bit_paddle.recipes.hyperrule import Resolution

ORDER, VIEW, MIXUP, INCEPTION = range(4)  # separate streams of random numbers


View = Callable[[np.ndarray], None]  # fills uint8 [3, crop, crop]

Job = TypeVar("Job")


class MicroBatch(NamedTuple):
    """Images uint8 [N, 3, crop, crop], labels int64 [N], and the images' indices in the reader.

    With MixUp also the images and labels of the partners.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    partner_images: np.ndarray | None = None
    partner_labels: np.ndarray | None = None


class Batch(NamedTuple):
    """One process's share of an optimizer step.

    ``indices``, ``labels`` and ``partners`` cover the whole step, of all processes; ``partners``
    has the position in the batch of each image's MixUp partner. ``lam`` is MixUp's lambda, 1 for no
    MixUp. ``share`` are the positions of this process. ``pixels`` uint8 [N, 3, crop, crop] belong
    to the positions ``places``: the share, and the partners of its images.
    """

    indices: np.ndarray
    labels: np.ndarray
    lam: float
    partners: np.ndarray
    share: np.ndarray
    places: np.ndarray
    pixels: np.ndarray

    def micro_batches(self, split: int) -> Iterator[MicroBatch]:
        """Yield the share in ``split`` nearly equal parts, or in one per image if that is fewer."""
        row = np.empty(len(self.indices), np.int64)  # of `pixels`, by position in the batch
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
    """Return the generator of one stream for one step (for the stream ORDER: one epoch)."""
    return np.random.default_rng([seed, stream, count])


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, ORDER, epoch).permutation(size)


def step_positions(dataset_size: int, batch: int, seed: int, step: int) -> np.ndarray:
    """Return the indices, below ``dataset_size``, of the images in the batch of ``step``.

    Each epoch is a new permutation, and its last batch may be smaller. A set smaller than the batch
    is sampled with replacement, so that few-shot runs train on full batches as in the paper.
    """
    if dataset_size < batch:
        return generator(seed, ORDER, step).integers(0, dataset_size, batch)
    epoch, position = divmod(step, -(-dataset_size // batch))
    return _permutation(dataset_size, seed, epoch)[position * batch : (position + 1) * batch]


def draw_mixup(alpha: float, size: int, generator: np.random.Generator) -> tuple[float, np.ndarray]:
    """Return lambda ~ Beta(alpha, alpha), and the partners of ``size`` images, a permutation.

    MixUp (arXiv 1710.09412) as in BiT, with one lambda per step. The reference code permutes each
    micro-batch separately, so its result depends on the split of the batch. ``alpha`` 0 gives
    lambda 1, which is no MixUp.
    """
    lam = float(generator.beta(alpha, alpha)) if alpha else 1.0
    return lam, generator.permutation(size)


def resized_bytes(count: int, side: int) -> int:
    """Return the bytes that ``count`` images of ``side`` x ``side`` pixels take."""
    return count * 3 * side * side


class ResizedImages:
    """Images as three bands uint8 [side, side], cached if ``count`` images fit in ``memory`` bytes.

    The cache saves decoding and resizing from the second epoch on.
    """

    def __init__(self, images: Images, side: int, count: int, memory: int):
        self._images, self._side = images, side
        self._caches = resized_bytes(count, side) <= memory
        self._cache: dict[int, list[np.ndarray]] = {}

    def __call__(self, index: int) -> list[np.ndarray]:
        bands = self._cache.get(index)
        if bands is None:
            bands = resized(self._images.image(index), self._side)
            if self._caches:
                self._cache[index] = bands
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
    decoded: bool = True,
) -> Iterator[Batch]:
    """Yield the batch of each optimizer step from step ``start`` on, without end.

    Batches are drawn from ``subset``, indices into ``images``. Each batch is split into nearly
    equal shares for ``world_size`` processes; this one decodes the share of ``rank``. Together the
    shares are the batch of a single process: MixUp's partners are drawn over the whole batch, and a
    process also decodes its images' partners in other shares. Without ``flip`` no view is mirrored.
    ``memory`` is that of `ResizedImages`. With ``inception``, views are `transforms.inception_view`
    instead of crops of ``resolution.crop`` from ``resolution.precrop``, and
    ``resolution.alternate`` is the side of those of every second step. Without ``decoded`` batches
    have indices and labels, but no pixels.
    """
    precrop, crop = resolution.precrop, resolution.crop
    source = ResizedImages(images, precrop, len(subset), memory)

    def view(index: int, top: int, left: int, mirrored: bool, out: np.ndarray) -> None:
        training_view(source(index), top, left, mirrored, out)

    def cut(index: int, seeds: Sequence[int], mirrored: bool, out: np.ndarray) -> None:
        inception_view(images.image(index), np.random.default_rng(seeds), mirrored, out)

    def job(step: int) -> tuple[tuple, list[View], int]:
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
            for k in (places.tolist() if decoded else ())
        ]
        fields = (indices, images.labels[indices], lam, partners, share, places)
        return fields, views, resolution.side(step)

    with closing(_made(map(job, itertools.count(start)), workers, ahead=1)) as stream:
        for fields, pixels in stream:
            yield Batch(*fields, pixels)


def evaluation_batches(
    images: Images,
    view: Preprocessing,
    batch: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    subset: np.ndarray | None = None,
) -> Iterator[MicroBatch]:
    """Yield ``images`` in order, ``batch`` at a time; the last batch may be smaller.

    Yields only the share of ``rank`` among ``world_size`` processes; shares do not overlap.
    ``view`` is the preprocessing of the images. ``subset`` are the indices of the images to yield.
    """
    return batches_of_looks(images, [Look(view)], batch, workers, rank, world_size, subset)


def batches_of_looks(
    images: Images,
    looks: Sequence[Look],
    batch: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    subset: np.ndarray | None = None,
) -> Iterator[MicroBatch]:
    """Yield the batches of `evaluation_batches`, each once for each of ``looks``.

    So as many batches as there are looks show the same images. Each look decodes them anew.
    """

    def write(look: Look, index: int, out: np.ndarray) -> None:
        pixels = evaluation_view(images.image(index), look.preprocessing, look.corner)
        out[:] = pixels[:, :, ::-1] if look.mirrored else pixels

    subset = np.arange(len(images)) if subset is None else subset
    share = np.array_split(subset, world_size)[rank]
    parts = (share[start : start + batch] for start in range(0, len(share), batch))
    jobs = (
        (part, [partial(write, look, index) for index in part], look.preprocessing.crop)
        for part in parts
        for look in looks
    )
    with closing(_made(jobs, workers, ahead=2)) as stream:
        for part, pixels in stream:
            yield MicroBatch(pixels, images.labels[part], part)


def _made(
    jobs: Iterable[tuple[Job, list[View], int]], workers: int, ahead: int
) -> Iterator[tuple[Job, np.ndarray]]:
    """Yield each job with the pixels of its views; ``ahead`` more jobs are decoded meanwhile.

    The last item of a job is the side of its views in pixels.
    """

    def make(views: list[View], out: np.ndarray) -> None:
        for view, pixels in zip(views, out):
            view(pixels)

    def empty(views: list[View], crop: int) -> np.ndarray:
        return np.empty((len(views), 3, crop, crop), np.uint8)

    if workers == 0:
        for job, views, crop in jobs:
            pixels = empty(views, crop)
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
        for job, views, crop in jobs:
            pixels = empty(views, crop)
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
