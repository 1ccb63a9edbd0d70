"""The look of images: perceptual hashes, which find near copies, and images that are unusual."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from bit_paddle.data import decoding
from bit_paddle.data.images import FileImages, Images
from bit_paddle.errors import BitPaddleError, ConfigError, install_hint
from bit_paddle.system.progress import progress_bar

BITS = 64  # of a perceptual hash

NEAR = 10  # bits that may differ between near copies; unrelated images differ in about half

ALIKE = 0.98  # correlation of the thumbnails of near copies; others on clothing10 reach 0.971

ENOUGH = 20  # see `close_pairs`

_THUMB = 16  # pixels: side of a thumbnail

_SMALL = 64  # pixels: side of the image that is hashed

_FLAT = 0.99  # share of the area with nearly the median colour: one colour fills the image

_LEVELS = 12  # of 255, by which a colour may differ from the median colour

_TINY = 32  # pixels: the smallest side that a network of this package takes

_LONG = 4.0  # ratio of the sides

_RARE = 0.01  # share of the images with a mode


class Look(NamedTuple):
    """The look of one image.

    ``hashes`` bool [2, BITS] are the perceptual hashes (pHash) of the image and of its mirror
    image. ``thumbnail`` uint8 [16, 16] is its brightness. ``flat`` is the share of its area that
    has nearly the median colour. ``fault`` is the reason why the image cannot be decoded, else "".
    """

    hashes: np.ndarray
    thumbnail: np.ndarray
    flat: float
    size: tuple[int, int]  # height, width in pixels
    mode: str  # of the file: RGB, L, CMYK …
    fault: str


def looks(images: Images, workers: int) -> list[Look]:
    """Return the look of each image; every image is decoded once, in ``workers`` threads.

    Raises `ConfigError` if the package ImageHash is not installed.
    """
    try:
        import imagehash  # noqa: F401
    except ImportError:
        raise ConfigError(f"audit: needs ImageHash: {install_hint('audit')}") from None

    def look(index: int) -> Look:
        return _look(images, index)

    with (
        progress_bar(desc="looking at images", unit="img", total=len(images)) as bar,
        ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        result = []
        for one in pool.map(look, range(len(images))):
            result.append(one)
            bar.update()
    return result


def _look(images: Images, index: int) -> Look:
    from imagehash import phash

    try:
        mode = _mode(images, index)
        image = images.image(index)
    except BitPaddleError as error:
        nothing = np.zeros((2, BITS), bool), np.zeros((_THUMB, _THUMB), np.uint8)
        return Look(*nothing, 0.0, (0, 0), "", str(error))
    small = image.resize((_SMALL, _SMALL), Image.Resampling.BOX)
    pixels = np.asarray(small, np.int16).reshape(-1, 3)
    away = np.abs(pixels - np.median(pixels, axis=0)).max(axis=1)
    grey = small.convert("L")
    hashes = np.stack([phash(view).hash.ravel() for view in (grey, ImageOps.mirror(grey))])
    thumbnail = np.asarray(grey.resize((_THUMB, _THUMB), Image.Resampling.BOX))
    size = (image.height, image.width)
    return Look(hashes, thumbnail, float((away <= _LEVELS).mean()), size, mode, "")


def _mode(images: Images, index: int) -> str:
    if not isinstance(images, FileImages):
        return "RGB"
    try:
        with decoding.opened(images.name(index), images.name(index)) as image:
            return image.mode
    except BitPaddleError:
        return ""  # `Images.image` reports the fault


# --- Near copies --------------------------------------------------------------------------------


def is_flat(look: Look) -> bool:
    """Return whether one colour fills the image."""
    return look.flat >= _FLAT


def near_copies(looks: Sequence[Look], order: Sequence[int]) -> Iterator[tuple[int, int, float]]:
    """Yield (image, another image, correlation) of images that look the same, or are mirrored.

    The images of ``order`` are compared; see `close_pairs` for its meaning. The perceptual hashes
    find candidates, and their thumbnails decide. Images that one colour fills are left out: all of
    them are alike.
    """
    chosen = np.array([k for k in order if not looks[k].fault and not is_flat(looks[k])], int)
    if len(chosen) < 2:
        return
    hashes = np.stack([looks[k].hashes for k in chosen]).astype(np.float32) * 2 - 1
    thumbnails = np.stack([looks[k].thumbnail for k in chosen])
    upright, mirrored = _normed(thumbnails), _normed(thumbnails[:, :, ::-1])
    for number, other in enumerate((upright, mirrored)):
        for row, columns, _ in close_pairs(hashes[:, 0], hashes[:, number], BITS - 2 * NEAR):
            likeness = other[columns] @ upright[row]
            for place in np.flatnonzero(likeness >= ALIKE):
                yield int(chosen[row]), int(chosen[columns[place]]), min(1, float(likeness[place]))


def _normed(thumbnails: np.ndarray) -> np.ndarray:
    """Return thumbnails [N, 16, 16] as float32 [N, 256] of mean 0 and length 1."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def close_pairs(
    rows: np.ndarray, columns: np.ndarray, least: float, block: int = 2048
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (i, all j > i, products) where rows[i] @ columns[j] is ``least`` or more.

    Both are float32 [N, C]. After `ENOUGH` matches with earlier rows, a row is not compared with
    later ones: thousands of equal images would make millions of pairs. Matrix products compare
    100,000 hashes in half a minute.
    """
    count = len(rows)
    matches = np.zeros(count, np.int64)
    with progress_bar(desc="comparing images", unit="img", total=count, delay=2) as bar:
        for top in range(0, count, block):
            for left in range(top, count, block):
                products = rows[top : top + block] @ columns[left : left + block].T
                close = products >= least
                for i in np.flatnonzero(close.any(axis=1)):
                    if matches[top + i] >= ENOUGH:
                        continue
                    places = np.flatnonzero(close[i])
                    places = places[left + places > top + i]
                    matches[left + places] += 1
                    if len(places):
                        yield int(top + i), left + places, products[i, places]
            bar.update(min(block, count - top))


# --- Unusual images -----------------------------------------------------------------------------


def oddities(looks: Sequence[Look]) -> Iterator[tuple[str, int, float, str]]:
    """Yield (kind, index, score, reason) of images that are unusual.

    The kinds: "unreadable", "one colour", "tiny", "long", "rare mode". A trait that most images
    have is not unusual.
    """
    for index, look in enumerate(looks):
        if look.fault:
            yield "unreadable", index, 1.0, look.fault
    good = [(index, look) for index, look in enumerate(looks) if not look.fault]
    if not good:
        return
    count = len(good)
    flat = [(index, look.flat) for index, look in good if is_flat(look)]
    for index, share in flat:
        yield "one colour", index, share, f"one colour fills {share:.0%}, {_like(len(flat), count)}"
    sides = np.array([look.size for _, look in good], float)
    short, ratio = sides.min(axis=1), sides.max(axis=1) / sides.min(axis=1)
    median = np.median(short)
    tiny = short < max(min(_TINY, median / 2), median / 8)
    long = ratio >= max(_LONG, 2 * np.median(ratio))
    for kind, which, values in (("tiny", tiny, short), ("long", long, ratio)):
        for place in np.flatnonzero(which):
            index, look = good[place]
            text = "{} x {} pixels".format(*look.size)
            like = _like(int(which.sum()), count)
            yield kind, index, float(values[place]), f"{text}, {like}; median side {median:g}"
    modes = Counter(look.mode for _, look in good)
    usual = modes.most_common(1)[0][0]
    for index, look in good:
        number = modes[look.mode]
        if look.mode != usual and number <= max(1, _RARE * count):
            reason = f"mode {look.mode}, {_like(number, count)}; most are {usual}"
            yield "rare mode", index, number / count, reason


def _like(number: int, count: int) -> str:
    return f"as {number:,} of {count:,} images"
