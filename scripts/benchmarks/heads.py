"""Compare the heads: ``python scripts/benchmarks/heads.py FOLDER``.

FOLDER has clothing10/ and omniglot136/ (train/<class>/*, val/<class>/*). BiT-Mini is fine-tuned on
each with every head and several seeds: 100 steps of 64 images at 64 pixels, as ``short`` of
scripts/benchmarks/probe.py. Time is that of the processor, with validation, with one thread.

Writes runs.csv and table.md into --logdir, and the runs. The same command resumes after a stop;
without FOLDER it only rewrites the table.

``--memory R50x1`` instead measures two steps of two micro-batches for each head in a new process
each: the most bytes that Paddle has asked for, and the estimate of `bit_paddle plan` divided by it,
as scripts/benchmarks/learn.py does.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from timing import processor_seconds

from bit_paddle import errors
from bit_paddle.config.types import whole
from bit_paddle.models import cost
from bit_paddle.models.architecture import LEARN, Architecture
from bit_paddle.system import environment, files

HEADS = ("linear", "max+mean", "local", "conv:256")
SETS = {"clothing10": [], "omniglot136": ["--no-flip"]}  # flags; a mirrored character is another
SHORT = ["--precrop", "72", "--crop", "64", "--batch", "64", "--base_lr", "0.1"]
FIELDS = ("set", "head", "seed", "top1", "seconds")


def main(arguments: list[str]) -> int:
    """Make the runs, one per core at a time; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="folder of the two data sets")
    parser.add_argument("--seeds", type=whole(1), default=5, help="(default: 5)")
    parser.add_argument("--steps", type=whole(1), default=100, help="(default: 100)")
    parser.add_argument("--heads", nargs="+", default=list(HEADS), help="(default: all)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="(all)")
    parser.add_argument(
        "--logdir", type=Path, default="bit_logs/my-heads", help="(default: bit_logs/my-heads)"
    )
    parser.add_argument("--memory", metavar="MODEL", help="measure memory instead")
    parser.add_argument("--side", type=whole(32), default=128, help="of --memory (default: 128)")
    parser.add_argument("--images", type=whole(1), default=16, help="of --memory (default: 16)")
    parser.add_argument("--learn", choices=LEARN, default="all", help="of --memory (all)")
    parser.add_argument("--recompute", default="off", help="of --memory (default: off)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    if flags.worker:
        return work(flags)
    if flags.memory:
        return memory(flags)
    files.make_folder(flags.logdir, "--logdir")
    if flags.folder is not None:
        jobs = product(range(flags.seeds), flags.sets, flags.heads)
        with ThreadPoolExecutor(environment.cpu_count()) as pool:
            for _ in pool.map(lambda job: carry_out(flags, *job), jobs):
                collect(flags.logdir)
    text = table(flags.logdir)
    files.write_text(flags.logdir / "table.md", text)
    print(text, end="")
    return 0


def carry_out(flags: argparse.Namespace, seed: int, name: str, head: str) -> None:
    """Fine-tune, if that is not done."""
    folder = flags.logdir / f"{name}-{head.replace(':', '_')}-{seed}"
    if (folder / "result.json").exists():
        return
    command = [sys.executable, "-W", "ignore", "-m", "bit_paddle.train", "--model", "BiT-Mini"]
    command += ["--dataset", "folder", "--datadir", str(flags.folder / name), *SETS[name], *SHORT]
    command += ["--steps", str(flags.steps), "--head", head, "--seed", str(seed), "--no-save"]
    command += ["--logdir", str(flags.logdir), "--name", folder.name]
    files.write_text(folder / "seconds", f"{processor_seconds(command):.0f}\n")


def collect(logs: Path) -> None:
    """Write the results of all complete runs as runs.csv."""
    lines = [files.csv_line(FIELDS)]
    for path in sorted(logs.glob("*/seconds")):
        name, head, seed = path.parent.name.split("-")
        top1 = json.loads((path.parent / "result.json").read_text())["top1"]
        seconds = path.read_text().strip()
        lines.append(files.csv_line((name, head.replace("_", ":"), seed, top1, seconds)))
    files.write_text(logs / "runs.csv", "".join(lines))


def table(logs: Path) -> str:
    """Return a Markdown table of runs.csv: minimum, median and maximum over the seeds.

    The difference is to the linear head with the same seed.
    """
    with open(logs / "runs.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = {(r["set"], r["head"], r["seed"]): 100 * float(r["top1"]) for r in rows}
    text = "| data | head | runs | top-1, % | difference to linear | time, s |\n"
    text += "|---" * 6 + "|\n"
    for name, head in product(SETS, dict.fromkeys([*HEADS, *(row["head"] for row in rows)])):
        own = [row for row in rows if (row["set"], row["head"]) == (name, head)]
        if not own:
            continue
        seeds = [row["seed"] for row in own]
        top1 = [found[name, head, seed] for seed in seeds]
        pairs = [(found[name, head, seed], found.get((name, HEADS[0], seed))) for seed in seeds]
        more = [a - b for a, b in pairs if b is not None] if head != HEADS[0] else []
        time = np.median([float(row["seconds"]) for row in own])
        cells = (spread(top1, ".1f"), spread(more, "+.1f"), f"{time:.0f}")
        text += f"| {name} | `{head}` | {len(own)} | {' | '.join(cells)} |\n"
    return text


def spread(values: list[float], form: str) -> str:
    """Return minimum, median and maximum as text, or the only value; nothing of nothing."""
    if len(values) < 2:
        return "".join(f"{value:{form}}" for value in values)
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{low:{form}}, **{middle:{form}}**, {high:{form}}"


# --- Memory -------------------------------------------------------------------------------------

CLASSES = 10


def memory(flags: argparse.Namespace) -> int:
    """Print a table of the estimated and the measured memory of each head."""
    print("| head | estimate, MB | allocated, MB | estimate / allocated |\n|---|---|---|---|")
    for head in flags.heads:
        architecture = architecture_of(flags.memory, head)
        estimate = sum(cost.training_memory(architecture, CLASSES, learn=flags.learn).values())
        estimate += flags.images * cost.activations(
            architecture, flags.side, flags.recompute, learn=flags.learn
        )
        words = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--worker", head]
        place = {**os.environ, "BIT_PADDLE_NATIVE": "0"}
        done = subprocess.run(words, env=place, check=True, stdout=subprocess.PIPE, text=True)
        allocated = int(done.stdout.splitlines()[-1])
        cells = [f"{size / 1e6:,.1f}" for size in (estimate, allocated)]
        print(f"| `{head}` | {' | '.join(cells)} | {estimate / allocated:.3f} |", flush=True)
    return 0


def architecture_of(model: str, head: str) -> Architecture:
    """Return the architecture ``model``, R<layers>x<width>, with ``head``."""
    from dataclasses import replace

    architecture = Architecture.parse(model)
    if architecture is None:
        raise errors.ConfigError(f"--memory: is {model!r}, expected a name such as R50x1")
    return replace(architecture, head=head)


def work(flags: argparse.Namespace) -> int:
    """Print the most bytes that two steps of two micro-batches take in this process."""
    from functools import partial

    import paddle

    from bit_paddle.data.loader import MicroBatch
    from bit_paddle.models import weights
    from bit_paddle.training import distributed, step
    from bit_paddle.training.classification.task import loss_of
    from bit_paddle.training.optimizer import Momentum

    model = weights.create_model(flags.memory, CLASSES, head=flags.worker)
    model.learn_only(flags.learn)
    model.recompute = flags.recompute
    learned = list(model.learned().values())
    optimizer, sums = Momentum(0.003, 0.9, learned), distributed.GradientSums(learned)
    shape, every = (flags.images, 3, flags.side, flags.side), np.arange(flags.images)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    parts = [MicroBatch(pixels, every % CLASSES, every)] * 2
    loss = partial(loss_of, images=2 * flags.images)
    for _ in range(2):
        step.update(model, optimizer, sums, parts, loss, 1e-3)
    print(paddle.base.core.host_memory_stat_peak_value("Allocated", 0))
    return 0


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
