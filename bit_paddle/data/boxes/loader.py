"""Micro-batches of images with boxes for training, decoded ahead by a pool of threads.

As in `data.loader`, every random number depends only on (seed, step) and the position in the step's
batch: workers, processes and the step that a run resumes from do not change the result. The threads
also compute the targets of the anchors.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from bit_paddle.data.boxes.annotations import BoxedImages
from bit_paddle.data.boxes.views import View, jittered
from bit_paddle.data.loader import VIEW, step_positions
from bit_paddle.data.threads import Threads, results


class Views(NamedTuple):
    """How the training views are made: see `views.jittered`."""

    sides: tuple[int, int]
    longest: int
    scales: tuple[float, float]
    flip: bool


# From boxes float32 [N, 4] and labels int64 [N] in a view: arrays of any shapes, the same for each
# image, such as the classes [A] and the codes [A, 4] of anchors.
TargetsOf = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]


class Example(NamedTuple):
    """A training view: pixels uint8 [3, H, W], boxes [N, 4] in it, labels [N], and targets.

    ``shown`` is the (height, width) that is not padding. ``seed`` starts random choices about it.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    shown: tuple[int, int]
    seed: int
    targets: Sequence[np.ndarray]


class MicroBatch(NamedTuple):
    """The views of a part of a batch: images uint8 [n, 3, H, W], targets [n, …], and lists."""

    images: np.ndarray
    boxes: list[np.ndarray]
    labels: list[np.ndarray]
    shown: list[tuple[int, int]]
    seeds: list[int]
    targets: list[np.ndarray]


class Batch(NamedTuple):
    """One process's ``share`` of an optimizer step; ``indices`` cover the whole step."""

    indices: np.ndarray
    share: list[Example]

    def micro_batches(self, split: int) -> Iterator[MicroBatch]:
        """Yield the share in ``split`` nearly equal parts, or in one per image if that is fewer."""
        for places in np.array_split(np.arange(len(self.share)), min(split, len(self.share)) or 1):
            if not len(places):
                continue
            part = self.share[places[0] : places[-1] + 1]
            yield MicroBatch(
                np.stack([one.pixels for one in part]),
                [one.boxes for one in part],
                [one.labels for one in part],
                [one.shown for one in part],
                [one.seed for one in part],
                [np.stack(arrays) for arrays in zip(*(one.targets for one in part))],
            )


def training_batches(
    images: BoxedImages,
    views: Views,
    targets_of: TargetsOf,
    batch: int,
    seed: int,
    workers: int,
    memory: int = 0,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Yield the batch of each optimizer step from step ``start`` on, without end.

    The order of the images is that of `loader.step_positions`. Each batch is split into nearly
    equal shares for ``world_size`` processes; this one decodes the share of ``rank``. Crowds are
    left out. Decoded images are cached if all fit in ``memory`` bytes. Errors: `DataError` for an
    image that cannot be decoded.
    """
    decoded = _Decoded(images, memory)

    def example(step: int, place: int, index: int) -> Example:
        random = np.random.default_rng([seed, VIEW, step, place])
        size = tuple(images.sizes[index].tolist())
        view = jittered(size, views.sides, views.scales, views.flip, random, views.longest)
        return _example(images, index, view, decoded(index), targets_of, random)

    def jobs() -> Iterator[tuple[np.ndarray, list[Callable[[], Example]]]]:
        for step in itertools.count(start):
            indices = step_positions(len(images), batch, seed, step)
            share = np.array_split(np.arange(len(indices)), world_size)[rank].tolist()
            yield indices, [partial(example, step, k, int(indices[k])) for k in share]

    if workers == 0:
        for indices, parts in jobs():
            yield Batch(indices, [make() for make in parts])
        return
    under_way: deque[tuple[np.ndarray, list[Callable[[], Example]], list[Future[Example]]]]
    under_way = deque()
    with Threads(workers) as pool:
        for indices, parts in jobs():
            under_way.append((indices, parts, [pool.submit(make) for make in parts]))
            if len(under_way) > 1:
                indices, parts, futures = under_way.popleft()
                yield Batch(indices, results(pool, parts, futures, under_way[0][2]))


def _example(
    images: BoxedImages,
    index: int,
    view: View,
    image: Image.Image,
    targets_of: TargetsOf,
    random: np.random.Generator,
) -> Example:
    """Return image ``index`` in ``view``."""
    objects = ~images.crowd[index]
    boxes, kept = view.boxes(images.boxes[index][objects])
    labels = images.labels[index][objects][kept]
    seed = int(random.integers(2**32))
    targets = targets_of(boxes, labels)
    return Example(view.pixels(image), boxes, labels, view.shown, seed, targets)


def held_bytes(images: int, sides: tuple[int, int], targets: int) -> int:
    """Return the bytes of the batches that `training_batches` holds: the current and the next one.

    Each has so many ``images``, as views of ``sides`` (height, width) with ``targets`` bytes of
    targets each.
    """
    height, width = sides
    return 2 * images * (3 * height * width + targets)


def decoded_bytes(images: BoxedImages) -> int:
    """Return the bytes of all ``images`` in memory."""
    return 3 * int(images.sizes.prod(axis=1).sum())


class _Decoded:
    """Decoded images by index, kept if all of them fit in ``memory`` bytes."""

    def __init__(self, images: BoxedImages, memory: int):
        self._files = images.files()
        self._keeps = decoded_bytes(images) <= memory
        self._kept: dict[int, Image.Image] = {}

    def __call__(self, index: int) -> Image.Image:
        image = self._kept.get(index)
        if image is None:
            image = self._files.image(index)
            if self._keeps:
                self._kept[index] = image
        return image
