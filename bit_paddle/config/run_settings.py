"""The settings of every run, whatever it learns: its files, checkpoints and hardware."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar

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
from bit_paddle.recipes.hyperrule import Schedule
from bit_paddle.system import environment

_run = functools.partial(setting, "run", affects_result=False)


class CommonSettings(ABC):
    """What the settings of every task have; the loop reads no others.

    The fields of a task have these names, and each its own help and default.
    """

    task: ClassVar[str]  # the name of the task; `saved` writes and reads it
    prog: ClassVar[str]  # the command that trains
    size: ClassVar[str]  # the field that sets how large the network sees an image
    groups: ClassVar[dict[str, str]]  # of the help: {group of fields: title}
    seeds: ClassVar[tuple[str, ...]] = ("seed",)  # the fields to which --repeats adds 1

    model: str
    from_scratch: bool
    bit_pretrained_dir: str | None
    learn: str
    batch: int
    batch_split: int | str
    recompute: str
    amp: str
    base_lr: float
    weight_decay: float
    epochs: int | None
    warmup: int | None
    steps: int | None
    seed: int

    @classmethod
    def recipe_defaults(cls, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recipe's defaults that depend on the ``chosen`` settings."""
        return {}

    @abstractmethod
    def recipe_schedule(self, images: int) -> Schedule:
        """Return the recipe's schedule for ``images`` training images."""

    @property
    @abstractmethod
    def data_title(self) -> str:
        """The data in words."""

    @property
    def optimizer(self) -> str:
        """The recipe's optimizer, "sgd" or "adam"; see `training.optimizer`."""
        return "sgd"

    @property
    @abstractmethod
    def data_name(self) -> str:
        """The data and the kind of run, for the name of the run's folder."""


@dataclass(frozen=True)
class RunSettings(CommonSettings):
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
    check: str = _run(
        one_of("quick", "full"),
        "check of all image files before the first start on them, and later of those that have "
        "changed. quick: the start and the end of a JPEG, the checksums of a PNG, and all of "
        "other formats. full: decode every image, which also finds damage in the middle of a JPEG; "
        "it takes about as long as one pass over the images without training",
        "quick",
    )
    workers: int = _run(
        whole(0), "threads that decode images; 0: the main thread", min(8, environment.cpu_count())
    )
    cache_gb: float | None = _run(
        not_negative,
        "size of the in-memory cache of resized training images of each process, in gigabytes; "
        "used only if all of them fit",
        None,
        default_help="a quarter of the memory, shared among the processes",
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
    reduce_dtype: str = _run(
        one_of("float32", "bf16"),
        "data type in which the processes sum their gradients. bf16: half the traffic between "
        "them; each gradient and each sum of two is rounded. One process sums nothing",
        "float32",
        affects_result=True,
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

    @property
    def runs(self) -> int:
        """The number of runs in the folder."""
        return self.repeats


def fields_of(kind: type[RunSettings]) -> dict[str, Field]:
    """Return the settings of a task by name, in the order of the help."""
    return {item.name: item for item in fields(kind)}


def help_of(item: Field) -> str:
    """Return the help of a setting with its ``default_help``."""
    default = item.metadata["default_help"]
    return f"{item.metadata['help']} (default: {default})" if default else item.metadata["help"]
