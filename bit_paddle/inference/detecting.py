"""A trained detector in use: from images to detections, over one or several views of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bit_paddle.data.boxes.looks import Looks, Openable, evaluation_views
from bit_paddle.data.boxes.views import View
from bit_paddle.errors import ConfigError, did_you_mean
from bit_paddle.models.detection import detections
from bit_paddle.models.detection.detections import Detections

if TYPE_CHECKING:
    from bit_paddle.models.stages import WithBackbone

BATCH = 8  # views computed at once

SUPPRESSIONS = ("nms", "soft-nms")


class _Part(NamedTuple):
    """One view of an image, the ``number``-th of its views."""

    index: int
    number: int
    view: View
    pixels: np.ndarray


def detections_of(
    network: WithBackbone,
    images: Openable,
    indices: Iterable[int],
    looks: Looks,
    *,
    suppression: str = "nms",
    least_score: float = 0.0,
    batch: int = BATCH,
    workers: int = 0,
) -> Iterator[tuple[int, Detections]]:
    """Yield (index, detections) of the ``images`` of ``indices``; the order may be another.

    ``network`` is in evaluation mode. Views with the same sides are computed together, ``batch`` at
    a time; this changes nothing but the last digits. The boxes are in pixels of the image, the best
    first. The detections of all views of an image pass one ``suppression``. Those with a score
    below ``least_score`` are dropped. ``workers`` threads decode the images ahead.

    Errors: `ConfigError` for another ``suppression``; those of the images, such as `DataError`.
    """
    if suppression not in SUPPRESSIONS:
        hint = did_you_mean(suppression, SUPPRESSIONS)
        raise ConfigError(f"suppression: is {suppression!r}; {hint}")
    groups: dict[tuple[int, int], list[_Part]] = {}
    found: dict[int, list[Detections | None]] = {}

    def computed(group: list[_Part]) -> Iterator[tuple[int, Detections]]:
        for part, one in zip(group, _candidates(network, group)):
            views = found[part.index]
            kept = one.chosen(np.flatnonzero(one.scores >= least_score))
            views[part.number] = kept._replace(boxes=part.view.restored(kept.boxes))
            if None not in views:
                every = detections.merged(found.pop(part.index))
                yield part.index, _suppressed(every, suppression, least_score)
        group.clear()

    for seen in evaluation_views(images, indices, looks, workers):
        found[seen.index] = [None] * len(seen.views)
        for number, (view, pixels) in enumerate(zip(seen.views, seen.pixels)):
            group = groups.setdefault(view.sides, [])
            group.append(_Part(seen.index, number, view, pixels))
            if len(group) == batch:
                yield from computed(group)
    for group in groups.values():
        yield from computed(group)


def _candidates(network: WithBackbone, group: Sequence[_Part]) -> list[Detections]:
    """Return the detections in each view of ``group`` before any suppression."""
    import paddle

    from bit_paddle.system.device import to_device

    if not group:
        return []
    pixels = np.stack([part.pixels for part in group])
    with paddle.no_grad():
        return network.candidates(to_device(pixels), [part.view.shown for part in group])


def _suppressed(every: Detections, suppression: str, least_score: float) -> Detections:
    if suppression == "nms":
        return detections.nms(every)
    return detections.soft_nms(every, least=max(detections.LEAST, least_score))
