"""The settings of every run, whatever it learns: its files, checkpoints and hardware."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from bit_paddle.config.types import (
    file_path,
    interval_text,
    not_negative,
    one_of,
    setting,
    switch,
    text,
    whole,
)
from bit_paddle.system import environment

_run = functools.partial(setting, "run", affects_result=False)


@dataclass(frozen=True)
class RunSettings:
    """The files, checkpoints and hardware of a run. They do not decide its result."""

    name: str | None = _run(
        text,
        "name of the run's folder",
        None,
        default_help="model and data set, with a number if the folder exists",
    )
    logdir: str = _run(file_path, "folder in which every run gets its own folder", "bit_logs")
    repeats: int = _run(
        whole(1),
        "number of runs; each adds 1 to --seed and --examples_per_class_seed. The lowest, median "
        "and highest accuracy are reported, as in the paper's tables",
        1,
    )
    eval_every: int | None = _run(whole(1), "validation interval in steps; also at the end", None)
    save: bool = _run(switch, "no checkpoints, and no model at the end", True)
    save_every: str = _run(
        interval_text,
        "interval between checkpoints, in steps (500) or minutes (10m). Checkpoints are written "
        "while training continues, one at a time",
        "10m",
    )
    keep: int = _run(whole(1), "number of newest checkpoints to keep, in addition to the best", 2)
    resume: str | None = _run(
        file_path,
        "checkpoint of another run to resume from, with its momentum and step; for a folder, the "
        "newest checkpoint in it. The run's own checkpoint takes precedence",
        None,
    )
    skip_nonfinite: int = _run(
        whole(0),
        "number of steps in a row whose update may be skipped because the loss or a gradient is "
        "not finite, before the run ends with an error",
        0,
    )
    workers: int = _run(
        whole(0), "threads that decode images; 0: the main thread", min(8, environment.cpu_count())
    )
    cache_gb: float | None = _run(
        not_negative,
        "size of the in-memory cache of resized training images, in gigabytes; used only if all "
        "of them fit",
        None,
        default_help="a quarter of the memory",
    )
    device: str = _run(
        one_of("auto", "cpu", "gpu"), "device to run on; auto: a GPU if there is one", "auto"
    )
    devices: str | None = _run(
        text,
        "numbers of the GPUs, such as 0,1: one process per GPU, and all share every batch",
        None,
        default_help="all visible GPUs",
    )
    nproc: int = _run(
        whole(1), "number of processes that share every batch, on a machine without a GPU", 1
    )
    shard: bool = _run(
        switch,
        "sharding of optimizer state and gradients (ZeRO 2): each process stores the momentum and "
        "the summed gradients of its share of the weights only. Less memory, the same result",
        False,
    )
    profile: int = _run(
        whole(0),
        "number of steps to profile, after the first three. Writes the time per part of a step as "
        "a table, a picture, and a trace for chrome://tracing",
        0,
    )
    deterministic: bool = _run(
        switch,
        "deterministic GPU kernels only, which give the same bits in every run; CPU kernels "
        "always do",
        False,
    )
