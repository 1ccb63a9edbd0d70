"""Reproduce published accuracies: ``python -m bit_paddle.reproduce --help``.

It downloads, trains, evaluates, and writes a page and a table: published beside measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from bit_paddle import _make_callable, errors, evaluate, plan
from bit_paddle.config import claims as claims_of
from bit_paddle.config import parsing
from bit_paddle.config import types as argtypes
from bit_paddle.config.settings import Settings, help_of
from bit_paddle.data.readers import registry
from bit_paddle.inference import verdicts
from bit_paddle.inference.trained import resolve_trained
from bit_paddle.system import files
from bit_paddle.system.signals import Interrupt, heed_notice
from bit_paddle.training.claims import reproduction
from bit_paddle.training.claims.estimate import estimate
from bit_paddle.training.claims.jobs import Job, jobs_of
from bit_paddle.training.claims.reproduction import Reproduction

PROG = "python -m bit_paddle.reproduce"

_EPILOG = f"""\
Without claims it lists those of configs/claims. A claim may also be a YAML file of your own:
docs/reproduce.md. The same command resumes: finished runs are kept. With GPUs each has one run at a
time; without, one run is made at a time.

writes into --logdir/--name:
  reproduce.html, reproduce.md, reproduce.csv    published beside measured, verdicts, logs, commands
  <claim>/<accuracy>/seed-<k>/                   the runs

{textwrap.fill(verdicts.RULE, 100)}

examples:
  {PROG} cifar10 --estimate
      shows hours, memory and downloads, and runs nothing
  {PROG} cifar10 cifar100
  {PROG} vtab/R50x1 imagenet-files --datadir vtab-1k=/data/vtab-1k imagenet2012=/data/imagenet
  {PROG} cifar10 --seeds 1
      one run of each accuracy: a first look
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Errors: `bit_paddle.errors`."""
    heed_notice()
    flags = parser().parse_args(arguments)
    if not flags.claims:
        for name, path in claims_of.known().items():
            claim = claims_of.read(path, name)
            print(f"{name:24} {claim.title} ({len(claim.rows)} accuracies)")
        return 0
    claims = claims_of.find(flags.claims)
    folder = Path(flags.logdir, flags.name)
    datadirs = _datadirs(flags.datadir)
    if flags.estimate:
        jobs = [
            job
            for claim in claims
            for job in jobs_of(claim, folder / claim.folder, None, flags.seeds, flags.device)
        ]
        print(estimate(jobs, plan.sizes_of, flags.images_per_second))
        return 0
    options = datadirs, flags.seeds, flags.device, Interrupt(), _check
    done = reproduction.reproduce(claims, folder, *options)
    return done.stopped or (1 if done.failed else 0)


def reproduce(
    claims: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    datadir: Mapping[str, str | os.PathLike] | None = None,
    seeds: int | None = None,
    name: str = "reproduce",
    logdir: str | os.PathLike = "bit_logs",
    device: str = "auto",
) -> Reproduction:
    """Reproduce claims, as the command does; return the outcomes, and write page and tables.

    ``claims`` is the name of a claim, its YAML file, or a list of these. ``datadir`` are the
    folders of data that must be named: ``{"imagenet2012": "/data/imagenet"}``. ``seeds`` limits the
    runs of each accuracy. Results are in ``logdir``/``name``; the same call resumes.

    Errors: `ConfigError` (one for all faults), `MissingFileError`, `WriteError`. A run that fails
    raises nothing: see ``failed``.

        found = bit_paddle.reproduce("cifar10", seeds=3)
        found.outcomes["cifar10"][0].verdict, found.page
    """
    given = [claims] if isinstance(claims, (str, os.PathLike)) else claims
    found = claims_of.find(os.fspath(claim) for claim in given)
    folders = {key: os.fspath(value) for key, value in (datadir or {}).items()}
    options = folders, seeds, device, Interrupt(embedded=True), _check
    return reproduction.reproduce(found, Path(logdir, name), *options)


def _datadirs(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    if wrong := [name for name, sign, path in pairs if not (name and sign and path)]:
        raise errors.ConfigError(
            f"--datadir {wrong[0]}: expected NAME=DIR, such as imagenet2012=/data/imagenet"
        )
    return {name: files.expanded(path) for name, _, path in pairs}


def _check(job: Job) -> None:
    """Raise an error for a command that cannot work."""
    if job.row.command == "train":
        parsing.parse(job.words, Settings.prog, registry.find)
        return
    flags = evaluate.parser().parse_args(job.words)
    resolve_trained(flags.model)
    registry.find(flags.dataset, datadir=flags.datadir)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = parsing.Parser(
        PROG,
        description="Reproduce published accuracies: download, train, evaluate, and write a page "
        "with published beside measured.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "claims", nargs="*", metavar="CLAIM", help="name of a claim, of a folder of claims, or FILE"
    )
    parser.add_argument(
        "--datadir",
        nargs="+",
        default=[],
        metavar="NAME=DIR",
        help="folders of the data that cannot be downloaded; the claims name them",
    )
    parser.add_argument(
        "--seeds",
        type=argtypes.whole(1),
        metavar="N",
        help="at most N runs of each accuracy; the page says so (default: those of the claim)",
    )
    parser.add_argument(
        "--estimate", action="store_true", help="show hours, memory and downloads, and stop"
    )
    parser.add_argument(
        "--images_per_second",
        type=argtypes.positive,
        metavar="X",
        help="training speed of one GPU, for --estimate where a claim does not know the hours",
    )
    parser.add_argument(
        "--name", default="reproduce", metavar="WORD", help="name of the folder of the results"
    )
    parser.add_argument(
        "--logdir",
        type=argtypes.file_path,
        default="bit_logs",
        metavar="DIR",
        help="folder of that folder (default: bit_logs)",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help=f"{help_of('device')} (default: auto)",
    )
    return parser


_make_callable(__name__, reproduce)

if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
