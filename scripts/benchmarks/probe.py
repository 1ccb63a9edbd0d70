"""Judge features, or fine-tune: time and accuracy: ``python scripts/benchmarks/probe.py FOLDER``.

FOLDER has clothing10/ and omniglot136/ (train/<class>/*, val/<class>/*) and cifar10/ with the
archive of CIFAR-10, cut to 1,000 training images and 200 test images per class. BiT-Mini is judged
on each, and fine-tuned on all training images with several seeds, in three ways: ``short`` (100
steps of 64 images) and ``128`` (500 steps of 128, the authors' settings for little memory, in
bfloat16), both at 64 pixels, and ``rule``: BiT-HyperRule as it is, 500 steps of 512 images at 128
or 480 pixels.

Time is that of the processor, with start, decoding and validation, of commands with one thread: it
hardly depends on what else the machine does. ``probe`` starts with nothing in its cache. The time
of BiT-HyperRule at its own resolution, 128 or 480 pixels, is its 500 steps alone, extrapolated
from eight of fewer images: nine steps minus one.

Writes times.csv, runs.csv and table.md into --logdir. The same command resumes after a stop;
without FOLDER it only rewrites the table. A run of ``rule`` takes a core more than an hour on
cifar10 and 16 hours on the others: by default there are none (--seeds).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from timing import processor_seconds

from bit_paddle import errors
from bit_paddle.config.types import whole
from bit_paddle.inference.probing import METHODS
from bit_paddle.recipes import hyperrule
from bit_paddle.system import environment, fetch, files

SETS = {"clothing10": "folder", "omniglot136": "folder", "cifar10": "cifar10"}
SHOTS = ("1", "5", "10", "25", "all")
VIEW = ["--precrop", "72", "--crop", "64"]
SHORT = [*VIEW, "--steps", "100", "--batch", "64", "--base_lr", "0.1"]
TUNED = {  # name: title, flags
    "short": ("fine-tuning, 100 x 64", SHORT),
    "128": (
        "fine-tuning, 500 x 128",
        [*VIEW, "--batch", "128", "--base_lr", "0.001", "--amp", "bf16"],
    ),
    "rule": ("fine-tuning by the rule", []),
}
STEPS = 9
IMAGES = {"clothing10": 16, "omniglot136": 16, "cifar10": 256}  # per timed step of the rule
WAYS = {method: f"probe, {method}" for method in METHODS}
WAYS.update({name: title for name, (title, _) in TUNED.items()})
RUNS, TIMES = ("set", "way", "shots", "seed", "top1"), ("set", "round", "probe", "short", "rule")


def main(arguments: list[str]) -> int:
    """Measure time and accuracy; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="folder of the three data sets")
    parser.add_argument("--only", choices=("time", "accuracy"), help="(default: both)")
    parser.add_argument("--rounds", type=whole(1), default=3, help="of the time (default: 3)")
    parser.add_argument(
        "--sets", nargs="+", choices=SETS, default=list(SETS), help="(default: all)"
    )
    help = "of short, 128 and rule (default: 5 5 0)"
    parser.add_argument("--seeds", type=whole(0), nargs=3, default=(5, 5, 0), help=help)
    parser.add_argument(
        "--logdir", type=Path, default="bit_logs/my-probe", help="(default: bit_logs/my-probe)"
    )
    flags = parser.parse_args(arguments)
    files.make_folder(flags.logdir, "--logdir")
    if flags.folder is not None and flags.only != "accuracy":
        jobs = [(name, turn) for turn in range(flags.rounds) for name in flags.sets]
        with ThreadPoolExecutor(environment.cpu_count()) as pool:
            found = pool.map(lambda job: times_of(flags.folder / job[0]), jobs)
            lines = [files.csv_line([*job, *values]) for job, values in zip(jobs, found)]
        files.write_text(flags.logdir / "times.csv", "".join([files.csv_line(TIMES), *lines]))
    if flags.folder is not None and flags.only != "time":
        accuracies(flags.folder, flags.sets, flags.logdir, dict(zip(TUNED, flags.seeds)))
    text = table(flags.logdir)
    files.write_text(flags.logdir / "table.md", text)
    print(text, end="")
    return 0


def words(command: str, data: Path) -> list[str]:
    """Return the words of ``command`` on a data set."""
    given = [sys.executable, "-W", "ignore", "-m", f"bit_paddle.{command}", "--model", "BiT-Mini"]
    given += ["--dataset", SETS[data.name], "--datadir", str(data)]
    return given + ["--no-flip"] * (command == "train" and data.name == "omniglot136")


# --- Time ---------------------------------------------------------------------------------------


def times_of(data: Path) -> list[str]:
    """Return the seconds of the probe, of ``short``, and of all steps of the rule."""
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "native").symlink_to(fetch.cache_dir() / "native")  # compiled before
        place = {**os.environ, "OMP_NUM_THREADS": "1", "BIT_PADDLE_HOME": home}

        def seconds(command: str, *more: str) -> float:
            return processor_seconds([*words(command, data), *more], place)

        def train(name: str, *more: str) -> float:
            return seconds("train", "--no-save", "--logdir", home, "--name", name, *more)

        def rule(steps: int) -> float:
            batch = str(IMAGES[data.name])
            return train(f"rule-{steps}", "--steps", str(steps), "--batch", batch)

        probe = seconds("probe", "--results", f"{home}/probe")
        short = train("short", *SHORT)
        image = (rule(STEPS) - rule(1)) / (STEPS - 1) / IMAGES[data.name]
    steps = image * hyperrule.schedule(0).steps * hyperrule.BATCH
    found = [f"{value:.1f}" for value in (probe, short, steps)]
    print(data.name, *found, flush=True)
    return found


# --- Accuracy -----------------------------------------------------------------------------------


def accuracies(folder: Path, sets: list[str], logs: Path, seeds: dict[str, int]) -> None:
    """Make the runs, one per core at a time; write runs.csv."""
    for name in sets:
        run([*words("probe", folder / name), "--results", str(logs / f"{name}-probe")])
    jobs = [(way, seed, name) for way in TUNED for seed in range(seeds[way]) for name in sets]

    def start(job: tuple[str, int, str]) -> None:
        way, seed, name = job
        more = ["--logdir", str(logs), "--name", f"{name}-{way}-{seed}", "--seed", str(seed)]
        run([*words("train", folder / name), *TUNED[way][1], *more])

    with ThreadPoolExecutor(environment.cpu_count()) as pool:
        for _ in pool.map(start, jobs):
            collect(logs)


def run(command: list[str]) -> None:
    """Run ``command`` on its share of the cores."""
    subprocess.run(command, env=environment.share(environment.cpu_count()), check=True)


def collect(logs: Path) -> None:
    """Write the results of all complete runs as runs.csv."""
    lines = [files.csv_line(RUNS)]
    for path in sorted(logs.glob("*-probe/probe.json")):
        name = path.parent.name.split("-")[0]
        (found,) = json.loads(path.read_text())
        for row in found["rows"]:
            for seed, top1 in enumerate(row["scores"]):
                values = (name, row["method"], row["shots"] or "all", seed, top1)
                lines.append(files.csv_line(values))
        for result in sorted(logs.glob(f"{name}-*/result.json")):
            _, way, seed = result.parent.name.split("-")
            top1 = json.loads(result.read_text())["top1"]
            lines.append(files.csv_line((name, way, "all", seed, top1)))
    files.write_text(logs / "runs.csv", "".join(lines))


# --- Table --------------------------------------------------------------------------------------


def table(logs: Path) -> str:
    """Return Markdown tables of runs.csv and times.csv, as far as they are there."""
    text = ""
    if runs := read(logs / "runs.csv"):
        text += f"| data | top-1, % | {' | '.join(SHOTS)} |\n" + "|---" * (2 + len(SHOTS)) + "|\n"
        for name in SETS:
            for way, title in WAYS.items():
                own = [each for each in runs if (each["set"], each["way"]) == (name, way)]
                found = {shots: [] for shots in SHOTS}
                for each in own:
                    found[each["shots"]].append(100 * float(each["top1"]))
                if own:
                    cells = [spread(top1, ".1f") for top1 in found.values()]
                    text += f"| {name} | {title} | {' | '.join(cells)} |\n"
        text += "\n"
    if times := read(logs / "times.csv"):
        text += "| data | probe, s | 100 x 64, s | rule, h | 100 x 64 / probe | rule / probe |\n"
        text += "|---" * 6 + "|\n"
        for name in dict.fromkeys(row["set"] for row in times):
            rows = [row for row in times if row["set"] == name]
            probe, short, rule = (np.array([float(row[key]) for row in rows]) for key in TIMES[2:])
            cells = [spread(probe, ".0f"), spread(short, ".0f"), spread(rule / 3600, ".1f")]
            cells += [spread(short / probe, ".1f"), spread(rule / probe, ".0f")]
            text += f"| {name} | {' | '.join(cells)} |\n"
    return text


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none if it is missing."""
    if not path.is_file():
        return []
    with open(path, newline="") as lines:
        return list(csv.DictReader(lines))


def spread(values: np.ndarray | list[float], form: str) -> str:
    """Return minimum, median and maximum as text, or the only value; nothing of nothing."""
    if len(values) < 2:
        return "".join(f"{value:{form}}" for value in values)
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{low:{form}}, **{middle:{form}}**, {high:{form}}"


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
