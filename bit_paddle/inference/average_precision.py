"""Average precision and recall of detections: COCO's numbers, computed by pycocotools.

A size is that of a box: small boxes have an area up to 32 x 32 pixels, large ones from 96 x 96 on.
COCO's own tables take the area of an object's outline, so their numbers by size differ a little.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bit_paddle.data.boxes.annotations import BoxedImages
from bit_paddle.errors import ConfigError, install_hint
from bit_paddle.models.detection.boxes import areas
from bit_paddle.models.detection.detections import Detections

RECALLS = np.linspace(0, 1, 101)  # at which COCO reads the precision

_ALL, _MOST = 0, -1  # COCOeval's places of boxes of every size, and of 100 detections


MISSED, CROWD = -1, -2  # boxes without a right detection, and those that need none


class Outcome(NamedTuple):
    """What is right and wrong in one image, at an overlap (IoU) of 0.5.

    ``right`` and ``wrong`` are bool [D], of its detections; those that found a crowd are neither.
    ``finders`` int64 [B] are the right detections of its boxes by number, `MISSED` or `CROWD`.
    """

    right: np.ndarray
    wrong: np.ndarray
    finders: np.ndarray


@dataclass(frozen=True)
class Scores:
    """COCO's scores from 0 to 1, means over the classes that have boxes; NaN without such boxes.

    ``ap`` is the mean over the overlaps (IoU) 0.5, 0.55 … 0.95; ``ap50`` and ``ap75`` are at one
    overlap. ``ar_1``, ``ar_10`` and ``ar_100`` are the recalls with so many detections per class
    and image. ``class_ap`` and ``class_ap50`` are float64 [K], ``precisions`` [K, 101] those at
    the recalls `RECALLS` at an overlap of 0.5. ``outcomes`` has one item per image.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    classes: Sequence[str]
    class_ap: np.ndarray
    class_ap50: np.ndarray
    precisions: np.ndarray
    outcomes: Sequence[Outcome]

    @property
    def score(self) -> float:
        """The metric that chooses the best model: AP, or 0 if there is no box."""
        return 0.0 if math.isnan(self.ap) else self.ap

    def summary(self) -> dict[str, float]:
        """Return COCO's twelve numbers by name."""
        return {name: getattr(self, name) for name in NAMES}

    @property
    def per_class(self) -> dict[str, tuple[float, float]]:
        """Return {class: (AP, AP50)}; NaN for a class without boxes."""
        return dict(zip(self.classes, zip(self.class_ap.tolist(), self.class_ap50.tolist())))

    def __str__(self) -> str:
        sizes = f"{self.ap_small:.2%}, {self.ap_medium:.2%}, {self.ap_large:.2%}"
        return (
            f"AP {self.ap:.2%}, AP50 {self.ap50:.2%}, AP75 {self.ap75:.2%}, "
            f"small, medium, large {sizes}, AR {self.ar_100:.2%}"
        ).replace("nan%", "-")


NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


def check_installed() -> None:
    """Raise `ConfigError` if pycocotools is missing."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"average precision is computed by pycocotools, which is missing: "
            f"{install_hint('detect')}"
        ) from None


def scores_of(images: BoxedImages, found: Sequence[Detections]) -> Scores:
    """Return the scores of ``found``, the detections of each of ``images``.

    Detections that are not finite are left out. Raises `ConfigError` without pycocotools.
    """
    check_installed()
    from pycocotools.cocoeval import COCOeval

    if len(found) != len(images):
        raise ValueError(f"{len(found)} detections of images, expected {len(images)}")
    kept = [_finite(one) for one in found]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress
        truth, given = _tables(images, [one.chosen(rows) for one, rows in zip(found, kept)])
        evaluation = COCOeval(truth, given, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][..., _ALL, _MOST]  # [overlap, recall, class]
    precision = np.where(precision < 0, np.nan, precision)
    return Scores(
        *(math.nan if value < 0 else float(value) for value in evaluation.stats),
        classes=images.classes,
        class_ap=precision.mean(axis=(0, 1)),
        class_ap50=precision[0].mean(axis=0),
        precisions=precision[0].T,
        outcomes=_outcomes(evaluation, images, found, kept),
    )


def results_json(images: BoxedImages, found: Sequence[Detections]) -> list[dict[str, Any]]:
    """Return ``found`` as the content of COCO's results file, with its numbers of categories.

    Detections of classes without such a number are left out.
    """
    return [
        {
            "image_id": number,
            "category_id": images.category_ids[label],
            "bbox": bbox,
            "score": score,
        }
        for number, one in zip(images.ids, found)
        for bbox, score, label in _rows(one)
        if images.category_ids[label] is not None
    ]


# --- pycocotools --------------------------------------------------------------------------------


def _finite(one: Detections) -> np.ndarray:
    """Return the indices of finite detections; pycocotools takes a box of NaN for a match."""
    return np.flatnonzero(np.isfinite(one.boxes).all(axis=1) & np.isfinite(one.scores))


def _rows(one: Detections) -> Iterator[tuple[list[float], float, int]]:
    """Yield [x, y, width, height], score and class of each detection."""
    boxes = one.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    yield from zip(boxes.tolist(), one.scores.astype(np.float64).tolist(), one.classes.tolist())


def _tables(images: BoxedImages, found: Sequence[Detections]) -> tuple[Any, Any]:
    """Return the true boxes and ``found`` as COCO's tables.

    Numbers of images are those of their places, of classes their labels, of entries from 1 on, as
    pycocotools takes 0 for none.
    """
    from pycocotools.coco import COCO

    truths = (
        Detections(boxes, crowd, labels)  # a crowd stands where a detection has its score
        for boxes, crowd, labels in zip(images.boxes, images.crowd, images.labels)
    )
    tables = []
    for every, key in ((truths, "iscrowd"), (found, "score")):
        entries: list[dict[str, Any]] = []
        for place, one in enumerate(every):
            sizes = areas(one.boxes.astype(np.float64)).tolist()
            for (bbox, value, label), area in zip(_rows(one), sizes):
                entry = {"id": len(entries) + 1, "image_id": place, "category_id": label}
                entries.append({**entry, "bbox": bbox, "area": area, "iscrowd": 0, key: value})
        table = COCO()
        table.dataset = {
            "images": [{"id": place} for place in range(len(images))],
            "categories": [{"id": label} for label in range(len(images.classes))],
            "annotations": entries,
        }
        table.createIndex()
        tables.append(table)
    return tables[0], tables[1]


def _outcomes(
    evaluation: Any,
    images: BoxedImages,
    found: Sequence[Detections],
    kept: Sequence[np.ndarray],
) -> list[Outcome]:
    """Return the matches of ``evaluation`` at an overlap of 0.5, for boxes of every size.

    ``kept`` are the indices of the detections of each image that it has.
    """
    outcomes = [
        Outcome(*np.zeros((2, len(one.scores)), bool), np.where(crowd, CROWD, MISSED))
        for one, crowd in zip(found, images.crowd)
    ]
    first_found = np.cumsum([1, *map(len, kept)])  # the number of an image's first entry
    first_box = np.cumsum([1, *map(len, images.boxes)])
    for one in evaluation.evalImgs:
        if one is None or one["aRng"] != evaluation.params.areaRng[_ALL]:
            continue
        place = one["image_id"]
        outcome, numbers = outcomes[place], kept[place]
        rows = numbers[_integers(one["dtIds"]) - first_found[place]]
        matched, ignored = one["dtMatches"][0] > 0, one["dtIgnore"][0] > 0
        outcome.right[rows] = matched & ~ignored
        outcome.wrong[rows] = ~matched & ~ignored
        finders = _integers(one["gtMatches"][0])
        boxes = _integers(one["gtIds"]) - first_box[place]
        hit = (finders > 0) & (one["gtIgnore"] == 0)
        outcome.finders[boxes[hit]] = numbers[finders[hit] - first_found[place]]
    return outcomes


def _integers(numbers: Sequence[float]) -> np.ndarray:
    return np.array(numbers, np.int64)
