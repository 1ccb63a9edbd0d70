"""Check this machine, above all its GPUs: ``python -m bit_paddle.selftest --help``.

Short runs and computations are compared with each other and with the CPU. The results are one page.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.config.types import file_path
from bit_paddle.system import files, processes

if TYPE_CHECKING:
    from bit_paddle.training.selftest.checks import Result

PROG = "python -m bit_paddle.selftest"

_TF32 = "NVIDIA_TF32_OVERRIDE"  # of NVIDIA's libraries, which read it once: 0 is full float32

_EPILOG = f"""\
checks (memory and pinned need a GPU; the others also run on a CPU):
{{checks}}

The exit status is 1 if a check fails. It takes minutes.

examples:
  {PROG} --gpu
      runs all checks on all GPUs, and writes selftest.html
  {PROG} --checks resume shard --output two.html
      runs two checks
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Raises `bit_paddle.errors`."""
    flags = parser().parse_args(arguments)
    results = run(flags.checks, flags.gpu)
    from bit_paddle.training.selftest import page

    files.write_text(flags.output, page.page(results, [*PROG.split(), *arguments]))
    print(f"{page.summary(results)}\nopen {Path(flags.output).resolve().as_uri()}")
    return int(any(one.status == "failed" for one in results))


def run(names: Sequence[str] | None = None, gpu: bool = False) -> list[Result]:
    """Carry out the checks called ``names`` (default: all), and print each result.

    They run on all visible GPUs, or on the CPU if there is none. Raises `ConfigError` for an
    unknown name, or with ``gpu`` if there is no GPU.

        from bit_paddle import selftest
        selftest.run(["resume", "shard"])
    """
    from bit_paddle.training.selftest import checks, runs

    names = list(names or checks.CHECKS)
    for name in names:
        if name not in checks.CHECKS:
            raise errors.ConfigError(f"{name}: {errors.did_you_mean(name, checks.CHECKS)}")
    gpus = processes.gpus()
    if gpu and not gpus:
        raise errors.ConfigError(
            "--gpu: this machine has no GPU, or no paddlepaddle-gpu; omit --gpu to run the checks "
            "on the CPU"
        )
    os.environ.setdefault(_TF32, "0")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for result in checks.carry_out(names, runs.Runs(Path(folder), gpus)):
            print(f"{result.name:10} {result.status:8} {result.text}", flush=True)
            results.append(result)
    return results


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    from bit_paddle.training.selftest.checks import CHECKS

    listed = "\n".join(f"  {name:12} {check.about}" for name, check in CHECKS.items())
    parser = parsing.Parser(
        prog=PROG, description=__doc__.split(":")[0] + ".", epilog=_EPILOG.format(checks=listed)
    )
    parser.add_argument("--gpu", action="store_true", help="fail if this machine has no GPU")
    parser.add_argument(
        "--checks", nargs="+", choices=[*CHECKS], help="checks to run (default: all)"
    )
    parser.add_argument(
        "--output",
        type=file_path,
        default="selftest.html",
        metavar="FILE",
        help="page to write (default: selftest.html)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
