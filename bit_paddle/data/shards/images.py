"""Images in shards: read one by one at their places, so any order is as good as another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import crc32c
import numpy as np
from PIL import Image

from bit_paddle.data import decoding
from bit_paddle.data.images import Images
from bit_paddle.data.labels import Labels, LabelSets, as_labels
from bit_paddle.data.shards.index import Index, release
from bit_paddle.data.shards.stores import Store
from bit_paddle.data.stratification import parts_of
from bit_paddle.errors import DataError

_BLOCK = 1 << 20  # rows that are hashed at once


class ShardImages:
    """The images of an index, or those of its ``rows``; see `images.Images`.

    An image is compared with its checksum while it is read. So no check comes before, and start and
    memory do not depend on the number of images. ``window`` is the number of shards whose images
    are shuffled together, None if the images of all shards are (`loader.Windows`).
    """

    def __init__(
        self,
        index: Index,
        store: Store,
        window: int | None = None,
        rows: np.ndarray | None = None,
        labels: Sequence[int] | Labels | None = None,
        classes: Sequence[str] | None = None,
    ):
        self.index, self.store, self.window, self._rows = index, store, window, rows
        self.labels = first_labels(index) if labels is None else as_labels(labels)
        self.classes = index.classes if classes is None else list(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def content(self, index: int) -> bytes:
        """Return the bytes of the file of image ``index``.

        Errors: `DataError` if they are not those of the index, `DownloadError`.
        """
        row = self._row(index)
        offset, length, checksum, shard = self.index.images[row].item()
        content = self.store.open(shard).read(offset, length)
        if len(content) == length and crc32c.crc32c(content) == checksum:
            return content
        raise DataError(
            f"{self.store.name(shard)}: the image {self.index.name(row)} at byte {offset:,} is not "
            "that of the index: the shard is damaged, or belongs to another index; copy "
            f"{self.store.title} again, or pack the data again"
        )

    def image(self, index: int) -> Image.Image:
        return decoding.decode(self.content(index), self.name(index))

    def size(self, index: int) -> tuple[int, int]:
        return decoding.size_of(self.content(index), self.name(index))

    def fault(self, index: int, thorough: bool = False) -> str | None:
        """Return the reason why image ``index`` cannot be used; see `decoding.fault_of`.

        Errors: those of `content`, which concern the shard.
        """
        return decoding.fault_of(self.content(index), self.name(index), thorough)

    def name(self, index: int) -> str:
        row = self._row(index)
        return f"{self.store.name(int(self.index.images['shard'][row]))}/{self.index.name(row)}"

    def inner_name(self, index: int) -> str:
        """Return the name of image ``index`` in its shard: its path before it was packed."""
        return self.index.name(self._row(index))

    def chosen(
        self, indices: np.ndarray, labels: Sequence[int] | Labels, classes: Sequence[str]
    ) -> ShardImages:
        """Return only the images of ``indices``, with other ``labels`` and ``classes``."""
        rows = indices if self._rows is None else self._rows[indices]
        return ShardImages(self.index, self.store, self.window, rows, labels, classes)

    def of(self, field: str, indices: np.ndarray | slice = np.s_[:]) -> np.ndarray:
        """Return a ``field`` of `pieces.ROW` for the images of ``indices``."""
        rows = indices if self._rows is None else self._rows[indices]
        return self.index.images[field][rows]

    def digest(self, indices: np.ndarray) -> str:
        """Return a hash of the contents and labels of the images of ``indices``."""
        result = hashlib.sha256(self.index.digest.encode())
        for array in _arrays(self.labels[indices]):
            result.update(np.ascontiguousarray(array))
        rows = indices if self._rows is None else self._rows[indices]
        for start in range(0, len(rows), _BLOCK):
            result.update(np.ascontiguousarray(rows[start : start + _BLOCK], np.int64))
        return result.hexdigest()

    @property
    def held_bytes(self) -> int:
        """The bytes of labels and rows that a process holds itself, beside the mapped index."""
        own = [array for array in _arrays(self.labels) if array.flags.writeable]
        return sum(array.nbytes for array in (*own, *([] if self._rows is None else [self._rows])))

    def _row(self, index: int) -> int:
        return int(index) if self._rows is None else int(self._rows[index])


def _arrays(labels: Labels) -> tuple[np.ndarray, ...]:
    return (labels.starts, labels.labels) if isinstance(labels, LabelSets) else (labels,)


def first_labels(index: Index) -> np.ndarray:
    """Return the first label of each image, int64 [N]."""
    if len(index.labels) == len(index.images):  # each has one
        found = index.labels.astype(np.int64)
    else:
        found = index.labels[index.label_starts[:-1]].astype(np.int64)
        release(index.label_starts)
    release(index.labels)
    return found


def release_indexes(*parts: Images | None) -> None:
    """Take the indexes of those ``parts`` that are in shards from the memory of this process."""
    for part in parts:
        if isinstance(part, ShardImages):
            part.index.release()


def held_out(images: ShardImages, fraction: float) -> tuple[ShardImages, ShardImages]:
    """Return training and validation images: ``fraction`` of each class is held out, at least one.

    Those with the smallest checksums are, so an image is on the same side whatever its shard and
    its place. A class of one image is for training. Of images with several labels, about the
    fraction of each label is held out, dealt out in the order of the checksums.
    """
    if isinstance(images.labels, LabelSets):
        order = np.argsort(images.of("crc32c"), kind="stable")
        sizes, shares = np.ones(len(order), np.int64), (1 - fraction, fraction)
        part = parts_of(images.labels[order], sizes, shares, len(images.classes))
        return _halves(images, order[part == 1])
    order = np.lexsort((images.of("crc32c"), images.labels))
    counts = np.bincount(images.labels, minlength=len(images.classes))
    wanted = np.minimum(np.maximum(1, np.round(fraction * counts).astype(np.int64)), counts - 1)
    places = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return _halves(images, order[places < np.repeat(wanted, counts)])


def _halves(images: ShardImages, held_out: np.ndarray) -> tuple[ShardImages, ShardImages]:
    """Return the images that are not ``held_out``, indices, and those that are."""
    held = np.zeros(len(images), bool)
    held[held_out] = True
    train, val = (
        images.chosen(where, images.labels[where], images.classes)
        for where in (np.flatnonzero(~held), np.flatnonzero(held))
    )
    return train, val
