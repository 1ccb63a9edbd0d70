"""Measure a model in every runtime that is installed: ``python -m bit_paddle.bench --help``.

Speed, memory, accuracy and the difference from Paddle's float32 are one table. All runs on the CPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bit_paddle import errors
from bit_paddle.config import parsing, settings
from bit_paddle.config.types import MODELS, file_path, whole
from bit_paddle.data.readers import registry
from bit_paddle.errors import ConfigError, install_hint
from bit_paddle.inference import race
from bit_paddle.inference.arguments import data_set
from bit_paddle.inference.formats import installed
from bit_paddle.inference.race import RUNS, Row
from bit_paddle.inference.trained import is_exported
from bit_paddle.models import published
from bit_paddle.system import environment, files, processes
from bit_paddle.system.runtimes import RUNTIMES

_EPILOG = """\
columns:
  batch 1      milliseconds of one image: median, 95th and 99th percentile of all runs
  batch 8, 32  images per second, by the median of the runs
  memory       peak of the process after these runs, in MB
  top-1        on the validation images of --dataset; if an image may have several labels, mAP,
               the mean average precision
  logits       largest difference from Paddle in float32, divided by Paddle's largest logit: on
               these images, or without --dataset on random ones

Each runtime computes in a process of its own. They take turns. It is timed from pixels to logits;
decoding and resizing are left out. int8 is calibrated on the training images of --dataset. Without
--dataset it is calibrated on random pixels: then its speed counts, but its difference does not.

examples:
  python -m bit_paddle.bench bit_logs/pets --dataset pets/
  python -m bit_paddle.bench R50x1 --crop 224
      random weights: speed and memory do not depend on the numbers
  python -m bit_paddle.bench BiT-Mini --runtimes paddle onnxruntime --json bench.json
"""

_COLUMNS = ("batch 1: ms", "95%", "99%", "8: img/s", "32: img/s", "memory")


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Raises `bit_paddle.errors`."""
    flags = parser().parse_args(arguments)
    processes.end_with_parent()
    published.resolve(flags.model, pretrained=False)  # report a wrong name before any work
    if is_exported(flags.model):
        raise ConfigError(f"{flags.model}: is an export; give the checkpoint that it came from")
    data = None if flags.dataset is None else data_set(flags.dataset, flags.datadir)
    several = data is not None and registry.find(data[0], datadir=data[1]).several
    score = "mAP" if several else "top-1"
    rows = race.rows(_installed(flags.runtimes))
    with tempfile.TemporaryDirectory() as folder:
        facts = race.prepare(
            rows,
            model=flags.model,
            directory=flags.bit_pretrained_dir,
            crop=flags.crop,
            dataset=data and data[0],
            datadir=data and data[1],
            into=folder,
        )
        print("\n".join(_about(flags, facts)), flush=True)
        images = race.race(rows, facts["paths"], flags.rounds, data)
    print("\n".join(_table(rows, score)))
    print(_accuracy(data, images, facts, score))
    if flags.json:
        facts.update(machine=environment.machine(), threads=environment.threads(), images=images)
        del facts["paths"]
        files.write_text(flags.json, files.to_json({**facts, "rows": [asdict(r) for r in rows]}))
    return 0


def _installed(names: Sequence[str] | None) -> list[str]:
    """Return the runtimes to measure: ``names``, or all that are installed, with a note on others.

    Raises `ConfigError` if one of ``names`` is not installed.
    """
    found = []
    for name in names or RUNTIMES:
        missing = [one for one in RUNTIMES[name].packages if not installed(one)]
        if not missing:
            found.append(name)
            continue
        hint = f"{', '.join(missing)} is not installed: {install_hint(RUNTIMES[name].extra)}"
        if names is not None:
            raise ConfigError(f"--runtimes {name}: {hint}")
        print(f"note: {name} is left out: {hint}", file=sys.stderr)
    return found


def _about(flags: argparse.Namespace, facts: dict[str, Any]) -> list[str]:
    weights = "random weights" if facts["random"] else flags.model
    counts = ", ".join(f"{flags.rounds * runs} of {batch}" for batch, runs in RUNS.items())
    return [
        f"{facts['network']} ({weights}), {facts['outputs']:,} outputs, "
        f"{facts['crop']} x {facts['crop']} pixels",
        f"{environment.machine()}; {environment.threads()} threads",
        f"{flags.rounds} rounds; runs per row by batch size: {counts}",
    ]


def _table(rows: Sequence[Row], score: str) -> list[str]:
    """Return the lines of the table, its title first; ``score`` is "top-1" or "mAP"."""
    titles = (*_COLUMNS, score, "logits")
    lines = [f"{'runtime':17} {'precision':9}" + "".join(f" {title:>11}" for title in titles)]
    for row in rows:
        start = f"{row.runtime:17} {row.precision:9}"
        if row.fault is not None:
            lines.append(f"{start} not measured: {row.fault}")
            continue
        times = [f"{1000 * row.percentile(1, share):.2f}" for share in (50, 95, 99)]
        speeds = [f"{row.speed(batch):.1f}" for batch in (8, 32)]
        found = row.top1 if score == "top-1" else row.mean_average_precision
        share = "-" if found is None else f"{found:.2%}"
        difference = "-" if row.difference is None else f"{row.difference:.1e}"
        cells = [*times, *speeds, f"{row.memory / 1e6:.0f} MB", share, difference]
        lines.append(start + "".join(f" {cell:>11}" for cell in cells))
    return lines


def _accuracy(
    data: tuple[str, str | None] | None, images: int, facts: dict[str, Any], score: str
) -> str:
    """Return what the score, the differences and int8 were measured on."""
    count = facts["calibration"]
    if data is None:
        text = "top-1 is left out: no --dataset was given; logits are those of random pixels"
        return f"{text}, and so is the calibration of int8 ({count} images)" if count else text
    text = f"{score} and logits: {images:,} validation images"
    return f"{text}; int8 is calibrated on {count:,} training images" if count else text


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = parsing.Parser(
        prog="python -m bit_paddle.bench",
        description=__doc__.split(":")[0] + ".",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "model",
        type=file_path,
        help=f"model to measure: {MODELS}; or R<layers>x<width>, a network with random weights",
    )
    for name in ("dataset", "datadir", "bit_pretrained_dir"):
        parser.add_argument(f"--{name}", type=file_path, help=settings.help_of(name))
    parser.add_argument(
        "--crop",
        type=whole(32),
        metavar="N",
        help="side of the images in pixels (default: that of the checkpoint; 224 for random "
        "weights)",
    )
    parser.add_argument(
        "--runtimes",
        nargs="+",
        choices=[*RUNTIMES],
        help="runtimes to measure (default: all that are installed)",
    )
    parser.add_argument(
        "--rounds",
        type=whole(1),
        default=5,
        metavar="N",
        help="turns of every runtime (default: 5)",
    )
    parser.add_argument(
        "--json", type=file_path, metavar="FILE", help="write all measurements to this file"
    )
    return parser


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
