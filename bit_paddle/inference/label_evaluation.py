"""The result of a model on images that may have several labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.inference import label_scores, scores
from bit_paddle.inference.calibration import Calibration
from bit_paddle.inference.label_scores import LabelScores
from bit_paddle.inference.strangers import Strangers

if TYPE_CHECKING:
    from bit_paddle.inference.evaluation import Outputs


class Chosen(NamedTuple):
    """Scores with the thresholds that the model keeps, one per label.

    ``optimistic``: the thresholds were chosen on some of these very images.
    """

    scores: LabelScores
    optimistic: bool


@dataclass(frozen=True)
class LabelEvaluation:
    """The result of a model on images with any number of labels; scores are from 0 to 1.

    A label is predicted from a probability of 0.5 on. Probability is one sigmoid per label; these
    do not add up to 1. Scores that are undefined are NaN.
    """

    model: Path
    preprocessing: Preprocessing
    classes: list[str]  # the model's names of the labels, in the order of its outputs
    outputs: Outputs  # logits and labels of all images
    views: tuple[str, ...] = ()  # the words of --views; empty for one view
    calibration: Calibration | None = None  # the model's, if there is one for such views
    strangers: Strangers | None = None  # of --strangers

    @cached_property
    def scores(self) -> LabelScores:
        """All scores, with the threshold 0.5."""
        return label_scores.measure(self.outputs.logits, self.outputs.labels, self.outputs.loss)

    @property
    def images(self) -> int:
        """The number of images."""
        return self.scores.images

    @property
    def loss(self) -> float:
        """The mean loss per image."""
        return self.scores.loss

    @property
    def mean_average_precision(self) -> float:
        """The mean of the average precision over the labels that have images."""
        return self.scores.mean_average_precision

    @property
    def macro_f1(self) -> float:
        """The mean of F1 over the labels that have images or predictions."""
        return self.scores.macro_f1

    @property
    def micro_f1(self) -> float:
        """F1 over all pairs of image and label together."""
        return self.scores.micro_f1

    @cached_property
    def resampled(self) -> dict[str, np.ndarray]:
        """The three means of each resample, by their names: see `label_scores.resampled`."""
        outputs = self.outputs
        return label_scores.resampled(outputs.logits, outputs.labels, outputs.loss)

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95% intervals of the three means, by their names."""
        return {name: scores.interval(values) for name, values in self.resampled.items()}

    @cached_property
    def chosen(self) -> Chosen | None:
        """The scores with the model's own thresholds; None without any."""
        found, outputs = self.calibration, self.outputs
        if found is None or found.thresholds is None:
            return None
        thresholds = np.array(found.thresholds)
        result = label_scores.measure(
            outputs.logits, outputs.labels, outputs.loss, thresholds, found.temperature
        )
        return Chosen(result, not set(found.digests).isdisjoint(outputs.digests))

    @property
    def per_class(self) -> dict[str, float | None]:
        """Return {label: average precision}; None for a label without images."""
        found = self.scores.average_precision
        values = (None if np.isnan(value) else float(value) for value in found)
        return dict(zip(self.classes, values))

    def __str__(self) -> str:
        return str(self.scores)

    def __repr__(self) -> str:
        return f"<LabelEvaluation {self}>"

    def _repr_html_(self) -> str:
        return f"<p>{escape(str(self))}</p>"
