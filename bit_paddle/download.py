"""Download the published VTAB checkpoints, many at a time: what ``python command.py`` does."""

from __future__ import annotations

import argparse
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.config import types as argtypes
from bit_paddle.models import npz, published
from bit_paddle.models.published import Entry
from bit_paddle.system import fetch as system_fetch
from bit_paddle.system.fetch import cache_dir

_EPILOG = """\
Interrupting loses nothing: run the same command again, and it goes on where it was. The exit status
is 0 when every file asked for is there.

examples:
  python command.py --dry-run                                    what all 285 files would take
  python command.py --models R50x1 --tasks cifar100 svhn --jobs 4
  python command.py --models R50x1 --verify                      check what is there, byte by byte
"""


class _Stopped(Exception):
    """Raised in a transfer when the user has interrupted the command."""


def main(arguments: Sequence[str]) -> int:
    """Run the command ``arguments``; `bit_paddle.errors` says what it raises."""
    flags = _parse(arguments)
    entries = select(flags.models, flags.runs, flags.tasks)
    folder = Path(flags.bit_pretrained_dir) if flags.bit_pretrained_dir else cache_dir()
    if flags.verify:
        return verify(entries, folder, flags.jobs)
    missing = [entry for entry in entries if not published.locate(entry, folder).is_file()]
    sizes = ask_sizes(missing, folder, flags.jobs)
    if flags.dry_run:
        for entry in entries:
            there = "there already" if entry not in sizes else f"{sizes[entry] / 1e6:8.1f} MB"
            print(f"{entry.name:48} {there:>13}")
        to_come = sum(sizes.values()) / 1e9
        print(f"{len(missing)} of {len(entries)} files to download: {to_come:.2f} GB")
        return 0
    check_space(folder, sizes)
    faults = fetch_all(missing, folder, flags.jobs, sizes)
    print(f"{'there before':16}{len(entries) - len(missing):4}")
    print(f"{'downloaded':16}{len(missing) - len(faults):4}")
    print(f"{'missing':16}{len(faults):4}")
    for name, fault in sorted(faults.items()):
        print(f"  {name}: {fault}")
    print(f"files are in {folder}")
    return 1 if faults else 0


def select(models: Sequence[str], runs: Sequence[int], tasks: Sequence[str]) -> list[Entry]:
    """Return the VTAB entries of ``models``, ``runs`` and ``tasks``, in the catalogue's order."""
    return [
        published.find(f"BiT-M-{model}-run{run}-{task}")
        for model in published.VTAB_MODELS
        if model in models
        for run in published.VTAB_RUNS
        if run in runs
        for task in (task.name for task in published.VTAB_TASKS)
        if task in tasks
    ]


def ask_sizes(entries: Sequence[Entry], folder: Path, jobs: int) -> dict[Entry, int]:
    """Return the bytes still to come of each file: the server's figure, less what is there in part.

    Where it does not say, or does not answer, the catalogue's figure.
    """

    def ask(entry: Entry) -> int:
        partial = system_fetch.partial_file(published.locate(entry, folder))
        there = partial.stat().st_size if partial.exists() else 0
        try:
            size = system_fetch.ask(entry.url).bytes
        except errors.DownloadError:
            size = None
        return max(0, (size or entry.bytes) - there)

    with ThreadPoolExecutor(jobs) as pool:
        answers = pool.map(ask, entries)
        bar = tqdm(answers, desc="asking for sizes", total=len(entries), disable=None, leave=False)
        return dict(zip(entries, bar))


def check_space(folder: Path, sizes: dict[Entry, int]) -> None:
    """Raise `DownloadError` if the disk of ``folder`` is too small for ``sizes``."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free, needed = shutil.disk_usage(existing).free, sum(sizes.values())
    if needed > free:
        raise errors.DownloadError(
            f"{folder}: too little space: {len(sizes)} files need {needed / 1e9:.2f} GB, "
            f"{free / 1e9:.2f} GB are free; choose with --models, --runs and --tasks, or name "
            "another disk with --bit_pretrained_dir"
        )


def fetch_all(
    entries: Sequence[Entry], folder: Path, jobs: int, sizes: dict[Entry, int]
) -> dict[str, str]:
    """Download ``entries``, ``jobs`` at a time; return {name: fault} of those that failed."""
    stop, places, faults = threading.Event(), list(range(jobs, 0, -1)), {}
    total = tqdm(
        desc="all files",
        total=sum(sizes.values()),
        unit="B",
        unit_scale=True,
        position=0,
        disable=None,
    )

    def fetch(entry: Entry) -> None:
        place = places.pop()  # the bar's line
        bar = tqdm(
            desc=entry.name, unit="B", unit_scale=True, position=place, leave=False, disable=None
        )
        seen = None

        def progress(done: int, whole: int | None) -> None:
            nonlocal seen
            if stop.is_set():
                raise _Stopped
            bar.total = whole
            bar.update(done - bar.n)
            total.update(done - seen if seen is not None else 0)
            seen = done

        try:
            system_fetch.fetch(
                entry.url,
                published.locate(entry, folder),
                progress=progress,
                fault_of=published.fault_of_npz,
            )
        finally:
            bar.close()
            places.append(place)

    pool = ThreadPoolExecutor(jobs)
    with total:
        running = {pool.submit(fetch, entry): entry for entry in entries}
        try:
            for future in as_completed(running):
                try:
                    future.result()
                except errors.DownloadError as error:
                    faults[running[future].name] = str(error)
        finally:  # after Ctrl-C: `command.py` leaves without waiting for a server that is silent
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return faults


def verify(entries: Sequence[Entry], folder: Path, jobs: int) -> int:
    """Check files by shapes, checksums and the server's hashes if it answers; return a status."""

    def check(entry: Entry) -> str | None:
        path = published.locate(entry, folder)
        if not path.is_file():
            return "missing"
        try:
            with npz.CheckpointFile(path) as file:
                file.check(entry.architecture, entry.classes)
                for key in file.shapes:
                    file.array(key)
        except errors.CheckpointError as error:
            return str(error).splitlines()[0]
        try:
            return system_fetch.wrong_hash(path, system_fetch.ask(entry.url).hashes)
        except errors.DownloadError:
            return None  # offline: shapes and the archive's own checksums are right

    with ThreadPoolExecutor(jobs) as pool:
        checked = pool.map(check, entries)
        found = list(tqdm(checked, desc="verifying", total=len(entries), disable=None))
    for entry, fault in zip(entries, found):
        print(f"{entry.name:48} {fault or 'right'}")
    right = found.count(None)
    print(f"{right} of {len(entries)} files are right")
    return 0 if right == len(entries) else 1


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = parsing.Parser(
        prog="python command.py",
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
            help=f"some of {', '.join(map(str, choices))} (default: all)",
        )
    parser.add_argument(
        "--bit_pretrained_dir",
        metavar="DIR",
        help="where to (default: the cache, $BIT_PADDLE_HOME or ~/.cache/bit_paddle)",
    )
    parser.add_argument(
        "--jobs",
        type=argtypes.whole(1),
        default=4,
        metavar="N",
        help="downloads at a time (default: 4)",
    )
    parser.add_argument("--dry-run", action="store_true", help="list names and sizes, and stop")
    parser.add_argument("--verify", action="store_true", help="check what is there instead")
    return parser.parse_args(arguments)
