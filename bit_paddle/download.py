"""Download the published VTAB checkpoints: ``python -m bit_paddle.download --help``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.config import types as argtypes
from bit_paddle.models import published, vtab
from bit_paddle.system.fetch import cache_dir

PROG = "python -m bit_paddle.download"

_EPILOG = f"""\
After an interruption the same command resumes every file where it stopped. The exit status is 0 if
all requested files are present. `python command.py` is the same command. BIT_PADDLE_MIRRORS lists
further servers; a file of theirs is kept only if it is right.

examples:
  {PROG} --dry-run
      prints the sizes of all 285 files
  {PROG} --models R50x1 --tasks cifar100 svhn --jobs 4
      downloads six files, four at a time
  {PROG} --models R50x1 --verify
      checks every byte of the present files
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Raises `bit_paddle.errors`."""
    flags = parser().parse_args(arguments)
    entries = vtab.select(flags.models, flags.runs, flags.tasks)
    folder = Path(flags.bit_pretrained_dir) if flags.bit_pretrained_dir else cache_dir()
    if flags.verify:
        faults = vtab.verify(entries, folder, flags.jobs)
        for name, fault in faults.items():
            print(f"{name:48} {fault or 'right'}")
        right = list(faults.values()).count(None)
        print(f"{right} of {len(entries)} files are right")
        return 0 if right == len(entries) else 1
    missing = [entry for entry in entries if not published.locate(entry, folder).is_file()]
    sizes = vtab.ask_sizes(missing, folder, flags.jobs)
    if flags.dry_run:
        for entry in entries:
            state = f"{sizes[entry] / 1e6:8.1f} MB" if entry in sizes else "present"
            print(f"{entry.name:48} {state:>13}")
        remaining = sum(sizes.values()) / 1e9
        print(f"{len(missing)} of {len(entries)} files to download: {remaining:.2f} GB")
        return 0
    vtab.check_space(folder, sizes)
    faults = vtab.fetch_all(missing, folder, flags.jobs, sizes)
    print(f"{'already present':16}{len(entries) - len(missing):4}")
    print(f"{'downloaded':16}{len(missing) - len(faults):4}")
    print(f"{'missing':16}{len(faults):4}")
    for name, fault in sorted(faults.items()):
        print(f"  {name}: {fault}")
    print(f"files are in {folder}")
    return 1 if faults else 0


def script(arguments: list[str]) -> NoReturn:
    """Run the command and end the process, without waiting for a silent server.

    After Ctrl-C, threads may still wait for bytes. The bytes received so far are already on disk.
    """
    status = errors.run_command(main, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = parsing.Parser(
        prog=PROG,
        description="Download the 285 checkpoints of BiT-M fine-tuned on VTAB-1k (0.36 TB in all).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    tasks = [task.name for task in published.VTAB_TASKS]
    for flag, choices, kind in (
        ("--models", published.VTAB_MODELS, str),
        ("--runs", published.VTAB_RUNS, int),
        ("--tasks", tasks, str),
    ):
        parser.add_argument(
            flag,
            nargs="+",
            choices=choices,
            default=choices,
            type=kind,
            metavar=flag[2:-1].upper(),
            help=f"one or more of {', '.join(map(str, choices))} (default: all)",
        )
    parser.add_argument(
        "--bit_pretrained_dir",
        type=argtypes.file_path,
        metavar="DIR",
        help="folder for the files (default: $BIT_PADDLE_HOME or ~/.cache/bit_paddle)",
    )
    parser.add_argument(
        "--jobs",
        type=argtypes.whole(1),
        default=4,
        metavar="N",
        help="parallel downloads (default: 4)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print names and sizes; download nothing"
    )
    parser.add_argument(
        "--verify", action="store_true", help="check the present files; download nothing"
    )
    return parser


if __name__ == "__main__":
    script(sys.argv[1:])
