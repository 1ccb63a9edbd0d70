"""What a model file keeps about its confidence: a temperature, and how sure it usually is.

Of a model for several labels per image, it also keeps the threshold of each label.

Both are measured on images that the model was not trained on, and kept in the notes of an ``.npz``
file. The logits are divided by the temperature before they become probabilities (arXiv 1706.04599).
The quantiles of a score of `confidence` tell, for example, below which score 5% of the images lie.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bit_paddle.data import spec as specs
from bit_paddle.data.labels import Labels, LabelSets, counts, targets
from bit_paddle.errors import CheckpointError, ConfigError
from bit_paddle.inference import (
    confidence,
    label_scores,
    onnx_files,
    paddle_inference,
    scores,
)
from bit_paddle.models import npz, published
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.losses import LOSSES
from bit_paddle.system.text import plural

if TYPE_CHECKING:
    from bit_paddle.inference.evaluation import Evaluation
    from bit_paddle.inference.label_evaluation import LabelEvaluation
    from bit_paddle.inference.model import TrainedModel
    from bit_paddle.inference.trained import TrainedFile

NOTE = "calibration"  # the note in an .npz file

BOUNDS = (0.01, 100.0)  # of the temperature

FEW = 100  # images, below which a note says that the temperature is uncertain

AUTO = "auto"  # of --threshold: the model's own

_LEVELS = np.linspace(0, 1, 201)  # of the quantiles


@dataclass(frozen=True)
class Calibration:
    """A model's temperature, and the quantiles of a score on ``images`` images of ``data``.

    ``score`` is a name of `confidence.SCORES`. ``quantiles`` are those at 0%, 0.5%, … 100%.
    ``digests`` are `identity.digest` of each part of the data, and ``crop`` is the side in pixels
    at which all was measured.
    """

    temperature: float
    score: str
    quantiles: tuple[float, ...]
    images: int
    data: str
    digests: tuple[str, ...]
    crop: int
    #: With several labels per image, from which probability on (at the temperature) each label is
    #: predicted: the highest F1 on these images
    thresholds: tuple[float, ...] | None = None

    def threshold(self, share: float) -> float:
        """Return the score below which ``share`` (0 to 1) of the images lie."""
        return float(np.interp(share, _LEVELS, self.quantiles))

    def unknown(self, logits: np.ndarray, loss: str, share: float) -> np.ndarray:
        """Return whether each row of ``logits`` [N, K] is below the threshold of ``share``."""
        return ~(confidence.score(self.score, logits, loss) >= self.threshold(share))  # NaN, too

    def __str__(self) -> str:
        return f"T = {self.temperature:.4g}, fitted on {self.images:,} images of {self.data}"


class Calibrated(NamedTuple):
    """Scores with a temperature: calibration error, Brier score, negative log-likelihood.

    ``optimistic``: the temperature was fitted on some of these very images.
    """

    ece: float
    brier: float
    nll: float
    optimistic: bool


def of_note(path: Path, note: Any) -> Calibration | None:
    """Return the calibration of a ``note``, as `asdict` gives it; None for None.

    Raises `CheckpointError` if it is malformed.
    """
    if note is None:
        return None
    try:
        quantiles = tuple(float(value) for value in note["quantiles"])
        thresholds = note.get("thresholds")
        result = Calibration(
            float(note["temperature"]),
            str(note["score"]),
            quantiles,
            int(note["images"]),
            str(note["data"]),
            tuple(str(digest) for digest in note["digests"]),
            int(note["crop"]),
            None if thresholds is None else tuple(float(value) for value in thresholds),
        )
        sorted_numbers = np.isfinite(quantiles).all() and (np.diff(quantiles) >= 0).all()
        if len(quantiles) != len(_LEVELS) or not sorted_numbers:
            raise ValueError(f"expected {len(_LEVELS)} sorted numbers as quantiles")
        if not 0 < result.temperature < math.inf:
            raise ValueError(f"its temperature is {result.temperature}")
        if result.score not in confidence.SCORES:
            raise ValueError(f"its score {result.score!r} is unknown")
        if not all(0 <= value <= 1 for value in result.thresholds or ()):
            raise ValueError("its thresholds are not all between 0 and 1")
    except (TypeError, KeyError, ValueError, OverflowError, AttributeError) as error:
        raise CheckpointError(f"{path}: its calibration is malformed ({error})") from error
    return result


def fit(
    logits: np.ndarray,
    labels: Labels,
    loss: str,
    *,
    data: str,
    digests: Sequence[str],
    crop: int,
) -> tuple[Calibration, list[str]]:
    """Return the calibration for ``logits`` [N, K] and their labels, and notes for the user.

    Raises `ConfigError` if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise ConfigError("--calibrate: the model's outputs are not finite: training diverged")
    found, note = temperature(logits, labels, loss)
    notes = [note] if note else []
    if len(labels) < FEW:
        notes.append(
            f"only {len(labels)} images were used: temperature and thresholds are uncertain; take "
            f"{FEW} or more if you have them"
        )
    values = confidence.score(confidence.UNKNOWN, logits, loss)
    quantiles = tuple(np.quantile(values, _LEVELS).tolist())
    thresholds = None
    if isinstance(labels, LabelSets):
        shares = scores.probabilities(logits, loss, found)
        thresholds = tuple(label_scores.best_thresholds(shares, labels).tolist())
        empty = int((counts(labels, logits.shape[1]) == 0).sum())
        if empty:
            notes.append(
                f"{plural(empty, 'label')} without images: the threshold stays "
                f"{label_scores.THRESHOLD:g}"
            )
    result = Calibration(
        *(found, confidence.UNKNOWN, quantiles, len(labels), data, tuple(digests), crop),
        thresholds,
    )
    return result, notes


def temperature(logits: np.ndarray, labels: Labels, loss: str) -> tuple[float, str]:
    """Return the temperature T with the lowest mean loss of ``logits`` / T, and a note or "".

    With softmax the loss is the negative log-likelihood. It is computed in float64, and it has one
    minimum over T, because it is convex in 1 / T; Brent's method finds it between `BOUNDS`. Without
    a minimum there (every image is right, and the lower T the better), T is 1: nothing changes.
    """
    from scipy.optimize import minimize_scalar

    def mean_loss(logarithm: float) -> float:
        found = 0.0
        for rows in scores.blocks(logits):
            block = logits[rows].astype(np.float64) / math.exp(logarithm)
            own = targets(labels[rows], logits.shape[1])
            found += float(LOSSES[loss].per_image(block, own).sum())
        return found / len(labels)

    ends = [math.log(bound) for bound in BOUNDS]
    best = minimize_scalar(mean_loss, bounds=ends, method="bounded", options={"xatol": 1e-9})
    if mean_loss(ends[0]) <= best.fun:
        return 1.0, (
            "the lower the temperature, the better: the images hold no mistake to learn from. The "
            "temperature is 1, which changes nothing; more images would help"
        )
    if mean_loss(ends[1]) <= best.fun:
        return BOUNDS[1], (
            f"the temperature is at its upper bound, {BOUNDS[1]:g}: all classes get about the same "
            "probability, because the model is no better than guessing on these images"
        )
    return math.exp(best.x), ""


def parse_share(value: Any, name: str = "--unknown") -> float:
    """Return the share of "5%", "0.05" or 0.05: more than 0, less than 1. Raises `ConfigError`."""
    text = str(value).strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = math.nan
    if isinstance(value, bool) or not 0 < share < 1:
        raise ConfigError(
            f"{name}: is {value!r}, expected a share of the validation images, more than 0% "
            "and less than 100%, such as 5% or 0.05"
        )
    return share


def parse_threshold(value: Any, name: str = "--threshold") -> float | str:
    """Return the probability of "0.5" or 0.5, from 0 to 1, or "auto". Raises `ConfigError`."""
    try:
        found = value if value == AUTO else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if found != AUTO and (isinstance(value, bool) or not 0 <= found <= 1):
        raise ConfigError(
            f"{name}: is {value!r}, expected a probability from 0 to 1, or auto for the model's "
            "own threshold per label"
        )
    return found


# --- The model's file ---------------------------------------------------------------------------


def check(file: TrainedFile, split: str, words: Sequence[str]) -> None:
    """Raise `ConfigError` if a model cannot be calibrated: `calibrate` would fail.

    ``words`` are those of ``--views``. The file must be an ``.npz`` file of the user's own.
    """
    path, example = file.path, "bit_paddle export --model {} --format npz --output my_model.npz"
    if words:
        raise ConfigError("--calibrate: measures one view of each image; omit --views")
    if split == "train":
        raise ConfigError(
            "--calibrate: needs images that the model was not trained on; omit --split train"
        )
    if paddle_inference.is_exported(path) or onnx_files.is_onnx(path):
        raise ConfigError(
            f"--calibrate: {path} is an export; calibrate the checkpoint that it came "
            "from, and export that again"
        )
    entry = published.known(path)
    if entry is not None:
        raise ConfigError(
            f"--calibrate: {path} is a published file, and stays as it is; calibrate a copy, which "
            f"this command writes: {example.format(entry.name)}"
        )
    with contextlib.ExitStack() as stack:
        ours = path.is_file() and stack.enter_context(CheckpointFile(path)).is_npz
    if not ours:
        raise ConfigError(
            f"--calibrate: {path} is no .npz file; calibrate a copy, which this command writes: "
            f"{example.format(path)}"
        )


def calibrate(
    model: TrainedModel,
    result: Evaluation | LabelEvaluation,
    dataset: str,
    datadir: str | None,
    split: str,
) -> Evaluation | LabelEvaluation:
    """Fit a calibration to ``result`` and write it into the file of ``model``; return both joined.

    ``dataset``, ``datadir`` and ``split`` name the images in the file. ``model`` gets the
    calibration, too. Notes are printed on standard error. The arrays of the file keep their bits,
    and it is replaced when the new file is complete. Errors: those of `fit`; `WriteError`.
    """
    path, outputs = model.file.path, result.outputs
    found, notes = fit(
        *(outputs.logits, outputs.labels, outputs.loss),
        data=f"{specs.short_name(dataset, datadir)} {split}",
        digests=outputs.digests,
        crop=result.preprocessing.crop,
    )
    with CheckpointFile(path) as file:
        before = file.notes()
    npz.replace_notes(path, {**before, NOTE: asdict(found)})
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    model.file = replace(model.file, calibration=found)
    return replace(result, calibration=found)
