"""Write the results of an evaluation on images with several labels into a folder."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle.data.labels import named
from bit_paddle.inference import label_scores, predictions, scores
from bit_paddle.inference.comparison import LabelComparison
from bit_paddle.inference.label_evaluation import LabelEvaluation
from bit_paddle.inference.label_scores import LabelScores
from bit_paddle.system import files
from bit_paddle.visual.results import finite, strangers_of, write_table

MEANS = ("mean_average_precision", "macro_f1", "micro_f1")

_FIRST = 5  # labels per image in predictions.csv


def in_words(result: LabelEvaluation) -> str:
    """Return the scores and their intervals as a few lines of text."""
    lines = ["95% intervals:"]
    for name, (low, high) in result.intervals.items():
        lines.append(f"  {name:<22} {getattr(result, name):.4f}  ({low:.4f} to {high:.4f})")
    if result.chosen is not None:
        lines.append(f"with the model's own threshold per label ({result.calibration}):")
        for name in MEANS[1:]:
            value, usual = getattr(result.chosen.scores, name), getattr(result, name)
            least = f"{label_scores.THRESHOLD:g}"
            lines.append(f"  {name:<22} {value:.4f}  (with {least}: {usual:.4f})")
        if result.chosen.optimistic:
            lines.append(
                "  The thresholds were chosen on these images, so these scores are too good. "
                "Measure on others, such as --split test"
            )
    if result.strangers is not None:
        lines.append(str(result.strangers))
    return "\n".join(lines)


def write_results(
    result: LabelEvaluation, dataset: str, split: str, folder: Path, datadir: str | None = None
) -> None:
    """Write metrics.json, per_class.csv and predictions.csv. Raises `WriteError`."""
    summary: dict[str, Any] = {
        "model": str(result.model),
        "dataset": dataset,
        "split": split,
        "preprocessing": asdict(result.preprocessing),
        "views": list(result.views),
        **{name: finite(getattr(result, name)) for name in (*MEANS, "loss")},
        "images": result.images,
        "threshold": label_scores.THRESHOLD,
        "intervals": {name: [*map(finite, ends)] for name, ends in result.intervals.items()},
        "interval": "95%: percentile bootstrap over images, "
        f"{scores.RESAMPLES} resamples, seed {scores.SEED}",
    }
    if result.chosen is not None and result.calibration is not None:
        known = result.calibration
        summary["own_thresholds"] = {
            **{name: finite(getattr(result.chosen.scores, name)) for name in MEANS[1:]},
            "thresholds": dict(zip(result.classes, known.thresholds or ())),
            "temperature": known.temperature,
            "optimistic": result.chosen.optimistic,
            "chosen_on": {"data": known.data, "images": known.images},
        }
    summary.update(strangers_of(result))
    files.write_text(folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
    write_table(folder / "per_class.csv", per_label(result.scores, result.classes))
    write_table(folder / predictions.PREDICTIONS, _predictions(result, datadir))


def write_comparison(found: LabelComparison, folder: Path, datadir: str | None = None) -> None:
    """Write comparison.json and differences.csv, a line per label. Raises `WriteError`."""
    summary = {
        "models": [str(found.a.model), str(found.b.model)],
        "images": found.a.images,
        "differences": {name: finite(value) for name, value in found.differences.items()},
        "difference_intervals": {
            name: [*map(finite, ends)] for name, ends in found.intervals.items()
        },
        "interval": "95%, paired percentile bootstrap",
        **{name: [finite(getattr(each, name)) for each in (found.a, found.b)] for name in MEANS},
    }
    files.write_text(folder / "comparison.json", json.dumps(summary, indent=2) + "\n")
    write_table(folder / "differences.csv", _differences(found))


def _differences(found: LabelComparison) -> Iterator[tuple]:
    """Yield a row for each label that has images, the largest gain of the second model first."""
    yield "label", "images", "first", "second", "difference"
    own = dict(zip(found.a.classes, found.a.scores.own.tolist()))
    rows = found.average_precision.items()
    for name, (a, b) in sorted(rows, key=lambda item: item[1][0] - item[1][1]):
        yield name, own[name], f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}"


def per_label(found: LabelScores, classes: Sequence[str]) -> Iterator[tuple]:
    """Yield the rows of a table with the scores of each label; undefined scores are empty."""
    columns = ("precision", "recall", "f1", "auc", "average_precision")
    yield "label", "images", "predicted", *columns
    values = zip(*(getattr(found, name) for name in columns))
    for name, own, predicted, row in zip(classes, found.own, found.predicted, values):
        yield name, own, predicted, *("" if np.isnan(value) else f"{value:.4f}" for value in row)


def _predictions(result: LabelEvaluation, datadir: str | None) -> Iterator[tuple]:
    """Yield a row per image: path, its labels with ; between them, and the first predictions."""
    outputs, first = result.outputs, min(_FIRST, len(result.classes))
    heads = ((f"label_{rank}", f"p_{rank}") for rank in range(1, first + 1))
    yield "path", "labels", *itertools.chain(*heads)
    names = predictions.relative(outputs.names, datadir)
    own = iter(named(outputs.labels, result.classes))
    for rows in scores.blocks(outputs.logits):
        logits = outputs.logits[rows]
        best = np.argsort(-logits, axis=1, kind="stable")[:, :first]
        shares = np.take_along_axis(scores.probabilities(logits, outputs.loss), best, axis=1)
        for ranks, row in zip(best, shares):
            pairs = ((result.classes[k], f"{share:.6g}") for k, share in zip(ranks, row))
            yield next(names), ";".join(next(own)), *itertools.chain(*pairs)
