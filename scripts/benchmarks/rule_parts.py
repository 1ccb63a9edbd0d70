"""Train without one part of the recipe: ``python scripts/benchmarks/rule_parts.py FOLDER``.

The network of BiT-Mini from random weights on all images, and BiT-Mini fine-tuned on ten images per
class, as in `scripts/benchmarks/transfer_table.sh` and with one part left out: on
scikit-learn's digits, and on FOLDER/omniglot136 (train/<class>/*, val/<class>/*). Lowest, median
and highest top-1 of the seeds. The same command resumes where it was stopped. Writes runs.csv (a
line per run and seed) and table.md into --logdir; without FOLDER it only writes the table again.
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
    """A row of the table: runs with ``flags``, less ``left_out``, which `leave_out` knows.

    ``parts`` is in how many micro-batches a batch of 64 is computed, where that matters.
    """

    title: str
    flags: list[str]
    left_out: str = ""
    parts: int | None = None


ROWS = {  # by the name of its runs
    "scratch": Row("from random weights, all images", SCRATCH),
    "no-standardization": Row("… without standardization", SCRATCH, "standardization"),
    "batchnorm": Row("… BatchNorm for GroupNorm", SCRATCH, "GroupNorm", 1),
    "batchnorm-2": Row("… BatchNorm, micro-batches of 2", SCRATCH, "GroupNorm", 32),
    "scratch-cold": Row("… without warm-up", [*SCRATCH, *COLD]),
    "tuned": Row("BiT-Mini, 10 images a class", TUNED),
    "random-head": Row("… head of random weights", TUNED, "zero head"),
    "tuned-cold": Row("… without warm-up", [*TUNED, *COLD]),
}


def main(arguments: list[str]) -> int:
    """Make the runs, a core each; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="with omniglot136/ in it")
    parser.add_argument("--repeats", type=whole(2), default=5, help="seeds (default: 5)")
    parser.add_argument("--amp", default="auto", help="as of train (default: auto)")
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
    """Return the table of ``runs``, {name: top-1 of each seed}."""
    lines = [f"| top-1, % | {' | '.join(SETS)} |", "|---" * (1 + len(SETS)) + "|"]
    for name, row in ROWS.items():
        cells = (spread(runs[f"{data}-{name}"]) for data in SETS)
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run(name: str, data: str, flags: argparse.Namespace) -> int:
    """Make the runs of a row on one set."""
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
    """Take ``part`` out of the package, in this process; a batch has ``parts`` micro-batches."""
    from bit_paddle.models import resnetv2, weights
    from bit_paddle.models.native import compiled, plain

    import numpy as np  # isort: skip
    import paddle  # isort: skip
    import paddle.nn.functional as F  # isort: skip

    class BatchNormReLU(resnetv2.GroupNormReLU):
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
                momentum=0.9 ** (1 / parts),  # 0.9 a step, in however many micro-batches
                data_format="NCHW" if self.operators is plain else "NHWC",
            )
            y = F.relu(y).astype(x.dtype)
            return (y, y) if twice else (y, x) if beside else y

    create = weights.create_model

    def with_random_head(*arguments: object, **options: object) -> resnetv2.ResNetV2:
        """Return a model whose head has random weights, of the size that PyTorch gives them."""
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
        resnetv2.GroupNormReLU = BatchNormReLU
    elif part == "zero head":
        weights.create_model = with_random_head


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
