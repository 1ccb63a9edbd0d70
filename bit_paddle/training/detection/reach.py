"""Which boxes the anchors reach: an overlap (IoU) of a half, and what would reach all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bit_paddle.data.boxes.views import MULTIPLE, common_sides
from bit_paddle.models.detection import anchors
from bit_paddle.models.detection.anchors import AnchorShapes
from bit_paddle.models.detection.boxes import areas

LEAST = 0.5  # overlap of a box with its best anchor: the matching of both recipes

_MOST = 100_000  # boxes that are looked at; of more, a sample

_LARGER = (1.25, 1.5, 2, 2.5, 3, 4)  # factors of --side that are tried

_BASES = (3.0, 2.5, 2.0, 1.5, 1.0, 0.75, 0.5)  # of --anchor_base


@dataclass(frozen=True)
class Reach:
    """How many of ``boxes`` boxes no anchor reaches, and the settings that would leave fewest.

    ``boxes`` may be a sample of ``total``. Pixels are those of a training view without jitter.
    ``sides`` are the 10th, 50th and 90th percentile of the boxes' sides (square root of the area).
    ``smallest`` is the (width, height) of the smallest box that is not reached. ``side`` and
    ``base`` are (value, how many are left); None if no value that was tried leaves fewer.
    """

    total: int
    boxes: int
    missed: int
    sides: tuple[float, ...]
    smallest: tuple[float, ...] = ()
    side: tuple[float, int] | None = None
    base: tuple[float, int] | None = None

    def __str__(self) -> str:
        sample = "a sample of " if self.boxes < self.total else ""
        return f"{self.boxes - self.missed:,} of {sample}{self.boxes:,} training boxes"

    def notes(self) -> list[str]:
        """Return a note if there are boxes that no anchor reaches."""
        if not self.missed:
            return []
        note = (
            f"{self.missed / self.boxes:.1%} of the training boxes ({self.missed:,}) overlap no "
            f"anchor by half (IoU {LEAST}): each trains only the anchor nearest to it. The "
            "smallest is {:.0f} x {:.0f} pixels in the view. ".format(*self.smallest)
        )
        ways = [
            f"{flag} {found[0]:g} ({'all' if not found[1] else f'all but {found[1]:,}'})"
            for flag, found in (("--side", self.side), ("--anchor_base", self.base))
            if found is not None
        ]
        if not ways:
            return [f"{note}No other --side or --anchor_base that was tried reaches more"]
        return [f"{note}More are reached with {' or '.join(ways)}"]


def reach_of(
    boxes: Sequence[np.ndarray], originals: np.ndarray, side: int, shapes: AnchorShapes
) -> Reach:
    """Return the reach of anchors of ``shapes`` for the ``boxes`` of each image.

    ``originals`` [N, 2] are the images' heights and widths, and ``side`` is the longer side that
    they have in the view.
    """
    counts = [len(one) for one in boxes]
    every = np.concatenate(list(boxes)).astype(np.float64)
    of_image = np.repeat(np.asarray(originals), counts, axis=0)
    chosen = np.linspace(0, len(every) - 1, min(len(every), _MOST)).astype(int)
    every, of_image = every[chosen], of_image[chosen]

    def missed(side: int, shapes: AnchorShapes) -> tuple[np.ndarray, np.ndarray]:
        """Return all boxes in pixels of the view, and those of them that are not reached."""
        view = common_sides(originals, side)
        scaled = every * (side / of_image.max(axis=1))[:, None]
        return scaled, scaled[anchors.reach(scaled, *view, shapes) < LEAST]

    scaled, now = missed(side, shapes)
    percentiles = tuple(np.percentile(np.sqrt(areas(scaled)), (10, 50, 90)).tolist())
    found = Reach(sum(counts), len(every), len(now), percentiles)
    if not len(now):
        return found
    smallest = now[np.argmin(areas(now))]
    sides = sorted({-(-int(side * factor) // MULTIPLE) * MULTIPLE for factor in _LARGER})
    bases = [base for base in _BASES if base < shapes.base]
    by_side = [(one, len(missed(one, shapes)[1])) for one in sides]
    by_base = [(one, len(missed(side, replace(shapes, base=one))[1])) for one in bases]
    return replace(
        found,
        smallest=tuple((smallest[2:] - smallest[:2]).tolist()),
        side=_best(by_side, len(now)),
        base=_best(by_base, len(now)),
    )


def _best(found: list[tuple[float, int]], now: int) -> tuple[float, int] | None:
    """Return the first of (value, boxes left) with the fewest left; None if these are not fewer."""
    best = min(found, key=lambda one: one[1], default=None)
    return best if best is not None and best[1] < now else None
