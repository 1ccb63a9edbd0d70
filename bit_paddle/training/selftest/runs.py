"""Short runs of `bit_paddle.train` that the checks of the selftest compare."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bit_paddle.models import published
from bit_paddle.system import processes

STEPS = 8  # of a run; a run that resumes makes the second half
TIMEOUT = 300  # seconds of a run, at most

_LIMIT = "FLAGS_gpu_memory_limit_mb"  # a flag of Paddle, made for its tests
_COLORS = ("amber", "blue", "coral")


class CheckFailed(Exception):
    """A check has found a difference, or a run has failed; the text says which."""


class NotRun(Exception):
    """A check cannot run on this machine; the text says why."""


@dataclass(frozen=True)
class Run:
    """What a run has written."""

    folder: Path
    losses: Sequence[float]
    speed: float  # images per second, median of the second half of the steps
    memory: str  # of the GPU, the peak; "" on a CPU
    log: str

    def weights(self) -> dict[str, np.ndarray]:
        """Return the arrays of its model."""
        with np.load(self.folder / published.MODEL, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if file[key].dtype.kind == "f"}


class Runs:
    """Makes runs in ``folder`` on this machine, each once, on generated images.

    On ``gpus`` they train R50x1 on batches of 128 images of 224 pixels; without a GPU a small
    network on a few small images.
    """

    def __init__(self, folder: Path, gpus: Sequence[int] = ()):
        self.folder, self.gpus, self._made = folder, list(gpus), {}

    @property
    def deterministic(self) -> list[str]:
        """The words for runs that are compared bit by bit."""
        return ["--deterministic"] if self.gpus else []

    @property
    def all(self) -> list[str]:
        """The words for a run of all GPUs, or of two processes."""
        if len(self.gpus) == 1:
            raise NotRun("this machine has one GPU; the check needs two")
        return [] if self.gpus else ["--nproc", "2"]

    def train(self, *words: str, one: bool = True, limit_mb: int = 0, name: str = "") -> Run:
        """Return a run with ``words``, of ``one`` process, and with a limit of GPU memory.

        A run with the same arguments is not made again. Raises `CheckFailed`.
        """
        key = (words, one, limit_mb)
        if key not in self._made:
            self._made[key] = self._train(list(words), one, limit_mb, name)
        return self._made[key]

    def _train(self, words: list[str], one: bool, limit_mb: int, name: str) -> Run:
        name = name or f"run-{len(self._made) + 1}"
        sizes = ("R50x1", 128, 224) if self.gpus else ("R14x0.5", 8, 32)
        command = [sys.executable, "-W", "ignore", "-m", "bit_paddle.train", "--from_scratch"]
        for flag, value in zip(("model", "batch", "crop", "precrop"), (*sizes, sizes[-1])):
            command += [f"--{flag}", str(value)]
        command += ["--dataset", "folder", "--datadir", str(self._images()), "--name", name]
        command += ["--steps", str(STEPS), "--logdir", str(self.folder), "--workers", "2"]
        command += ["--devices", str(self.gpus[0])] if self.gpus and one else []
        limit = {_LIMIT: str(limit_mb)} if limit_mb else {}
        environment = {**processes.child_environment(1), **limit}
        try:
            done = subprocess.run(
                [*command, *words],
                env=environment,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise CheckFailed(f"train {' '.join(words)}: not ended after {TIMEOUT} s") from None
        if done.returncode:
            fault = done.stderr.strip()[-400:]
            raise CheckFailed(f"train {' '.join(words)}: status {done.returncode}: {fault}")
        return read(self.folder / name)

    def _images(self) -> Path:
        """Return a folder of images of three colours, which it writes first."""
        folder, random = self.folder / "images", np.random.default_rng(0)
        if not folder.exists():
            for part, count in (("train", 8), ("val", 2)):
                for label, color in enumerate(_COLORS):
                    (folder / part / color).mkdir(parents=True)
                    for number in range(count):
                        pixels = random.integers(0, 120, (48, 48, 3)).astype(np.uint8)
                        pixels[..., label] += 120
                        Image.fromarray(pixels).save(folder / part / color / f"{number}.png")
        return folder


def read(folder: Path) -> Run:
    """Return the run in ``folder``."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if line["kind"] == "train"]
    log = (folder / "train.log").read_text(encoding="utf-8")
    memory = re.search(r"GPU memory held, at most: ([\d.]+ GiB)", log)
    speeds = [line["images_per_second"] for line in steps[len(steps) // 2 :]]
    return Run(
        folder,
        [line["loss"] for line in steps],
        statistics.median(speeds),
        memory[1] if memory else "",
        log,
    )
