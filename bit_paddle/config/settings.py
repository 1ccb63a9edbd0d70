"""The settings of a run: a frozen dataclass, and what it is as a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any

import yaml

from bit_paddle.config.types import (
    fraction,
    interval,
    not_negative,
    one_of,
    positive,
    switch,
    text,
    whole,
)
from bit_paddle.models import losses
from bit_paddle.recipes import hyperrule, upstream
from bit_paddle.recipes.recipe import RECIPES, Recipe
from bit_paddle.system import environment, files

AUTO = "auto"


def _auto_or_whole(word: str) -> int | str:
    return AUTO if word == AUTO else whole(1)(word)


def _interval(word: str) -> str:
    interval(word)
    return word


def _setting(group: str, parse: Callable[[str], Any], help: str, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"group": group, "parse": parse, "help": help})


@dataclass(frozen=True)
class Settings:
    """What a run is asked to do. Names are those of the flags and of the YAML keys."""

    model: str = _setting(
        "what",
        text,
        "published name (BiT-M-R50x1), an .npz file, the folder of a complete run, or with "
        "--from_scratch R<layers>x<width> too",
    )
    dataset: str = _setting(
        "what",
        text,
        "folder or list (one's own images, with --datadir), cifar10, cifar100, imagenet2012, "
        "oxford_flowers102, oxford_iiit_pet, digits, vtab/<task>, or a .yaml file that describes "
        "a data set as those in configs/data do",
    )
    datadir: str | None = _setting(
        "what",
        text,
        "where the data is. folder: train/<class>/* and val/<class>/*, or <class>/* alone. "
        "list: train.csv and val.csv (or .tsv, .txt), a path and a label a line. Others: the "
        "official files (default for those that can be downloaded: the cache)",
        None,
    )
    val_fraction: float | None = _setting(
        "what",
        fraction,
        "share of each class to validate on, where a folder or list has no validation images "
        "(default: 0.1)",
        None,
    )
    on_bad_image: str = _setting(
        "what",
        one_of("error", "skip"),
        "error: images that cannot be read are named before training. skip: every image is "
        "decoded once, and those are left out",
        "error",
    )
    bit_pretrained_dir: str | None = _setting(
        "what",
        text,
        "folder of the published .npz files, which are downloaded if missing (default: the cache, "
        "$BIT_PADDLE_HOME or ~/.cache/bit_paddle)",
        None,
    )
    from_scratch: bool = _setting(
        "what", switch, "start from random weights instead of a checkpoint", False
    )
    examples_per_class: int | None = _setting(
        "what", whole(1), "few-shot: train on this many images of each class", None
    )
    examples_per_class_seed: int = _setting("what", whole(0), "which few-shot images", 0)

    rule: str = _setting(
        "how",
        one_of(*RECIPES),
        "BiT-HyperRule as the published code has it, which made the published numbers, or as the "
        "paper's text; or upstream training, which `bit_paddle.pretrain` is",
        "code",
    )
    batch: int = _setting(
        "how",
        whole(1),
        f"images an optimizer step; upstream: {upstream.BATCH}",
        hyperrule.BATCH,
    )
    batch_split: int | str = _setting(
        "how",
        _auto_or_whole,
        "micro-batches a batch is computed in; the "
        "result is the same, the memory is not. auto: as few as fit, by estimate on a CPU and by "
        "trying on a GPU, and more if memory runs out later",
        AUTO,
    )
    recompute: str = _setting(
        "how",
        one_of("off", "unit", "block"),
        "keep the inputs of residual units, or of the four blocks of these, alone, and compute the "
        "rest again for the gradients: more time for less memory, and the same result",
        "off",
    )
    amp: str = _setting(
        "how",
        one_of("auto", "off", "bf16", "fp16"),
        "half precision for what goes from layer to layer and what convolutions multiply; all else "
        "is float32, and fp16 scales the loss. auto: bf16 on GPUs from Ampere on, fp16 on Volta "
        "and Turing, else off. On a CPU with bfloat16 (AMX, AVX-512), bf16 is faster, and not auto",
        "auto",
    )
    base_lr: float = _setting(
        "how",
        positive,
        "learning rate after the warm-up; upstream: 0.03 for every 256 images of a batch",
        hyperrule.BASE_LR,
    )
    weight_decay: float = _setting(
        "how",
        not_negative,
        f"of kernels, added to their gradients; upstream: {upstream.WEIGHT_DECAY:g}",
        0.0,
    )
    loss: str = _setting(
        "how",
        one_of(*losses.LOSSES),
        "; ".join(f"{name}: {loss.about}" for name, loss in losses.LOSSES.items()),
        losses.DEFAULT,
    )
    epochs: int | None = _setting(
        "how",
        whole(1),
        "upstream: length of the run, in passes over the training images (default: "
        f"{upstream.EPOCHS})",
        None,
    )
    warmup: int | None = _setting(
        "how", whole(0), "steps of linear warm-up from 0 (default: the rule's)", None
    )
    steps: int | None = _setting(
        "how",
        whole(1),
        "length of the run; the rule's schedule is scaled to "
        "it in its own proportions (default: the rule's)",
        None,
    )
    precrop: int | None = _setting(
        "how",
        whole(1),
        "side that training images are resized to, with --crop; upstream: to which the shorter "
        "side of validation images is (default: the rule's)",
        None,
    )
    crop: int | None = _setting(
        "how",
        whole(32),
        "side of the random crop, and of validation images (default: the rule's)",
        None,
    )
    flip: bool | None = _setting(
        "how",
        switch,
        "do not mirror training images: a mirrored one has another label (default: as the data "
        "set's file says, else half of them are)",
        None,
    )
    random_crop: bool | None = _setting(
        "how",
        switch,
        "resize straight to --crop: a part of an image has another label (default: likewise)",
        None,
    )
    seed: int = _setting(
        "how",
        whole(0),
        "of the data's order, crops, flips and MixUp, and of random weights",
        0,
    )

    name: str | None = _setting(
        "run",
        text,
        "name of the run's folder (default: made of model and dataset, numbered where it exists)",
        None,
    )
    logdir: str = _setting("run", text, "folder of the runs' folders", "bit_logs")
    repeats: int = _setting(
        "run",
        whole(1),
        "runs, with --seed and --examples_per_class_seed counting up; reports the lowest, the "
        "median and the highest accuracy, as the paper's tables do",
        1,
    )
    eval_every: int | None = _setting(
        "run", whole(1), "validate every so many steps; always at the end", None
    )
    save: bool = _setting("run", switch, "save neither checkpoints nor the model at the end", True)
    save_every: str = _setting(
        "run",
        _interval,
        "a checkpoint every so many steps (500) or minutes (10m), written while training goes on; "
        "one that is due before the last is written waits for that",
        "10m",
    )
    keep: int = _setting("run", whole(1), "how many checkpoints to keep, beside the best", 2)
    resume: str | None = _setting(
        "run",
        text,
        "start from a checkpoint of another run, or the newest of its folder, with its momentum "
        "and step; a run's own checkpoint comes first",
        None,
    )
    skip_nonfinite: int = _setting(
        "run",
        whole(0),
        "leave out the update of a step whose loss or gradient is not finite, up to so many in a "
        "row, instead of ending the run",
        0,
    )
    workers: int = _setting(
        "run",
        whole(0),
        "threads that decode images; 0: none",
        min(8, environment.cpu_count()),
    )
    cache_gb: float | None = _setting(
        "run",
        not_negative,
        "gigabytes of memory for resized training images, which are kept if all fit (default: a "
        "quarter of the memory)",
        None,
    )
    device: str = _setting(
        "run",
        one_of("auto", "cpu", "gpu"),
        "cpu, gpu, or auto: the GPU if there is one",
        "auto",
    )
    devices: str | None = _setting(
        "run",
        text,
        "GPUs, such as 0,1: a process on each, which share every batch (default: all that are "
        "visible)",
        None,
    )
    nproc: int = _setting(
        "run",
        whole(1),
        "without a GPU: processes that share every batch on the processors",
        1,
    )
    shard: bool = _setting(
        "run",
        switch,
        "each process keeps the summed gradients and the momentum of its share of the weights "
        "alone (ZeRO 2): less memory, for momentum above all, and the same result",
        False,
    )
    profile: int = _setting(
        "run",
        whole(0),
        "write where the time of a step goes, over so many steps after the first three: a table, a "
        "picture, and a trace for chrome://tracing",
        0,
    )
    deterministic: bool = _setting(
        "run",
        switch,
        "on a GPU, only kernels that give the same bits each time; those of a CPU do",
        False,
    )

    @property
    def recipe(self) -> Recipe:
        """What --rule names."""
        return RECIPES[self.rule]


FIELDS: dict[str, Field] = {item.name: item for item in fields(Settings)}

GROUPS = {
    "what": "what to train on what",
    "how": "how: by the rule, unless told otherwise",
    "run": "the run",
}


def help_of(name: str) -> str:
    """Return the help of a setting, for another command that has it too."""
    return FIELDS[name].metadata["help"]


def load_yaml(path: str | os.PathLike, flag: str = "") -> dict[Any, Any]:
    """Return what a YAML file of settings, which ``flag`` names, holds, unchecked.

    Errors: `MissingFileError`, `ConfigError`.
    """
    return files.read_yaml(path, f"{flag} {path}".strip(), "model: BiT-M-R50x1")


def differences(before: Mapping[str, Any], now: Settings) -> list[str]:
    """Return what has changed of the settings that decide a run's result, a line each.

    A data set may have moved (its images are compared elsewhere), and how a batch is split changes
    rounding alone. What ``before`` does not have, an older version did not know.
    """
    return [
        f"{name}: {before[name]} -> {getattr(now, name)}"
        for name, item in FIELDS.items()
        if item.metadata["group"] != "run"
        and name not in ("datadir", "bit_pretrained_dir", "batch_split", "recompute")
        and name in before
        and before[name] != getattr(now, name)
    ]


def to_dict(settings: Settings) -> dict[str, Any]:
    """Return ``settings`` as plain values by name."""
    return asdict(settings)


def to_yaml(settings: Settings) -> str:
    """Return ``settings`` as the text of a --config file that gives them back."""
    return yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True)
