#!/usr/bin/env python3
"""Kill runs, damage their files and fill their disk; check that they end as if nothing happened.

    python scripts/benchmarks/stress.py                # all parts, a quarter of an hour
    python scripts/benchmarks/stress.py --only kill --kills 10
    python scripts/benchmarks/stress.py --only flips --seed 7 --output stress.json
    python scripts/benchmarks/stress.py --only kill --datadir photos   # not digits

Parts: ``kill`` (SIGKILL at random moments), ``variants`` (signals, processes, MixUp …), ``faults``
(one kind each: signals before the first step, memory, a replaced image, another machine's lease,
slow saves of several processes), ``disk`` (full, read-only; needs root), ``flips`` (damaged
checkpoints) and ``cost`` (the time that resuming and saving take). ``fuzz.py`` reads damaged input
of every kind.

Each run is a real process on real images. After a fault, the same command is started again. The
files of the finished run are compared, bit for bit, with those of an undisturbed run: the model,
the newest and the best checkpoint with their momentum, the metrics per step (a loss depends on the
images of its batch) and VisualDL's file. Exit status 0 means that all files were the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from fuzz import place_of  # noqa: E402

from bit_paddle.data.readers import registry  # noqa: E402
from bit_paddle.errors import CheckpointError  # noqa: E402
from bit_paddle.models import npz  # noqa: E402
from bit_paddle.models.architecture import Architecture  # noqa: E402
from bit_paddle.models.checkpoint import CheckpointFile  # noqa: E402
from bit_paddle.runs import checkpoints, logbook  # noqa: E402
from bit_paddle.runs.results import RESULT  # noqa: E402
from bit_paddle.system import fetch  # noqa: E402

TINY = "--model R14x0.5 --from_scratch --precrop 36 --crop 32 --batch 16 --no-flip".split()  # noqa: SIM905
OFTEN = ["--save_every", "1", "--eval_every", "10"]
LIMIT = 300  # seconds until a wait counts as a failure
DISK = 112  # MB of a run's own disk: three checkpoints of 16 MB, one being written, two models
PARENT, CHILD = "parent", "child"


class Failure(Exception):
    """A run did not survive; long messages are shortened to their end."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) < 1200 else f"{text[:200]} … {text[-1000:]}"


@dataclass
class Row:
    """A row of the table, and the failures."""

    part: str
    faults: int = 0
    survived: int = 0
    repeated: list[int] = field(default_factory=list)  # steps recomputed after each restart
    lost: int = 0  # bytes of the run's files that are missing or differ
    resume: list[float] = field(default_factory=list)  # seconds until the first new step
    saving: int = 0  # faults during a save
    note: str = ""
    failures: list[str] = field(default_factory=list)

    def add(self, other: Row) -> None:
        for name in ("faults", "survived", "repeated", "lost", "resume", "saving", "failures"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


# --- Runs ---------------------------------------------------------------------------------------


class Run:
    """A run and its command, which is started again after each fault."""

    def __init__(
        self,
        bench: Bench,
        name: str,
        flags: Sequence[str],
        logdir: Path,
        prefix: Sequence[str] = (),
    ):
        self.bench, self.folder, self.flags = bench, logdir / name, flags
        self.command = [*prefix, sys.executable, "-W", "ignore", "-m", "bit_paddle.train", *flags]
        self.command += ["--logdir", str(logdir), "--name", name]
        self.output, self.errors = bench.folder / f"{name}.out", bench.folder / f"{name}.err"
        self.environment = bench.environment
        self.row = Row(name)
        self.reached = 0  # the last step before the current fault
        self.disturbed = False

    def start(self) -> None:
        self.began = time.time()
        with open(self.output, "wb") as output, open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=output, stderr=errors
            )
        self.bench.processes.append(self.process)

    def lines(self) -> list[dict[str, Any]]:
        return logbook.read_metrics(self.folder / logbook.METRICS)[0]

    def step(self) -> int:
        return max((line["step"] for line in self.lines()), default=0)

    def printed(self) -> str:
        """Return the last 8,000 characters that the process has printed."""
        return (self.output.read_text() + self.errors.read_text())[-8000:]

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait until ``condition()``; return True, or False if the process ends before that."""
        while not condition():
            if self.process.poll() is not None:
                return False
            if time.time() > self.began + LIMIT:
                raise Failure(f"no progress for {LIMIT} s: {self.printed()}")
            time.sleep(0.005)
        return True

    def trains(self) -> bool:
        """Wait for the first new line of metrics; return False if the process ends without one."""
        if not self.until(lambda: any(line["time"] > self.began for line in self.lines()[-1:])):
            return False
        if self.disturbed:
            resumed = re.search(r"resumes after step (\d+)", self.printed())
            self.row.repeated.append(max(0, self.reached - int(resumed[1] if resumed else 0)))
            self.row.resume.append(round(time.time() - self.began, 2))
            self.reached, self.disturbed = 0, False
        return True

    def strike(
        self, number: signal.Signals, target: str = PARENT, dice: random.Random | None = None
    ) -> None:
        """Send a signal to the command or to one of its processes; wait until it ends."""
        path = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        children = Path(path).read_text().split() if target == CHILD else []
        pid = int(dice.choice(children)) if children else self.process.pid
        os.kill(pid, number)
        self.ended()
        self.reached, self.disturbed = max(self.reached, self.step()), True
        self.row.faults += 1
        self.row.saving += any(self.folder.glob("**/*.part"))

    def ended(self) -> int:
        """Wait until the process ends; return its exit status."""
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Failure(f"does not end within {LIMIT} s: {self.printed()}") from None

    def finish(self, status: int = 0) -> None:
        """Start the command (again) and wait; raise `Failure` if it ends with another status."""
        self.start()
        self.trains()
        self.expect(status)

    def expect(self, *statuses: int) -> None:
        if self.ended() not in statuses:
            raise Failure(
                f"exit status {self.process.returncode}, not {statuses}: {self.printed()}"
            )
        if "Traceback" in self.printed() or "looks like a defect" in self.printed():
            raise Failure(f"an unexpected error: {self.printed()}")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of a complete run's files that must be the same in every such run."""
    newest = checkpoints.checkpoint_files(folder)[0]
    best = newest.with_name(checkpoints.BEST)
    content = {}
    for path in (newest, best):
        progress = checkpoints.open_checkpoint(path).progress
        content[f"{path.name} progress"] = repr(progress).encode()
    for path in (folder / "model.npz", newest, best):
        with np.load(path) as file:
            for key in set(file) - {npz.NOTES}:
                content[f"{path.name} {key} {file[key].shape}"] = file[key].tobytes()
    lines, unreadable = logbook.read_metrics(folder / logbook.METRICS)
    for number, line in enumerate(lines):
        values = {key: value for key, value in line.items() if key not in VOLATILE}
        content[f"line {number} of metrics"] = json.dumps(values).encode()
    if unreadable or scalars(folder) != expected_scalars(lines):
        content["VisualDL or metrics cannot be read, or differ"] = b"?"
    return content


VOLATILE = ("images_per_second", "time")


def scalars(folder: Path) -> set[tuple[str, int, float]]:
    from visualdl import LogReader

    (path,) = folder.glob("vdlrecords*")
    reader = LogReader(file_path=str(path))
    records = [
        (tag, item.id, np.float32(item.value).item())
        for tag in reader.get_tags()["scalar"]
        for item in reader.get_data("scalar", tag)
    ]
    return set(records) if len(set(records)) == len(records) else set()


def expected_scalars(lines: list[dict[str, Any]]) -> set[tuple[str, int, float]]:
    return {
        (f"{line['kind']}/{name}", line["step"], np.float32(value).item())
        for line in lines
        for name, value in line.items()
        if name not in ("kind", "step", "time")
    }


class Bench:
    """The scratch folder, the flags and the undisturbed runs, which all parts share."""

    def __init__(
        self,
        folder: Path,
        seed: int = 0,
        datadir: str | None = None,
        jobs: int = 2,
        steps: int = 40,
    ):
        self.folder, self.seed, self.jobs, self.steps = folder, seed, jobs, steps
        data = ["--dataset", "folder", "--datadir", datadir] if datadir else ["--dataset", "digits"]
        self.flags = [*TINY, *data]
        self.environment = {
            **os.environ,
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1" if jobs > 1 else "2"),
            **dict.fromkeys(("BIT_PADDLE_HOME", "TMPDIR"), str(folder)),
        }
        compiled = fetch.cache_dir() / "native"  # compiling takes seconds: use the user's
        compiled.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            (folder / "native").symlink_to(compiled)
        self.processes: list[subprocess.Popen] = []
        self.undisturbed: dict[tuple[str, ...], tuple[Run, dict[str, bytes], float]] = {}
        self.lock = threading.Lock()

    def run(self, name: str, flags: Sequence[str] = (), steps: int = 0, **options: Any) -> Run:
        logdir = options.pop("logdir", self.folder / "runs")
        words = [*self.flags, *OFTEN, "--steps", str(steps or self.steps), *flags]
        return Run(self, name, words, logdir, **options)

    def reference(self, flags: Sequence[str]) -> tuple[Run, dict[str, bytes], float]:
        """Return an undisturbed run of ``flags``, its contents, and its seconds after step 1."""
        with self.lock:
            if tuple(flags) not in self.undisturbed:
                name = f"undisturbed-{len(self.undisturbed)}"
                run = Run(self, name, flags, self.folder / "runs")
                run.start()
                run.trains()
                start = time.time()
                run.expect(0)
                seconds = time.time() - start
                self.undisturbed[tuple(flags)] = run, contents(run.folder), seconds
            return self.undisturbed[tuple(flags)]

    def compare(self, run: Run) -> None:
        """Raise `Failure` if the files of ``run`` differ from those of an undisturbed run."""
        expected, actual = self.reference(run.flags)[1], contents(run.folder)
        keys = expected.keys() | actual.keys()
        wrong = sorted(key for key in keys if expected.get(key) != actual.get(key))
        run.row.lost += sum(len(expected.get(key, actual.get(key))) for key in wrong)
        if wrong:
            raise Failure(f"{len(wrong)} of {len(keys)} differ: {', '.join(wrong[:3])} …")

    def surviving(self, run: Run, scenario: Callable[[Run], None]) -> Row:
        """Run ``scenario`` and compare; remove the run's folder; return its row."""
        try:
            scenario(run)
            self.compare(run)
            run.row.survived = run.row.faults
        except Exception as error:
            trace = "" if isinstance(error, Failure) else f"\n{traceback.format_exc()}"
            run.row.failures.append(f"{run.folder.name}: {type(error).__name__}: {error}{trace}")
        shutil.rmtree(run.folder, ignore_errors=True)
        return run.row

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


# --- Parts: kill, variants ----------------------------------------------------------------------


def killed(
    run: Run, count: int, dice: random.Random, number: signal.Signals, target: str, statuses: set
) -> None:
    """Start ``run``, stop it up to ``count`` times at random moments, and let it end.

    The first stop comes during training or later; a later SIGKILL may also come during the start.
    """
    anywhere = number == signal.SIGKILL and target == PARENT
    _, _, seconds = run.bench.reference(run.flags)
    steps = int(run.flags[run.flags.index("--steps") + 1])
    while run.row.faults < count:
        run.start()
        if anywhere and run.row.faults and dice.random() < 0.5:
            wait = dice.uniform(0, 4)
        elif run.trains():
            left = seconds * max(0.1, 1 - run.step() / steps)
            wait = dice.uniform(0, left if anywhere else 0.7 * left)
        else:
            wait = LIMIT  # it ends by itself
        with suppress(subprocess.TimeoutExpired):
            run.process.wait(wait)
            run.expect(0)
            if run.row.faults:  # the run ended before the next stop
                return
            shutil.rmtree(run.folder)
            continue
        run.strike(number, target, dice)
        complete = (run.folder / RESULT).exists()
        run.expect(*statuses, *([0, -number] if complete else []))
    run.finish()


def stopped(
    bench: Bench,
    title: str,
    count: int,
    flags: Sequence[str] = (),
    number: signal.Signals = signal.SIGKILL,
    target: str = PARENT,
    status: int = -signal.SIGKILL,
) -> Row:
    """Stop runs of ``flags``, one or two times per run, until there are ``count`` stops."""
    row, started = Row(title), 0
    flags = bench.run("", flags).flags
    bench.reference(flags)
    with (
        tqdm(total=count, desc=title, disable=None, leave=False) as bar,
        ThreadPoolExecutor(1 if "--nproc" in flags else bench.jobs) as pool,
    ):
        while row.faults < count and not row.failures:
            dice = random.Random(f"{bench.seed} {title} {started}")
            plan, left = [], count - row.faults
            while left > sum(plan):
                plan.append(min(dice.choice((1, 2)), left - sum(plan)))

            def stop_one(index: int, stops: int, dice: random.Random = dice) -> Row:
                name = f"{re.sub('[^a-z0-9_]+', '-', title.lower())}-{index}"
                run = Run(bench, name, flags, bench.folder / "runs")
                own = random.Random(dice.random())
                scenario = partial(killed, count=stops, dice=own, number=number, target=target)
                result = bench.surviving(run, partial(scenario, statuses={status}))
                bar.update(result.faults)
                return result

            for result in pool.map(stop_one, range(started, started + len(plan)), plan):
                row.add(result)
            started += len(plan)
    return row


def kill(bench: Bench, count: int = 50) -> list[Row]:
    row = stopped(bench, "kill", count)
    row.note = f"{row.saving} during a save"
    return [row]


def mixup_flags(bench: Bench) -> list[str]:
    """Return the flags of a data set large enough for MixUp: few images, each listed many times."""
    from PIL import Image

    folder = bench.folder / "digits"
    if not folder.exists():
        digits = registry.open_dataset("digits")
        for part, images, times in (("train", digits.train, 14), ("val", digits.val, 1)):
            (folder / part).mkdir(parents=True)
            for k in range(len(images)):
                Image.fromarray(np.asarray(images.pixels[k])).save(folder / part / f"{k}.png")
            rows = [f"{part}/{k}.png,{label}\n" for k, label in enumerate(images.labels)]
            (folder / f"{part}.csv").write_text("".join(rows) * times)
    return ["--dataset", "list", "--datadir", str(folder)]


VARIANTS: dict[str, dict[str, Any]] = {
    "SIGTERM": {"number": signal.SIGTERM, "status": 143},
    "SIGINT": {"number": signal.SIGINT, "status": 130},
    "SIGUSR1": {"number": signal.SIGUSR1, "status": 143},
    "2 processes": {"flags": ["--nproc", "2"]},
    "2 processes, one killed": {"flags": ["--nproc", "2"], "target": CHILD, "status": 137},
    "2 processes, SIGTERM": {"flags": ["--nproc", "2"], "number": signal.SIGTERM, "status": 143},
    "batch_split 2": {"flags": ["--batch_split", "2"]},
    "workers 0": {"flags": ["--workers", "0"]},
    "workers 2": {"flags": ["--workers", "2"]},
    "examples_per_class 5": {"flags": ["--examples_per_class", "5"]},
    "MixUp": {},
}


def variants(bench: Bench, names: Sequence[str] = tuple(VARIANTS), count: int = 3) -> list[Row]:
    rows = []
    for name in names:
        options = dict(VARIANTS[name])
        if name == "MixUp":
            options["flags"] = mixup_flags(bench)
        row = stopped(bench, name, count, **options)
        if name == "MixUp":
            printed = bench.reference(bench.run("", options["flags"]).flags)[0].printed()
            if not re.search(r"MixUp +Beta\(", printed):
                row.failures.append(f"the plan has no MixUp: {printed}")
        if options.get("number") and max(row.repeated, default=0):
            row.failures.append(f"{name}: {max(row.repeated)} steps were recomputed")
        if not row.repeated:
            row.failures.append(f"{name}: no run was stopped before its end")
        rows.append(row)
    return rows


# --- Part: faults -------------------------------------------------------------------------------


def changed(run: Run, code: str, **variables: str) -> dict[str, str]:
    """Return the environment of a run that executes ``code`` first of all."""
    site = run.bench.folder / f"{run.folder.name}-site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(code)
    return {**run.bench.environment, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", **variables}


def under_way(run: Run, step: int = 8) -> None:
    if not run.until(lambda: run.step() >= step):
        raise Failure(f"ended too early: {run.printed()}")


def at_start(run: Run) -> None:
    """A signal so many seconds after the start, when the run has nothing to save yet."""
    for seconds in (0.1, 0.3, 0.6, 1.0):
        run.start()
        time.sleep(seconds)
        run.strike(signal.SIGTERM)
        run.expect(143, -signal.SIGTERM)
    run.finish()


def at_import(run: Run) -> None:
    """A signal while Paddle is imported: its library is there, and no operator yet."""
    run.start()
    run.until(lambda: "libpaddle" in Path(f"/proc/{run.process.pid}/maps").read_text())
    run.strike(signal.SIGTERM)
    run.expect(143, -signal.SIGTERM)
    run.finish()


def at_compiler(run: Run) -> None:
    """A signal while operators compile, to the command alone: its compiler ends, too."""
    number, compiler = run.bench.folder / "compiler.pid", run.bench.folder / "compiler"
    compiler.write_text(f'#!/bin/sh\necho $$ > "{number}"\nsleep 600\n')
    compiler.chmod(0o755)
    hide = "from bit_paddle.models.native import prebuilt; prebuilt.FOLDER /= 'nowhere'\n"
    home = str(run.bench.folder / "empty")
    run.environment = changed(run, hide, CXX=str(compiler), BIT_PADDLE_HOME=home)
    run.start()
    run.until(lambda: number.exists() and number.read_text().endswith("\n"))
    run.strike(signal.SIGTERM)
    run.expect(143)
    end = time.time() + 30
    while Path("/proc", number.read_text().strip()).exists():
        if time.time() > end:
            raise Failure("the compiler is still at work")
        time.sleep(0.01)
    run.environment = run.bench.environment
    run.finish()


def out_of_memory(run: Run) -> None:
    """From step 8 on a run has less memory; the same command, with enough, resumes it."""
    run.start()
    under_way(run)
    status = Path(f"/proc/{run.process.pid}/status").read_text()
    peak = 1024 * int(re.search(r"VmPeak:\s+(\d+)", status)[1])
    resource.prlimit(run.process.pid, resource.RLIMIT_AS, (peak - (32 << 20), -1))
    run.row.faults += 1
    run.expect(0, 1)
    if run.process.returncode:
        run.reached, run.disturbed = run.step(), True
        run.finish()


def replaced_image(run: Run) -> None:
    """A run whose image is another one now does not resume, until that is back."""
    run.start()
    under_way(run)
    run.strike(signal.SIGTERM)
    image = next(iter(sorted(Path(run.flags[-1]).glob("train/*/*.png"))))
    content, date = image.read_bytes(), image.stat()
    image.write_bytes(b"no image")
    run.start()
    run.expect(2)
    image.write_bytes(content)
    os.utime(image, ns=(date.st_atime_ns, date.st_mtime_ns))
    run.finish()


def other_machine(run: Run) -> None:
    """A process of another machine renews its lease; then it is gone."""
    run.start()
    under_way(run)
    run.strike(signal.SIGKILL)
    lease, over = run.folder / "run.owner", threading.Event()
    lease.write_text("process 5 on far-away since 2026-01-01 00:00:00\nkernel another\n")

    def renew() -> None:
        while not over.wait(0.5):
            os.utime(lease)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        run.start()
        run.expect(2)
    finally:
        over.set()
        thread.join()
    lease.unlink()
    run.finish()


def slow_saves(run: Run) -> None:
    """One of two processes is killed while a file takes 25 s to be on the disk."""
    slow = run.bench.folder / "slow"
    code = "import os, time\nold = os.fsync\n\n\ndef fsync(number):\n"
    code += f"    time.sleep(25 * os.path.exists({str(slow)!r}))\n    old(number)\n\n\n"
    run.environment = changed(run, f"{code}os.fsync = fsync\n")
    run.start()
    under_way(run)
    slow.touch()
    try:
        run.strike(signal.SIGKILL, CHILD, random.Random(1))
        run.expect(137)
    finally:
        slow.unlink()
    run.finish()


def pictures(bench: Bench) -> list[str]:
    """Return the flags of a folder of images: some digits."""
    from PIL import Image

    folder, digits = bench.folder / "pictures", registry.open_dataset("digits")
    for part, images, count in (("train", digits.train, 400), ("val", digits.val, 100)):
        for k in range(count):
            path = folder / part / str(images.labels[k]) / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(images.pixels[k])).save(path)
    return ["--dataset", "folder", "--datadir", str(folder)]


TWO = ["--nproc", "2"]

FAULTS: dict[str, tuple[Callable[[Run], None], list[str]]] = {
    "signals in the first second": (at_start, []),
    "signals in the first second, 2 processes": (at_start, TWO),
    "a signal while Paddle is imported": (at_import, []),
    "a signal while operators compile": (at_compiler, []),
    "out of memory in a step": (out_of_memory, ["--batch_split", "1"]),
    "out of memory in validation": (out_of_memory, ["--batch_split", "1", "--eval_every", "1"]),
    "an image is replaced": (replaced_image, []),
    "the lease of another machine": (other_machine, []),
    "2 processes, one killed, saves of 25 s": (slow_saves, TWO),
    "2 processes, a damaged checkpoint": (
        lambda run: spoilt(run, "truncated", random.Random(2)),
        TWO,
    ),
}


def one_each(bench: Bench, names: Sequence[str] = tuple(FAULTS)) -> list[Row]:
    rows = []
    for number, name in enumerate(names):
        scenario, flags = FAULTS[name]
        run = bench.run(f"fault-{number}", pictures(bench) if "image" in name else flags)
        bench.reference(run.flags)
        row = bench.surviving(run, scenario)
        row.part = name
        rows.append(row)
    return rows


# --- Part: disk ---------------------------------------------------------------------------------


@contextmanager
def full(run: Run) -> Iterator[None]:
    """Keep the run's disk full until the end, also after files are deleted."""
    path, over = run.folder.parent / "filler", threading.Event()

    def fill() -> None:
        with open(path, "ab", buffering=0) as stream:
            while not over.wait(0.01):
                for size in (1 << 20, 1 << 12, 1):
                    with suppress(OSError):
                        while not over.is_set():
                            stream.write(bytes(size))

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        path.unlink()


@contextmanager
def read_only(run: Run) -> Iterator[None]:
    """Make the run's folder read-only by a bind mount; a remount fails while files are written."""
    folder = str(run.folder)
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        remount = ["mount", "-o", "remount,bind,ro", folder]
        while subprocess.run(remount, capture_output=True).returncode == 32:  # during a save
            time.sleep(0.01)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def forbidden(run: Run) -> Iterator[None]:
    """Remove the write permission of the run's folders."""
    folders = [run.folder, run.folder / checkpoints.CHECKPOINTS]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o755)


DISKS = {"full": full, "read-only": read_only, "no permission": forbidden}


def disk_case(run: Run, fault: Callable, lasting: bool) -> None:
    """Train with ``fault`` on the disk, for a while or (``lasting``) to the end; then without."""
    run.start()
    if not run.until(lambda: run.step() >= 8):
        raise Failure(f"ended too early: {run.printed()}")
    with fault(run):
        run.row.faults += 1
        if not run.until(lambda: run.output.read_text().count("warning: not saved") >= 3):
            raise Failure(f"no save has failed: {run.printed()}")
        if lasting:
            run.expect(1)
            missing = run.printed().rpartition("some files could not be written:")[2]
            if not re.search("checkpoint of|saved in .* instead", run.printed()) or (
                "model.npz" not in missing
            ):
                raise Failure(f"does not name the missing files: {run.printed()}")
            readable(run.folder)
            reached = run.reached = run.step()
            run.start()  # the fault is still there: the run must be refused and change nothing
            run.expect(1, 2)
            run.reached, run.disturbed = max(reached, run.step()), True
    if lasting:
        run.finish()
    else:
        run.expect(0)


def readable(folder: Path) -> None:
    """Read every byte of the newest checkpoint."""
    path = checkpoints.checkpoint_files(folder)[0]
    with np.load(path) as file:
        for key in file:
            file[key]


def disk(
    bench: Bench,
    names: Sequence[str] = tuple(DISKS),
    lasting: Sequence[bool] = (True, False),
    steps: int = 60,
):
    rows = []
    for name in names:
        row = Row(f"disk {name}")
        rows.append(row)
        folder, prefix = bench.folder / "disk", []
        folder.mkdir(exist_ok=True)
        if os.geteuid() == 0 and name == "no permission":
            caps = "-dac_override,-dac_read_search"
            prefix = ["setpriv", f"--bounding-set={caps}", f"--inh-caps={caps}"]
            if shutil.which(prefix[0]) is None:
                row.note = "skipped: no setpriv"
                continue
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "none", str(folder)]
        mounted = name != "no permission"
        if mounted and (os.geteuid() or subprocess.run(mount, capture_output=True).returncode):
            row.note = "skipped: mounting needs root"
            continue
        try:
            for last in lasting:
                run = bench.run(
                    f"{'last' if last else 'while'}", (), steps, logdir=folder, prefix=prefix
                )
                bench.reference(run.flags)
                scenario = partial(disk_case, fault=DISKS[name], lasting=last)
                row.add(bench.surviving(run, scenario))
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(folder)], check=True)
    return rows


# --- Part: flips --------------------------------------------------------------------------------


def damaged(content: bytes, kind: str, dice: random.Random) -> bytes:
    """Return ``content`` truncated, empty, zeroed, or with one bit flipped (near an end or not)."""
    if kind == "truncated":
        return content[: dice.randrange(len(content))]
    if kind in ("empty", "zeros"):
        return bytes(len(content) if kind == "zeros" else 0)
    size = len(content)
    ends = [*range(2000), *range(size - 20_000, size)]
    position = dice.choice(ends) if kind == "ends" else dice.randrange(size)
    changed = bytearray(content)
    changed[position] ^= 1 << dice.randrange(8)
    return bytes(changed)


def flips(bench: Bench, count: int = 200, processes: bool = True) -> list[Row]:
    """Damage a checkpoint; check that reading it fails, or gives the same bits as before."""
    from bit_paddle.models import resnetv2
    from bit_paddle.runs import snapshot
    from bit_paddle.training.optimizer import Momentum

    reference, _, _ = bench.reference(bench.run("").flags)
    content = checkpoints.checkpoint_files(reference.folder)[0].read_bytes()
    path, dice = bench.folder / "damaged.npz", random.Random(f"{bench.seed} flips")
    model = resnetv2.ResNetV2(Architecture.parse("R14x0.5"), CheckpointFile(
        reference.folder / "model.npz").classes)  # fmt: skip

    def read() -> tuple[Any, ...]:
        for parameter in model.parameters():  # clear the values of an earlier call
            parameter.set_value(np.zeros(parameter.shape, np.float32))
        optimizer = Momentum(0.003, 0.9, model.parameters())
        checkpoint = checkpoints.open_checkpoint(path)
        snapshot.restore(model, optimizer, path)
        tensors = [*model.parameters(), *(v for v in optimizer.velocities() if v is not None)]
        values = [tensor.numpy().tobytes() for tensor in tensors]
        return checkpoint.progress, checkpoint.notes, values

    path.write_bytes(content)
    true, row, harmless = read(), Row("flips"), 0
    kinds = ["anywhere", "ends"] * (count // 2)
    kinds += ["truncated"] * (count // 8) + ["empty", "zeros"]
    for kind in tqdm(kinds, desc="flips", disable=None, leave=False):
        path.write_bytes(damaged(content, kind, dice))
        row.faults += 1
        try:
            same = read() == true
            harmless += same
            if not same:
                row.failures.append(
                    f"flips: {kind}, fault {row.faults}: read without an error, but wrong"
                )
        except CheckpointError:
            same = True
        except Exception as error:
            same = False
            row.failures.append(f"flips: {kind}, fault {row.faults}: {place_of(error)}: {error}")
        row.survived += same
    row.note = f"{row.survived - harmless} detected, {harmless} harmless"
    if not processes:
        return [row]
    real = Row("flips, real runs", note="the run resumes from the previous checkpoint")
    for kind in ("truncated", "anywhere"):
        real.add(bench.surviving(bench.run(f"flip-{kind}"), partial(spoilt, kind=kind, dice=dice)))
    return [row, real]


def spoilt(run: Run, kind: str, dice: random.Random) -> None:
    """Kill ``run`` in the middle, damage its newest checkpoint and start it again."""
    run.start()
    run.until(
        lambda: (
            run.step() >= run.bench.steps // 2 and len(checkpoints.checkpoint_files(run.folder)) > 1
        )
    )
    run.strike(signal.SIGKILL)
    newest = checkpoints.checkpoint_files(run.folder)[0]
    newest.write_bytes(damaged(newest.read_bytes(), kind, dice))
    run.finish()
    printed = run.printed()
    if newest.name not in printed or not re.search("it is skipped|npz is tried next", printed):
        raise Failure(f"does not report that {newest} is damaged: {printed}")


# --- Part: cost ---------------------------------------------------------------------------------


def cost(bench: Bench, count: int = 3) -> list[Row]:
    """Compare the time to resume with that of a fresh start; time one checkpoint per step."""
    row, fresh = Row("cost"), []

    def measured(run: Run) -> None:
        run.start()
        run.trains()
        fresh.append(time.time() - run.began)
        run.until(lambda: run.step() >= run.bench.steps // 2)
        run.strike(signal.SIGKILL)
        run.finish()

    for k in range(count):
        row.add(bench.surviving(bench.run(f"cost-{k}"), measured))
    log = (bench.reference(bench.run("").flags)[0].folder / logbook.LOG).read_text()
    parts = re.findall(r"(copying for a checkpoint|saving) ([\d.]+) s", log)
    total = re.findall(r"([\d.]+) s in all", log)[-1]
    spent = ", ".join(f"{part} {seconds} s" for part, seconds in parts)
    if fresh and row.resume:
        difference = statistics.median(row.resume) - statistics.median(fresh)
        row.note = (
            f"fresh start {statistics.median(fresh):.1f} s, resuming {difference:+.2f} s; "
            f"{bench.steps} steps with a checkpoint per step: {total} s, of that {spent}"
        )
    return [row]


# --- The command --------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned columns."""
    cells = [["part", "faults", "survived", "repeated steps", "bytes lost", "resume s", "notes"]]
    for row in rows:
        repeated = "-"
        if row.repeated:
            repeated = f"{statistics.median(row.repeated):g}, max {max(row.repeated)}"
        resume = f"{statistics.median(row.resume):.1f}" if row.resume else "-"
        numbers = [f"{row.faults:,}", f"{row.survived:,}", repeated, f"{row.lost:,}", resume]
        cells.append([row.part, *numbers, row.note])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
        for line in cells
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=int, default=50, help="kills of the part kill (default: 50)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices")
    parser.add_argument("--datadir", help="a folder of images (default: digits)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", metavar="PART[,PART]", help="parts to run (default: all)")
    parser.add_argument("--output", metavar="FILE.json", help="write the rows to this file")
    flags = parser.parse_args()
    parts = {
        "kill": partial(kill, count=flags.kills),
        "variants": variants,
        "faults": one_each,
        "disk": disk,
        "flips": flips,
        "cost": cost,
    }
    selected = flags.only.split(",") if flags.only else list(parts)
    if set(selected) - set(parts):
        parser.error(f"--only: choose from {', '.join(parts)}")
    datadir = str(Path(flags.datadir).resolve()) if flags.datadir else ""
    for number in (signal.SIGINT, signal.SIGHUP):  # nohup or `&` of a shell has them ignored, also
        if signal.getsignal(number) is signal.SIG_IGN:  # in the runs; a handler is not passed on
            signal.signal(number, lambda *_: None)
    rows: list[Row] = []
    folder = Path(tempfile.mkdtemp(prefix="stress-"))
    bench = Bench(folder, flags.seed, datadir, flags.jobs)
    try:
        for name in selected:
            start = time.time()
            results = parts[name](bench)
            rows += results
            faults = sum(row.faults for row in results)
            survived = sum(row.survived for row in results)
            seconds = time.time() - start
            tqdm.write(f"{name}: {survived:,} of {faults:,} survived, {seconds:.0f} s")
            sys.stdout.flush()
    finally:
        bench.close()
        shutil.rmtree(folder, ignore_errors=True)
    failures = [failure for row in rows for failure in row.failures]
    print("\n".join([table(rows), *failures]))
    if flags.output:
        Path(flags.output).write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return int(bool(failures) or any(row.survived < row.faults for row in rows))


if __name__ == "__main__":
    sys.exit(main())
