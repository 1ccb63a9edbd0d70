#!/usr/bin/env python3
"""Plant copies and wrong labels among images, and count how many of them the audit finds.

    python scripts/benchmarks/plant.py clothing10 --model BiT-Mini --seed 0

The folder has train/<class>/* and val/<class>/*. It is copied to a temporary folder. 30 training
images are copied into val/ there: 10 byte by byte, 10 saved again as JPEG of quality 40, 5 resized
to 60 % and 5 mirrored. 30 other training images move into the folder of another class. Then
`bit_paddle audit` runs, and the script prints how many of the planted ones it lists. --output keeps
the folder.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

import bit_paddle

COPIES, WRONG = 10, 30  # of each way to copy; wrong labels

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


def count(planted: Planted, findings: list) -> list[tuple[str, int, int]]:
    """Return (kind, found, planted) for each kind of copy, and for the first wrong labels."""
    pairs = {
        frozenset((row.path, row.other))
        for row in findings
        if row.kind in ("exact copy", "near copy")
    }
    rows = [
        (kind, sum(frozenset(pair) in pairs for pair in copies.items()), len(copies))
        for kind, copies in planted.copies.items()
    ]
    named = [row.path for row in findings if row.kind == "label"][:FIRST]
    rows.append(
        (f"wrong labels, first {FIRST}", len(planted.wrong & set(named)), len(planted.wrong))
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with train/<class>/* and val/<class>/*")
    parser.add_argument("--model", default="BiT-Mini", help="model of the features")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="seeds, a trial for each")
    parser.add_argument("--output", type=Path, help="folder to keep, for a single seed")
    flags = parser.parse_args()
    print(f"{'seed':>4}  {'planted':28}  found")
    for seed in flags.seed:
        with ExitStack() as stack:
            root = flags.output or Path(stack.enter_context(tempfile.TemporaryDirectory()), "data")
            shutil.copytree(flags.folder, root)
            planted = plant(root, seed)
            findings = bit_paddle.audit(root, model=flags.model).findings
        for kind, found, number in count(planted, findings):
            print(f"{seed:4}  {kind:28}  {found} of {number}", flush=True)


if __name__ == "__main__":
    main()
