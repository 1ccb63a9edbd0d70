"""Is a published accuracy reproduced? The rule, and the results of a claim by it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bit_paddle.config.claims import OVERALL, Claim, Published
from bit_paddle.inference.metrics import interval

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"

UNDECIDED, UNPUBLISHED, MISSING = "undecided", "nothing published", "not measured"

SPREAD_LEAST = 3  # runs; the t interval of two is 12.7 deviations wide and contains anything

WIDEST = 2.0  # points; half of an interval that still tells something without a published range

RULE = (
    f"A published accuracy is {REPRODUCED} if it lies in the 95% interval around our mean; half a "
    "unit of its last published digit is allowed for. "
    f"From {SPREAD_LEAST} runs on it is the interval in which the mean of the published runs lies "
    "if they come from the same distribution as ours: mean ± t s √(1/n + 1/k), with n our runs, s "
    "their standard deviation, t Student's with n - 1 degrees of freedom, and k the published runs "
    "(1 if their number is not known). The published value is the median. "
    f"It is {NOT_REPRODUCED} too if all of our runs lie on one side of the published range, and "
    "the chance of that, 2 n! k! / (n + k)!, is below 5%. "
    f"It is {UNDECIDED} if half of the interval is wider than twice the published range and than "
    f"{WIDEST:g} points: then nearly anything lies in it, and more seeds are needed. "
    f"Fewer than {SPREAD_LEAST} runs show no spread. Then it is Wilson's interval of our accuracy, "
    "which tells how far it could be off because there are so few images; it must overlap with "
    "the published range, or contain the published number. One run says little: of five runs of "
    "one recipe, a sixth lies outside of their range one time in three. "
    "An evaluation of a published file on the same images has no chance in it. Where the claim "
    "gives a tolerance, the difference must not be larger. A mean over a group is that of each "
    f"run; with fewer than {SPREAD_LEAST} runs it is {UNDECIDED}."
)


class Measured(NamedTuple):
    """The result of one run: an accuracy in % on ``images`` images."""

    value: float
    images: int


@dataclass(frozen=True)
class Outcome:
    """An accuracy of a claim: published, and as measured in each run, in %."""

    name: str
    published: Published | None
    values: Mapping[int, float]  # by the number of the run
    wanted: int  # the runs of the claim
    interval: tuple[float, float] | None
    verdict: str
    others: Mapping[str, Published]
    group: str | None = None
    folder: Path | None = None  # of the runs; None for a mean

    @property
    def mean(self) -> float:
        """The mean of the runs; NaN without any."""
        return float(np.mean(list(self.values.values()))) if self.values else math.nan

    @property
    def difference(self) -> float:
        """The mean minus the published accuracy, in points; NaN if one of them is missing."""
        return self.mean - self.published.median if self.published else math.nan

    @property
    def spread(self) -> str:
        """Lowest, median and highest of the runs; one number for one run."""
        values = list(self.values.values())
        if len(values) < 2:
            return "".join(f"{value:.2f}" for value in values)
        return "-".join(f"{value:.2f}" for value in np.quantile(values, (0, 0.5, 1)))


def outcomes(
    claim: Claim, runs: Mapping[str, Mapping[int, Measured]], folder: Path
) -> list[Outcome]:
    """Return an outcome per row, then one per group; ``runs`` are the results by row and run.

    ``folder`` is that of the claim, with a folder per row.
    """
    found = []
    for row in claim.rows:
        results = runs.get(row.name, {})
        values = {run: result.value for run, result in sorted(results.items())}
        images = next((result.images for result in results.values()), None)
        ends = _interval(list(values.values()), row.published, images, row.tolerance)
        verdict = _verdict(row.published, values, ends)
        found.append(
            Outcome(
                row.name, row.published, values, row.runs, ends, verdict, row.others, row.group,
                folder / row.name,
            )
        )  # fmt: skip
    return found + [_mean(claim, group, found) for group in claim.groups]


def _mean(claim: Claim, group: str, found: Sequence[Outcome]) -> Outcome:
    """Return the mean over a group in each run that has all of its rows."""
    rows = [one for one in found if group in (one.group, OVERALL)]
    runs = sorted(set.intersection(*(set(one.values) for one in rows)))
    values = {run: float(np.mean([one.values[run] for one in rows])) for run in runs}
    published = claim.means.get(group)
    ends = _interval(list(values.values()), published, None, None)
    verdict = _verdict(published, values, ends)
    wanted = min(one.wanted for one in rows)
    return Outcome(f"mean: {group}", published, values, wanted, ends, verdict, {})


def _interval(
    values: Sequence[float],
    published: Published | None,
    images: int | None,
    tolerance: float | None,
) -> tuple[float, float] | None:
    """Return the 95% interval of `RULE`, or None if there is none."""
    if not values:
        return None
    mean, count = float(np.mean(values)), len(values)
    if tolerance is not None:
        half = tolerance
    elif count >= SPREAD_LEAST:
        from scipy.stats import t

        others = (published and published.runs) or 1
        deviation = float(np.std(values, ddof=1))
        half = float(t.ppf(0.975, count - 1)) * deviation * math.sqrt(1 / count + 1 / others)
    elif images is None:
        return None
    else:
        low, high = interval(mean / 100, images)
        return 100 * low, 100 * high
    return max(0.0, mean - half), min(100.0, mean + half)


def _verdict(
    published: Published | None,
    values: Mapping[int, float],
    ends: tuple[float, float] | None,
) -> str:
    if not values:
        return MISSING
    if published is None:
        return UNPUBLISHED
    if ends is None:
        return UNDECIDED
    lowest = highest = published.median
    bottom, top = published.range
    several = len(values) >= SPREAD_LEAST
    if not several:
        lowest, highest = bottom, top
    allowed = published.rounding + 1e-9  # of float64
    if ends[0] - allowed > highest or lowest > ends[1] + allowed:
        return NOT_REPRODUCED
    apart = min(values.values()) > top + allowed or max(values.values()) < bottom - allowed
    if several and apart and 2 / math.comb(len(values) + (published.runs or 1), len(values)) < 0.05:
        return NOT_REPRODUCED
    if several and (ends[1] - ends[0]) / 2 > max(WIDEST, 2 * (top - bottom)):
        return UNDECIDED
    return REPRODUCED
