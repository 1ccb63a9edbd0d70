"""Contact sheets: many images in one picture, with captions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from bit_paddle.data.images import FileImages
from bit_paddle.system import files
from bit_paddle.visual import figures

COLUMNS, SMALLEST, LARGEST = 8, 96, 160  # tiles a row at least, and their sides in pixels

GAP, LINE = 8, 16  # between tiles, and of a label's line

PAPER = (228, 228, 228)  # neither black nor white, which many views end in


def draw_views(
    views: Iterable[tuple[np.ndarray, int]], count: int, classes: Sequence[str]
) -> Image.Image:
    """Return ``count`` views in rows, each over its label's name."""
    columns = min(count, max(COLUMNS, math.isqrt(count)))
    rows = -(-count // columns)
    font = figures.font()
    for place, (pixels, label) in enumerate(views):
        view = view_tile(pixels)
        width, height = view.width + GAP, view.height + LINE + GAP
        if place == 0:
            sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
            draw = ImageDraw.Draw(sheet)
        left, top = GAP + place % columns * width, GAP + place // columns * height
        sheet.paste(view, (left, top))
        text = figures.cut(caption(classes[label], label), view.width, font.getlength)
        draw.text((left, top + view.height + 2), text, fill="black", font=font)
    return sheet


def view_tile(pixels: np.ndarray) -> Image.Image:
    """Return a view [3, side, side], shrunk if it is large, its pixels repeated if small."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.thumbnail((LARGEST, LARGEST))
    side = image.width * -(-SMALLEST // image.width)
    return image.resize((side, side), Image.Resampling.NEAREST)


def caption(name: str, label: int) -> str:
    """Return ``name`` on one line; led by ``label`` where the font lacks some of its letters."""
    name = " ".join(name.split())
    drawn = figures.drawable(name)
    return name if drawn == name else f"{label}: {drawn}"


SHEET_COLUMNS, SHEET_MOST, TILE = 6, 60, 160  # of the contact sheet; pixels


def draw_predictions(path: str, results: Sequence[dict], paths: Mapping[str, str]) -> None:
    """Draw the images of ``results`` in rows, each over its best class, as a PNG."""
    columns = min(SHEET_COLUMNS, max(1, len(results)))
    rows = -(-len(results) // columns)
    sheet = Image.new("RGB", (columns * TILE, max(1, rows) * (TILE + 28)), "white")
    draw, font = ImageDraw.Draw(sheet), figures.font()
    for place, result in enumerate(results):
        left, top = place % columns * TILE, place // columns * (TILE + 28)
        tile = FileImages([paths[result["image"]]], [0], [""]).image(0)
        tile.thumbnail((TILE - 4, TILE - 4))
        sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        best = result["classes"][0]
        text = f"{best['probability']:.0%} {best['class'].split(',')[0]}"
        text = figures.cut(figures.drawable(text), TILE - 8, font.getlength)
        draw.text((left + 4, top + TILE + 6), text, fill="black", font=font)
    files.write(path, lambda stream: sheet.save(stream, format="PNG"))
