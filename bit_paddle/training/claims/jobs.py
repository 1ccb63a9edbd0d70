"""Carry out claims: a process per run, over the GPUs at hand; finished runs are kept."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bit_paddle import __version__
from bit_paddle.config.claims import Claim, Row
from bit_paddle.inference.verdicts import Measured
from bit_paddle.runs.folder import CONFIG
from bit_paddle.runs.results import RESULT
from bit_paddle.system import environment, files, processes
from bit_paddle.system.signals import Interrupt
from bit_paddle.training import embedded

METRICS, COMMAND = "metrics.json", "command.txt"  # of an evaluation

_PLACES = ("--datadir=", "--device=", "--logdir=", "--output=", "python")

_MARK = "reproduce: "  # begins our own lines of a job's log

_PAUSE = 0.1  # seconds between two looks at the processes


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a row, or one evaluation. ``words`` are those of its command."""

    claim: Claim
    row: Row
    run: int
    folder: Path
    words: tuple[str, ...]

    @property
    def title(self) -> str:
        """The run in words."""
        return f"{self.claim.name} {self.row.name}, run {self.run}"

    @property
    def command(self) -> list[str]:
        """The command that the job's process runs."""
        return ["python", "-m", f"bit_paddle.{self.row.command}", *self.words]

    @property
    def log(self) -> Path:
        """The file with all that the job's processes printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def measured(self) -> Measured | None:
        """The result of the finished job, or None; the result of other settings does not count."""
        trained = self.row.command == "train"
        try:
            written = (self.folder / (CONFIG if trained else COMMAND)).read_text(encoding="utf-8")
            first = written.splitlines()[0]
            if _essential(shlex.split(first.lstrip("# "))) != _essential(self.command):
                return None
            path = self.folder / (RESULT if trained else METRICS)
            content = json.loads(path.read_text(encoding="utf-8"))
            result = content.get("test", {}).get("last", content)
            return Measured(100 * float(result[self.claim.metric]), int(result["images"]))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None  # incomplete, or damaged

    @property
    def ran(self) -> str:
        """The command of the last attempt."""
        return next(reversed(re.findall(rf"^{_MARK}(python .+)$", self._text, re.M)), "")

    @property
    def seconds(self) -> float:
        """The time of all attempts that ended."""
        return sum(float(found) for found in re.findall(rf"^{_MARK}(\S+) s$", self._text, re.M))

    @property
    def machines(self) -> list[str]:
        """The versions and the hardware of all attempts."""
        return re.findall(rf"^{_MARK}(bit_paddle .+)$", self._text, re.M)

    @property
    def fault(self) -> str:
        """The last error that the last attempt printed, else its last line."""
        text = self._text.rpartition(f"{_MARK}python ")[2]
        lines = [line for line in text.splitlines()[1:] if not line.startswith(_MARK)]
        found = [line for line in lines if line.startswith("error: ")] or list(filter(None, lines))
        return found[-1] if found else "no output"

    @property
    def _text(self) -> str:
        with suppress(OSError):
            return self.log.read_text(encoding="utf-8", errors="replace")
        return ""


def jobs_of(
    claim: Claim,
    folder: Path,
    datadir: str | None = None,
    seeds: int | None = None,
    device: str = "auto",
) -> list[Job]:
    """Return the runs of a claim in the ``folder`` of its results, seed by seed.

    ``datadir`` is the folder of the claim's data; a row's own ``datadir`` is a folder in it.
    ``seeds`` limits the runs of each row.
    """
    jobs = []
    for run in range(max(row.runs for row in claim.rows)):
        for row in claim.rows:
            if run >= min(row.runs, seeds or row.runs):
                continue
            settings: dict[str, Any] = dict(row.settings)
            for name, value in settings.items():
                if isinstance(value, str):
                    settings[name] = value.replace("{run}", str(run)).replace("{row}", row.name)
            if claim.data is not None and datadir is not None:
                settings["datadir"] = str(Path(datadir, settings.get("datadir", "")))
            if device != "auto":
                settings["device"] = device
            place = folder / row.name
            if row.command == "train":
                own = place / f"seed-{run}"
                for name in ("seed", "examples_per_class_seed"):
                    settings[name] = settings.get(name, 0) + run
                settings.update(name=own.name, logdir=str(place))
            else:
                own = place / f"run-{run}"
                settings["output"] = str(own)
            words = embedded.words_of("claim", {}, settings, settings)
            jobs.append(Job(claim, row, run, own, tuple(words)))
    return jobs


def results_of(jobs: Sequence[Job]) -> dict[str, dict[int, Measured]]:
    """Return the results of the finished ``jobs`` by row and run."""
    found: dict[str, dict[int, Measured]] = {}
    for job in jobs:
        if (measured := job.measured) is not None:
            found.setdefault(job.row.name, {})[job.run] = measured
    return found


def carry_out(
    jobs: Sequence[Job], stop: Interrupt, tell: Callable[[str], None], device: str = "auto"
) -> dict[Job, int]:
    """Run the ``jobs`` that are not finished; return {failed job: exit status}.

    Each has one GPU, or as many as its row asks for; without a GPU one job runs at a time. A signal
    that ``stop`` notes is passed on to the running jobs, which save and end; no other starts then.
    """
    gpus = [] if device == "cpu" else processes.visible_gpus()
    free, slots = list(gpus) or [""], max(1, len(gpus))
    waiting = [job for job in jobs if job.measured is None]
    running: dict[Job, tuple[subprocess.Popen, list[str], float]] = {}
    failed, told = {}, 0
    if len(waiting) < len(jobs):
        tell(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are complete")
    try:
        while running or (waiting and not stop.signal):
            while waiting and not stop.signal and len(free) >= min(waiting[0].row.gpus, slots):
                job = waiting.pop(0)
                own = [free.pop(0) for _ in range(min(job.row.gpus, slots))]
                tell(f"--- {job.title}: {job.log}")
                running[job] = (_start(job, slots, own), own, time.monotonic())
            if stop.count > told:
                told = stop.count
                for child, _, _ in running.values():
                    child.send_signal(stop.signal)
            for job, (child, own, since) in list(running.items()):
                status = child.poll()
                if status is None:
                    continue
                del running[job]
                free += own
                _note(job, f"{time.monotonic() - since:.1f} s")
                if (measured := job.measured) is not None:
                    tell(f"{job.title}: {job.claim.metric} {measured.value:.2f} %")
                elif not stop.signal:
                    failed[job] = status or 1
                    tell(f"{job.title}: failed with status {status}: {job.fault}")
            time.sleep(_PAUSE)
    finally:
        for child, _, _ in running.values():
            child.kill()
            child.wait()
    return failed


def _essential(command: Sequence[str]) -> set[str]:
    """Return the words of a command that decide its result: without the places of files."""
    words = (re.sub("^--config=.*/", "--config=", word) for word in command)
    return {word for word in words if not word.startswith(_PLACES)}


def _start(job: Job, slots: int, gpus: Sequence[str]) -> subprocess.Popen:
    """Start the process of a job in its own session: Ctrl-C reaches this process only."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    if job.row.command == "evaluate":
        job.folder.mkdir(exist_ok=True)
        (job.folder / METRICS).unlink(missing_ok=True)  # of another command
        files.write_text(job.folder / COMMAND, shlex.join(job.command))
    _note(job, shlex.join(job.command))
    _note(job, f"bit_paddle {__version__}, {environment.machine()}")
    own: Mapping[str, str] = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if any(gpus) else {}
    with open(job.log, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", *job.command[1:]],
            env={**processes.child_environment(slots), **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _note(job: Job, text: str) -> None:
    with open(job.log, "a", encoding="utf-8") as log:
        log.write(f"{_MARK}{text}\n")
