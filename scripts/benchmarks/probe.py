"""Judge features, or fine-tune: time and accuracy: ``python scripts/benchmarks/probe.py FOLDER``.

FOLDER has clothing10/ and omniglot136/ (train/<class>/*, val/<class>/*) and cifar10/ with the
archive of CIFAR-10, cut to 1,000 training images and 200 test images per class. BiT-Mini is judged
and fine-tuned on each: ``small`` is the rule at a size for two cores (100 steps of 64 images, 64
pixels), ``rule`` BiT-HyperRule itself (500 steps of 512 images).

Time: each round takes, one after another, the whole command ``probe`` with nothing in its cache,
the whole command ``train`` with ``small``, and a few steps of ``rule`` at its own resolution, whose
speed gives the time of all its steps (without start and validation). Nothing else should run.

Accuracy: ``small`` with several seeds and numbers of images per class, one run per core at a time;
``rule`` with --rule_seeds seeds and all images, at 128 pixels for all three (photographs of clothes
would have 480 by the rule, fourteen times the work), in bfloat16.

Writes times.csv, runs.csv and table.md into --logdir. The same command resumes after a stop;
without FOLDER it only rewrites the table. Two cores take ten minutes for the time, half an hour for
``small`` and one to two hours for a seed of ``rule``.
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
from bit_paddle.recipes import hyperrule
from bit_paddle.runs import history
from bit_paddle.system import environment, fetch, files

SETS = {"clothing10": "folder", "omniglot136": "folder", "cifar10": "cifar10"}
SHOTS = (1, 5, 10, None)
SMALL = ["--steps", "100", "--batch", "64", "--base_lr", "0.1", "--precrop", "72", "--crop", "64"]
RULE = ["--precrop", "160", "--crop", "128", "--amp", "bf16"]
STEPS, BATCH = 5, 64  # timed steps of the rule, of which the first is left out
WAYS = {
    "ridge": "probe, ridge",
    "k-NN": "probe, k-NN",
    "logistic": "probe, logistic",
    "small": "fine-tuning, 100 x 64",
    "rule": "fine-tuning, 500 x 512",
}
RUNS, TIMES = ("set", "way", "shots", "seed", "top1"), ("set", "round", "probe", "small", "rule")


def main(arguments: list[str]) -> int:
    """Measure time and accuracy; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="folder of the three data sets")
    parser.add_argument("--only", choices=("time", "accuracy"), help="(default: both)")
    parser.add_argument("--rounds", type=whole(1), default=3, help="of the time (default: 3)")
    parser.add_argument("--seeds", type=whole(1), default=5, help="of small (default: 5)")
    parser.add_argument("--rule_seeds", type=whole(0), default=1, help="of rule (default: 1)")
    parser.add_argument(
        "--logdir", type=Path, default="bit_logs/my-probe", help="(default: bit_logs/my-probe)"
    )
    flags = parser.parse_args(arguments)
    if flags.folder is not None and flags.only != "accuracy":
        lines = [files.csv_line(TIMES)]
        for turn in range(flags.rounds):
            for name in SETS:
                lines.append(files.csv_line([name, turn, *times(flags.folder / name)]))
                print(lines[-1], end="", flush=True)
        files.write_text(flags.logdir / "times.csv", "".join(lines))
    if flags.folder is not None and flags.only != "time":
        accuracies(flags)
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


def times(data: Path) -> list[str]:
    """Return the seconds of the probe, of ``small``, and of all steps of ``rule``."""
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "native").symlink_to(fetch.cache_dir() / "native")  # compiled before
        place = {**environment.share(1), "BIT_PADDLE_HOME": home}

        def seconds(*more: str) -> float:
            begun = time.perf_counter()
            subprocess.run(more, env=place, check=True, stdout=sys.stderr)
            return time.perf_counter() - begun

        judged = seconds(*words("probe", data), "--results", f"{home}/probe")
        train = [*words("train", data), "--no-save", "--logdir", home]
        tuned = seconds(*train, *SMALL, "--name", "small")
        batch = BATCH // 4 if data.name == "clothing10" else BATCH  # images of 480 pixels
        seconds(*train, "--steps", str(STEPS), "--batch", str(batch), "--name", "rule")
        (run,) = history.read(Path(home) / "rule")
    seconds_of_steps = run.train[-1]["time"] - run.train[0]["time"]
    speed = batch * (len(run.train) - 1) / seconds_of_steps  # images per second
    rule = hyperrule.schedule(0).steps * hyperrule.BATCH / speed
    return [f"{value:.1f}" for value in (judged, tuned, rule)]


# --- Accuracy -----------------------------------------------------------------------------------


def accuracies(flags: argparse.Namespace) -> None:
    """Make the runs; write runs.csv."""
    lines, jobs = [files.csv_line(RUNS)], []
    for name in SETS:
        place = flags.logdir / f"{name}-probe"
        command = words("probe", flags.folder / name)
        command += ["--seeds", str(flags.seeds), "--results", str(place)]
        subprocess.run(command, check=True)
        for row in json.loads((place / "probe.json").read_text())[0]["rows"]:
            for seed, top1 in enumerate(row["top1"]):
                shots = row["shots"] or "all"
                lines.append(files.csv_line([name, row["method"], shots, seed, top1]))
        jobs += [(name, "small", shots, seed) for shots in SHOTS for seed in range(flags.seeds)]
    jobs += [(name, "rule", None, seed) for name in SETS for seed in range(flags.rule_seeds)]
    count = environment.cpu_count()

    def start(job: tuple) -> str:
        name, way, shots, seed = job
        run = f"{name}-{way}-{shots or 'all'}-{seed}"
        command = [*words("train", flags.folder / name), *(SMALL if way == "small" else RULE)]
        command += ["--logdir", str(flags.logdir), "--name", run, "--seed", str(seed), "--no-save"]
        if shots:
            command += ["--examples_per_class", str(shots), "--examples_per_class_seed", str(seed)]
        subprocess.run(command, env=environment.share(count), check=True)
        result = json.loads((flags.logdir / run / "result.json").read_text())
        return files.csv_line([name, way, shots or "all", seed, result["top1"]])

    with ThreadPoolExecutor(count) as pool:
        lines += pool.map(start, jobs)
    files.write_text(flags.logdir / "runs.csv", "".join(lines))


# --- Table --------------------------------------------------------------------------------------


def table(logs: Path) -> str:
    """Return Markdown tables of runs.csv and times.csv, as far as they are there."""
    text = ""
    if runs := read(logs / "runs.csv"):
        text += f"| data | top-1, % | {' | '.join(str(shots or 'all') for shots in SHOTS)} |\n"
        text += "|---" * (2 + len(SHOTS)) + "|\n"
        for name in SETS:
            for way, title in WAYS.items():
                cells = []
                for shots in SHOTS:
                    key = (name, way, str(shots or "all"))
                    top1 = [
                        100 * float(run["top1"]) for run in runs if tuple(run.values())[:3] == key
                    ]
                    cells.append(spread(top1, ".1f"))
                text += f"| {name} | {title} | {' | '.join(cells)} |\n"
        text += "\n"
    if found := read(logs / "times.csv"):
        text += (
            "| data | probe, s | 100 x 64, s | by the rule, min | small : probe | rule : probe |\n"
        )
        text += "|---" * 6 + "|\n"
        for name in SETS:
            rows = [row for row in found if row["set"] == name]
            probe, small, rule = (np.array([float(row[key]) for row in rows]) for key in TIMES[2:])
            cells = [spread(probe, ".0f"), spread(small, ".0f"), spread(rule / 60, ".0f")]
            cells += [spread(small / probe, ".1f"), spread(rule / probe, ".0f")]
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
