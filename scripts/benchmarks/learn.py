"""Time and memory of a training step with --learn: ``python scripts/benchmarks/learn.py R50x1``.

One process makes steps of the whole network, of block 4 with the head, and of the head alone, in
turns, so that a busy moment of the machine affects all. "remembered" steps start from the outputs
of the frozen parts, as a run does whose views are fixed. The table has the median, fastest and
slowest step in seconds, and the ratio of the medians to the whole network's.

Memory is that of two steps of two micro-batches, in a new process each: the second pass holds the
gradients of the first. "Allocated" is the most that Paddle has asked for; "resident" is the peak of
resident memory, less that of a process which has only loaded Paddle and the operators. Freed blocks
of 64 KiB and more are returned to the system at once, as in scripts/benchmarks/plan.py. Beside them
is the estimate of `bit_paddle plan`, which is for Paddle's own operators; the compiled ones take
less. A run that remembers the outputs makes them in passes of a micro-batch; so does the process.

``--accuracy FOLDER`` instead fine-tunes BiT-Mini on FOLDER (train/<class>/*, val/<class>/*) with
several seeds for each --learn, with random and with fixed views, and prints the accuracies:
minimum, median and maximum. The time is that of the processor for a whole run, with decoding and
validation. A quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from bit_paddle.config.types import whole
from bit_paddle.models import cost
from bit_paddle.models.architecture import Architecture

STEPS, CLASSES = ("all", "block4", "head", "block4, remembered", "head, remembered"), 10

RULE = {"steps": 100, "batch": 64, "base_lr": 0.1, "precrop": 72, "crop": 64}

RUNS = (("all", False), ("block4", False), ("head", False), ("block4", True), ("head", True))


def step_of(flags: argparse.Namespace, title: str, parts: int = 1) -> Callable[[], float]:
    """Return a function that makes a step of `STEPS`, in ``parts``, and returns the loss."""
    from bit_paddle.data.loader import MicroBatch
    from bit_paddle.models import weights
    from bit_paddle.models.native import build
    from bit_paddle.system import device
    from bit_paddle.training import distributed, step
    from bit_paddle.training.classification import frozen
    from bit_paddle.training.classification.task import loss_of
    from bit_paddle.training.optimizer import Momentum

    learn, _, remembered = title.partition(", ")
    model = weights.create_model(flags.model, CLASSES)
    model.learn_only(learn)
    model.compute_with(build.choose(device.select_device("cpu"), "off", lambda text: None)[0])
    learned = list(model.learned().values())
    optimizer = Momentum(0.003, 0.9, learned)
    shape, every = (flags.batch, 3, flags.side, flags.side), np.arange(flags.batch)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    outputs = None
    if remembered:
        values = model.frozen_part(device.to_device(pixels)).numpy()
        outputs = frozen.Outputs(every, values, "float32")
    loss = partial(loss_of, images=parts * flags.batch, outputs=outputs)
    part, sums = MicroBatch(pixels, every % CLASSES, every), distributed.GradientSums(learned)
    given = (model, optimizer, sums, [part] * parts, loss, 1e-9)
    return lambda: step.update(*given)


def times(flags: argparse.Namespace) -> dict[str, list[float]]:
    """Return {title: seconds of each round}."""
    steps = {title: step_of(flags, title) for title in STEPS}
    found: dict[str, list[float]] = {title: [] for title in steps}
    for turn in range(flags.rounds + 1):
        for title, make in steps.items():
            begun = time.perf_counter()
            make()
            if turn:  # the first is warm-up
                found[title].append(time.perf_counter() - begun)
    return found


def peaks(flags: argparse.Namespace, title: str, compiled: bool) -> list[int]:
    """Return the bytes that two steps in a new process take at most: allocated, and resident."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}
    if not compiled:
        environment["BIT_PADDLE_NATIVE"] = "0"
    words = [sys.executable, "-W", "ignore", __file__, flags.model, "--worker", title]
    words += ["--side", str(flags.side), "--batch", str(flags.batch)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def work(flags: argparse.Namespace) -> None:
    """Print the bytes of `peaks`, measured in this process."""
    import paddle

    from bit_paddle.models.native import build
    from bit_paddle.system import device
    from bit_paddle.training import distributed  # noqa: F401 (loaded before the measurement)

    build.choose(device.select_device("cpu"), "off", lambda text: None)
    before = resident()
    make = step_of(flags, flags.worker, parts=2)
    make(), make()
    allocated = paddle.base.core.host_memory_stat_peak_value("Allocated", 0)
    print(json.dumps([allocated, resident() - before]))


def resident() -> int:
    """Return the peak of this process's resident memory, in bytes; ru_maxrss has the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def accuracies(folder: Path, repeats: int, logs: Path) -> None:
    """Fine-tune with each of `RUNS`; print a line per run, and a table."""
    import bit_paddle as bit

    text = "| `--learn` | views | top-1, % | difference to `all` | time |\n|---|---|---|---|---|\n"
    whole = np.zeros(repeats)
    for learn, fixed in RUNS:
        top1, seconds = np.zeros(repeats), np.zeros(repeats)
        more = {"flip": False, "random_crop": False} if fixed else {}
        for seed in range(repeats):
            name, begun = f"{learn}{'-fixed' * fixed}-{seed}", time.process_time()
            more.update(seed=seed, logdir=logs, name=name)
            run = bit.fine_tune("BiT-Mini", folder, learn=learn, **RULE, **more)
            top1[seed], seconds[seed] = run.result["top1"], time.process_time() - begun
            print(f"{name}: {top1[seed]:.2%}, {seconds[seed]:.1f} s", flush=True)
        whole = whole if whole.any() else top1
        cells = (spread(100 * top1, ".1f"), spread(100 * (top1 - whole), "+.1f"))
        views = "fixed" if fixed else "random"
        text += f"| `{learn}` | {views} | {' | '.join(cells)} | {np.median(seconds):.0f} s |\n"
    print(text, end="")


def spread(values: np.ndarray, form: str) -> str:
    """Return minimum, median and maximum as text."""
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{low:{form}}, **{middle:{form}}**, {high:{form}}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="R50x1", help="R<layers>x<width>")
    parser.add_argument("--side", type=whole(32), default=128, help="side of the images")
    parser.add_argument("--batch", type=whole(1), default=16, help="images per step")
    parser.add_argument("--rounds", type=whole(1), default=9, help="timed steps of each")
    parser.add_argument("--accuracy", type=Path, metavar="FOLDER", help="fine-tune on FOLDER")
    parser.add_argument("--repeats", type=whole(1), default=5, help="seeds of --accuracy")
    parser.add_argument("--logdir", type=Path, default="bit_logs/my-learn", help="of --accuracy")
    parser.add_argument("--worker", choices=STEPS, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        work(flags)
    elif flags.accuracy:
        accuracies(flags.accuracy, flags.repeats, flags.logdir)
    else:
        compare(flags)


def compare(flags: argparse.Namespace) -> None:
    """Print the tables of time and memory."""
    found = times(flags)
    whole_network = statistics.median(found["all"])
    print(f"{flags.model}, {flags.batch} images of {flags.side} x {flags.side} per step\n")
    print("| --learn | median, s | fastest | slowest | to all |\n|---|---|---|---|---|")
    for title, seconds in found.items():
        median = statistics.median(seconds)
        cells = (median, min(seconds), max(seconds), median / whole_network)
        print(f"| {title} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    print("\nMB, and the estimate divided by it; c: with compiled operators")
    print("| --learn | estimate | allocated | ratio | resident | ratio | c allocated | resident |")
    print("|---|---|---|---|---|---|---|---|")
    architecture = Architecture.parse(flags.model)
    for title in STEPS:
        learn = title.partition(",")[0]
        estimate = sum(cost.training_memory(architecture, CLASSES, learn=learn).values())
        estimate += flags.batch * cost.activations(architecture, flags.side, learn=learn)
        plain = peaks(flags, title, compiled=False)
        cells = [f"{size / 1e6:,.0f} | {estimate / size:.2f}" for size in plain]
        cells += [f"{size / 1e6:,.0f}" for size in peaks(flags, title, compiled=True)]
        print(f"| {title} | {estimate / 1e6:,.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
