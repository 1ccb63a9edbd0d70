"""Cross-validation: a run per fold, predictions of every image, and their accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bit_paddle import errors
from bit_paddle.config.settings import Settings
from bit_paddle.inference import predictions
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
    pairs = predictions.join(folder / predictions.PREDICTIONS, parts)
    images, right = Counter(label for label, _ in pairs), Counter(a for a, b in pairs if a == b)
    top1 = sum(right.values()) / len(pairs)
    low, high = interval(top1, len(pairs))
    recall = {name: right[name] / count for name, count in images.items()}
    table, spread = repeats.table(results, "fold")
    table += (
        f"all folds: top-1 {top1:.2%} of {len(pairs):,} images, each predicted once by a model "
        f"that was not trained on it; 95% interval {low:.2%} to {high:.2%}\n"
        f"{'recall':>8}  {'images':>7}  class\n"
    )
    table += "".join(f"{recall[name]:8.2%}  {images[name]:7,}  {name}\n" for name in images)
    files.write_text(folder / "folds.txt", table)
    pooled = {"images": len(pairs), "top1": top1, "interval": [low, high], "recall": recall}
    content = {"count": len(results), **spread, "pooled": pooled, "runs": list(results)}
    files.write_text(folder / FOLDS, files.to_json(content))
    errors.tell(table, end="")
    return content
