"""The views of images for a detector that finds boxes: several scales, mirrored, decoded ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from bit_paddle.data.boxes.views import View, fitting_sides, whole
from bit_paddle.data.threads import Threads, results


class Openable(Protocol):
    """Images by number, such as `FileImages`."""

    def image(self, index: int) -> Image.Image: ...


class Looks(NamedTuple):
    """The views of an image: its longer side in pixels, times each of ``scales``.

    With ``flip`` there is also the mirrored view of each scale.
    """

    side: int
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def views(self, original: tuple[int, int]) -> list[View]:
        """Return the views of an image of ``original`` (height, width)."""
        longest = [max(1, round(self.side * scale)) for scale in self.scales]
        return [
            _cut(original, side)._replace(flip=flip)
            for side in longest
            for flip in ((False, True) if self.flip else (False,))
        ]


class Seen(NamedTuple):
    """An image by its number, and its views with their pixels, uint8 [3, height, width]."""

    index: int
    views: list[View]
    pixels: list[np.ndarray]


def evaluation_views(
    images: Openable, indices: Iterable[int], looks: Looks, workers: int = 0
) -> Iterator[Seen]:
    """Yield the views of the images of ``indices`` in order; ``workers`` threads decode ahead.

    Errors: those of the images, such as `DataError`.
    """

    def seen(index: int) -> Seen:
        image = images.image(index)
        views = looks.views((image.height, image.width))
        return Seen(index, views, [view.pixels(image) for view in views])

    if workers == 0:
        yield from map(seen, indices)
        return
    under_way: deque[tuple[int, Future[Seen]]] = deque()

    def next_seen() -> Seen:
        index, future = under_way.popleft()
        later = [other for _, other in under_way]
        return results(pool, [partial(seen, index)], [future], later)[0]

    with Threads(workers) as pool:
        for index in indices:
            under_way.append((index, pool.submit(seen, index)))
            if len(under_way) > 2 * workers:
                yield next_seen()
        while under_way:
            yield next_seen()


def _cut(original: tuple[int, int], longest: int) -> View:
    """Return the view in which the longer side of an image is ``longest`` pixels."""
    scaled = whole(original, (longest, longest)).scaled
    return View(original, scaled, fitting_sides(original, longest))
