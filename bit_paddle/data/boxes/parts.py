"""The parts of a data set with boxes: to train, to validate, and to test at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
from bit_paddle.errors import DataError, MissingFileError

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
    return BoxedParts(train, val, test, tuple(notes))


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


def require_usable(every: Sequence[BoxedImages], workers: int, thorough: bool = False) -> None:
    """Raise one `DataError` that lists the images that cannot be read, or have another size.

    The annotations tell the size of each image; an image of another size has its boxes elsewhere.
    Of very many images, only a sample is opened for that, unless ``thorough``, which decodes all.
    """
    texts = [text for images in every for text in _faults(images, workers, thorough).values()]
    if texts:
        more = f"\n  and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
        raise DataError(
            f"{len(texts):,} of {sum(map(len, every)):,} images cannot be used; correct them, take "
            "them out of the annotations, or leave them out with --on_bad_image skip\n  "
            + "\n  ".join(texts[:_SHOWN])
            + more
        )


def usable(images: BoxedImages, workers: int) -> tuple[BoxedImages, list[str]]:
    """Return the images that can be used, and a line on the fault of each other image.

    Every image is decoded once. Raises `DataError` if no image with a box is left.
    """
    broken = _faults(images, workers, thorough=True)
    if not broken:
        return images, []
    rest = subset(images, [index for index in range(len(images)) if index not in broken])
    if not any(map(len, rest.boxes)):
        raise DataError(
            "--on_bad_image skip: no image with a box can be used: " + next(iter(broken.values()))
        )
    return rest, list(broken.values())


def _faults(images: BoxedImages, workers: int, thorough: bool = False) -> dict[int, str]:
    """Return {index: fault} of the images that cannot be read, or have another size, in order.

    ``thorough`` decodes every image; else files are checked as `check.faults` does, and the size of
    at most `_MOST_OPENED` images is compared.
    """
    files = FileImages(images.paths, np.zeros(len(images), np.int64), images.classes, images.root)
    broken = check.faults(files, np.arange(len(files)), workers, thorough)
    count = len(files) if thorough else min(len(files), _MOST_OPENED)
    sample = np.linspace(0, len(files) - 1, count).astype(int).tolist()
    opened = [index for index in sample if index not in broken]

    def look(index: int) -> str | None:
        (height, width), name = images.sizes[index].tolist(), files.name(index)
        try:
            size = files.size(index)
        except (DataError, MissingFileError) as error:  # it was replaced since it was checked
            return str(error)
        if size == (height, width):
            return None
        return f"{name}: has {size[1]} x {size[0]} pixels, but its boxes are for {width} x {height}"

    with ThreadPoolExecutor(max(1, workers)) as pool:
        broken.update((k, fault) for k, fault in zip(opened, pool.map(look, opened)) if fault)
    return dict(sorted(broken.items()))


def unseen(train: BoxedImages, val: BoxedImages) -> list[str]:
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
