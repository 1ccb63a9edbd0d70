"""Contact sheets: many images in one picture, each over its caption."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bit_paddle.data.images import FileImages
from bit_paddle.system import files

if TYPE_CHECKING:
    from bit_paddle.inference.examine import JudgedImage

COLUMNS, SMALLEST, TILE = 8, 96, 160  # tiles a row at least, and their sides in pixels

GAP, LINE = 8, 16  # between tiles, and of a caption's line

PAPER = (228, 228, 228)  # neither black nor white, which many views end in

SHEET_MOST = 60  # predictions on a sheet

Pair = tuple[Image.Image, Image.Image]  # what the network saw, and where it looked


def draw_sheet(
    tiles: Iterable[tuple[Image.Image, str]], count: int, columns: int | None = None
) -> Image.Image:
    """Return ``count`` images, all of one size, in rows, each over its caption.

    Captions are cut to the width of their image. ``tiles`` are read one at a time.
    """
    columns = max(1, min(count, columns or max(COLUMNS, math.isqrt(count))))
    rows, letters = -(-count // columns), font()
    sheet = Image.new("RGB", (2 * GAP, 2 * GAP), PAPER)
    for place, (image, text) in enumerate(tiles):
        width, height = image.width + GAP, image.height + LINE + GAP
        if place == 0:
            sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
            draw = ImageDraw.Draw(sheet)
        left, top = GAP + place % columns * width, GAP + place // columns * height
        sheet.paste(image, (left, top))
        text = cut(text, image.width, letters.getlength)
        draw.text((left, top + image.height + 2), text, fill="black", font=letters)
    return sheet


# --- What is on the sheets ----------------------------------------------------------------------


def draw_views(
    views: Iterable[tuple[np.ndarray, int]], count: int, classes: Sequence[str]
) -> Image.Image:
    """Return a sheet of ``count`` views (uint8 [3, side, side], label) over their labels' names."""
    tiles = ((view_tile(pixels), caption(classes[label], label)) for pixels, label in views)
    return draw_sheet(tiles, count)


def view_tile(pixels: np.ndarray) -> Image.Image:
    """Return a view [3, side, side], shrunk if it is large, its pixels repeated if small."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.thumbnail((TILE, TILE))
    side = image.width * -(-SMALLEST // image.width)
    return image.resize((side, side), Image.Resampling.NEAREST)


def caption(name: str, label: int) -> str:
    """Return ``name`` on one line; led by ``label`` where the font lacks some of its letters."""
    name = " ".join(name.split())
    drawn = drawable(name)
    return name if drawn == name else f"{label}: {drawn}"


def draw_predictions(path: str, results: Sequence[dict], paths: Mapping[str, str]) -> None:
    """Write a sheet of the images of ``results``, each over its best class, as the PNG ``path``."""

    def tile(result: dict) -> tuple[Image.Image, str]:
        image = FileImages([paths[result["image"]]], [0], [""]).image(0)
        image.thumbnail((TILE, TILE))
        square = Image.new("RGB", (TILE, TILE), PAPER)
        square.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
        best = result["classes"][0]
        return square, drawable(f"{best['probability']:.0%} {best['class'].split(',')[0]}")

    sheet = draw_sheet(map(tile, results), len(results), columns=6)
    files.write(path, lambda stream: sheet.save(stream, format="PNG"))


def draw_pairs(pairs: Sequence[Pair], captions: Sequence[str], stream: BinaryIO) -> None:
    """Write a sheet of what `pair` returns, each over its caption, as a PNG."""

    def tile(pair: Pair) -> Image.Image:
        both = Image.new("RGB", (2 * TILE, TILE))
        for half, picture in enumerate(pair):
            both.paste(picture, (half * TILE, 0))
        return both

    tiles = zip(map(tile, pairs), map(drawable, captions))
    draw_sheet(tiles, len(pairs), columns=4).save(stream, format="PNG")


def pair(judged: JudgedImage) -> Pair:
    """Return what the network saw, and the same under its class activation map.

    Bright is what is positive in the map, relative to its largest.
    """
    import matplotlib

    size, bicubic = (TILE, TILE), Image.Resampling.BICUBIC
    seen = Image.fromarray(judged.pixels).resize(size, Image.Resampling.BILINEAR)
    positive = np.maximum(judged.map, 0)
    scaled = (positive / (positive.max() or 1)).astype(np.float32)
    heat = np.asarray(Image.fromarray(scaled).resize(size, bicubic)).clip(0, 1)
    colors = matplotlib.colormaps["inferno"](heat)[..., :3]
    grey = np.asarray(seen.convert("L"), np.float32)[..., None] / 255
    mixed = 255 * (0.35 * grey + 0.65 * colors)
    return seen, Image.fromarray(mixed.round().astype(np.uint8))


# --- Text on a picture --------------------------------------------------------------------------


def _font_file() -> str:
    import matplotlib

    return f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"


def font(size: int = 10) -> ImageFont.FreeTypeFont:
    """Return matplotlib's font, which has the letters of most alphabets; Pillow's has few."""
    return ImageFont.truetype(_font_file(), size)


def drawable(text: str) -> str:
    """Return ``text`` with a question mark for each letter that `font` lacks."""
    from matplotlib.ft2font import FT2Font

    there = FT2Font(_font_file()).get_charmap()
    return "".join(letter if ord(letter) in there else "?" for letter in text)


def cut(text: str, width: float, length: Callable[[str], float]) -> str:
    """Return ``text`` without so much of its middle that its ``length`` is at most ``width``."""
    result, kept = text, len(text)
    while kept and length(result) > width:
        kept -= 1
        result = f"{text[: kept - kept // 2]}..{text[len(text) - kept // 2 :]}"
    return result
