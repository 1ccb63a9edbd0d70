"""Cross-validation: a run per fold, predictions of every image, and their accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle import errors
from bit_paddle.config.settings import Settings
from bit_paddle.data.labels import LabelSets
from bit_paddle.inference import label_scores, predictions
from bit_paddle.inference.metrics import interval
from bit_paddle.runs.results import FOLDS
from bit_paddle.system import files
from bit_paddle.training import repeats
from bit_paddle.training.launch import Ended, MakePlan


def cross_validate(
    settings: Settings,
    arguments: Sequence[str],
    make_plan: MakePlan,
    force: bool = False,
    embedded: bool = False,
) -> Ended:
    """Make a run for each of --folds; report and return the accuracy over all images.

    One folder holds folds.json, folds.txt, predictions.csv and the runs, ``fold-<k>``. The rest is
    as for `repeats.repeat`.
    """
    runs = [{"fold": k, "name": f"fold-{k}"} for k in range(1, settings.folds + 1)]
    return repeats.carry_out(
        settings, arguments, make_plan, runs, report, "folds.txt", force, embedded
    )


def report(results: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Write, print and return the spread over the folds so far, and the results over all images.

    The predictions are those of each run's last model: the best one was chosen by these images.
    """
    parts = [folder / f"fold-{run['fold']}" / predictions.PREDICTIONS for run in results]
    path, (table, spread) = folder / predictions.PREDICTIONS, repeats.table(results, "fold")
    sets = predictions.join_sets(path, parts)
    if sets is None:
        pairs = predictions.join(path, parts, lambda cells: (cells[1], cells[3]))
        text, pooled = _of_pairs(pairs)
    else:
        text, pooled = _of_sets(*sets)
    table += text
    files.write_text(folder / "folds.txt", table)
    content = {"count": len(results), **spread, "pooled": pooled, "runs": list(results)}
    files.write_text(folder / FOLDS, files.to_json(content))
    errors.tell(table, end="")
    return content


_POOLED = "images, each predicted once by a model that was not trained on it"


def _of_pairs(pairs: Sequence[tuple[str, str]]) -> tuple[str, dict[str, Any]]:
    """Return the accuracy over all images as text and as values."""
    images, right = Counter(label for label, _ in pairs), Counter(a for a, b in pairs if a == b)
    top1 = sum(right.values()) / len(pairs)
    low, high = interval(top1, len(pairs))
    recall = {name: right[name] / count for name, count in images.items()}
    text = (
        f"all folds: top-1 {top1:.2%} of {len(pairs):,} {_POOLED}; 95% interval {low:.2%} to "
        f"{high:.2%}\n{'recall':>8}  {'images':>7}  class\n"
    )
    text += "".join(f"{recall[name]:8.2%}  {images[name]:7,}  {name}\n" for name in images)
    return text, {"images": len(pairs), "top1": top1, "interval": [low, high], "recall": recall}


def _of_sets(
    classes: Sequence[str], labels: LabelSets, shares: np.ndarray
) -> tuple[str, dict[str, Any]]:
    """Return the scores over all images with several labels as text and as values."""
    with np.errstate(divide="ignore"):
        logits = np.log(shares) - np.log1p(-shares)
    found = label_scores.measure(logits, labels, "sigmoid")
    precision = dict(zip(classes, found.average_precision.tolist()))
    text = f"all folds: {found}: {_POOLED}\n{'AP':>8}  {'images':>7}  label\n"
    text += "".join(
        f"{precision[name]:8.2%}  {count:7,}  {name}\n" for name, count in zip(classes, found.own)
    )
    return text, {**found.summary(), "average_precision": precision}
