"""Micro-batches for training and evaluation, decoded ahead by a pool of threads.

Pillow decodes and resizes without Python's lock, so threads use the cores, share memory without
``/dev/shm``, and end with the process. Small images are resized several in one call: one by one,
threads would mostly wait for the lock. Every random number depends only on (seed, step) and the
position in the step's batch: the number of workers does not change the result, and any step can be
computed without the steps before it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import lru_cache, partial
from typing import NamedTuple, TypeVar

import numpy as np

from bit_paddle.data.images import Images
from bit_paddle.data.labels import Labels, every
from bit_paddle.data.preprocessing import Look, Preprocessing
from bit_paddle.data.shards import windows as shard_windows
from bit_paddle.data.threads import Threads, results
from bit_paddle.data.transforms import (
    Bands,
    crops,
    inception_view,
    together,
    training_view,
)
from bit_paddle.recipes.hyperrule import Resolution

ORDER, VIEW, MIXUP, INCEPTION = range(4)  # separate streams of random numbers

# Fills uint8 [high - low, 3, crop, crop] with the views ``low`` to ``high`` of a batch
Draw = Callable[[int, int, np.ndarray], None]

Job = TypeVar("Job")


class MicroBatch(NamedTuple):
    """Images uint8 [N, 3, crop, crop], their labels, and the images' indices in the reader.

    The labels are int64 [N], or `LabelSets` if an image may have several. With MixUp also the
    images and labels of the partners.
    """

    images: np.ndarray
    labels: Labels
    indices: np.ndarray
    partner_images: np.ndarray | None = None
    partner_labels: Labels | None = None


class Batch(NamedTuple):
    """One process's share of an optimizer step.

    ``indices``, ``labels`` and ``partners`` cover the whole step, of all processes; ``partners``
    has the position in the batch of each image's MixUp partner. ``lam`` is MixUp's lambda, 1 for no
    MixUp. ``share`` are the positions of this process. ``pixels`` uint8 [N, 3, crop, crop] belong
    to the positions ``places``: the share, and the partners of its images.
    """

    indices: np.ndarray
    labels: Labels
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
def _permutation(
    size: int, seed: int, epoch: int, windows: shard_windows.Windows | None
) -> np.ndarray:
    random = generator(seed, ORDER, epoch)
    order = every(size)
    random.shuffle(order)  # draws what permutation(size) draws, in half of the memory
    return order if windows is None else windows.ordered(order, random)


def step_positions(
    dataset_size: int,
    batch: int,
    seed: int,
    step: int,
    windows: shard_windows.Windows | None = None,
) -> np.ndarray:
    """Return the indices, below ``dataset_size``, of the images in the batch of ``step``.

    Each epoch is a new permutation, and its last batch may be smaller. A set smaller than the batch
    is sampled with replacement, so that few-shot runs train on full batches as in the paper.
    With ``windows``, an epoch goes through one window after the other.
    """
    if dataset_size < batch:
        return generator(seed, ORDER, step).integers(0, dataset_size, batch)
    epoch, position = divmod(step, -(-dataset_size // batch))
    order = _permutation(dataset_size, seed, epoch, windows)
    return order[position * batch : (position + 1) * batch].astype(np.int64)


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
        self._cache: dict[int, Bands] = {}
        self._together = together((side, side))

    def crops(
        self, indices: Sequence[int], corners: Sequence[tuple[int, int]], crop: int
    ) -> Iterator[Bands]:
        """Yield the crop [crop, crop] of each image of ``indices`` at its (top, left)."""
        size = self._side, self._side
        if not self._caches:
            yield from crops(self._images, indices, lambda k, *_: (size, corners[k][::-1]), crop)
            return
        for start in range(0, len(indices), self._together):
            some = slice(start, start + self._together)
            missing = [k for k in dict.fromkeys(indices[some]) if k not in self._cache]
            whole = crops(self._images, missing, lambda *_: (size, (0, 0)), self._side)
            self._cache.update(zip(missing, whole))
            for index, (top, left) in zip(indices[some], corners[some]):
                bands = self._cache[index]
                yield [band[top : top + crop, left : left + crop] for band in bands]


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
    windows = shard_windows.begin(images, subset)

    def job(step: int) -> tuple[tuple, Draw, int, int]:
        positions = step_positions(len(subset), batch, seed, step, windows)
        indices = subset[positions].astype(np.int64)
        if windows is not None:
            _prefetch(windows, positions, len(subset), batch, seed, step)
        random = generator(seed, VIEW, step)
        corners = random.integers(0, precrop - crop + 1, (len(indices), 2)).tolist()
        flips = ((random.random(len(indices)) < 0.5) & flip).tolist()
        lam, partners = draw_mixup(mixup_alpha, len(indices), generator(seed, MIXUP, step))
        share = np.array_split(np.arange(len(indices)), world_size)[rank]
        others = np.setdiff1d(partners[share], share) if lam != 1.0 else share[:0]
        places = np.concatenate([share, others])
        rows = indices.tolist()
        shown = places.tolist() if decoded else []

        def draw(low: int, high: int, out: np.ndarray) -> None:
            some = shown[low:high]
            if inception:
                for k, pixels in zip(some, out):
                    own = np.random.default_rng((seed, INCEPTION, step, k))
                    inception_view(images.image(rows[k]), own, flips[k], pixels)
            else:
                drawn = source.crops([rows[k] for k in some], [corners[k] for k in some], crop)
                for k, bands, pixels in zip(some, drawn, out):
                    training_view(bands, 0, 0, flips[k], pixels)

        fields = (indices, images.labels[indices], lam, partners, share, places)
        return fields, draw, len(shown), resolution.side(step)

    with closing(_made(map(job, itertools.count(start)), workers, ahead=1)) as stream:
        for fields, pixels in stream:
            yield Batch(*fields, pixels)


def _prefetch(
    windows: shard_windows.Windows,
    positions: np.ndarray,
    dataset_size: int,
    batch: int,
    seed: int,
    step: int,
) -> None:
    """Begin to get the shards that the same epoch needs one window after ``step``."""
    later, steps = step + windows.images // batch, -(-dataset_size // batch)
    if dataset_size >= batch and later // steps == step // steps:
        windows.prefetch(positions, step_positions(dataset_size, batch, seed, later, windows))


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

    def draw(look: Look, part: list[int], low: int, high: int, out: np.ndarray) -> None:
        view = look.preprocessing
        found = crops(
            images,
            part[low:high],
            lambda _, *size: view.geometry(*size, look.corner),
            view.crop,
            view.filter,
        )
        for bands, pixels in zip(found, out):
            training_view(bands, 0, 0, look.mirrored, pixels)

    subset = np.arange(len(images)) if subset is None else subset
    share = np.array_split(subset, world_size)[rank]
    parts = (share[start : start + batch] for start in range(0, len(share), batch))
    jobs = (
        (part, partial(draw, look, part.tolist()), len(part), look.preprocessing.crop)
        for part in parts
        for look in looks
    )
    with closing(_made(jobs, workers, ahead=2)) as stream:
        for part, pixels in stream:
            yield MicroBatch(pixels, images.labels[part], part)


def _made(
    jobs: Iterable[tuple[Job, Draw, int, int]], workers: int, ahead: int
) -> Iterator[tuple[Job, np.ndarray]]:
    """Yield each job with the pixels of its views; ``ahead`` more jobs are decoded meanwhile.

    The last two items of a job are the number of its views and their side in pixels.
    """

    def empty(count: int, crop: int) -> np.ndarray:
        return np.empty((count, 3, crop, crop), np.uint8)

    if workers == 0:
        for job, draw, count, crop in jobs:
            pixels = empty(count, crop)
            draw(0, count, pixels)
            yield job, pixels
        return
    under_way: deque[tuple[Job, np.ndarray, list[Callable[[], None]], list[Future]]] = deque()

    def next_done() -> tuple[Job, np.ndarray]:
        job, pixels, parts, futures = under_way.popleft()
        results(pool, parts, futures, [later for *_, some in under_way for later in some])
        return job, pixels

    with Threads(workers) as pool:
        for job, draw, count, crop in jobs:
            pixels = empty(count, crop)
            cuts = np.linspace(0, count, min(workers, count) + 1).astype(int).tolist()
            parts = [
                partial(draw, low, high, pixels[low:high]) for low, high in zip(cuts, cuts[1:])
            ]
            under_way.append((job, pixels, parts, [pool.submit(part) for part in parts]))
            if len(under_way) > ahead:
                yield next_done()
        while under_way:
            yield next_done()
