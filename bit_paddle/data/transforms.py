"""From an image to the network's pixels; the caller passes in everything random.

Views ignore the aspect ratio and resize to a square with Pillow's antialiased bilinear filter, as
BiT does. Pixels are uint8 [3, height, width]; `device.to_device` scales them to [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from bit_paddle.data.images import ArrayImages, Images
from bit_paddle.data.preprocessing import Preprocessing

TOGETHER = 1 << 21  # bytes of pixels that one call resizes or makes: the size of a core's cache

Bands = Sequence[np.ndarray]  # red, green and blue, uint8 [height, width] each

# From the position of an image in the list, its width and its height to (width, height) of the
# resized image, and (left, top) of the crop in it
Geometry = Callable[[int, int, int], tuple[tuple[int, int], tuple[int, int]]]


def crops(
    images: Images,
    indices: Sequence[int],
    geometry: Geometry,
    crop: int,
    filter: str = "bilinear",
) -> Iterator[Bands]:
    """Yield the crop [crop, crop] of each resized image of ``indices``.

    ``geometry`` gives images of one size one size. ``filter`` is one of `preprocessing.FILTERS`.
    Raises the errors of `Images.image`.
    """
    start = 0
    for group in _groups(images, indices, geometry):
        height, width = group.shape[1:3] if isinstance(group, np.ndarray) else group[0].size[::-1]
        sizes, corners = zip(*(geometry(start + k, width, height) for k in range(len(group))))
        start += len(group)
        if len(group) > 1 and resizes_together(height, width, sizes[0], filter):
            pixels = np.stack([np.asarray(image) for image in group])
            lefts = [left for left, _ in corners]
            bands = resized_together(pixels, sizes[0], filter, lefts, crop)
            for own, (_, top) in zip(bands, corners):
                yield own[:, top : top + crop]
        else:
            for image, (left, top) in zip(group, corners):
                whole = image if isinstance(image, Image.Image) else Image.fromarray(image)
                bands = resized(whole, sizes[0], filter)
                yield [band[top : top + crop, left : left + crop] for band in bands]


def together(*sizes: tuple[int, int]) -> int:
    """Return the number of images that one call resizes, if they have one of ``sizes`` each."""
    return max(1, TOGETHER // (3 * max(map(math.prod, sizes))))


def _groups(
    images: Images, indices: Sequence[int], geometry: Geometry
) -> Iterator[np.ndarray | list[Image.Image]]:
    """Yield neighbours of one size, no more than one call resizes: pixels [N, H, W, 3], or images.

    So of large images no more than one is held.
    """
    if isinstance(images, ArrayImages):
        height, width = images.pixels.shape[1:3]
        number = together((width, height), geometry(0, width, height)[0]) if len(indices) else 1
        for start in range(0, len(indices), number):
            yield images.pixels[list(indices[start : start + number])]
        return
    group: list[Image.Image] = []
    for k, index in enumerate(indices):
        image = images.image(index)
        if group and image.size != group[0].size:
            yield group
            group = []
        group.append(image)
        if len(group) == together(image.size, geometry(k, *image.size)[0]):
            yield group
            group = []
    if group:
        yield group


@lru_cache(maxsize=64)
def resizes_together(height: int, width: int, size: tuple[int, int], filter: str) -> bool:
    """Return whether `resized_together` gives images of this shape exactly Pillow's pixels.

    Pillow 13 resizes columns before rows if that is less work, which rounds differently; earlier
    versions never do. So an image of noise is resized in both ways.
    """
    noise = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    alone = resized(Image.fromarray(noise[0]), size, filter)
    return np.array_equal(resized_together(noise, size, filter, [0], size[0])[0], alone)


def resized_together(
    pixels: np.ndarray, size: tuple[int, int], filter: str, lefts: Sequence[int], crop: int
) -> np.ndarray:
    """Return ``crop`` columns from ``lefts`` [N] on of RGB ``pixels`` [N, H, W, 3], resized.

    ``size`` is (width, height) of the resized images; the result has shape [N, 3, height, crop].
    Pillow resizes rows, each by itself, and then columns. Here the rows of all images stand below
    each other in one call, and their columns side by side in a second. So a thread needs Python's
    lock a few times for all images together, and not a dozen times for each. Columns outside the
    crops are left out.
    """
    (n, h, w, _), (width, height), method = pixels.shape, size, Image.Resampling[filter.upper()]
    rows = Image.fromarray(pixels.reshape(n * h, w, 3))
    wide = np.stack(resized(rows, (width, n * h), filter)).reshape(3, n, h, width)
    count = n * 3 * crop
    columns = np.zeros((h, -(-count // 4) * 4), np.uint8)
    parts = columns[:, :count].reshape(h, n, 3, crop).transpose(1, 2, 0, 3)
    for k, left in enumerate(lefts):
        parts[k] = wide[:, k, :, left : left + crop]
    # Four columns are one pixel of CMYK, which is 1.4 times as fast as grey and is not copied
    picture = Image.frombuffer("CMYK", (columns.shape[1] // 4, h), columns, "raw", "CMYK", 0, 1)
    tall = np.asarray(picture.resize((picture.width, height), method)).reshape(height, -1)
    return np.ascontiguousarray(tall[:, :count].reshape(height, n, 3, crop).transpose(1, 2, 0, 3))


def resized(
    image: Image.Image, size: tuple[int, int], filter: str = "bilinear"
) -> list[np.ndarray]:
    """Return RGB ``image``, resized to ``size`` = (width, height), as its three bands."""
    return _bands(image.resize(size, Image.Resampling[filter.upper()]))


def training_view(bands: Bands, top: int, left: int, flip: bool, out: np.ndarray) -> np.ndarray:
    """Write the crop of ``bands`` at (``top``, ``left``) into ``out``, mirrored if ``flip``."""
    height, width = out.shape[1:]
    for plane, band in zip(out, bands):
        plane[:] = band[top : top + height, left : left + width]
    if flip and width % 8 == 0:  # eight bytes at once: two to ten times as fast as single bytes
        words = out.view(np.uint64)
        words[:] = words[:, :, ::-1].byteswap()
    elif flip:
        out[:] = out[:, :, ::-1].copy()
    return out


def inception_box(
    width: int, height: int, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of an Inception-style crop of ``width`` x ``height``.

    The crop has 5 to 100 % of the area. Width / height is drawn from 0.75 to 1.33, then the height,
    then the position, each uniformly. This is TensorFlow's SampleDistortedBoundingBox, with which
    BiT was trained (google-research/big_vision, pp/ops_image.py); torchvision draws differently.
    The whole image is returned if 100 draws fail, as for a very long image.
    """
    least, whole = 0.05 * width * height, width * height
    for _ in range(100):
        aspect = random.uniform(0.75, 1.33)
        low = round((least / aspect) ** 0.5)
        high = min(round((whole / aspect) ** 0.5), height, int((width + 0.5) / aspect))
        rows = int(random.integers(min(low, high), high + 1))
        columns = round(rows * aspect)
        if least <= rows * columns and 0 < columns <= width and rows:
            left, top = (int(random.integers(0, n + 1)) for n in (width - columns, height - rows))
            return left, top, left + columns, top + rows
    return 0, 0, width, height


def inception_view(
    image: Image.Image, random: np.random.Generator, flip: bool, out: np.ndarray
) -> np.ndarray:
    """Write an Inception-style crop of RGB ``image``, resized to ``out``'s size, into ``out``."""
    height, width = out.shape[1:]
    box = inception_box(*image.size, random)
    view = image.crop(box).resize((width, height), Image.Resampling.BILINEAR)
    return training_view(_bands(view), 0, 0, flip, out)


def evaluation_view(
    image: Image.Image, view: Preprocessing, corner: tuple[int, int] | None = None
) -> np.ndarray:
    """Return RGB ``image`` as ``view`` wants it, uint8 [3, crop, crop].

    ``corner`` is that of a `Look`.
    """
    size, (left, top) = view.geometry(*image.size, corner)
    pixels = np.stack(resized(image, size, view.filter))
    return pixels[:, top : top + view.crop, left : left + view.crop]


def _bands(image: Image.Image) -> list[np.ndarray]:
    """Return the bands of RGB ``image``; five times as fast as `numpy.asarray` of all at once."""
    return [np.asarray(band) for band in image.split()]
