"""The order of images whose shards do not all fit into the cache: shuffled window by window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bit_paddle.data.images import Images
from bit_paddle.data.shards.images import ShardImages


class Windows:
    """Windows of ``size`` shards each; ``shards`` [N] are the numbers of the images' shards.

    ``prefetch`` takes the numbers of the shards that are needed now and of those that are needed
    later, and begins to get both.
    """

    def __init__(
        self,
        shards: np.ndarray,
        size: int,
        prefetch: Callable[[list[int], list[int]], object] = lambda now, later: None,
    ):
        self._shards, self._size, self._prefetch = shards, size, prefetch

    @property
    def images(self) -> int:
        """The number of images in a window, on average."""
        return max(1, len(self._shards) * self._size // (int(self._shards.max()) + 1))

    def prefetch(self, now: np.ndarray, later: np.ndarray) -> None:
        """Begin to get the shards of the images ``later``, before which come those of ``now``."""
        self._prefetch(*(np.unique(self._shards[images]).tolist() for images in (now, later)))

    def ordered(self, images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return ``images``, a permutation of the N images, sorted by their windows.

        Each epoch draws anew which shards share a window, and the order of the windows.
        """
        count = int(self._shards.max()) + 1
        window = random.permutation(count) // self._size
        return images[np.argsort(window[self._shards[images]], kind="stable")]


def begin(images: Images, subset: np.ndarray) -> Windows | None:
    """Return the windows of the images of ``subset``; None if all are shuffled together.

    If most images of shards are needed, the shards are read ahead.
    """
    if not isinstance(images, ShardImages):
        return None
    if 2 * len(subset) > len(images.index.images):
        images.store.read_ahead()
    if images.window is None:
        return None
    return Windows(images.of("shard", subset), images.window, images.store.prefetch)
