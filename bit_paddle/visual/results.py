"""Write the results of an evaluation into a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle.inference import predictions, scores
from bit_paddle.inference.comparison import Comparison
from bit_paddle.inference.evaluation import Evaluation
from bit_paddle.inference.label_evaluation import LabelEvaluation
from bit_paddle.system import files
from bit_paddle.visual import figures
from bit_paddle.visual.sheet import draw_captioned

CONFUSION_MOST = 2000  # the most classes of confusion.csv and confusion.png; then 4 million cells

DIFFERENCES_MOST = 30  # the most images of each kind in differences.png

SCORES = (
    *("top1", "top5", "balanced_accuracy", "macro_f1", "kappa", "macro_auc"),
    *("mean_average_precision", "ece", "brier", "nll", "loss"),
)


def in_words(result: Evaluation) -> str:
    """Return the scores that have an interval as a few lines of text."""
    values = {name: getattr(result, name) for name in SCORES}
    undefined = [name for name, value in values.items() if math.isnan(value)]
    lines = ["95% intervals:"]
    for name, (low, high) in result.intervals.items():
        if name not in undefined:
            lines.append(f"  {name:<22} {values[name]:.4f}  ({low:.4f} to {high:.4f})")
    for name in ("macro_auc", "mean_average_precision"):
        if name not in undefined:
            lines.append(f"  {name:<22} {values[name]:.4f}")
    if undefined:
        one = len(np.unique(result.outputs.labels)) == 1
        why = "; all of them are of one class" if one else ""
        lines.append(f"not defined on these images{why}: {', '.join(undefined)}")
    if result.calibrated is not None:
        lines.append(f"calibrated ({result.calibration}), beside raw:")
        for name in ("ece", "brier", "nll"):
            value, raw = getattr(result.calibrated, name), getattr(result, name)
            lines.append(f"  {name:<22} {value:.4f}  (raw {raw:.4f})")
        if result.calibrated.optimistic:
            lines.append(
                "  The temperature was fitted on these images, so these calibrated scores are too "
                "good. Measure on others, such as --split test"
            )
    if result.strangers is not None:
        lines.append(str(result.strangers))
    return "\n".join(lines)


def write_results(
    result: Evaluation, dataset: str, split: str, folder: Path, datadir: str | None = None
) -> None:
    """Write all files of an evaluation into ``folder``. Raises `WriteError`.

    They are metrics.json, per_class.csv, predictions.csv, reliability.png, and, up to
    `CONFUSION_MOST` classes, confusion.csv and confusion.png.
    """
    summary = {
        "model": str(result.model),
        "dataset": dataset,
        "split": split,
        "preprocessing": asdict(result.preprocessing),
        "views": list(result.views),
        **{name: finite(getattr(result, name)) for name in SCORES},
        "images": result.images,
        "probabilities": result.outputs.loss,
        "intervals": {name: [*map(finite, ends)] for name, ends in result.intervals.items()},
        "interval": "95%: Wilson for top1; percentile bootstrap over images for the others, "
        f"{scores.RESAMPLES} resamples, seed {scores.SEED}",
        "reliability": {
            name: values.tolist() for name, values in result.reliability._asdict().items()
        },
        **_confidence(result),
    }
    files.write_text(folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
    write_table(folder / "per_class.csv", _per_class(result))
    predictions.write_first(
        folder / predictions.PREDICTIONS, result.outputs, result.classes, datadir
    )
    draw = partial(figures.draw_reliability, result.reliability, result.ece)
    files.write(folder / "reliability.png", draw)
    if len(result.classes) <= CONFUSION_MOST:
        rows = ((name, *row) for name, row in zip(result.classes, result.confusion))
        write_table(folder / "confusion.csv", [("class", *result.classes), *rows])
        draw = partial(figures.draw_confusion, result.confusion, result.classes)
        files.write(folder / "confusion.png", draw)


def _confidence(result: Evaluation) -> dict[str, Any]:
    """Return the entries of metrics.json on calibration and on strangers, if there are any."""
    entries: dict[str, Any] = {}
    if result.calibration is not None and result.calibrated is not None:
        known = result.calibration
        entries["calibrated"] = {
            "temperature": known.temperature,
            **{name: finite(value) for name, value in result.calibrated._asdict().items()},
            "fitted_on": {"data": known.data, "images": known.images},
        }
    return {**entries, **strangers_of(result)}


def strangers_of(result: Evaluation | LabelEvaluation) -> dict[str, Any]:
    """Return the entry of metrics.json on strangers, if there is one."""
    if result.strangers is None:
        return {}
    scores_of = result.strangers.separations.items()
    entry = {
        "folder": result.strangers.folder,
        "images": result.strangers.images,
        **{name: {k: finite(v) for k, v in s._asdict().items()} for name, s in scores_of},
    }
    return {"strangers": entry}


def write_comparison(found: Comparison, folder: Path, datadir: str | None = None) -> None:
    """Write comparison.json, differences.csv and differences.png into ``folder``.

    differences.png is omitted if no image is right for one model alone. Raises `WriteError`.
    """
    summary = {
        "models": [str(found.a.model), str(found.b.model)],
        "images": found.a.images,
        "only_first_right": len(found.only_a),
        "only_second_right": len(found.only_b),
        "difference": found.difference,
        "difference_interval": list(found.interval),
        "interval": "95%, paired percentile bootstrap",
        "p_value": found.p_value,
        "test": "McNemar, exact, two-sided",
        **{name: [finite(getattr(each, name)) for each in (found.a, found.b)] for name in SCORES},
    }
    files.write_text(folder / "comparison.json", json.dumps(summary, indent=2) + "\n")
    write_table(folder / "differences.csv", _differences(found, datadir))
    chosen_a, chosen_b = (only[:DIFFERENCES_MOST] for only in (found.only_a, found.only_b))
    if len(chosen_a) or len(chosen_b):
        places = [(part, index) for part in found.a.outputs.parts for index in range(len(part))]
        tiles = []
        for place, number in enumerate([*chosen_a, *chosen_b]):
            part, index = places[number]
            one, other = (result.prediction(number) for result in (found.a, found.b))
            right = "1st" if place < len(chosen_a) else "2nd"
            tiles.append((partial(part.image, index), f"{right} right: {one} | {other}"))
        sheet = draw_captioned(tiles)
        files.write(folder / "differences.png", lambda stream: sheet.save(stream, format="PNG"))


def _differences(found: Comparison, datadir: str | None) -> Iterator[tuple]:
    """Yield a row for each image whose two predictions differ."""
    yield "path", "label", "first", "p_first", "second", "p_second", "right"
    a, b = found.a, found.b
    right = {
        **dict.fromkeys(found.only_a, "first"),
        **dict.fromkeys(found.only_b, "second"),
    }
    for number, name in enumerate(predictions.relative(a.outputs.names, datadir)):
        one, other = a.prediction(number), b.prediction(number)
        if one != other:
            label = a.classes[a.outputs.labels[number]]
            shares = (f"{each.per_image.confidences[number]:.6g}" for each in (a, b))
            yield name, label, one, next(shares), other, next(shares), right.get(number, "")


def _per_class(result: Evaluation) -> Iterator[tuple]:
    found, classes = result.per_image, len(result.classes)
    counts = scores.counts(found, classes)
    yield ("class", "images", "right", "accuracy", *result.scores._fields)
    for name, right, images, *row in zip(result.classes, *counts[:2], *result.scores):
        cells = ("" if math.isnan(value) else f"{value:.4f}" for value in row)
        accuracy = f"{right / images:.4f}" if images else ""
        yield name, images, right, accuracy, *cells


def write_table(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write ``rows`` as a CSV file. Raises `WriteError`."""
    files.write_text(path, "".join(map(files.csv_line, rows)))


def finite(value: Any) -> Any:
    """Return ``value``, or None if it is NaN or infinite, which JSON does not have."""
    return value if math.isfinite(value) else None
