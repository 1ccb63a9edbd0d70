#!/usr/bin/env python3
"""Stop runs in every way, damage their files, fill their disk: do they end as if nothing happened?

    python scripts/benchmarks/stress.py                # all parts, a quarter of an hour
    python scripts/benchmarks/stress.py --only kill --kills 10
    python scripts/benchmarks/stress.py --only fuzz,flips --seed 7 --output stress.json
    python scripts/benchmarks/stress.py --only kill --datadir photos   # not digits

Parts: ``kill`` (SIGKILL at random moments), ``variants`` (signals, processes, MixUp …), ``disk``
(full, read-only; needs root), ``flips`` (damaged checkpoints), ``fuzz`` (damaged input of every
kind; needs hypothesis) and ``cost`` (what going on costs). Each run is a real process on real
images. After its faults the same command is given again, and what the run leaves is compared, bit
for bit, with an undisturbed run: the model, the newest and the best checkpoint with their
momentum, the metrics of each step (a loss tells which images its batch had) and VisualDL. Exit
status 0 means that all were the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zipfile
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
sys.path.insert(0, str(ROOT))

from bit_paddle.config import parsing  # noqa: E402
from bit_paddle.config.settings import Settings, differences, load_yaml, to_dict, to_yaml  # noqa: E402
from bit_paddle.data import check  # noqa: E402
from bit_paddle.data.readers import registry  # noqa: E402
from bit_paddle.errors import BitPaddleError, CheckpointError  # noqa: E402
from bit_paddle.models import npz  # noqa: E402
from bit_paddle.models.architecture import Architecture  # noqa: E402
from bit_paddle.runs import checkpoints, logbook  # noqa: E402
from bit_paddle.runs.folder import RESULT  # noqa: E402
from bit_paddle.system import fetch  # noqa: E402

TINY = "--model R14x0.5 --from_scratch --precrop 36 --crop 32 --batch 16 --no-flip".split()  # noqa: SIM905
OFTEN = ["--save_every", "1", "--eval_every", "10"]
LIMIT = 300  # seconds that anything may take; more is a failure
DISK = 112  # MB of a run's own disk: three checkpoints of 16 MB, another on its way, two models
PARENT, CHILD = "parent", "child"


class Failure(Exception):
    """A run that did not survive, and how that showed; of long texts the end."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) < 1200 else f"{text[:200]} … {text[-1000:]}"


@dataclass
class Row:
    """A line of the table, and what went wrong."""

    part: str
    faults: int = 0
    survived: int = 0
    again: list[int] = field(default_factory=list)  # steps made again after each restart
    lost: int = 0  # bytes of what the run leaves that are missing or differ
    resume: list[float] = field(default_factory=list)  # seconds until the first new step
    saving: int = 0  # faults that fell into a save
    note: str = ""
    failures: list[str] = field(default_factory=list)

    def add(self, other: Row) -> None:
        for name in ("faults", "survived", "again", "lost", "resume", "saving", "failures"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


# --- Runs ---------------------------------------------------------------------------------------


class Run:
    """A run and its command, which is given again after each fault."""

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
        self.row = Row(name)
        self.reached = 0  # the furthest step since the last restart that was seen to go on
        self.disturbed = False

    def start(self) -> None:
        self.began = time.time()
        with open(self.output, "wb") as output, open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.bench.environment, stdout=output, stderr=errors
            )
        self.bench.processes.append(self.process)

    def lines(self) -> list[dict[str, Any]]:
        return logbook.read_metrics(self.folder / logbook.METRICS)[0]

    def step(self) -> int:
        return max((line["step"] for line in self.lines()), default=0)

    def said(self) -> str:
        """Return what the process has printed, or the end of that."""
        return (self.output.read_text() + self.errors.read_text())[-8000:]

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait until ``condition()`` and return True, or until the process has ended: False."""
        while not condition():
            if self.process.poll() is not None:
                return False
            if time.time() > self.began + LIMIT:
                raise Failure(f"nothing for {LIMIT} s: {self.said()}")
            time.sleep(0.005)
        return True

    def goes_on(self) -> bool:
        """Wait for the first new line of metrics; False if the process ends without one."""
        if not self.until(lambda: any(line["time"] > self.began for line in self.lines()[-1:])):
            return False
        if self.disturbed:
            found = re.search(r"resumes after step (\d+)", self.said())
            self.row.again.append(max(0, self.reached - int(found[1] if found else 0)))
            self.row.resume.append(round(time.time() - self.began, 2))
            self.reached, self.disturbed = 0, False
        return True

    def strike(
        self, number: signal.Signals, target: str = PARENT, dice: random.Random | None = None
    ) -> None:
        """Send a signal to the command, or to one of its processes, and wait for the end."""
        place = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        children = Path(place).read_text().split() if target == CHILD else []
        pid = int(dice.choice(children)) if children else self.process.pid
        os.kill(pid, number)
        self.ended()
        self.reached, self.disturbed = max(self.reached, self.step()), True
        self.row.faults += 1
        self.row.saving += any(self.folder.glob("**/*.part"))

    def ended(self) -> int:
        """Wait for the end; return the exit status."""
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Failure(f"does not end within {LIMIT} s: {self.said()}") from None

    def finish(self, status: int = 0) -> None:
        """Give the command (again) and wait; raise `Failure` if it ends with another status."""
        self.start()
        self.goes_on()
        self.expect(status)

    def expect(self, *statuses: int) -> None:
        if self.ended() not in statuses:
            raise Failure(f"exit status {self.process.returncode}, not {statuses}: {self.said()}")
        if "Traceback" in self.said() or "looks like a defect" in self.said():
            raise Failure(f"an unexpected error: {self.said()}")


def contents(folder: Path) -> dict[str, bytes]:
    """Return everything that a complete run leaves and that another one must leave too."""
    newest = checkpoints.checkpoint_files(folder)[0]
    best = newest.with_name(checkpoints.BEST)
    found = {}
    for path in (newest, best):
        found[f"{path.name} progress"] = repr(checkpoints.open_checkpoint(path).progress).encode()
    for path in (folder / "model.npz", newest, best):
        with np.load(path) as file:
            for key in set(file) - {npz.NOTES}:
                found[f"{path.name} {key} {file[key].shape}"] = file[key].tobytes()
    lines, unreadable = logbook.read_metrics(folder / logbook.METRICS)
    for number, line in enumerate(lines):
        steady = {key: value for key, value in line.items() if key not in VOLATILE}
        found[f"line {number} of metrics"] = json.dumps(steady).encode()
    if unreadable or scalars(folder) != expected_scalars(lines):
        found["VisualDL or metrics cannot be read, or differ"] = b"?"
    return found


VOLATILE = ("images_per_second", "time")


def scalars(folder: Path) -> set[tuple[str, int, float]]:
    from visualdl import LogReader

    (path,) = folder.glob("vdlrecords*")
    reader = LogReader(file_path=str(path))
    found = [
        (tag, item.id, np.float32(item.value).item())
        for tag in reader.get_tags()["scalar"]
        for item in reader.get_data("scalar", tag)
    ]
    return set(found) if len(set(found)) == len(found) else set()


def expected_scalars(lines: list[dict[str, Any]]) -> set[tuple[str, int, float]]:
    return {
        (f"{line['kind']}/{name}", line["step"], np.float32(value).item())
        for line in lines
        for name, value in line.items()
        if name not in ("kind", "step", "time")
    }


class Bench:
    """What all parts share: the scratch folder, the flags, the undisturbed runs."""

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
        compiled = fetch.cache_dir() / "native"  # operators take a minute: those of the user do
        compiled.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            (folder / "native").symlink_to(compiled)
        self.processes: list[subprocess.Popen] = []
        self.undisturbed: dict[tuple[str, ...], tuple[Run, dict[str, bytes], float]] = {}
        self.lock = threading.Lock()

    def run(self, name: str, flags: Sequence[str] = (), steps: int = 0, **options: Any) -> Run:
        logdir = options.pop("logdir", self.folder / "runs")
        every = [*self.flags, *OFTEN, "--steps", str(steps or self.steps), *flags]
        return Run(self, name, every, logdir, **options)

    def reference(self, flags: Sequence[str]) -> tuple[Run, dict[str, bytes], float]:
        """Return an undisturbed run of ``flags``, its contents, and seconds from its first step."""
        with self.lock:
            if tuple(flags) not in self.undisturbed:
                name = f"undisturbed-{len(self.undisturbed)}"
                run = Run(self, name, flags, self.folder / "runs")
                run.start()
                run.goes_on()
                begun = time.time()
                run.expect(0)
                seconds = time.time() - begun
                self.undisturbed[tuple(flags)] = run, contents(run.folder), seconds
            return self.undisturbed[tuple(flags)]

    def compare(self, run: Run) -> None:
        """Raise `Failure` unless ``run`` has left what an undisturbed one leaves."""
        expected, found = self.reference(run.flags)[1], contents(run.folder)
        keys = expected.keys() | found.keys()
        wrong = sorted(key for key in keys if expected.get(key) != found.get(key))
        run.row.lost += sum(len(expected.get(key, found.get(key))) for key in wrong)
        if wrong:
            raise Failure(f"{len(wrong)} of {len(keys)} differ: {', '.join(wrong[:3])} …")

    def surviving(self, run: Run, scenario: Callable[[Run], None]) -> Row:
        """Return what ``scenario`` and the comparison have shown; the run's folder is removed."""
        try:
            scenario(run)
            self.compare(run)
            run.row.survived = run.row.faults
        except Exception as error:
            kept = f"\n{traceback.format_exc()}" * (not isinstance(error, Failure))
            run.row.failures.append(f"{run.folder.name}: {type(error).__name__}: {error}{kept}")
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

    The first falls into training or later, another SIGKILL anywhere, such as into the start.
    """
    anywhere = number == signal.SIGKILL and target == PARENT
    _, _, seconds = run.bench.reference(run.flags)
    steps = int(run.flags[run.flags.index("--steps") + 1])
    while run.row.faults < count:
        run.start()
        if anywhere and run.row.faults and dice.random() < 0.5:
            wait = dice.uniform(0, 4)
        elif run.goes_on():
            left = seconds * max(0.1, 1 - run.step() / steps)
            wait = dice.uniform(0, left if anywhere else 0.7 * left)
        else:
            wait = LIMIT  # it ends by itself
        with suppress(subprocess.TimeoutExpired):
            run.process.wait(wait)
            run.expect(0)
            if run.row.faults:  # it was too quick
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
    """Stop runs of ``flags`` until ``count`` stops have been made, one or two a run."""
    row, made = Row(title), 0
    flags = bench.run("", flags).flags
    bench.reference(flags)
    with (
        tqdm(total=count, desc=title, disable=None, leave=False) as bar,
        ThreadPoolExecutor(1 if "--nproc" in flags else bench.jobs) as pool,
    ):
        while row.faults < count and not row.failures:
            dice = random.Random(f"{bench.seed} {title} {made}")
            plan, left = [], count - row.faults
            while left > sum(plan):
                plan.append(min(dice.choice((1, 2)), left - sum(plan)))

            def one(place: int, stops: int, dice: random.Random = dice) -> Row:
                name = f"{re.sub('[^a-z0-9_]+', '-', title.lower())}-{place}"
                run = Run(bench, name, flags, bench.folder / "runs")
                own = random.Random(dice.random())
                scenario = partial(killed, count=stops, dice=own, number=number, target=target)
                found = bench.surviving(run, partial(scenario, statuses={status}))
                bar.update(found.faults)
                return found

            for found in pool.map(one, range(made, made + len(plan)), plan):
                row.add(found)
            made += len(plan)
    return row


def kill(bench: Bench, count: int = 50) -> list[Row]:
    row = stopped(bench, "kill", count)
    row.note = f"{row.saving} fell into a save"
    return [row]


def mixup_flags(bench: Bench) -> list[str]:
    """Return flags of a data set for which the rule asks for MixUp, of few images often named."""
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
            said = bench.reference(bench.run("", options["flags"]).flags)[0].said()
            if not re.search(r"MixUp +Beta\(", said):
                row.failures.append(f"the plan has no MixUp: {said}")
        if options.get("number") and max(row.again, default=0):
            row.failures.append(f"{name}: {max(row.again)} steps were made again")
        rows.append(row)
    return rows


# --- Part: disk ---------------------------------------------------------------------------------


@contextmanager
def full(run: Run) -> Iterator[None]:
    """Take all room of the run's disk, and whatever is given back, until the end."""
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
    """Mount the run's folder over itself; a disk with a file open for writing cannot be changed."""
    folder = str(run.folder)
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        remount = ["mount", "-o", "remount,bind,ro", folder]
        while subprocess.run(remount, capture_output=True).returncode == 32:  # a save is under way
            time.sleep(0.01)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def forbidden(run: Run) -> Iterator[None]:
    """Take away the permission to write in the run's folders."""
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
    """Train with ``fault`` on the disk, to the end or for a while; then without it."""
    run.start()
    if not run.until(lambda: run.step() >= 8):
        raise Failure(f"ended too early: {run.said()}")
    with fault(run):
        run.row.faults += 1
        if not run.until(lambda: run.output.read_text().count("warning: not saved") >= 3):
            raise Failure(f"no save has failed: {run.said()}")
        if lasting:
            run.expect(1)
            missing = run.said().rpartition("not all of it could be written:")[2]
            if not re.search("checkpoint of|saved in .* instead", run.said()) or (
                "model.npz" not in missing
            ):
                raise Failure(f"does not name what is missing: {run.said()}")
            readable(run.folder)
            kept = run.reached = run.step()
            run.start()  # nothing has changed: it is refused, and spoils nothing
            run.expect(1, 2)
            run.reached, run.disturbed = max(kept, run.step()), True
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
        place, prefix = bench.folder / "disk", []
        place.mkdir(exist_ok=True)
        if os.geteuid() == 0 and name == "no permission":
            caps = "-dac_override,-dac_read_search"
            prefix = ["setpriv", f"--bounding-set={caps}", f"--inh-caps={caps}"]
            if shutil.which(prefix[0]) is None:
                row.note = "skipped: no setpriv"
                continue
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "none", str(place)]
        own = name != "no permission"
        if own and (os.geteuid() or subprocess.run(mount, capture_output=True).returncode):
            row.note = "skipped: mounting needs root"
            continue
        try:
            for last in lasting:
                run = bench.run(
                    f"{'last' if last else 'while'}", (), steps, logdir=place, prefix=prefix
                )
                bench.reference(run.flags)
                scenario = partial(disk_case, fault=DISKS[name], lasting=last)
                row.add(bench.surviving(run, scenario))
        finally:
            if own:
                subprocess.run(["umount", "-l", str(place)], check=True)
    return rows


# --- Part: flips --------------------------------------------------------------------------------


def damaged(content: bytes, kind: str, dice: random.Random) -> bytes:
    """Return ``content`` with one bit flipped, somewhere or near an end, or otherwise spoilt."""
    if kind == "truncated":
        return content[: dice.randrange(len(content))]
    if kind in ("empty", "zeros"):
        return bytes(len(content) if kind == "zeros" else 0)
    places = len(content)
    ends = [*range(2000), *range(places - 20_000, places)]
    place = dice.choice(ends) if kind == "ends" else dice.randrange(places)
    changed = bytearray(content)
    changed[place] ^= 1 << dice.randrange(8)
    return bytes(changed)


def flips(bench: Bench, count: int = 200, processes: bool = True) -> list[Row]:
    """Damage a checkpoint: that is noticed, or what is read is the same to the bit."""
    from bit_paddle.models import resnetv2
    from bit_paddle.runs import snapshot
    from bit_paddle.training.optimizer import Momentum

    reference, _, _ = bench.reference(bench.run("").flags)
    content = checkpoints.checkpoint_files(reference.folder)[0].read_bytes()
    path, dice = bench.folder / "damaged.npz", random.Random(f"{bench.seed} flips")
    model = resnetv2.ResNetV2(Architecture.parse("R14x0.5"), npz.CheckpointFile(
        reference.folder / "model.npz").classes)  # fmt: skip

    def read() -> tuple[Any, ...]:
        for parameter in model.parameters():  # nothing of an earlier call may be left
            parameter.set_value(np.zeros(parameter.shape, np.float32))
        optimizer = Momentum(0.003, 0.9, model.parameters())
        found = checkpoints.open_checkpoint(path)
        snapshot.restore(model, optimizer, path)
        tensors = [*model.parameters(), *(one for one in optimizer.velocities() if one is not None)]
        return found.progress, found.notes, [one.numpy().tobytes() for one in tensors]

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
                row.failures.append(f"flips: {kind}, fault {row.faults}: read, and wrong")
        except CheckpointError:
            same = True
        except Exception as error:
            same = False
            row.failures.append(f"flips: {kind}, fault {row.faults}: {place_of(error)}: {error}")
        row.survived += same
    row.note = f"{row.survived - harmless} noticed, {harmless} harmless"
    if not processes:
        return [row]
    real = Row("flips, real runs", note="the run goes on from the checkpoint before")
    for kind in ("truncated", "anywhere"):
        real.add(bench.surviving(bench.run(f"flip-{kind}"), partial(spoilt, kind=kind, dice=dice)))
    return [row, real]


def spoilt(run: Run, kind: str, dice: random.Random) -> None:
    """Kill ``run`` in the middle, damage its newest checkpoint and let it go on."""
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
    if newest.name not in run.said() or not re.search("passed over|npz is tried", run.said()):
        raise Failure(f"does not say that {newest} is damaged: {run.said()}")


# --- Part: fuzz ---------------------------------------------------------------------------------

WORDS = r"""'|O' '<f8' True NaN Infinity -1 1e308 -1e308 99999999999 (99999999999 (True &a [*a] ?
<<: - ~ " , [] {} null !!python/name:os.system 2026-99-99 \u0000 "\ud800" １² é yes"""
TOKENS = [word.encode() for word in WORDS.split()]  # what a reader may trip over
TOKENS += [b"!!bool x", b"!!timestamp x", b"!!int ''", b"{" * 2000, b"[" * 2000, b"9" * 5000]
TOKENS += [
    b"0x" + b"f" * 4000,
    b"\xff" * 8,
    bytes(8),
    b"\x80",
    b"\r\n",
    b"\t",
    b": ",
    b"\xe2\x80\xa8",
]
TOKENS += [b"\xe2\x80\xa8", b"PK\1\2", b"PK\3\4", b"PK\5\6", b"\x93NUMPY\2\0", b"\x93NUMPY\3\0"]


KINDS = ["flip", "overwrite", "insert", "delete", "duplicate", "truncate", *["value"] * 4]


def mutated(content: bytes, mutations: Sequence[tuple[str, int, int, bytes]]) -> bytes:
    result = bytearray(content)
    for kind, place, length, other in mutations:
        at = place % (len(result) + 1)
        span = slice(at, at + length)
        if kind == "flip" and result:
            result[at % len(result)] ^= 1 << (length % 8)
        elif kind == "overwrite":
            result[at : at + len(other)] = other
        elif kind == "insert":
            result[at:at] = other
        elif kind == "delete":
            del result[span]
        elif kind == "duplicate":
            result[at:at] = result[span] * (1 + place % 3)
        elif kind == "truncate":
            del result[at:]
        elif kind == "value":  # what stands after a ": " or "," becomes something else
            values = list(re.finditer(rb"(?<=: )[^,\n}]+|(?<=,)[^,:\n}]+(?=[,\n])", bytes(result)))
            if values:
                found = values[place % len(values)]
                result[found.start() : found.end()] = other
    return bytes(result)


def loaders(folder: Path) -> dict[str, tuple[bytes, Callable[[bytes, int], object]]]:
    """Return, by name, a valid file and what reads it; the number varies how."""
    small = Architecture.parse("R14x0.5")
    keys = [key for key, _ in npz.shapes(small, 2)]
    arrays = [(key, np.ones((1, 1, 2, 2) if "kernel" in key else 2, np.float32)) for key in keys]
    arrays = [arrays[0], *arrays[-4:], ("bit_paddle/momentum/" + keys[-1], np.ones(2, np.float32))]
    settings = Settings(model="R14x0.5", dataset="digits", from_scratch=True)
    notes = {"progress": asdict(checkpoints.Progress()), "settings": to_dict(settings), "data": {}}
    path = folder / "checkpoint.npz"
    npz.write(path, arrays, {**notes, "momentum": False})
    (folder / "a.ppm").write_bytes(b"P6 2 2 255 " + bytes(12))
    rows = ["a.ppm,cat", "a.ppm,dog"]
    (folder / "val.csv").write_text("\n".join(rows))
    line = {"kind": "train", "step": 1, "loss": 2.3, "lr": 0.0, "time": 1e9}
    lines = "".join(json.dumps({**line, "step": step}) + "\n" for step in range(1, 4))

    def read_checkpoint(content: bytes, number: int) -> None:
        path.write_bytes(content)
        with npz.CheckpointFile(path) as file:
            with suppress(BitPaddleError):  # the arrays are read all the same
                file.check(small, 2)
            for key in file.shapes:
                file.array(key)
            with suppress(BitPaddleError):
                file.architecture()
        checkpoints.open_checkpoint(path)

    def read_array(content: bytes, number: int) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{npz.NOTES}.npy", content)
        checkpoints.open_checkpoint(path)

    def read_config(content: bytes, number: int) -> None:
        (folder / "config.yaml").write_bytes(content)
        differences(load_yaml(folder / "config.yaml"), settings)
        parsing.parse(["--config", str(folder / "config.yaml")], "fuzz", registry.find)

    def read_metrics(content: bytes, number: int) -> None:
        (folder / logbook.METRICS).write_bytes(content)
        logbook.read_metrics(folder / logbook.METRICS)
        with logbook.Logbook(folder) as log:
            log._console = False
            log.rewind(number % 4, number % 3)

    def read_list(content: bytes, number: int) -> None:
        name = ("train.csv", "train.tsv", "train.txt")[number % 3]
        (folder / name).write_bytes(content.replace(b",", (b",", b"\t", b" ")[number % 3]))
        try:
            train = registry.open_dataset("list", str(folder)).train
            check.require_usable([(train, np.arange(len(train)))], 0)
        finally:
            (folder / name).unlink()

    def read_description(content: bytes, number: int) -> None:
        (folder / "data.yaml").write_bytes(content)
        registry.find(str(folder / "data.yaml"))

    description = "reader: list\ndatadir: .\ntrain: train.csv\nval: val.csv\nclasses: [cat, dog]\n"
    description += "val_fraction: 0.1\nflip: false\nrandom_crop: true\nresolution: small\n"
    return {
        "checkpoint": (path.read_bytes(), read_checkpoint),
        "array": (zipfile.ZipFile(path).read(f"{npz.NOTES}.npy"), read_array),
        "config": (to_yaml(settings).encode(), read_config),
        "metrics": (lines.encode(), read_metrics),
        "list": ("\n".join(["path,label", *rows, *rows]).encode(), read_list),
        "description": (description.encode(), read_description),
    }


def place_of(error: Exception) -> str:
    """Return the type of an error and the innermost line of it, and of this package."""
    frames = [f"{Path(one.filename).name}:{one.lineno}" for one in traceback.extract_tb(
        error.__traceback__)]  # fmt: skip
    own = [
        f"{Path(one.filename).name}:{one.lineno}"
        for one in traceback.extract_tb(error.__traceback__)
        if "bit_paddle" in one.filename
    ]
    return f"{type(error).__name__} at {frames[-1]}, from {own[-1] if own else '?'}"


def fuzz(bench: Bench, count: int = 10_000) -> list[Row]:
    """Give mutated files to all that read files: only the package's own errors may come out."""
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        return [Row("fuzz", note="skipped: hypothesis is not installed")]
    memory = Path("/dev/shm")  # a disk would sync each of the files
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else bench.folder) as folder:
        readings = loaders(Path(folder))
        return [
            fuzzed(f"fuzz {name}", *reading, -(-count // len(readings)), bench.seed)
            for name, reading in readings.items()
        ]


def fuzzed(
    title: str, content: bytes, read: Callable[[bytes, int], object], count: int, seed: int
) -> Row:
    import hypothesis
    from hypothesis import strategies

    row, refused = Row(title), 0
    found: dict[str, str] = {}
    bar = tqdm(total=count, desc=title, disable=None, leave=False)
    mutation = strategies.tuples(
        strategies.sampled_from(KINDS),
        strategies.integers(0, 1 << 16),
        strategies.integers(1, 64),
        strategies.sampled_from(TOKENS) | strategies.binary(max_size=8),
    )

    def attempt(mutations: list[tuple[str, int, int, bytes]], way: int) -> None:
        nonlocal refused
        row.faults += 1
        bar.update()
        try:
            read(mutated(content, mutations), way)
        except BitPaddleError:
            refused += 1
        except Exception as error:
            example = f"{row.part}: {place_of(error)}: {error!s:.200}"
            found.setdefault(place_of(error), f"{example}\n  way {way}: {mutations!s:.300}")
            return
        row.survived += 1

    options = hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    strategy = strategies.lists(mutation, min_size=1, max_size=4), strategies.integers(0, 11)
    hypothesis.seed(seed)(options(hypothesis.given(*strategy)(attempt)))()
    bar.close()
    row.note = f"{refused:,} refused"
    row.failures = list(found.values())
    return row


# --- Part: cost ---------------------------------------------------------------------------------


def cost(bench: Bench, count: int = 3) -> list[Row]:
    """Measure what going on costs beside a start, and what a checkpoint a step costs."""
    row, fresh = Row("cost"), []

    def measured(run: Run) -> None:
        run.start()
        run.goes_on()
        fresh.append(time.time() - run.began)
        run.until(lambda: run.step() >= run.bench.steps // 2)
        run.strike(signal.SIGKILL)
        run.finish()

    for k in range(count):
        row.add(bench.surviving(bench.run(f"cost-{k}"), measured))
    log = (bench.reference(bench.run("").flags)[0].folder / logbook.LOG).read_text()
    parts = re.findall(r"(copying for a checkpoint|saving) ([\d.]+) s", log)
    whole = re.findall(r"([\d.]+) s in all", log)[-1]
    spent = ", ".join(f"{part} {seconds} s" for part, seconds in parts)
    if fresh and row.resume:
        more = statistics.median(row.resume) - statistics.median(fresh)
        row.note = (
            f"a fresh start {statistics.median(fresh):.1f} s, going on {more:+.2f} s; "
            f"of {bench.steps} steps with a checkpoint each, {whole} s: {spent}"
        )
    return [row]


# --- The command --------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned columns."""
    cells = [["part", "faults", "survived", "steps again", "bytes lost", "resume s", "notes"]]
    for row in rows:
        again = f"{statistics.median(row.again):g}, max {max(row.again)}" if row.again else "-"
        resume = f"{statistics.median(row.resume):.1f}" if row.resume else "-"
        numbers = [f"{row.faults:,}", f"{row.survived:,}", again, f"{row.lost:,}", resume]
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
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--inputs", type=int, default=10_000, help="of fuzz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--datadir", help="a folder of images (default: digits)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", metavar="PART[,PART]")
    parser.add_argument("--output", metavar="FILE.json")
    given = parser.parse_args()
    parts = {
        "kill": partial(kill, count=given.kills),
        "variants": variants,
        "disk": disk,
        "flips": flips,
        "fuzz": partial(fuzz, count=given.inputs),
        "cost": cost,
    }
    wanted = given.only.split(",") if given.only else list(parts)
    if set(wanted) - set(parts):
        parser.error(f"--only: choose from {', '.join(parts)}")
    datadir = str(Path(given.datadir).resolve()) if given.datadir else ""
    rows: list[Row] = []
    folder = Path(tempfile.mkdtemp(prefix="stress-"))
    bench = Bench(folder, given.seed, datadir, given.jobs)
    try:
        for name in wanted:
            start = time.time()
            rows += (found := parts[name](bench))
            faults, survived = sum(r.faults for r in found), sum(r.survived for r in found)
            took = time.time() - start
            tqdm.write(f"{name}: {survived:,} of {faults:,} survived, {took:.0f} s")
            sys.stdout.flush()
    finally:
        bench.close()
        shutil.rmtree(folder, ignore_errors=True)
    failures = [one for row in rows for one in row.failures]
    print("\n".join([table(rows), *failures]))
    if given.output:
        Path(given.output).write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return int(bool(failures) or any(row.survived < row.faults for row in rows))


if __name__ == "__main__":
    sys.exit(main())
