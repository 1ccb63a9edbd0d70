"""Draw the curves of runs, and what is known of models: mistakes, reliability, features."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from bit_paddle.visual import fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bit_paddle.inference.average_precision import Scores
    from bit_paddle.inference.probing_models import Probe
    from bit_paddle.inference.scores import Reliability
    from bit_paddle.inference.verdicts import Outcome
    from bit_paddle.runs.history import RunHistory


COLORS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#64748b")

_NOTES = ("Creator", "Date", "Format", "Type")  # metadata that a drawing omits

NAMED = 10  # the most classes with a curve of their own

_STYLES = ("-", "--", "-.", ":")  # curves are told apart by these too

INK = "#010203"  # colour of text and axes; a page replaces it by its own colour


_MEASURED = {  # panels: the key of metrics.jsonl, the caption
    "accuracy": ("top1", "top-1 on the validation images"),
    "labels": ("mean_average_precision", "mean average precision on the validation images"),
    "ap": ("ap", "AP on the validation images, mean over the overlaps 0.5 … 0.95"),
    "ap50": ("ap50", "AP on the validation images at an overlap of 0.5"),
}


def draw_curves(runs: Sequence[RunHistory]) -> dict[str, tuple[str, Figure]]:
    """Return {name: (caption, figure)} for loss, learning rate, accuracy and AP over the steps.

    Curves without any value are omitted.
    """
    panels: dict[str, tuple[str, list]] = {
        "loss": ("training loss per step; the thick line of a long run is smoothed", []),
        "lr": ("learning rate", []),
        **{name: (caption, []) for name, (_, caption) in _MEASURED.items()},
    }
    for run in runs:
        steps, val_steps = _values(run.train, "step"), _values(run.val, "step")
        panels["loss"][1].append((steps, _values(run.train, "loss")))
        panels["lr"][1].append((steps, _values(run.train, "lr")))
        for name, (key, _) in _MEASURED.items():
            panels[name][1].append((val_steps, _values(run.val, key)))
    names = [run.name for run in runs]
    return {
        name: (caption, _panel(lines, names, name))
        for name, (caption, lines) in panels.items()
        if any(np.isfinite(values).any() for _, values in lines)
    }


def _values(lines: Iterable[dict[str, Any]], key: str) -> list[float]:
    return [np.nan if line.get(key) is None else line[key] for line in lines]


@contextmanager
def _axes(xlabel: str, size: tuple[float, float] = (4.6, 3.0)) -> Iterator[tuple[Figure, Axes]]:
    """Draw in the style of a page: transparent, and with `INK`."""
    import matplotlib
    from matplotlib.figure import Figure

    ink = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color"), INK)
    with matplotlib.rc_context({**ink, "ytick.color": INK, "font.size": 10}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        yield figure, axes
        axes.set_xlabel(xlabel)
        axes.grid(color=INK, alpha=0.12)
        axes.spines[["top", "right"]].set_visible(False)


def _panel(lines: Sequence[tuple[list, list]], names: Sequence[str], kind: str) -> Figure:
    from matplotlib.ticker import PercentFormatter

    with _axes("step") as (figure, axes):
        for k, (steps, values) in enumerate(lines):
            color = COLORS[k % len(COLORS)]
            if kind == "loss" and len(values) > 50:
                axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.35)
                values = smoothed(values, max(5, len(values) // 50))
            mark = "o" if kind in _MEASURED else None
            axes.plot(steps, values, color=color, marker=mark, markersize=4, label=names[k])
        if kind in _MEASURED:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            shown = [value for _, values in lines for value in values if np.isfinite(value)]
            if shown:
                axes.set_ylim(max(0, min(shown) - 0.05), min(1, max(shown) + 0.05))
        if len(names) > 1:
            axes.legend(fontsize=8, frameon=False)
    return figure


def draw_precision(scores: Scores) -> Figure:
    """Return the precision by recall of each class at an overlap (IoU) of 0.5.

    Of more than `NAMED` classes it shows their mean, and the three with the lowest AP50.
    """
    known = np.flatnonzero(~np.isnan(scores.class_ap50))
    order = known[np.argsort(scores.class_ap50[known], kind="stable")]
    lines = [(scores.classes[k], scores.precisions[k]) for k in known]
    if len(known) > NAMED:
        lines = [("all classes", scores.precisions[known].mean(axis=0))]
        lines += [(scores.classes[k], scores.precisions[k]) for k in order[:3]]
    with _axes("recall") as (figure, axes):
        for k, (name, values) in enumerate(lines):
            style = {"color": COLORS[k % len(COLORS)], "linestyle": _STYLES[k % len(_STYLES)]}
            label = f"{name} {values.mean():.2f}".replace("$", r"\$")  # no formula
            axes.plot(np.linspace(0, 1, len(values)), values, label=label, **style)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="precision")
        if lines:
            axes.legend(fontsize=8, frameon=False, loc="lower left")
    return figure


def draw_claim(outcomes: Sequence[Outcome]) -> Figure:
    """Return a figure with a line per accuracy of a claim, grouped: ours beside the published one.

    Small dots are our runs, a large one is their mean, the bar is the interval. A diamond is the
    published accuracy, on a line over its range.
    """
    order = sorted(outcomes, key=lambda one: [other.group for other in outcomes].index(one.group))
    with _axes("accuracy, %", (7.0, 1.3 + 0.27 * len(order))) as (figure, axes):
        for place, one in enumerate(order):
            values = list(one.values.values())
            if one.published:
                ends = one.published.min, one.published.max
                if None not in ends:
                    axes.plot(ends, (place - 0.15,) * 2, color=COLORS[1], linewidth=1.5)
                axes.plot(one.published.median, place - 0.15, "D", color=COLORS[1], markersize=5)
            if values:
                if one.interval:
                    axes.plot(one.interval, (place + 0.15,) * 2, color=COLORS[0], linewidth=1.5)
                axes.plot(values, [place + 0.15] * len(values), ".", color=COLORS[0], alpha=0.6)
                axes.plot(one.mean, place + 0.15, "o", color=COLORS[0], markersize=6)
            if place and one.group != order[place - 1].group:
                axes.axhline(place - 0.5, color=INK, linewidth=0.6)
        axes.plot([], [], "o-", color=COLORS[0], label="ours")
        axes.plot([], [], "D-", color=COLORS[1], label="published")
        figure.legend(loc="outside upper right", ncols=2, fontsize=8, frameon=False)
        names = [f"{one.name} ({one.group})" if one.group else one.name for one in order]
        axes.set_yticks(range(len(order)), names)
        axes.set_ylim(len(order) - 0.5, -0.5)
    return figure


def smoothed(values: Sequence[float], width: int) -> np.ndarray:
    """Return the mean of the ``width`` values around each value; fewer at the two ends.

    Values that are not finite are left out.
    """
    window = np.ones(width)
    numbers = np.asarray(values, float)
    finite = np.isfinite(numbers)
    counts = np.convolve(finite, window, "same")
    sums = np.convolve(np.where(finite, numbers, 0), window, "same")
    with np.errstate(invalid="ignore"):
        return sums / np.where(counts, counts, np.nan)


def save(figure: Figure, stream: Any, **options: Any) -> None:
    """Write ``figure`` in fonts that have its letters; as PNG of 120 dots per inch by default."""
    with fonts.for_letters_of(figure):
        figure.savefig(stream, **{"format": "png", "dpi": 120, **options})


def to_svg(figure: Figure) -> str:
    """Return ``figure`` as SVG for a page; its text takes the colour of the page's text."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bit_paddle"}):
        save(figure, stream, format="svg", transparent=True, metadata=dict.fromkeys(_NOTES))
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def draw_confusion(confusion: np.ndarray, names: Sequence[str], stream: BinaryIO) -> None:
    """Write the confusion matrix [class, prediction] as a PNG; each row is divided by its sum.

    Up to 40 classes have their names, and up to 20 their percentages.
    """
    from matplotlib.figure import Figure

    side = min(14, 4 + 0.25 * len(names))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    shares = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("prediction")
    axes.set_ylabel("class")
    if len(names) <= 40:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    if len(names) <= 20:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                axes.text(
                    column,
                    row,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share > 0.5 else "black",
                )
    figure.colorbar(picture, shrink=0.7, label="share of the class")
    save(figure, stream)


def draw_reliability(found: Reliability, error: float, stream: BinaryIO) -> None:
    """Write a reliability diagram as a PNG: accuracy by highest probability, and image counts.

    ``error`` is the expected calibration error. Bars below the diagonal are overconfident.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
    width, used = 1 / len(found.images), found.images > 0
    centres = (np.flatnonzero(used) + 0.5) * width
    accuracy = found.right[used] / found.images[used]
    above.bar(centres, accuracy, width, color=COLORS[0], edgecolor="white")
    confidence = found.confidence[used] / found.images[used]
    above.plot(confidence, accuracy, "o", color=COLORS[1], markersize=4, label="mean of the bin")
    above.plot((0, 1), (0, 1), "--", color=COLORS[5], linewidth=1, label="calibrated")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="top-1 accuracy", title=f"ECE {error:.2%}")
    above.legend(loc="upper left", frameon=False, fontsize=8)
    below.bar(centres, found.images[used], width, color=COLORS[5], edgecolor="white")
    below.set(xlabel="highest probability", ylabel="images")
    save(figure, stream)


def draw_probes(found: Sequence[Probe], stream: BinaryIO) -> None:
    """Write the scores by training images per class as a PNG: a panel per model, all on one scale.

    A line is the median of the seeds, and the band around it their range. Outputs of blocks are
    left out.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(0.6 + 4 * len(found), 3.4), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(found), sharey=True, squeeze=False)[0], found):
        rows = [row for row in one.rows if row.layer == "features"]
        for color, method in zip(COLORS, dict.fromkeys(row.method for row in rows)):
            own = [row for row in rows if row.method == method]
            names = [str(row.shots or "all") for row in own]
            low, middle, high = zip(*(row.spread for row in own))
            axes.plot(names, middle, "o-", color=color, markersize=4, label=method)
            axes.fill_between(names, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set(title=one.model.stem, xlabel="training images per class")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.2)
    figure.axes[0].set_ylabel(found[0].score)
    figure.axes[0].legend(frameon=False, fontsize=8)
    save(figure, stream)
