"""Measure whether the time of a training step is linear in batch size and pixels, also in PyTorch.
``pip install '.[bench]'``, then ``python scripts/benchmarks/scaling.py --plot scaling.png``.

With ``--hosts 2 4 --plot hosts.png`` it measures training over so many machines instead, for
``--host_steps`` at the ``--rates`` of their network, and draws a model of the speed-up; see
`speedup`.

Prints median times, and their relative distance from a straight line that is fitted to each
contender's times: once over the number of images, once over the number of pixels.
"""

from __future__ import annotations

import json

import contenders
import networks
import numpy as np
import speedup
import standings

CONTENDERS = (networks.OURS, f"{networks.OURS} bf16", f"{networks.HUGGING_FACE}, NHWC")
BATCHES, SIDES, FEW = (4, 8, 16, 32, 64), (64, 128, 224, 320, 480), 4


def main() -> None:
    parser = contenders.parser(__doc__)
    parser.set_defaults(rounds=3)
    speedup.add_flags(parser)
    flags = parser.parse_args()
    if flags.hosts:
        speedup.main(flags)
        return
    if flags.worker:
        contenders.work(flags)
        return
    sizes = [(batch, flags.side) for batch in BATCHES] + [(FEW, side) for side in SIDES]
    entrants = [name for name in CONTENDERS if name not in flags.without]
    seconds = {}
    for batch, side in dict.fromkeys(sizes):
        words = contenders.words(flags, batch, side)
        seconds[batch, side] = standings.medians(contenders.race(entrants, flags.rounds, words))
        times = (f"{name} {median:.3f}" for name, median in seconds[batch, side].items())
        print(f"batch {batch:3} of {side:3} x {side:3}: {', '.join(times)}", flush=True)
    lines = {
        "images (of 128 x 128)": [(b, seconds[b, flags.side]) for b in BATCHES],
        "pixels of a side, squared": [(side**2, seconds[FEW, side]) for side in SIDES],
    }
    for quantity, points in lines.items():
        for name in entrants:
            distances = [f"{share:+.0%}" for share in distances_from_line(points, name)]
            print(f"{name}: distances from a line over {quantity}: {', '.join(distances)}")
    if flags.json:
        text = [{"batch": b, "side": s, "seconds": times} for (b, s), times in seconds.items()]
        flags.json.write_text(json.dumps(text, indent=1))
    if flags.plot:
        draw(lines, entrants, flags)


def fit(points: list, name: str) -> np.ndarray:
    """Return slope and intercept of the line with the least squares of relative errors."""
    x, y = (np.array(axis, float) for axis in zip(*((x, times[name]) for x, times in points)))
    return np.polyfit(x, y, 1, w=1 / y)


def distances_from_line(points: list, name: str) -> list[float]:
    """Return the relative distance of each point from the fitted line."""
    line = fit(points, name)
    return [times[name] / np.polyval(line, x) - 1 for x, times in points]


def draw(lines: dict, entrants: list[str], flags: object) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (quantity, points) in zip(figure.subplots(1, 2), lines.items()):
        for name in entrants:
            x = [value for value, _ in points]
            (dots,) = axes.plot(x, [times[name] for _, times in points], "o", label=name)
            axes.plot(x, np.polyval(fit(points, name), x), color=dots.get_color(), linewidth=1)
        axes.set_xlabel(quantity if "images" in quantity else f"{quantity}, batch {FEW}")
        axes.set_ylabel("seconds per training step")
        axes.set_xlim(0)
        axes.set_ylim(0)
        axes.legend()
    figure.suptitle(f"{flags.model}: medians of {flags.rounds} rounds, and straight lines")
    figure.savefig(flags.plot, dpi=120)


if __name__ == "__main__":
    main()
