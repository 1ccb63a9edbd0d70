#!/usr/bin/env python3
"""Train on several hosts, break one of them, and check how all of them end and resume.

    python scripts/benchmarks/hosts.py                     # all parts, half an hour
    python scripts/benchmarks/hosts.py --only faults --fault "SIGSTOP,cable cut"
    python scripts/benchmarks/hosts.py --only equality,counts

The hosts are network namespaces of this machine (Linux, root, iproute2), which Paddle's own
launcher joins. Parts: ``equality`` (ten steps in float64 on 2 and 4 hosts against one process),
``faults`` (each fault on rank 0's host and on another), ``counts`` (one checkpoint resumed on 1, 2
and 4 hosts) and ``elastic`` (4 hosts, then 3, then 4, by Paddle's elastic launcher; needs etcd and
the package etcd3). ``scaling.py --hosts 2 4`` times a step at several rates of the network.

"Same bits" compares the model at the end with that of a run of two processes on one machine that
nothing disturbed. Exit status 0 means that all were the same, and that every host ended in time.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import hosts  # noqa: E402
from helpers.hosts import Host, Network  # noqa: E402

from bit_paddle.runs import checkpoints  # noqa: E402
from bit_paddle.runs.results import RESULT  # noqa: E402
from bit_paddle.system.peers import SILENCE  # noqa: E402
from bit_paddle.system.processes import GRACE  # noqa: E402

TRAIN = ["-W", "ignore", "-m", "bit_paddle.train"]
LOGS = Path("/tmp/bit_paddle-8090")  # of scripts/launch_ssh.sh
STATED = SILENCE + GRACE + 10  # seconds: silence, the time to end, and Paddle's launcher
PATIENCE = 900  # seconds until a run counts as hanging
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


class Bench:
    """The data, the flags and the undisturbed run, all in one folder."""

    def __init__(self, folder: Path, arguments: argparse.Namespace):
        self.folder, self.arguments, steps = folder, arguments, arguments.steps
        self.failures: list[str] = []
        LOGS.mkdir(exist_ok=True)
        random = np.random.default_rng(0)
        for images, most in (("images", 10), ("other", 9)):
            for part, count in (("train", most), ("val", 4)):
                for name in ("amber", "blue", "coral"):
                    classes = folder / images / part / name
                    classes.mkdir(parents=True)
                    for k in range(count):
                        pixels = random.integers(0, 256, (40, 40, 3)).astype(np.uint8)
                        Image.fromarray(pixels).save(classes / f"{k}.png")
        tiny = "--model R14x0.5 --from_scratch --precrop 36 --crop 32 --batch 8 --batch_split 1"
        often = f"--steps {steps} --save_every 1 --keep 1000 --eval_every 1000 --dataset folder"
        self.flags = [*tiny.split(), *often.split(), "--datadir", str(folder / "images")]
        path = [str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PATH": os.pathsep.join(path),
            "NPROC": "1",
        }
        self.whole = folder / "whole"
        self.here(self.whole, 2)

    def here(self, run: Path, count: int, *flags: str) -> str:
        """Train in ``count`` processes on this machine; return the last line of its errors."""
        command = [sys.executable, *TRAIN, *self.flags, *named(run), *flags]
        command += ["--nproc", str(count)] if count > 1 else []
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True
        )
        return f"status {done.returncode}: {done.stderr.strip()[-300:]}" if done.returncode else ""

    def check(self, good: bool, text: str) -> str:
        """Return ``text``, and note it as a failure unless ``good``."""
        if not good:
            self.failures.append(text)
        return text


def named(run: Path) -> list[str]:
    return ["--logdir", str(run.parent), "--name", run.name]


def same(one: Path, other: Path) -> bool:
    """Return whether two models or checkpoints have the same arrays, bit for bit."""
    with np.load(one) as first, np.load(other) as second:
        names = {name for name in first.files if first[name].dtype.kind == "f"}
        return bool(names) and all(first[k].tobytes() == second[k].tobytes() for k in names)


def difference(one: Path, other: Path) -> float:
    """Return the largest difference of two models, relative to the largest value of an array."""
    with np.load(one) as first, np.load(other) as second:
        names = [name for name in first.files if first[name].dtype.kind == "f"]
        pairs = [(first[name].astype(np.float64), second[name]) for name in names]
        return max(np.abs(a - b).max() / (np.abs(a).max() or 1) for a, b in pairs)


class Run:
    """A run on ``network`` by scripts/launch_ssh.sh, with what it prints on each host."""

    def __init__(self, bench: Bench, network: Network, run: Path, *flags: str):
        self.folder = run
        self.output = bench.folder / f"{network.name}.txt"
        bin_folder = bench.folder / network.name
        for host in network.hosts:
            logs = bin_folder / host.name
            logs.mkdir(parents=True, exist_ok=True)
            host.mounts[LOGS] = logs
        network.ssh(bin_folder)
        environment = {**bench.environment}
        environment["PATH"] = os.pathsep.join([str(bin_folder), environment["PATH"]])
        names = " ".join(host.name for host in network.hosts)
        command = [str(ROOT / "scripts/launch_ssh.sh"), names, *bench.flags, *named(run), *flags]
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def message(self, host: Host) -> str:
        """Return the errors that ``host`` has printed, each once."""
        text = self.output.read_text(encoding="utf-8", errors="replace")
        lines = re.findall(rf"^{host.name}: error: (.*(?:\n{host.name}:   .*)?)", text, re.M)
        return " / ".join(dict.fromkeys(line.replace(f"\n{host.name}: ", "") for line in lines))


# --- Faults -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """``strike(host)`` happens while the run trains, ``prepare(bench, host)`` before it starts."""

    name: str
    strike: Callable[[Host], object] | None = None
    prepare: Callable[[Bench, Host], object] | None = None
    silent: bool = False  # the host itself does not end by this
    bad_cables: bool = False
    first_only: bool = False
    mount: Callable[[Path], object] | None = None  # makes the disk of the run's folder


def frozen(seconds: float, host: Host) -> None:
    host.send(signal.SIGSTOP)
    time.sleep(seconds)
    host.send(signal.SIGCONT)


def unplugged(seconds: float, host: Host) -> None:
    host.cut()
    time.sleep(seconds)
    host.mend()


def other_version(bench: Bench, host: Host) -> None:
    original = ROOT / "bit_paddle/__init__.py"
    text = re.sub('__version__ = ".*"', '__version__ = "0.1.9"', original.read_text("utf-8"))
    changed = bench.folder / f"{host.namespace}.py"
    changed.write_text(text, encoding="utf-8")
    host.mounts[original] = changed


def other_data(bench: Bench, host: Host) -> None:
    host.mounts[bench.folder / "images"] = bench.folder / "other"


def other_clock(bench: Bench, host: Host) -> None:
    host.environment.update(LD_PRELOAD=FAKETIME, FAKETIME="+1d")


def small_disk(folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=True)


def slow_disk(folder: Path) -> None:
    """Mount a file system at ``folder`` that `hung_disk` freezes, as a file server that hangs."""
    image = folder.with_suffix(".ext4")
    with open(image, "wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)


def hung_disk(folder: Path, _: Host) -> None:
    subprocess.run(["fsfreeze", "--freeze", folder], check=True)
    time.sleep(45)
    subprocess.run(["fsfreeze", "--unfreeze", folder], check=True)


FAULTS = [
    Fault("kill -9", lambda host: host.send(signal.SIGKILL), silent=True),
    Fault("SIGSTOP", lambda host: host.send(signal.SIGSTOP), silent=True),
    Fault("SIGSTOP for 8 s", partial(frozen, 8)),
    Fault("SIGSTOP for 30 s", partial(frozen, SILENCE + 10)),
    Fault("cable cut", lambda host: host.cut()),
    Fault("cable cut for 8 s", partial(unplugged, 8)),
    Fault("other version", prepare=other_version),
    Fault("other data", prepare=other_data),
    Fault("clock a day ahead", prepare=other_clock),
    Fault("disk full", mount=small_disk, first_only=True),
    Fault("disk hangs for 45 s", mount=slow_disk, first_only=True),
    Fault("30 % loss", lambda host: host.bad_cable(0.3, 0), bad_cables=True),
    Fault("200 ms delay", lambda host: host.bad_cable(0, 0.1), bad_cables=True),
]


def break_one(bench: Bench, fault: Fault, place: int) -> tuple[str, ...]:
    """Return the row of ``fault`` on the host at ``place``."""
    disk = Path(tempfile.mkdtemp(prefix="disk-", dir=bench.folder))
    strike = fault.strike
    if fault.mount is not None:
        fault.mount(disk)
        strike = partial(hung_disk, disk) if fault.mount is slow_disk else None
    try:
        with Network(2, fault.bad_cables) as network:
            host, other = network.hosts[place], network.hosts[1 - place]
            if fault.prepare is not None:
                fault.prepare(bench, host)
            run = Run(bench, network, disk / "run")
            struck = time.monotonic()
            if strike is not None:
                waited_for(lambda: newest(run.folder) >= 3 or run.process.poll() is not None)
                struck = time.monotonic()
                strike(host)
                survivors = [other] if fault.silent else network.hosts
                ended = waited_for(lambda: not any(one.pids() for one in survivors))
            else:
                ended = waited_for(lambda: run.process.poll() is not None)
            seconds = time.monotonic() - struck
            if fault.silent:
                host.send(signal.SIGCONT)
                ended = waited_for(lambda: not host.pids(), STATED) and ended
            complete = (run.folder / RESULT).exists()
            texts = {one.name: run.message(one) for one in network.hosts}
        if fault.mount is small_disk:
            subprocess.run(["mount", "-o", "remount,size=2g", disk], check=True)
        trouble = "" if complete else bench.here(disk / "run", 2)
        bits = not trouble and same(disk / "run/model.npz", bench.whole / "model.npz")
        how = ("went on" if complete else "ended") if ended else "hangs"
        title = f"{fault.name}, {host.name}"
        in_time = complete or strike is None or fault.bad_cables or seconds < STATED
        bench.check(ended and in_time, f"{title}: {how} after {seconds:.0f} s")
        bench.check(bits, f"{title}: other bits {trouble}")
        told = "; ".join(f"{name}: {text}" for name, text in texts.items() if text)
        where = f"{host.name} (rank {place})"
        return fault.name, where, how, f"{seconds:.0f}", told or "-", "yes" if bits else "no"
    finally:
        if fault.mount is not None:
            subprocess.run(["umount", "--lazy", disk], check=False)
        shutil.rmtree(disk, ignore_errors=True)


def faults(bench: Bench) -> None:
    """Print the table of faults."""
    names = (bench.arguments.fault or ",".join(fault.name for fault in FAULTS)).split(",")
    chosen = [fault for fault in FAULTS if fault.name in names]
    if not Path(FAKETIME).exists():
        chosen = [fault for fault in chosen if fault.prepare is not other_clock]
        print("clock a day ahead: left out, as libfaketime is not installed")
    cells = [(fault, place) for fault in chosen for place in range(1 if fault.first_only else 2)]
    print_row("fault", "on", "the run", "seconds", "messages", "resumed to the same bits")
    print_row(*["---"] * 6)
    with ThreadPoolExecutor(bench.arguments.jobs) as pool:
        for row in pool.map(lambda cell: break_one(bench, *cell), cells):
            print_row(*row)


def print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


# --- The other parts ----------------------------------------------------------------------------


def start_on(host: Host, words: list[object], environment: dict[str, str], logs: Path):
    """Start Paddle's launcher with ``words`` on ``host``."""
    launcher = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch"]
    launcher += ["--nproc_per_node", 1, "--log_dir", logs / f"{host.namespace}-{host.name}"]
    with open(logs / f"{host.namespace}.txt", "ab") as output:
        return host.start(
            *launcher, *words, cwd=ROOT, env=environment, stdout=output, stderr=output
        )


def on_hosts(bench: Bench, count: int, words: list[object]) -> None:
    """Run a script on ``count`` hosts to its end."""
    with Network(count) as network:
        master = ["--nnodes", count, "--master", f"{network.hosts[0].address}:8090"]
        processes = [
            start_on(host, [*master, *words], bench.environment, bench.folder)
            for host in network.hosts
        ]
        statuses = [process.wait(timeout=PATIENCE) for process in processes]
        bench.check(not any(statuses), f"{words[0]} on {count} hosts: statuses {statuses}")


def equality(bench: Bench) -> None:
    """Print the difference of ten steps on 1, 2 and 4 hosts: MixUp, float64."""
    found = bench.folder / "float64"
    found.mkdir()
    script = [ROOT / "tests/workers/training.py", found, bench.folder / "images", "[1]", "8 in 1"]
    subprocess.run([sys.executable, *script], env=bench.environment, check=True)
    for count in (2, 4):
        on_hosts(bench, count, script)
        with np.load(found / "1.npz") as one, np.load(found / f"{count}.npz") as other:
            worst = max(np.abs(one[k] - other[k]).max() / np.abs(one[k]).max() for k in one.files)
        text = f"{count} hosts: largest relative difference from one process {worst:.1e}"
        print(bench.check(worst < 1e-9, text), flush=True)


def counts(bench: Bench) -> None:
    """Resume one checkpoint on 1, 2 and 4 hosts; 1 and 4 have no other run to be compared with."""
    checkpoint = checkpoints.checkpoint_path(bench.whole, bench.arguments.steps // 2)
    for count in (1, 2, 4):
        models = []
        for again in "ab" if count != 2 else "a":
            run = bench.folder / f"{count}{again}"
            with Network(count) as network:
                Run(bench, network, run, "--resume", str(checkpoint)).process.wait(PATIENCE)
            models.append(run / "model.npz")
        bits = all(model.exists() for model in models) and same(models[0], models[-1])
        bits = bits and (count != 2 or same(models[0], bench.whole / "model.npz"))
        apart = difference(bench.whole / "model.npz", models[0]) if bits else np.nan
        text = f"resumed on {count} hosts: {'the same' if bits else 'other'} bits"
        print(f"{bench.check(bits, text)}; from those of 2 hosts {apart:.1e}", flush=True)


def elastic(bench: Bench) -> None:
    """Print how a run goes on while one of four hosts dies and comes back."""
    if not shutil.which("etcd") or not importlib.util.find_spec("etcd3"):
        print("elastic: left out, as etcd or the package etcd3 is not installed")
        return
    run, length = bench.folder / "elastic", ["--steps", "150"]
    paths = filter(None, [bench.environment["PYTHONPATH"], os.environ.get("PYTHONPATH")])
    pure = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}  # etcd3 is older than protobuf 4
    environment = {**bench.environment, **pure, "PYTHONPATH": os.pathsep.join(paths)}
    with Network(4) as network:
        address, last = network.hosts[0].address, network.hosts[-1]
        etcd = ["etcd", "--data-dir", bench.folder / "etcd"]
        etcd += ["--listen-client-urls", "http://0.0.0.0:2379"]
        etcd += ["--advertise-client-urls", f"http://{address}:2379"]
        with open(bench.folder / "etcd.txt", "wb") as output:
            network.hosts[0].start(*etcd, stdout=output, stderr=output)
        time.sleep(2)
        words = ["--nnodes", "2:4", "--master", f"etcd://{address}:2379", "--job_id", "run"]
        words += ["--elastic_level", 1, "--elastic_timeout", 10, "--max_restart", 9]
        words += [ROOT / "bit_paddle/train.py", *bench.flags, *length, *named(run)]
        start = partial(start_on, words=words, environment=environment, logs=bench.folder)
        processes = [start(host) for host in network.hosts]
        waited_for(lambda: newest(run) >= 15)
        last.send(signal.SIGKILL)
        at = newest(run)
        waited_for(lambda: newest(run) >= at + 25)
        processes[-1] = start(last)
        waited_for(lambda: (run / RESULT).exists())
        statuses = [process.wait(timeout=60) for process in processes]
    text = (run / "train.log").read_text(encoding="utf-8")
    resumed = [int(k) for k in dict.fromkeys(re.findall(r"resumes after step (\d+)", text))]
    sizes = [int(size) for size in re.findall(r"processors? for each of (\d+)", text)]
    print(f"elastic: processes {sizes}, resumed after steps {resumed}, statuses {statuses}")
    bench.check(sizes[0] == 4 and 3 in sizes and sizes[-1] == 4, f"elastic: processes {sizes}")
    bench.check((run / RESULT).exists() and not any(statuses), f"elastic: statuses {statuses}")
    again = bench.folder / "again"
    first = str(checkpoints.checkpoint_path(run, resumed[-1]))
    trouble = bench.here(again, 4, *length, "--resume", first)
    bits = not trouble and same(run / "model.npz", again / "model.npz")
    text = f"elastic: its last part, repeated, has {'the same' if bits else 'other'} bits {trouble}"
    print(bench.check(bits, text), flush=True)


def newest(run: Path) -> int:
    """Return the steps of the newest checkpoint of a run."""
    files = checkpoints.checkpoint_files(run)
    return int(files[0].stem.partition("-")[2]) if files else 0


def waited_for(condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Wait until ``condition()`` is true; return whether it was in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


PARTS = {one.__name__: one for one in (equality, faults, counts, elastic)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts: {', '.join(PARTS)}")
    parser.add_argument("--fault", help=f"some of: {', '.join(fault.name for fault in FAULTS)}")
    parser.add_argument("--jobs", type=int, default=2, help="faults tried at a time (2)")
    parser.add_argument("--steps", type=int, default=14, help="of each run (14)")
    arguments = parser.parse_args()
    missing = hosts.available()
    if missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    parts = arguments.only.split(",")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hosts-") as folder:
        bench = Bench(Path(folder), arguments)
        for part in parts:
            PARTS[part](bench)
    print(f"{time.monotonic() - began:.0f} s in all")
    for failure in bench.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
