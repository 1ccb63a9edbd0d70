"""The processes of one run: they start, are watched and end together. Does not load Paddle.

Each process learns its rank from Paddle's own environment variables, so that one started by
``python -m paddle.distributed.launch`` knows it too.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import itertools
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bit_paddle.errors import ConfigError, PeerError
from bit_paddle.system import environment
from bit_paddle.system.signals import Interrupt

GRACE = 20.0  # seconds for the other processes to end after one has failed, or a save has ended

_NVIDIA = Path("/proc/driver/nvidia/gpus")  # of the driver: a folder per card

_PARENT = "BIT_PADDLE_PARENT"  # id of the process that started this one

_SAVE = "BIT_PADDLE_SAVE"  # path of a file that is there while rank 0 saves

_saves = 0  # of this process, in progress

_PR_SET_PDEATHSIG = 1  # prctl(2)


def rank() -> int:
    """Return the rank of this process, from 0."""
    return int(os.environ.get("PADDLE_TRAINER_ID") or 0)


def world_size() -> int:
    """Return the number of processes of the run, on all machines."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM") or 1)


def endpoints() -> list[str]:
    """Return an ``address:port`` for each rank of the run, by Paddle's launcher or `launch`."""
    return os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")


def started_by_us() -> bool:
    """Return whether `launch` has started this process."""
    return _PARENT in os.environ


def end_with_parent(group: bool = False) -> None:
    """Make this process end together with the process that started it, even after SIGKILL.

    The kernel does this: a thread of ours might be blocked while Paddle waits for another process.
    With ``group``, this process ends its process group, which it leads, with all that it started.
    """
    if not started_by_us():
        return
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux
    if group:
        signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM if group else signal.SIGKILL)
    if os.getppid() != int(os.environ[_PARENT]):  # the parent has already ended
        os._exit(1)


@contextmanager
def saving() -> Iterator[None]:
    """Inside, those that wait for this process give it the time that it needs."""
    global _saves
    path = os.environ.get(_SAVE)
    with suppress(OSError):  # that process has ended, and nobody waits
        if path is not None:
            Path(path).touch()
    _saves += 1
    try:
        yield
    finally:
        _saves -= 1
        with suppress(OSError):
            if path is not None:
                os.unlink(path)


def is_saving() -> bool:
    """Return whether this process is inside of `saving`."""
    return _saves > 0


def has_gpu() -> bool:
    """Return whether this process was given a GPU."""
    return "FLAGS_selected_gpus" in os.environ


def gpus(devices: str | None = None) -> list[int]:
    """Return the GPUs that get a process each: all visible ones, or those of --devices.

    A GPU is its place in CUDA_VISIBLE_DEVICES (without it, among all GPUs), which is what Paddle's
    FLAGS_selected_gpus holds. Empty without a GPU build of Paddle. Raises `ConfigError`.
    """
    labels = visible_gpus()
    if devices is None:
        return list(range(len(labels)))
    wanted = [word.strip() for word in devices.split(",")]
    strangers = [word for word in wanted if word not in labels]
    if strangers or len(set(wanted)) < len(wanted):
        have = ", ".join(labels) or "none, or no paddlepaddle-gpu"
        raise ConfigError(
            f"--devices {devices}: expected numbers of GPUs, each once; there are {have}"
        )
    return [labels.index(word) for word in wanted]


def visible_gpus() -> list[str]:
    """Return the labels of the GPUs that Paddle will see, without loading it."""
    try:
        importlib.metadata.distribution("paddlepaddle-gpu")
    except importlib.metadata.PackageNotFoundError:
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        labels = [word.strip() for word in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
        return list(itertools.takewhile(lambda label: label not in ("", "-1"), labels))
    with suppress(OSError, subprocess.TimeoutExpired):  # nvidia-smi knows what a container may use
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=60)
        return [str(number) for number in range(listed.stdout.count(b"GPU "))]
    count = len(list(_NVIDIA.iterdir())) if _NVIDIA.is_dir() else 0
    return [str(number) for number in range(count)]


def launch(
    command: Sequence[str],
    count: int,
    gpus: Sequence[int] = (),
    stop: Interrupt | None = None,
) -> int:
    """Run ``command`` in ``count`` processes as one program; return its exit status.

    With ``count`` GPUs in ``gpus``, each process has one, and they communicate by NCCL; else by
    gloo. All processes receive the signals. Rank 0 writes to the terminal. If a process fails, the
    others have `GRACE` seconds to end, without the time of what rank 0 saves. The message of the
    first failure is printed. ``stop`` notes the signals that this process receives.
    """
    ports = _free_ports(count + 1)
    endpoints = [f"127.0.0.1:{port}" for port in ports]
    shared = {
        **child_environment(count),
        "PADDLE_TRAINERS_NUM": str(count),
        "PADDLE_LOCAL_SIZE": str(count),
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints[:count]),
        "PADDLE_MASTER": endpoints[count],
        "PADDLE_DISTRI_BACKEND": "nccl" if gpus else "gloo",
        "GLOG_minloglevel": "2",  # no line per connection
    }
    children: list[subprocess.Popen] = []
    messages: list[BinaryIO] = []
    with tempfile.TemporaryDirectory() as folder, stop or Interrupt() as stop:
        save = Path(folder, "save")
        shared[_SAVE] = str(save)
        try:
            for place in range(count):
                own = {
                    "PADDLE_TRAINER_ID": str(place),
                    "PADDLE_CURRENT_ENDPOINT": endpoints[place],
                    **({"FLAGS_selected_gpus": str(gpus[place])} if gpus else {}),
                }
                messages.append(tempfile.TemporaryFile())
                quiet = {"stdout": subprocess.DEVNULL, "stderr": messages[place]} if place else {}
                children.append(
                    subprocess.Popen(
                        command,
                        env={**shared, **own},
                        start_new_session=True,  # Ctrl-C in the terminal reaches this process only
                        **quiet,
                    )
                )
            return _watch(children, messages, stop, save)
        finally:
            for child in children:
                child.kill()
                child.wait()


def child_environment(count: int) -> dict[str, str]:
    """Return the environment for each of ``count`` children that end with this process.

    A child calls `end_with_parent` for that. It imports this very package.
    """
    return {**environment.share(count), _PARENT: str(os.getpid()), **_import_path()}


def _import_path() -> dict[str, str]:
    """Return the PYTHONPATH with which children import this very package, where it needs one."""
    parent = Path(__file__).parents[2]
    if parent.name in ("site-packages", "dist-packages"):
        return {}
    return {"PYTHONPATH": os.pathsep.join([str(parent), *filter(None, [os.getenv("PYTHONPATH")])])}


def _watch(
    children: Sequence[subprocess.Popen],
    messages: Sequence[BinaryIO],
    stop: Interrupt,
    save: Path,
) -> int:
    """Wait until all have ended, or until their time after a failure is over; return a status.

    ``save`` is the file of `saving`.
    """
    told, first, deadline = 0, None, math.inf
    while None in [child.poll() for child in children] and time.monotonic() < deadline:
        if stop.count > told:
            told = stop.count
            for child in children:
                child.send_signal(stop.signal)
        if not stop.signal:
            first = _failed(children, first)
        ending = first is not None or children[0].returncode is not None
        saves = children[0].returncode is None and save.exists()
        if ending and (saves or deadline == math.inf):
            deadline = time.monotonic() + GRACE
        time.sleep(0.05)
    first = _failed(children, first)
    if first is None:
        return 0
    status = children[first].returncode
    if not stop.signal and (status < 0 or first):  # else rank 0 has printed it
        ended = f"ended by signal {-status}" if status < 0 else f"status {status}"
        with suppress(ValueError):
            ended = f"ended by {signal.Signals(-status).name}"
        messages[first].seek(0)
        text = messages[first].read().decode(errors="replace").strip()
        print(
            f"{text}\nerror: process {first} of {len(children)} (rank {first}, pid "
            f"{children[first].pid}) has failed: {ended}; the run ends. The same command resumes "
            "from the last checkpoint".lstrip(),
            file=sys.stderr,
        )
    return 128 - status if status < 0 else status


def _failed(children: Sequence[subprocess.Popen], known: int | None) -> int | None:
    """Return the rank that failed first; a process that only lost another one comes last.

    ``known`` is the rank that an earlier call returned.
    """
    if known is not None and children[known].returncode != PeerError.exit_status:
        return known
    failed = [place for place, child in enumerate(children) if child.returncode]
    return min(
        failed,
        key=lambda place: (children[place].returncode == PeerError.exit_status, place),
        default=None,
    )


def _free_ports(count: int) -> list[int]:
    """Return ports of this machine that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
