"""Select, download in parallel and verify the checkpoints fine-tuned on VTAB-1k."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from bit_paddle import errors
from bit_paddle.models import mirrors, published
from bit_paddle.models.published import Entry
from bit_paddle.system import checksums
from bit_paddle.system import fetch as fetching


class _Stopped(Exception):
    """Raised in a download after the user has interrupted the command."""


def select(models: Sequence[str], runs: Sequence[int], tasks: Sequence[str]) -> list[Entry]:
    """Return the VTAB entries of ``models``, ``runs`` and ``tasks``, in the catalog's order."""
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
    """Return the number of bytes of each file that are still to download.

    The size of a file is that of its known checksums, else the first server's or, if that does not
    answer, the catalog's.
    """

    def ask(entry: Entry) -> int:
        partial = fetching.partial_file(published.locate(entry, folder))
        downloaded = partial.stat().st_size if partial.exists() else 0
        size = mirrors.catalogue().get(entry.file, {}).get("bytes")
        try:
            size = size or fetching.ask(entry.url).bytes
        except errors.DownloadError:
            size = None
        return max(0, (size or entry.bytes) - downloaded)

    with ThreadPoolExecutor(jobs) as pool:
        answers = pool.map(ask, entries)
        bar = tqdm(answers, desc="asking for sizes", total=len(entries), disable=None, leave=False)
        return dict(zip(entries, bar))


def check_space(folder: Path, sizes: dict[Entry, int]) -> None:
    """Raise `DownloadError` if the disk of ``folder`` has too little space for ``sizes``."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free, needed = shutil.disk_usage(existing).free, sum(sizes.values())
    if needed > free:
        raise errors.DownloadError(
            f"{folder}: too little space: {len(sizes)} files need {needed / 1e9:.2f} GB, "
            f"{free / 1e9:.2f} GB are free; select fewer files with --models, --runs and --tasks, "
            "or a folder on another disk with --bit_pretrained_dir"
        )


def fetch_all(
    entries: Sequence[Entry], folder: Path, jobs: int, sizes: dict[Entry, int]
) -> dict[str, str]:
    """Download ``entries``, ``jobs`` at a time; return {name: fault} for the failed ones."""
    stop, lines, faults = threading.Event(), list(range(jobs, 0, -1)), {}
    total = tqdm(
        desc="all files",
        total=sum(sizes.values()),
        unit="B",
        unit_scale=True,
        position=0,
        disable=None,
    )

    def transfer(entry: Entry) -> None:
        line = lines.pop()  # of the terminal, for the bar
        bar = tqdm(
            desc=entry.name, unit="B", unit_scale=True, position=line, leave=False, disable=None
        )
        counted = None

        def progress(done: int, size: int | None) -> None:
            nonlocal counted
            if stop.is_set():
                raise _Stopped
            bar.total = size
            bar.update(done - bar.n)
            total.update(done - counted if counted is not None else 0)
            counted = done

        try:
            mirrors.fetch_published(
                entry.file,
                published.locate(entry, folder),
                entry.fault_of,
                progress,
            )
        finally:
            bar.close()
            lines.append(line)

    pool = ThreadPoolExecutor(jobs)
    with total:
        running = {pool.submit(transfer, entry): entry for entry in entries}
        try:
            for future in as_completed(running):
                try:
                    future.result()
                except errors.DownloadError as error:
                    faults[running[future].name] = str(error)
        finally:  # after Ctrl-C: `bit_paddle.download.script` does not wait
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return faults


def verify(entries: Sequence[Entry], folder: Path, jobs: int) -> dict[str, str | None]:
    """Return {name: fault, or None if there is none}.

    Shapes and the archive's checksums are checked, and the file's own checksum if the catalogue or
    the first server tells it.
    """

    def check(entry: Entry) -> str | None:
        path = published.locate(entry, folder)
        if not path.is_file():
            return "missing"
        if fault := entry.fault_of(path):
            return fault
        try:
            return checksums.wrong_sum(path, mirrors.expected(entry.file))
        except errors.DownloadError:
            return None  # offline

    with ThreadPoolExecutor(jobs) as pool:
        checked = pool.map(check, entries)
        bar = tqdm(checked, desc="verifying", total=len(entries), disable=None)
        return {entry.name: fault for entry, fault in zip(entries, bar)}
