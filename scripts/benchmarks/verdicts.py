"""How often is a verdict of reproduce right? ``python scripts/benchmarks/verdicts.py``.

Draws published and own accuracies from normal distributions, judges them by the rule of
`bit_paddle.inference.verdicts`, and prints the share of each verdict. ``spread`` is the standard
deviation of both in points. ``shift`` is the true difference of their means in standard deviations:
0 for a true claim. Takes seconds.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import numpy as np

from bit_paddle.config.claims import Claim, Published, Row
from bit_paddle.inference.verdicts import Measured, outcomes

TRIALS = 1000
COUNTS = ((3, 3), (3, 5), (5, 5))  # own and published runs
WORDS = ("reproduced", "undecided", "not reproduced")


def shares(own: int, theirs: int, spread: float, shift: float) -> list[float]:
    """Return the share of each of `WORDS` among `TRIALS` claims, in %; seed 0."""
    random, found = np.random.default_rng(0), []
    for _ in range(TRIALS):
        values = 60 + spread * random.normal(size=theirs)
        ends = {"min": values.min(), "median": float(np.median(values)), "max": values.max()}
        row = Row("row", "train", {}, own, Published(**ends, runs=theirs))
        claim = Claim("claim", "claim", "a simulation", (row,))
        ours = 60 + spread * (shift + random.normal(size=own))
        runs = {row.name: {run: Measured(value, 10_000) for run, value in enumerate(ours)}}
        found.append(outcomes(claim, runs, Path("none"))[0].verdict)
    return [100 * found.count(word) / TRIALS for word in WORDS]


def main() -> None:
    """Print the table."""
    print("| our runs, published runs | spread, points | shift | " + " | ".join(WORDS) + " |")
    print("|" + "---|" * 6)
    for (own, theirs), spread, shift in product(COUNTS, (0.1, 3.0), (0, 2, 5)):
        found = " | ".join(f"{share:.0f} %" for share in shares(own, theirs, spread, shift))
        print(f"| {own}, {theirs} | {spread:g} | {shift} | {found} |")


if __name__ == "__main__":
    sys.exit(main())
