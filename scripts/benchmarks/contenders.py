"""Time contenders against each other, for the benches of speed: `step`, `inference`, `scaling`.

Each contender of `networks` is a process, as two OpenMP runtimes in one process slow each other
down. They take turns, so that a busy moment of the machine affects all. A turn is the runs that
begin in a quarter of a second; its time is their median. Those of a precision race together, so
that fewer are in memory at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import machine
import networks
import numpy as np
import standings

PADDLE_AS_IT_COMES = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MKL_DEBUG_CPU_TYPE": "0"}
PAUSE = 0.4  # seconds between turns: OpenMP's threads spin on after their work
TURN = 0.25  # seconds in which the runs of a turn begin
WARM, SETTLED = 12, 1.3  # see `warm_up`


# --- A contender --------------------------------------------------------------------------------


def work(flags: argparse.Namespace) -> None:
    """Run as a contender: for each line of input, take a turn; print [seconds, peak MB]."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (flags.batch, 3, flags.side, flags.side)).astype(np.uint8)
    labels = random.integers(0, networks.CLASSES, flags.batch)
    run = networks.maker(flags.worker)(flags, images, labels)
    warm_up(run)
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds = turn(run) / (4 if networks.IN_PARTS in flags.worker else 1)
        print(json.dumps([round(seconds, 6), round(peak_memory(flags))]), flush=True)


def seconds_of(run: Callable[[], object]) -> float:
    """Return the seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def warm_up(run: Callable[[], object]) -> None:
    """Run until two runs in a row take at most `SETTLED` times as long as the fastest.

    Then nothing is compiled any more. On a machine that is too busy it ends after `WARM` runs.
    """
    seconds = [seconds_of(run) for _ in range(3)]
    while max(seconds[-2:]) > SETTLED * min(seconds) and len(seconds) < WARM:
        seconds.append(seconds_of(run))


def turn(run: Callable[[], object]) -> float:
    """Return the median seconds of the runs that begin within `TURN` seconds."""
    end, seconds = time.perf_counter() + TURN, [seconds_of(run)]
    while time.perf_counter() < end:
        seconds.append(seconds_of(run))
    return statistics.median(seconds)


def peak_memory(flags: argparse.Namespace) -> float:
    """Return this process's peak memory in MB: of the GPU if it uses one."""
    if flags.device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    library = sys.modules.get("torch") or sys.modules["paddle"].device
    return library.cuda.max_memory_reserved() / 1e6


# --- The race -----------------------------------------------------------------------------------


def race(contenders: Sequence[str], rounds: int, words: Sequence[str]) -> standings.Results:
    """Run the contenders in turns; return the seconds per round and the peak memory of each."""
    children = {}
    for name in contenders:
        with tempfile.TemporaryFile("w+") as errors:
            child = _start(name, words, errors)
            # Wait before the next one starts: starting takes processor time.
            lines = iter(child.stdout.readline, "")
            if any(line == "ready\n" for line in lines):
                children[name] = child
                continue
            child.wait()
            errors.seek(0)
            reason = errors.read().strip().splitlines()[-1:] or [f"status {child.returncode}"]
            print(f"{name}: skipped, it does not run here ({reason[0]})", flush=True)
    results: standings.Results = {name: {"seconds": [], "memory": 0} for name in children}
    for _ in range(rounds):
        for name, child in children.items():
            time.sleep(PAUSE)
            child.stdin.write("\n")
            child.stdin.flush()
            seconds, results[name]["memory"] = json.loads(child.stdout.readline())
            results[name]["seconds"].append(seconds)
    for child in children.values():
        child.stdin.close()
        child.wait()
    return results


def _start(name: str, words: Sequence[str], errors: object) -> subprocess.Popen:
    """Start this command as the contender ``name``."""
    environment = dict(os.environ)
    if name.startswith(networks.PURE):
        environment["BIT_PADDLE_NATIVE"] = "0"
    if name == networks.OBVIOUS:
        environment.update(PADDLE_AS_IT_COMES)
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", sys.argv[0], "--worker", name, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=environment,
    )


def report(record: dict, batch: str) -> None:
    """Print a line per contender: see `standings.rows`."""
    titles, table = standings.columns(record), standings.rows(record, batch)
    for name, cells in {"": titles, **table}.items():
        print(f"{name:42}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def draw(panels: dict[str, standings.Results], path: Path) -> None:
    """Draw {title: results} as bars of medians with their range, one panel per title."""
    from matplotlib.figure import Figure

    rows = max(len(results) for results in panels.values())
    figure = Figure(figsize=(4.6 * len(panels), 1 + 0.34 * rows), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, results) in zip(all_axes, panels.items()):
        names = list(results)[::-1]
        seconds = [results[name]["seconds"] for name in names]
        middle = [statistics.median(values) for values in seconds]
        low = [m - min(values) for m, values in zip(middle, seconds)]
        high = [max(values) - m for m, values in zip(middle, seconds)]
        colors = ["tab:blue" if name.startswith(networks.OURS) else "silver" for name in names]
        axes.barh(names, middle, xerr=[low, high], color=colors, error_kw={"linewidth": 1})
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("seconds: median, minimum and maximum", fontsize=8)
        axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=120)


# --- The command --------------------------------------------------------------------------------


def parser(description: str) -> argparse.ArgumentParser:
    """Return the parser with the flags that all these benches share."""
    result = argparse.ArgumentParser(
        description=description,
        epilog=networks.LEGEND,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--model", default="R50x1", help="R<layers>x<width>")
    result.add_argument("--batches", type=int, nargs="+", default=[8, 32], help="batch sizes")
    result.add_argument("--side", type=int, default=128, help="side of the images")
    result.add_argument("--rounds", type=int, default=7)
    result.add_argument("--without", nargs="+", default=[], help="contenders to skip")
    result.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    result.add_argument("--json", type=Path, help="write all times to this file")
    result.add_argument("--plot", type=Path, help="write a figure to this file")
    result.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    result.add_argument("--worker", help=argparse.SUPPRESS)
    result.set_defaults(inference=False)
    return result


def words(flags: argparse.Namespace, batch: int, side: int) -> list[str]:
    """Return the command-line words of a contender, without its name."""
    sizes = ["--batch", str(batch), "--side", str(side)]
    return [*sizes, "--model", flags.model, "--device", flags.device]


def run(flags: argparse.Namespace, contenders: Sequence[str], task: str) -> None:
    """Time the contenders for each batch size; print the results, and write them."""
    contenders = [name for name in contenders if name not in flags.without]
    if flags.device == "gpu":
        contenders = [name for name in contenders if not name.startswith(networks.CPU_ONLY)]
    facts = machine.describe()
    facts["limits"] = machine.limits() if flags.device == "cpu" else {}
    print("\n".join(machine.lines(facts)), flush=True)
    races: dict[str, standings.Results] = {}
    record = {"task": task, "model": flags.model, "side": flags.side, "machine": facts}
    record["races"] = races
    titles = {}
    for batch in map(str, flags.batches):
        titles[batch] = f"{flags.model}, {flags.side} x {flags.side}, {task}, batch {batch}"
        print(titles[batch], flush=True)
        races[batch] = {}
        for precision in standings.PRECISIONS:
            group = [name for name in contenders if standings.precision_of(name) == precision]
            races[batch].update(race(group, flags.rounds, words(flags, int(batch), flags.side)))
        report(record, batch)
        if flags.json:  # after each batch size, as a race takes minutes
            flags.json.write_text(text_of(record))
    if flags.plot:
        draw({titles[batch]: results for batch, results in races.items()}, flags.plot)


def text_of(record: dict) -> str:
    """Return ``record`` as JSON, with the numbers of a list on one line."""
    return re.sub(r"\n\s+(?=[\d\]])", " ", json.dumps(record, indent=1)) + "\n"


def main(description: str, contenders: Sequence[str], task: str, **defaults: object) -> None:
    """Run the command of a bench, or one of its contenders; ``defaults`` are those of its flags."""
    command = parser(description)
    command.set_defaults(**defaults)
    flags = command.parse_args()
    flags.inference = task == standings.INFERENCE
    if flags.worker:
        work(flags)
    else:
        run(flags, contenders, task)
