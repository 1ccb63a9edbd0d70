"""The parts of a data set with boxes: to train, to validate, and to test at the end."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from bit_paddle.data import check
from bit_paddle.data.boxes.annotations import BoxedImages
from bit_paddle.data.boxes.reading import read_boxes
from bit_paddle.data.images import FileImages
from bit_paddle.data.spec import VAL_FRACTION
from bit_paddle.data.splits import rank
from bit_paddle.errors import DataError

_SHOWN = 10  # faults in a message

_MOST_OPENED = 20_000  # images whose size is compared with the annotations; of more, a sample


class BoxedParts(NamedTuple):
    """Images to train, to validate and to test, with the same classes; and notes for the user."""

    train: BoxedImages
    val: BoxedImages
    test: BoxedImages | None = None  # never used for choosing
    notes: tuple[str, ...] = ()


def open_parts(
    boxes: str,
    images: str | None = None,
    val_boxes: str | None = None,
    val_images: str | None = None,
    test_boxes: str | None = None,
    test_images: str | None = None,
    val_fraction: float | None = None,
    on_bad_box: str = "error",
) -> BoxedParts:
    """Return the parts, each from its annotations and its folder of images; see `read_boxes`.

    The classes are those of the training images. Without ``val_boxes``, ``val_fraction`` of the
    images is held out for validation (a tenth by default). Errors: `MissingFileError`, `DataError`.
    """
    train = read_boxes(boxes, images, None, on_bad_box)
    notes = list(train.notes)
    if val_boxes is None:
        fraction = VAL_FRACTION if val_fraction is None else val_fraction
        every, (train, val) = train, held_out(train, fraction)
        notes.append(
            f"no --val_boxes are given: {len(val):,} of {len(every):,} images are held out, "
            f"{fraction:.0%} (--val_fraction)"
        )
    else:
        val = read_boxes(val_boxes, val_images, train.classes, on_bad_box)
        notes += val.notes
    if not class_counts(train).any():
        raise DataError(f"{boxes}: all boxes are crowds (iscrowd); there is none to train on")
    test = None
    if test_boxes is not None:
        test = read_boxes(test_boxes, test_images, train.classes, on_bad_box)
        notes += test.notes
    return BoxedParts(train, val, test, (*notes, *_unseen(train, val)))


def held_out(images: BoxedImages, fraction: float) -> tuple[BoxedImages, BoxedImages]:
    """Return training and validation images: ``fraction`` of all, one at least, is held out.

    The split depends only on the paths, and is the same on every machine. The images that a smaller
    fraction holds out are among those of a larger one. Raises `DataError` if no box is left to
    train on, or to validate on.
    """
    order = sorted(range(len(images)), key=lambda index: rank(images.paths[index]))
    count = min(max(1, round(fraction * len(images))), len(images) - 1)
    val, train = (subset(images, sorted(part)) for part in (order[:count], order[count:]))
    for part, title in ((train, "train"), (val, "validate")):
        if not any(map(len, part.boxes)):
            raise DataError(
                f"{images.root}: {fraction:.0%} of {len(images):,} images are held out, and no box "
                f"is left to {title} on; give --val_boxes"
            )
    return train, val


def subset(images: BoxedImages, indices: list[int]) -> BoxedImages:
    """Return only the images of ``indices``."""
    lists = ("paths", "boxes", "labels", "crowd", "ids")
    chosen = {name: [getattr(images, name)[index] for index in indices] for name in lists}
    return replace(images, sizes=images.sizes[indices], **chosen)


def digest(*parts: BoxedImages) -> str:
    """Return a hash of the images' names and sizes, and of their boxes, classes and crowds."""
    result = hashlib.sha256()
    for part in parts:
        result.update("\n".join(part.paths).encode(errors="surrogateescape"))
        result.update(np.asarray(part.sizes, "<i8").tobytes())
        for boxes, labels, crowd in zip(part.boxes, part.labels, part.crowd):
            for values, dtype in ((boxes, "<f4"), (labels, "<i8"), (crowd, "?")):
                result.update(np.asarray(values, dtype).tobytes() + b";")
    return result.hexdigest()[:16]


def require_usable(parts: BoxedParts, workers: int) -> None:
    """Raise one `DataError` that lists the images that cannot be read, or have another size.

    The annotations tell the size of each image; an image of another size has its boxes elsewhere.
    Of very many images, only a sample is opened for that.
    """
    texts: list[str] = []
    every = [part for part in parts[:3] if part is not None]
    for part in every:
        images = FileImages(part.paths, np.zeros(len(part), np.int64), part.classes, part.root)
        broken = check.faults(images, np.arange(len(images)), workers)
        texts += [broken[index] for index in sorted(broken)]
        count = min(len(images), _MOST_OPENED)
        sample = np.linspace(0, len(images) - 1, count).astype(int).tolist()
        opened = [index for index in sample if index not in broken]
        with ThreadPoolExecutor(max(1, workers)) as pool:
            sizes = pool.map(images.size, opened)
            for index, size in zip(opened, sizes):
                height, width = part.sizes[index].tolist()
                if size != (height, width):
                    texts.append(
                        f"{images.name(index)}: has {size[1]} x {size[0]} pixels, but its boxes "
                        f"are for {width} x {height}"
                    )
    if texts:
        more = f"\n  and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
        raise DataError(
            f"{len(texts):,} of {sum(map(len, every)):,} images cannot be used; correct them, or "
            "take them out of the annotations\n  " + "\n  ".join(texts[:_SHOWN]) + more
        )


def _unseen(train: BoxedImages, val: BoxedImages) -> list[str]:
    """Return a note on classes without a box to train on, and one without a box to validate on."""
    notes = []
    for part, purpose in ((train, "training"), (val, "validation")):
        counts = class_counts(part)
        names = [name for name, count in zip(part.classes, counts) if not count]
        if names:
            more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
            notes.append(
                f"{len(names):,} of {len(counts):,} classes without a {purpose} box: "
                f"{', '.join(names[:5])}{more}"
            )
    return notes


def class_counts(images: BoxedImages) -> np.ndarray:
    """Return the number of boxes per class, without crowds, int64 [K]."""
    labels = [labels[~crowd] for labels, crowd in zip(images.labels, images.crowd)]
    return np.bincount(np.concatenate(labels), minlength=len(images.classes))
