"""A detector's validation in pictures: the sections of the report page, and sheets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from bit_paddle.inference.detecting import Measured
from bit_paddle.inference.misses import Analysis, Mistake
from bit_paddle.visual import boxes, figures, html, sheet
from bit_paddle.visual.html import Pictures

SCORE = ("AP", "ap")  # the title and the key of the metric that chooses the best model

METRICS = {"AP50": "ap50", "AP75": "ap75"}

TILE = 320  # pixels of a mistake

WHOLE = 560  # pixels of the longer side of a whole image

TILES = {  # names of the pictures: title, and style of the page
    "wrong": ("Wrong detections with the highest scores", "tiles"),
    "missed": ("Missed boxes", "tiles"),
    "images": ("Validation images", "grid"),
}

LEGEND = (
    f"Solid lines are detections, with their class and score; {boxes.WRONG} marks wrong ones. "
    "Dashed lines, black and white, are true boxes. A detection is right if its overlap (IoU) with "
    "a true box of its class is at least 0.5."
)


def sections(analysis: Analysis, suffix: str, pictures: Pictures) -> Iterator[str]:
    """Yield the sections of a page; add a function to ``pictures`` for each picture."""
    measured = analysis.measured
    curves = figures.draw_precision(measured.scores)
    pictures[f"precision{suffix}"] = partial(figures.save, curves, dpi=150)
    yield "<h3>Average precision</h3>"
    yield f'<div class="wide">{class_table(measured)}</div>'
    yield (
        f'<div class="grid"><figure>{figures.to_svg(curves)}<figcaption>precision by recall at an '
        "overlap of 0.5; the numbers are AP50</figcaption></figure></div>"
    )
    for name, (title, kind) in TILES.items():
        yield f"<h3>{title}</h3>"
        tiles = list(tiles_of(analysis, name))
        if not tiles:
            yield '<p class="note">None.</p>'
            continue
        pictures[f"{name}{suffix}"] = partial(write_sheet, tiles)
        shown = (html.tile([picture], *text, photo=True) for picture, text in tiles)
        yield f'<div class="{kind}">{"".join(shown)}</div>'
    yield f'<p class="note">{escape(LEGEND)}</p>'


def class_table(found: Measured) -> str:
    """Return AP and AP50 of each class, and the number of its boxes without crowds, as HTML."""
    rows = ["<tr><th>class</th><th>boxes</th><th>AP</th><th>AP50</th></tr>"]
    for (name, values), count in zip(found.scores.per_class.items(), box_counts(found)):
        cells = "".join(f"<td>{value:.2%}</td>" if count else "<td></td>" for value in values)
        rows.append(f"<tr><th>{escape(name)}</th><td>{count:,}</td>{cells}</tr>")
    return f"<table>{''.join(rows)}</table>"


def box_counts(found: Measured) -> np.ndarray:
    """Return the number of true boxes of each class, without crowds, int64 [K]."""
    every = zip(found.images.labels, found.images.crowd)
    labels = np.concatenate([labels[~crowd] for labels, crowd in every])
    return np.bincount(labels, minlength=len(found.images.classes))


# --- Pictures -----------------------------------------------------------------------------------

Tile = tuple[Image.Image, tuple[str, str]]  # a picture, and the title and text of its caption


def tiles_of(analysis: Analysis, name: str) -> Iterator[Tile]:
    """Yield the tiles of "wrong" or "missed" mistakes, or of whole "images"."""
    measured = analysis.measured
    if name == "images":
        yield from (draw_whole(measured, place) for place in analysis.shown)
        return
    for mistake in analysis.wrong if name == "wrong" else analysis.missed:
        path = Path(measured.images.paths[mistake.image]).name
        text = f"{mistake.title}: {mistake.reason}", path
        yield draw_mistake(measured, mistake), text


def draw_whole(found: Measured, place: int) -> Tile:
    """Return an image with its true boxes and detections, and counts of these."""
    outcome, drawn = found.scores.outcomes[place], found.found[place].scores >= boxes.SCORE
    right, wrong = (int((each & drawn).sum()) for each in (outcome.right, outcome.wrong))
    truth = int((~found.images.crowd[place]).sum())
    text = (
        f"{right} of {truth} boxes found, {wrong} wrong detections, at scores from "
        f"{boxes.SCORE:.0%} on"
    )
    picture = boxes.marked(found.files.image(place), _marks(found, place), WHOLE)
    return picture, (Path(found.images.paths[place]).name, text)


def draw_mistake(found: Measured, mistake: Mistake) -> Image.Image:
    """Return the square around a mistake, twice as large as its box, `TILE` pixels wide.

    Only the box of the mistake has a label.
    """
    x1, y1, x2, y2 = mistake.box
    side = max(32, round(2 * max(x2 - x1, y2 - y1)))
    left, top = round((x1 + x2 - side) / 2), round((y1 + y2 - side) / 2)
    around = Image.new("RGB", (side, side), sheet.PAPER)
    around.paste(found.files.image(mistake.image), (-left, -top))
    color = None if mistake.missed else boxes.color_of(mistake.label)
    text = mistake.title if mistake.missed else f"{boxes.WRONG} {mistake.title}"
    others = [mark._replace(text="") for mark in _marks(found, mistake.image)]
    moved = []
    for mark in (*others, boxes.Mark(mistake.box, text, color)):
        edges = zip(mark.box, (left, top, left, top))
        moved.append(mark._replace(box=tuple(TILE / side * (edge - low) for edge, low in edges)))
    return boxes.marked(around.resize((TILE, TILE), Image.Resampling.BILINEAR), moved)


def _marks(found: Measured, place: int) -> list[boxes.Mark]:
    """Return the marks of the true boxes and the detections of an image."""
    images, one, outcome = found.images, found.found[place], found.scores.outcomes[place]
    truth = boxes.true_marks(
        images.boxes[place], images.labels[place], images.classes, outcome, one
    )
    return truth + boxes.found_marks(one, images.classes, outcome)


def write_sheet(tiles: Sequence[Tile], stream: BinaryIO, columns: int = 4) -> None:
    """Write a sheet of ``tiles`` with their captions as a PNG; smaller pictures are padded."""
    width, height = (max(sides) for sides in zip(*(picture.size for picture, _ in tiles)))
    padded = []
    for picture, text in tiles:
        paper = Image.new("RGB", (width, height), sheet.PAPER)
        paper.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
        padded.append((paper, sheet.drawable("; ".join(text))))
    sheet.draw_sheet(padded, len(padded), columns).save(stream, format="PNG")
