"""Judge features, or fine-tune: time and accuracy: ``python scripts/benchmarks/probe.py FOLDER``.

FOLDER has clothing10/ and omniglot136/ (train/<class>/*, val/<class>/*) and cifar10/ with the
archive of CIFAR-10, cut to 1,000 training images and 200 test images per class. BiT-Mini is judged
on each, and fine-tuned on all training images with several seeds, in three ways at 64 pixels:
``short`` (100 steps of 64 images), ``128`` (500 steps of 128, the authors' settings for little
memory) and ``512`` (500 steps of 512, as BiT-HyperRule has it), the last two in bfloat16.

Time: each round takes, one after another, the whole command ``probe`` with nothing in its cache,
the whole command ``train`` of ``short``, and a few steps of BiT-HyperRule at its own resolution,
128 or 480 pixels. Their speed gives the time of its 500 steps, without start and validation.

Writes times.csv, runs.csv and table.md into --logdir. The same command resumes after a stop;
without FOLDER it only rewrites the table. A run of ``512`` takes a core about 25 minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bit_paddle import errors
from bit_paddle.config.types import whole
from bit_paddle.inference.probing import METHODS
from bit_paddle.recipes import hyperrule
from bit_paddle.runs import history
from bit_paddle.system import environment, fetch, files

SETS = {"clothing10": "folder", "omniglot136": "folder", "cifar10": "cifar10"}
SHOTS = ("1", "5", "10", "25", "all")
VIEW = ["--precrop", "72", "--crop", "64"]
TUNED = {  # name: title, flags
    "short": ("fine-tuning, 100 x 64", ["--steps", "100", "--batch", "64", "--base_lr", "0.1"]),
    "128": ("fine-tuning, 500 x 128", ["--batch", "128", "--base_lr", "0.001", "--amp", "bf16"]),
    "512": ("fine-tuning, 500 x 512", ["--amp", "bf16"]),
}
STEPS, BATCH = 5, 64  # timed steps of the rule, of which the first is left out
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
    help = "of short, 128 and 512 (default: 5 5 1)"
    parser.add_argument("--seeds", type=whole(0), nargs=3, default=(5, 5, 1), help=help)
    parser.add_argument(
        "--logdir", type=Path, default="bit_logs/my-probe", help="(default: bit_logs/my-probe)"
    )
    flags = parser.parse_args(arguments)
    if flags.folder is not None and flags.only != "accuracy":
        lines = [files.csv_line(TIMES)]
        for turn in range(flags.rounds):
            for name in SETS:
                lines.append(files.csv_line([name, turn, *times_of(flags.folder / name)]))
                print(lines[-1], end="", flush=True)
        files.write_text(flags.logdir / "times.csv", "".join(lines))
    if flags.folder is not None and flags.only != "time":
        accuracies(flags.folder, flags.logdir, dict(zip(TUNED, flags.seeds)))
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
        place = {**environment.share(1), "BIT_PADDLE_HOME": home}

        def seconds(*more: str) -> float:
            begun = time.perf_counter()
            subprocess.run(more, env=place, check=True, stdout=sys.stderr)
            return time.perf_counter() - begun

        judged = seconds(*words("probe", data), "--results", f"{home}/probe")
        train = [*words("train", data), "--no-save", "--logdir", home]
        tuned = seconds(*train, *VIEW, *TUNED["short"][1], "--name", "short")
        batch = BATCH // 4 if data.name == "clothing10" else BATCH  # images of 480 pixels
        seconds(*train, "--steps", str(STEPS), "--batch", str(batch), "--name", "rule")
        (ended,) = history.read(Path(home) / "rule")
    made = ended.train[-1]["time"] - ended.train[0]["time"]
    speed = batch * (len(ended.train) - 1) / made  # images per second
    rule = hyperrule.schedule(0).steps * hyperrule.BATCH / speed
    return [f"{value:.1f}" for value in (judged, tuned, rule)]


# --- Accuracy -----------------------------------------------------------------------------------


def accuracies(folder: Path, logs: Path, seeds: dict[str, int]) -> None:
    """Make the runs, one per core at a time; write runs.csv."""
    for name in SETS:
        run([*words("probe", folder / name), "--results", str(logs / f"{name}-probe")])
    jobs = [(way, seed, name) for way in TUNED for seed in range(seeds[way]) for name in SETS]

    def start(job: tuple[str, int, str]) -> None:
        way, seed, name = job
        more = ["--logdir", str(logs), "--name", f"{name}-{way}-{seed}", "--seed", str(seed)]
        run([*words("train", folder / name), *VIEW, *TUNED[way][1], *more])

    with ThreadPoolExecutor(environment.cpu_count()) as pool:
        for _ in pool.map(start, jobs):
            collect(logs)


def run(command: list[str]) -> None:
    """Run ``command`` on its share of the cores."""
    subprocess.run(command, env=environment.share(environment.cpu_count()), check=True)


def collect(logs: Path) -> None:
    """Write the results of all complete runs as runs.csv."""
    lines = [files.csv_line(RUNS)]
    for name in SETS:
        (found,) = json.loads((logs / f"{name}-probe" / "probe.json").read_text())
        for row in found["rows"]:
            for seed, top1 in enumerate(row["top1"]):
                values = (name, row["method"], row["shots"] or "all", seed, top1)
                lines.append(files.csv_line(values))
        for path in sorted(logs.glob(f"{name}-*/result.json")):
            _, way, seed = path.parent.name.split("-")
            top1 = json.loads(path.read_text())["top1"]
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
        text += "| data | probe, s | 100 x 64, s | rule, min | 100 x 64 / probe | rule / probe |\n"
        text += "|---" * 6 + "|\n"
        for name in SETS:
            rows = [row for row in times if row["set"] == name]
            probe, short, rule = (np.array([float(row[key]) for row in rows]) for key in TIMES[2:])
            cells = [spread(probe, ".0f"), spread(short, ".0f"), spread(rule / 60, ".0f")]
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
