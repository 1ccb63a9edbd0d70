"""Contact sheets: many images in one picture, each with its caption below."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bit_paddle.data.images import FileImages
from bit_paddle.errors import BitPaddleError
from bit_paddle.inference import explain
from bit_paddle.system import files

if TYPE_CHECKING:
    from bit_paddle.inference.examine import JudgedImage

COLUMNS, SMALLEST, TILE = 8, 96, 160  # fewest tiles per row, smallest and largest side in pixels

GAP, LINE = 8, 16  # pixels between tiles, and for a caption

PAPER = (228, 228, 228)  # not black or white, which are at the edges of many images

SHEET_MOST = 60  # the most predictions on a sheet

Pair = tuple[Image.Image, Image.Image]  # input image, its class activation map


def draw_sheet(
    tiles: Iterable[tuple[Image.Image, str]], count: int, columns: int | None = None
) -> Image.Image:
    """Return a sheet of ``count`` (image, caption) pairs in rows; all images have one size.

    A caption is cut to the width of its image. ``tiles`` is read one pair at a time.
    """
    columns = max(1, min(count, columns or max(COLUMNS, math.isqrt(count))))
    rows, letters = -(-count // columns), font()
    sheet = Image.new("RGB", (2 * GAP, 2 * GAP), PAPER)
    for number, (image, text) in enumerate(tiles):
        width, height = image.width + GAP, image.height + LINE + GAP
        if number == 0:
            sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
            draw = ImageDraw.Draw(sheet)
        left, top = GAP + number % columns * width, GAP + number // columns * height
        sheet.paste(image, (left, top))
        text = cut(text, image.width, letters.getlength)
        draw.text((left, top + image.height + 2), text, fill="black", font=letters)
    return sheet


# --- The sheets ---------------------------------------------------------------------------------


def draw_views(views: Iterable[tuple[np.ndarray, str]], count: int) -> Image.Image:
    """Return a sheet of ``count`` views (uint8 [3, side, side], caption)."""
    return draw_sheet(((view_tile(pixels), text) for pixels, text in views), count)


def view_tile(pixels: np.ndarray) -> Image.Image:
    """Return the tile of a view [3, side, side]: a large view is shrunk, a small one enlarged."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.thumbnail((TILE, TILE))
    side = image.width * -(-SMALLEST // image.width)
    return image.resize((side, side), Image.Resampling.NEAREST)


def caption(name: str, label: int) -> str:
    """Return ``name`` on one line, after ``label`` if the font does not have all its letters."""
    name = " ".join(name.split())
    text = drawable(name)
    return name if text == name else f"{label}: {text}"


def draw_predictions(path: str, results: Sequence[dict], paths: Mapping[str, str]) -> None:
    """Write a sheet of the images in ``results`` with their best classes, as a PNG file."""

    def tile(result: dict) -> tuple[Image.Image, str]:
        image = FileImages([paths[result["image"]]], [0], [""]).image(0)
        image.thumbnail((TILE, TILE))
        square = Image.new("RGB", (TILE, TILE), PAPER)
        square.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
        if result.get("unknown"):
            return square, "unknown"
        if not result["classes"]:
            return square, "no label"
        best = result["classes"][0]
        return square, drawable(f"{best['probability']:.0%} {best['class'].split(',')[0]}")

    sheet = draw_sheet(map(tile, results), len(results), columns=6)
    files.write(path, lambda stream: sheet.save(stream, format="PNG"))


def draw_beside(
    pairs: Sequence[tuple[Callable[[], Image.Image], Callable[[], Image.Image] | None, str]],
) -> Image.Image:
    """Return a sheet of image pairs, side by side: functions that open them, and their caption.

    The second image may be missing. An image that cannot be opened is left blank.
    """
    return draw_sheet(
        (_side_by_side(_square(a), _square(b), t) for a, b, t in pairs), len(pairs), 4
    )


def _square(open_image: Callable[[], Image.Image] | None) -> Image.Image:
    """Return the image in a square; it is blank without an image that can be opened."""
    square = Image.new("RGB", (TILE, TILE), PAPER)
    if open_image is not None:
        with contextlib.suppress(BitPaddleError):
            image = open_image()
            image.thumbnail((TILE - 4, TILE - 4))  # images side by side stay apart
            square.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
    return square


def draw_captioned(
    images: Sequence[tuple[Callable[[], Image.Image], str]],
) -> Image.Image:
    """Return a sheet of images, as functions that open them, with their captions."""
    tiles = ((_square(open_image), drawable(text)) for open_image, text in images)
    return draw_sheet(tiles, len(images), columns=6)


def draw_pairs(pairs: Sequence[Pair], captions: Sequence[str], stream: BinaryIO) -> None:
    """Write a sheet of the results of `pair` with their captions, as a PNG."""

    tiles = (_side_by_side(*pair, text) for pair, text in zip(pairs, captions))
    draw_sheet(tiles, len(pairs), columns=4).save(stream, format="PNG")


def _side_by_side(left: Image.Image, right: Image.Image, text: str) -> tuple[Image.Image, str]:
    both = Image.new("RGB", (2 * TILE, TILE))
    both.paste(left, (0, 0))
    both.paste(right, (TILE, 0))
    return both, drawable(text)


def pair(judged: JudgedImage) -> Pair:
    """Return the network's input image, and the image overlaid with its map.

    Brightness is the positive part of the map, relative to its maximum.
    """
    size = (TILE, TILE)
    seen = Image.fromarray(judged.pixels).resize(size, Image.Resampling.BILINEAR)
    heat = explain.placed(judged.map, len(judged.pixels), size, judged.attention)
    return seen, explain.overlaid(seen, heat)


# --- Text on a picture --------------------------------------------------------------------------


def _font_file() -> str:
    import matplotlib

    return f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"


def font(size: int = 10) -> ImageFont.FreeTypeFont:
    """Return matplotlib's font: it has the letters of many alphabets, Pillow's own has few."""
    return ImageFont.truetype(_font_file(), size)


@functools.cache
def _letters() -> Mapping[int, int]:
    from matplotlib.ft2font import FT2Font

    return FT2Font(_font_file()).get_charmap()


def drawable(text: str) -> str:
    """Return ``text`` with a question mark for each letter that is not in `font`."""
    letters = _letters()
    return "".join(letter if ord(letter) in letters else "?" for letter in text)


def cut(text: str, width: float, length: Callable[[str], float]) -> str:
    """Return ``text``, with ".." for its middle if its ``length`` exceeds ``width``."""
    result, letters = text, len(text)
    while letters and length(result) > width:
        letters -= 1
        result = f"{text[: letters - letters // 2]}..{text[len(text) - letters // 2 :]}"
    return result
