"""Train without one part of the recipe: ``python scripts/benchmarks/rule_parts.py FOLDER``.

Trains the network of BiT-Mini from random weights on all images, and fine-tunes BiT-Mini on ten
images per class, as `scripts/benchmarks/transfer_table.sh` does, each with one part of the recipe
left out. Data: scikit-learn's digits, and FOLDER/omniglot136 (train/<class>/*, val/<class>/*).
Writes runs.csv (a line per run and seed) and table.md (minimum, median and maximum top-1 of the
seeds) into --logdir. The same command resumes after a stop; without FOLDER it only rewrites the
table.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from transfer_table import collect, spread

from bit_paddle import errors
from bit_paddle.config.types import whole
from bit_paddle.system import environment, files

SETS = ("digits", "omniglot136")
SCRATCH = ["--model", "R26x0.5", "--from_scratch"]
TUNED = ["--model", "BiT-Mini", "--examples_per_class", "10"]
COMMON = ["--steps", "100", "--batch", "64", "--base_lr", "0.1", "--precrop", "72", "--crop", "64"]
COLD = ["--warmup", "0"]


class Row(NamedTuple):
    """A row of the table: runs with ``flags``, without the part ``left_out`` (see `leave_out`).

    ``parts`` is the number of micro-batches for a batch of 64, where it matters.
    """

    title: str
    flags: list[str]
    left_out: str = ""
    parts: int | None = None


ROWS = {  # name of the row's runs: row
    "scratch": Row("from random weights, all images", SCRATCH),
    "no-standardization": Row("… without standardization", SCRATCH, "standardization"),
    "batchnorm": Row("… BatchNorm for GroupNorm", SCRATCH, "GroupNorm", 1),
    "batchnorm-2": Row("… BatchNorm, micro-batches of 2", SCRATCH, "GroupNorm", 32),
    "scratch-cold": Row("… without warm-up", [*SCRATCH, *COLD]),
    "tuned": Row("BiT-Mini, 10 images per class", TUNED),
    "random-head": Row("… head of random weights", TUNED, "zero head"),
    "tuned-cold": Row("… without warm-up", [*TUNED, *COLD]),
}


def main(arguments: list[str]) -> int:
    """Make the runs, one per core at a time; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="folder that contains omniglot136/")
    parser.add_argument("--repeats", type=whole(2), default=5, help="seeds (default: 5)")
    parser.add_argument("--amp", default="auto", help="--amp of train (default: auto)")
    parser.add_argument(
        "--logdir", type=Path, default="bit_logs/my-parts", help="(default: bit_logs/my-parts)"
    )
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SET"), help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    if flags.folder is None:
        return write(flags.logdir)
    if not (flags.folder / "omniglot136").is_dir():
        raise errors.MissingFileError(f"{flags.folder}: has no folder omniglot136")
    if flags.one:
        return run(*flags.one, flags)

    workers = environment.cpu_count()

    def start(job: tuple[str, str]) -> int:
        command = [sys.executable, "-W", "ignore", __file__, *arguments, "--one", *job]
        return subprocess.run(command, env=environment.share(workers)).returncode

    jobs = [(name, data) for name in ROWS for data in SETS]
    with ThreadPoolExecutor(workers) as pool:
        if any(pool.map(start, jobs)):
            return 1
    return write(flags.logdir)


def write(logs: Path) -> int:
    """Write the table of the runs in ``logs``, and print it."""
    text = table(collect(logs, (f"{data}-{name}" for name in ROWS for data in SETS)))
    files.write_text(logs / "table.md", text)
    print(text, end="")
    return 0


def table(runs: dict[str, list[float]]) -> str:
    """Return a Markdown table of ``runs``, {name: top-1 per seed}."""
    lines = [f"| top-1, % | {' | '.join(SETS)} |", "|---" * (1 + len(SETS)) + "|"]
    for name, row in ROWS.items():
        cells = (spread(runs[f"{data}-{name}"]) for data in SETS)
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run(name: str, data: str, flags: argparse.Namespace) -> int:
    """Make the runs of row ``name`` on the data set ``data``; return the exit status."""
    from bit_paddle import train

    row = ROWS[name]
    words = ["--dataset", "digits"]
    if data == "omniglot136":
        words = ["--dataset", "folder", "--datadir", str(flags.folder / data), "--no-flip"]
    words += ["--batch_split", str(row.parts)] if row.parts else []
    words += ["--logdir", str(flags.logdir), "--name", f"{data}-{name}", "--no-save"]
    words += ["--repeats", str(flags.repeats), "--amp", flags.amp]
    leave_out(row.left_out, row.parts or 1)
    return train.main([*row.flags, *COMMON, *words])


def leave_out(part: str, parts: int) -> None:
    """Remove ``part`` from the package in this process; a batch has ``parts`` micro-batches."""
    from bit_paddle.models import layers, resnetv2, weights
    from bit_paddle.models.native import compiled, plain

    import numpy as np  # isort: skip
    import paddle  # isort: skip
    import paddle.nn.functional as F  # isort: skip

    class BatchNormReLU(layers.GroupNormReLU):
        def __init__(self, channels: int):
            super().__init__(channels)
            self.register_buffer("mean", paddle.zeros([channels]))
            self.register_buffer("variance", paddle.ones([channels]))

        def forward(self, x: paddle.Tensor, twice: bool = False, beside: bool = False) -> object:
            y = F.batch_norm(
                x.astype("float32"),
                self.mean,
                self.variance,
                self.weight,
                self.bias,
                training=self.training,
                momentum=0.9 ** (1 / parts),  # 0.9 per step, for any number of micro-batches
                data_format="NCHW" if self.operators is plain else "NHWC",
            )
            y = F.relu(y).astype(x.dtype)
            return (y, y) if twice else (y, x) if beside else y

    create = weights.create_model

    def with_random_head(*arguments: object, **options: object) -> resnetv2.ResNetV2:
        """Return a model whose head has random weights, with PyTorch's default distribution."""
        model = create(*arguments, **options)
        features, classes = model.head.weight.shape
        random = np.random.default_rng(options.get("seed", 0))
        values = random.uniform(-(features**-0.5), features**-0.5, (features, classes))
        model.head.weight.set_value(values.astype(np.float32))
        return model

    if part == "standardization":
        plain.standardize = lambda weight: weight.scale(1.0)
        compiled.Compiled.standardize = lambda self, weight: weight.scale(1.0)
    elif part == "GroupNorm":
        layers.GroupNormReLU = resnetv2.GroupNormReLU = BatchNormReLU
    elif part == "zero head":
        weights.create_model = with_random_head


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
