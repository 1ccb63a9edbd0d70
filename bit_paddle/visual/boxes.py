"""Images with boxes drawn on them: true boxes and detections, right and wrong ones.

A detection has a solid line and a label, a wrong one a cross before its label. A true box has a
dashed line, black and white. So nothing is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from bit_paddle.inference.average_precision import CROWD, MISSED, Outcome
from bit_paddle.models.detection.detections import Detections
from bit_paddle.visual import sheet
from bit_paddle.visual.figures import COLORS

SCORE = 0.3  # detections with a lower score are not drawn

WRONG = "✗"

_DASH = 5  # pixels of a dash, as of the gap after it

_LETTERS = 60  # the height of a label is at least this part of the longer side of an image


class Mark(NamedTuple):
    """A box x1, y1, x2, y2 in pixels, its label, and its colour; None: a true box."""

    box: tuple[float, ...]
    text: str
    color: str | None


def color_of(label: int) -> str:
    """Return the colour of the detections of a class."""
    return COLORS[label % len(COLORS)]


def found_marks(
    found: Detections,
    classes: Sequence[str],
    outcome: Outcome | None = None,
    least_score: float = SCORE,
) -> list[Mark]:
    """Return the marks of detections with ``least_score`` or more, the best last and thus on top.

    ``outcome`` tells the wrong ones.
    """
    marks = []
    for number in np.argsort(found.scores, kind="stable"):
        if found.scores[number] < least_score:
            continue
        label = int(found.classes[number])
        cross = f"{WRONG} " if outcome is not None and outcome.wrong[number] else ""
        text = f"{cross}{classes[label]} {found.scores[number]:.0%}"
        marks.append(Mark(tuple(found.boxes[number].tolist()), text, color_of(label)))
    return marks


def true_marks(
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    outcome: Outcome,
    found: Detections,
    least_score: float = SCORE,
) -> list[Mark]:
    """Return the marks of true boxes; missed ones and crowds have a label.

    A detection with less than ``least_score`` counts as none.
    """
    marks = []
    for box, label, finder in zip(boxes.tolist(), labels.tolist(), outcome.finders.tolist()):
        missed = finder == MISSED or (finder >= 0 and found.scores[finder] < least_score)
        text = f"missed {classes[label]}" if missed else "crowd" if finder == CROWD else ""
        marks.append(Mark(tuple(box), text, None))
    return marks


def marked(image: Image.Image, marks: Iterable[Mark], longest: int | None = None) -> Image.Image:
    """Return RGB ``image`` with ``marks`` drawn on it in their order.

    A larger image is first shrunk until its longer side is ``longest`` pixels.
    """
    ratio = min(1.0, longest / max(image.size)) if longest else 1.0
    size = [max(1, round(ratio * side)) for side in image.size]
    picture = image.resize(size, Image.Resampling.BILINEAR) if ratio < 1 else image.copy()
    letters = max(10, max(picture.size) // _LETTERS)
    font, width, draw = sheet.font(letters), max(2, letters // 6), ImageDraw.Draw(picture)
    labels = []
    for box, text, color in marks:
        x1, y1, x2, y2 = (round(ratio * side) for side in box)
        corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        _outline(draw, corners, width, color)
        text = sheet.drawable(text)
        if text:
            labels.append((corners, text, color or "white"))
    for (x1, y1, _, _), text, color in labels:  # above all lines
        wide, high = round(font.getlength(text)) + 4, letters + 4
        left = max(0, min(x1, picture.width - wide))
        top = y1 - high if y1 >= high else max(0, y1)
        top = min(top, picture.height - high)
        draw.rectangle((left, top, left + wide, top + high), fill=color, outline="black")
        draw.text((left + 2, top + 1), text, fill="black", font=font)
    return picture


def _outline(
    draw: ImageDraw.ImageDraw, corners: tuple[int, ...], width: int, color: str | None
) -> None:
    """Draw a box: a line of ``color`` between two black ones, or black and white dashes."""
    if color is not None:
        x1, y1, x2, y2 = corners
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="black", width=width + 2)
        draw.rectangle(corners, outline=color, width=width)
        return
    draw.rectangle(corners, outline="black", width=width)
    for dash in _dashes(*corners, width):
        draw.rectangle(dash, fill="white")


def _dashes(x1: int, y1: int, x2: int, y2: int, width: int) -> Iterator[tuple[int, ...]]:
    """Yield the rectangles of the dashes along the four sides of a box."""
    for start in range(x1, x2 + 1, 2 * _DASH):
        end = min(start + _DASH - 1, x2)
        yield start, y1, end, min(y1 + width - 1, y2)
        yield start, max(y2 - width + 1, y1), end, y2
    for start in range(y1, y2 + 1, 2 * _DASH):
        end = min(start + _DASH - 1, y2)
        yield x1, start, min(x1 + width - 1, x2), end
        yield max(x2 - width + 1, x1), start, x2, end
