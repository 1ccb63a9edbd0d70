"""What a training step costs by batch and by resolution, beside BiT in PyTorch: straight lines?
``pip install '.[native,bench]'``, then ``python scripts/benchmarks/scaling.py --plot scaling.png``.

Printed: medians, and how far each is from the straight line through all of a contender's, by images
and by pixels, as a share of that.
"""

from __future__ import annotations

import json

import contenders
import numpy as np

CONTENDERS = (contenders.OURS, f"{contenders.OURS} bf16", f"{contenders.HUGGING_FACE}, NHWC")
BATCHES, SIDES, FEW = (4, 8, 16, 32, 64), (64, 128, 224, 320, 480), 4


def main() -> None:
    parser = contenders.parser(__doc__)
    parser.set_defaults(rounds=3)
    flags = parser.parse_args()
    if flags.worker:
        contenders.work(flags)
        return
    sizes = [(batch, flags.side) for batch in BATCHES] + [(FEW, side) for side in SIDES]
    entrants = [name for name in CONTENDERS if name not in flags.without]
    found = {}
    for batch, side in dict.fromkeys(sizes):
        words = contenders.words(flags, batch, side)
        found[batch, side] = contenders.medians(contenders.race(entrants, flags.rounds, words))
        times = (f"{name} {seconds:.3f}" for name, seconds in found[batch, side].items())
        print(f"batch {batch:3} of {side:3} x {side:3}: {', '.join(times)}", flush=True)
    lines = {
        "images (of 128 x 128)": [(b, found[b, flags.side]) for b in BATCHES],
        "pixels of a side, squared": [(side**2, found[FEW, side]) for side in SIDES],
    }
    for what, points in lines.items():
        for name in entrants:
            off = [f"{share:+.0%}" for share in off_the_line(points, name)]
            print(f"{name}: off a straight line over {what} by {', '.join(off)}")
    if flags.json:
        text = [{"batch": b, "side": s, "seconds": one} for (b, s), one in found.items()]
        flags.json.write_text(json.dumps(text, indent=1))
    if flags.plot:
        draw(lines, entrants, flags)


def fit(points: list, name: str) -> np.ndarray:
    """Return slope and height of the line with the least squares of relative errors."""
    x, y = (np.array(one, float) for one in zip(*((x, times[name]) for x, times in points)))
    return np.polyfit(x, y, 1, w=1 / y)


def off_the_line(points: list, name: str) -> list[float]:
    line = fit(points, name)
    return [times[name] / np.polyval(line, x) - 1 for x, times in points]


def draw(lines: dict, entrants: list[str], flags: object) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (what, points) in zip(figure.subplots(1, 2), lines.items()):
        for name in entrants:
            x = [place for place, _ in points]
            (dots,) = axes.plot(x, [times[name] for _, times in points], "o", label=name)
            axes.plot(x, np.polyval(fit(points, name), x), color=dots.get_color(), linewidth=1)
        axes.set_xlabel(what if "images" in what else f"{what}, batch {FEW}")
        axes.set_ylabel("seconds a training step")
        axes.set_xlim(0)
        axes.set_ylim(0)
        axes.legend()
    figure.suptitle(f"{flags.model}: medians of {flags.rounds} rounds, and straight lines")
    figure.savefig(flags.plot, dpi=120)


if __name__ == "__main__":
    main()
