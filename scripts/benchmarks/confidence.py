"""How far confidence can be trusted: ``python scripts/benchmarks/confidence.py FOLDER``.

FOLDER has clothing10/ and omniglot136/ (train/<class>/*, val/<class>/*) and cifar10/
(train/<class>/*, test/<class>/*). BiT-Mini is fine-tuned on clothing10 with several seeds.

Calibration: a temperature is fitted on one half of the validation images and measured on the other
half, both ways round, for 20 random halves; a seed gives their mean. So few images have an ECE even
if a model is perfectly calibrated, which is drawn and shown, too. Strangers: images of the other
data sets are shown to each of these models, and to BiT-Mini itself, a model for CIFAR-10. Writes
halves.csv, strangers.csv and tables.md into --logdir. The same command resumes after a stop;
without FOLDER it only rewrites the tables. About three quarters of an hour on two busy cores.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import bit_paddle as bit
from bit_paddle import errors
from bit_paddle.config.types import whole
from bit_paddle.inference import calibration, confidence, scores
from bit_paddle.inference.evaluation import Evaluation
from bit_paddle.system import files

OWN, STRANGERS = "clothing10", {"CIFAR-10": "cifar10/test", "omniglot136": "omniglot136/val"}
RULE = {"steps": 500, "batch": 32, "base_lr": 0.1, "precrop": 72, "crop": 64}
SPLITS = 20  # into halves, per seed
HALVES = ("seed", "top1", "changed", "temperature", "floor", "ece_raw", "ece_calibrated",
          "nll_raw", "nll_calibrated", "brier_raw", "brier_calibrated")  # fmt: skip
SEPARATIONS = ("model", "strangers", "seed", "score", "auroc", "fpr95")


def main(arguments: list[str]) -> int:
    """Make the runs and measure them; write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="folder that contains the data sets")
    parser.add_argument("--repeats", type=whole(2), default=5, help="seeds (default: 5)")
    parser.add_argument("--steps", type=whole(1), default=500, help="of a run (default: 500)")
    parser.add_argument("--logdir", type=Path, default="bit_logs/my-confidence",
                        help="(default: bit_logs/my-confidence)")  # fmt: skip
    flags = parser.parse_args(arguments)
    if flags.folder is not None:
        halves, separations = [HALVES], [SEPARATIONS]
        for seed in range(flags.repeats):
            rule = {**RULE, "steps": flags.steps, "seed": seed, "name": f"seed-{seed}"}
            run = bit.fine_tune("BiT-Mini", flags.folder / OWN, logdir=flags.logdir, **rule)
            for name, place in STRANGERS.items():
                found = bit.evaluate(run.model, flags.folder / OWN, strangers=flags.folder / place)
                separations += separated(OWN, name, seed, found)
            halves.append(halved(found, seed))
        for name in ("clothing10", "omniglot136"):
            place = flags.folder / name / "val"
            found = bit.evaluate("BiT-Mini", flags.folder / "cifar10", strangers=place)
            separations += separated("CIFAR-10", name, 0, found)
        for name, lines in (("halves", halves), ("strangers", separations)):
            files.write_text(flags.logdir / f"{name}.csv", "".join(map(files.csv_line, lines)))
    text = f"{calibration_table(flags.logdir)}\n{strangers_table(flags.logdir)}"
    files.write_text(flags.logdir / "tables.md", text)
    print(text, end="")
    return 0


def halved(found: Evaluation, seed: int) -> tuple:
    """Return the line of `HALVES`: fitted on one half of the images, measured on the other."""
    logits, labels, loss = found.outputs.logits, found.outputs.labels, found.outputs.loss
    random, lines, changed = np.random.default_rng(seed), [], 0
    for _ in range(SPLITS):
        for half in np.array_split(random.permutation(len(labels)), 2):
            rest = np.setdiff1d(np.arange(len(labels)), half)
            fitted, _ = calibration.temperature(logits[half], labels[half], loss)
            raw, new = (scores.per_image(logits[rest], labels[rest], loss, t) for t in (1, fitted))
            values = [scores.summary(images, len(found.classes)) for images in (raw, new)]
            best = scores.probabilities(logits[rest], loss, fitted).argmax(axis=1)
            changed += int((best != raw.predictions).sum())
            right = random.random(len(rest)) < new.confidences  # of a perfectly calibrated model
            floor = scores.reliability(new.confidences, right).error
            pairs = [each[name] for name in ("ece", "nll", "brier") for each in values]
            lines.append([fitted, floor, *pairs])
    return (seed, found.top1, changed, *np.mean(lines, axis=0))


def separated(model: str, name: str, seed: int, found: Evaluation) -> Iterator[tuple]:
    """Yield the lines of `SEPARATIONS` of one evaluation."""
    assert found.strangers is not None
    for score, values in found.strangers.separations.items():
        yield (model, name, seed, score, *values)


def calibration_table(logs: Path) -> str:
    """Return a Markdown table of halves.csv."""
    runs = rows(logs / "halves.csv")
    column = {name: np.array([float(run[name]) for run in runs]) for name in HALVES}
    text = "| score | raw | calibrated | change |\n|---|---|---|---|\n"
    for name in ("ece", "nll", "brier"):
        raw, new = column[f"{name}_raw"], column[f"{name}_calibrated"]
        cells = [spread(raw, ".3f"), spread(new, ".3f"), spread(new - raw, "+.3f")]
        text += f"| {name} | {' | '.join(cells)} |\n"
    text += f"\nECE of a perfectly calibrated model: {spread(column['floor'], '.3f')}; temperature "
    text += (
        f"{spread(column['temperature'], '.2f')}; top-1 {spread(100 * column['top1'], '.1f')} %; "
    )
    return f"{text}predictions changed: {int(column['changed'].sum())}\n"


def strangers_table(logs: Path) -> str:
    """Return a Markdown table of strangers.csv."""
    runs = rows(logs / "strangers.csv")
    text = "| model for | strangers | score | AUROC, % | FPR95, % |\n|---|---|---|---|---|\n"
    for model, name in dict.fromkeys((run["model"], run["strangers"]) for run in runs):
        for score in confidence.SCORES:
            chosen = [
                r for r in runs if (r["model"], r["strangers"], r["score"]) == (model, name, score)
            ]
            cells = [
                spread(np.array([100 * float(run[column]) for run in chosen]), ".1f")
                for column in ("auroc", "fpr95")
            ]
            text += f"| {model} | {name} | `{score}` | {' | '.join(cells)} |\n"
    return text


def rows(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file."""
    with open(path, newline="") as lines:
        return list(csv.DictReader(lines))


def spread(values: np.ndarray, form: str) -> str:
    """Return minimum, median and maximum as text; a single value alone."""
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    one = f"{middle:{form}}"
    return one if len(values) == 1 else f"{low:{form}}, **{one}**, {high:{form}}"


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
