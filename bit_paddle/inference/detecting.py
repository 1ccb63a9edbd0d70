"""A trained detector in use: from images to detections, over one or several views of each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bit_paddle.data.boxes.annotations import BoxedImages
from bit_paddle.data.boxes.looks import Looks, Openable, evaluation_views
from bit_paddle.data.boxes.views import View
from bit_paddle.data.images import FileImages
from bit_paddle.errors import ConfigError, did_you_mean
from bit_paddle.inference import average_precision, inputs, paddle_inference
from bit_paddle.inference.average_precision import Scores
from bit_paddle.inference.parts import Parts
from bit_paddle.models import published
from bit_paddle.models.detection import detections
from bit_paddle.models.detection.configuration import Detector
from bit_paddle.models.detection.detections import Detections
from bit_paddle.system import progress

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
    parts: Parts | None = None,
) -> Iterator[tuple[int, Detections]]:
    """Yield (index, detections) of the ``images`` of ``indices``; the order may be another.

    ``network`` is in evaluation mode. Views with the same sides are computed together, ``batch`` at
    a time; this changes nothing but the last digits. The boxes are in pixels of the image, the best
    first. The detections of all views of an image pass one ``suppression``. Those with a score
    below ``least_score`` are dropped. ``workers`` threads decode the images ahead.
    ``parts`` computes the views in smaller parts where memory runs out.

    Errors: `ConfigError` for another ``suppression``; those of the images, such as `DataError`.
    """
    if suppression not in SUPPRESSIONS:
        hint = did_you_mean(suppression, SUPPRESSIONS)
        raise ConfigError(f"suppression: is {suppression!r}; {hint}")
    groups: dict[tuple[int, int], list[_Part]] = {}
    compute = partial(_candidates, network)
    found: dict[int, list[Detections | None]] = {}

    def computed(group: list[_Part]) -> Iterator[tuple[int, Detections]]:
        results = parts.of(compute, group) if parts else [compute(group)]
        for part, one in zip(group, chain.from_iterable(results)):
            views = found[part.index]
            kept = one.chosen(np.flatnonzero(one.scores >= least_score))
            views[part.number] = kept._replace(boxes=part.view.restored(kept.boxes))
            if None not in views:
                every = _best(detections.merged(found.pop(part.index)))
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


def _best(every: Detections) -> Detections:
    """Return as many detections of all views as one view may have, those with the best scores."""
    return every.chosen(np.argsort(-every.scores, kind="stable")[: detections.CANDIDATES])


def _suppressed(every: Detections, suppression: str, least_score: float) -> Detections:
    if suppression == "nms":
        return detections.nms(every)
    return detections.soft_nms(every, least=max(detections.LEAST, least_score))


# --- The model ----------------------------------------------------------------------------------


class Measured(NamedTuple):
    """The detections of each of ``images``, in their order, and their scores."""

    images: BoxedImages
    found: list[Detections]
    scores: Scores

    @property
    def files(self) -> FileImages:
        """The image files."""
        return self.images.files()


class DetectorModel:
    """A trained detector; `open_detector` returns one. ``detector`` are the facts of its file."""

    def __init__(self, network: WithBackbone, detector: Detector):
        self.network, self.detector = network, detector

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the outputs."""
        return self.detector.classes

    def detect(
        self,
        images: Any,
        *,
        side: int | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        suppression: str = "nms",
        least_score: float = 0.05,
        batch: int = BATCH,
        workers: int = 0,
    ) -> list[Detections]:
        """Return the detections in each of ``images``, in their pixels, the best first.

        An image is a path, a web address, a PIL image, or an array uint8 [H, W, 3] in RGB. Its
        longer side becomes ``side`` pixels (default: as in training), times each of ``scales``.
        With ``flip`` the mirrored views count as well. `detections_of` explains the rest. Errors:
        `ConfigError`, `MissingFileError`, `DataError`, `DownloadError`.
        """
        many = images if isinstance(images, (list, tuple)) else [images]
        looks = self._looks(side, scales, flip)
        options = {"suppression": suppression, "least_score": least_score, "batch": batch}
        return self._found(inputs.GivenImages(many), looks, workers=workers, **options)

    def measure(
        self,
        images: BoxedImages,
        *,
        side: int | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        suppression: str = "nms",
        batch: int = BATCH,
        workers: int = 0,
    ) -> Measured:
        """Return the detections in ``images`` and COCO's scores.

        The options are those of `detect`. Errors: also `ConfigError` if the classes of the images
        are not those of the detector; `average_precision.scores_of`.
        """
        average_precision.check_installed()
        if tuple(images.classes) != self.classes:
            raise ConfigError(
                f"the data have {len(images.classes)} classes ({', '.join(images.classes[:4])} …), "
                f"but the detector knows {len(self.classes)} ({', '.join(self.classes[:4])} …); "
                "read the boxes with the detector's classes"
            )
        looks = self._looks(side, scales, flip)
        options = {"suppression": suppression, "batch": batch, "workers": workers}
        found = self._found(images.files(), looks, **options)
        return Measured(images, found, average_precision.scores_of(images, found))

    def _looks(self, side: int | None, scales: Sequence[float], flip: bool) -> Looks:
        side = self.detector.side if side is None else side
        if side < 1 or not scales or min(scales) <= 0:
            raise ConfigError(
                f"side {side}, scales {list(scales)}: expected a side of 1 or more pixels, and one "
                "or more scales above 0"
            )
        return Looks(side, tuple(scales), flip)

    def _found(self, images: Any, looks: Looks, **options: Any) -> list[Detections]:
        found: dict[int, Detections] = {}
        with progress.progress_bar(desc="images", unit="img", total=len(images), delay=1) as bar:
            for index, one in detections_of(
                self.network, images, range(len(images)), looks, **options
            ):
                found[index] = one
                bar.update()
        return [found[index] for index in range(len(images))]


def open_detector(
    model: str | os.PathLike, device: str = "auto", amp: str = "off"
) -> DetectorModel:
    """Return the detector of a run's folder, or of a file of weights that training wrote.

    Errors: `MissingFileError`, `CheckpointError` (not a detector), `ConfigError` (this machine does
    not have the ``device``, or does not support ``amp``).
    """
    path = published.resolve(os.fspath(model))
    if not isinstance(path, Path):
        raise ConfigError(
            f"{model}: is a backbone without a detector; give the folder of a run of "
            "bit_paddle detect train, or its model.npz"
        )
    paddle_inference.hush()
    from bit_paddle.models.detection import weights
    from bit_paddle.models.native import build
    from bit_paddle.system.device import amp_for, select_device

    network, detector = weights.load_detector(path)
    device = select_device(device)
    network.amp = amp_for(device, amp)
    network.compute_with(build.choose(device, network.amp, partial(print, file=sys.stderr))[0])
    network.eval()
    return DetectorModel(network, detector)
