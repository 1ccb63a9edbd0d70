#!/usr/bin/env python3
"""Plant copies and wrong labels among images, and count how many of them the audit finds.

    python scripts/benchmarks/plant.py clothing10 --model BiT-Mini --seed 0

The folder has train/<class>/* and val/<class>/*. It is copied to a temporary folder. 30 training
images are copied into val/ there: 10 byte by byte, 10 saved again as JPEG of quality 40, 5 resized
to 60 % and 5 mirrored. 30 other training images move into the folder of another class. Then
`bit_paddle.audit` runs, and the script prints how many of the planted ones it lists. With --folds 5
the labels are also judged by the models of a cross-validation.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

import bit_paddle
from bit_paddle.inference.audit import Audit

COPIES, WRONG = 10, 30  # of each way to copy; wrong labels

SETTINGS = {  # of the cross-validation: 7 minutes on two cores
    "steps": 250,
    "batch": 64,
    "base_lr": 0.06,
    "precrop": 72,
    "crop": 64,
    "save": False,
}

FIRST = 60  # wrong labels must be among that many suspicious ones


class Planted(NamedTuple):
    """Paths relative to the folder: {kind: {copy in val: training image}}, and wrong labels."""

    copies: dict[str, dict[str, str]]
    wrong: set[str]


def _mirrored(image: Image.Image) -> Image.Image:
    return ImageOps.mirror(image)


def _resized(image: Image.Image) -> Image.Image:
    return image.resize((round(0.6 * image.width), round(0.6 * image.height)))


def _same(image: Image.Image) -> Image.Image:
    return image


def _save(change: Callable[[Image.Image], Image.Image], quality: int) -> Callable:
    def copy(source: Path, target: Path) -> None:
        change(Image.open(source).convert("RGB")).save(target, "JPEG", quality=quality)

    return copy


KINDS: dict[str, list[Callable]] = {
    "exact": [shutil.copyfile] * COPIES,
    "recompressed": [_save(_same, 40)] * COPIES,
    "resized or mirrored": [_save(_resized, 90), _save(_mirrored, 90)] * (COPIES // 2),
}


def plant(root: Path, seed: int) -> Planted:
    """Plant copies and wrong labels below ``root``; the same ones for the same ``seed``."""
    random = np.random.default_rng(seed)
    images = sorted(path.relative_to(root) for path in root.glob("train/*/*") if path.is_file())
    classes = sorted({path.parent.name for path in images})
    chosen = [images[k] for k in random.permutation(len(images))[: len(KINDS) * COPIES + WRONG]]
    copies: dict[str, dict[str, str]] = {}
    for kind, ways in KINDS.items():
        copies[kind] = {}
        for way in ways:
            source = chosen.pop()
            target = Path("val", source.parent.name, f"{random.integers(2**60):015x}.jpg")
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            way(root / source, root / target)
            copies[kind][target.as_posix()] = source.as_posix()
    wrong = set()
    for source in chosen:
        others = [name for name in classes if name != source.parent.name]
        target = Path("train", others[random.integers(len(others))], source.name)
        (root / source).rename(root / target)
        wrong.add(target.as_posix())
    return Planted(copies, wrong)


def count_copies(planted: Planted, found: Audit) -> list[tuple[str, int, int]]:
    """Return (kind, found, planted) for each kind of copy; last those that were not planted."""
    named = [*found.of("exact copy"), *found.of("near copy")]
    pairs = {frozenset((row.path, row.other)) for row in named}
    rows = [
        (kind, sum(frozenset(pair) in pairs for pair in copies.items()), len(copies))
        for kind, copies in planted.copies.items()
    ]
    true = sum(count for _, count, _ in rows)
    return [*rows, ("not planted, of all named copies", len(pairs) - true, len(pairs))]


def count_labels(planted: Planted, found: Audit) -> tuple[int, int]:
    """Return how many wrong labels are among the first ones named, and how many are planted."""
    named = {row.path for row in found.of("label")[:FIRST]}
    return len(planted.wrong & named), len(planted.wrong)


def trial(root: Path, planted: Planted, model: str, folds: int | None) -> list[tuple]:
    """Return the rows of the table of one trial: (kind, found, planted)."""
    found = bit_paddle.audit(root, model=model)
    title = f"wrong labels in the first {FIRST}"
    rows = count_copies(planted, found)
    rows.append((f"{title}, features", *count_labels(planted, found)))
    if folds:
        logs = root.parent / "logs"
        run = bit_paddle.fine_tune(model, root, folds=folds, logdir=str(logs), name="x", **SETTINGS)
        predictions = run.folder / "predictions.csv"
        found = bit_paddle.audit(root, predictions=predictions)
        rows.append((f"{title}, {folds} folds", *count_labels(planted, found)))
        found = bit_paddle.audit(root, predictions=predictions, model=model)
        rows.append((f"{title}, both", *count_labels(planted, found)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with train/<class>/* and val/<class>/*")
    parser.add_argument("--model", default="BiT-Mini", help="model of the features and the folds")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="seeds, a trial for each")
    parser.add_argument("--folds", type=int, help="also judge the labels by a cross-validation")
    flags = parser.parse_args()
    lines = [f"{'seed':>4}  {'planted':41}  found"]
    for seed in flags.seed:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, "data")
            shutil.copytree(flags.folder, root)
            rows = trial(root, plant(root, seed), flags.model, flags.folds)
        lines += [f"{seed:4}  {kind:41}  {found} of {number}" for kind, found, number in rows]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
