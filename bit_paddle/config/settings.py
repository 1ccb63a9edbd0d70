"""The settings of a run: a frozen dataclass, and what it is as a file."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any

import yaml

from bit_paddle.config.types import (
    Kind,
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
    return word  # as given: a file shows it so


def _setting(
    group: str,
    kind: Kind,
    help: str,
    default: Any = MISSING,
    *,
    default_help: str = "",
    affects_result: bool = True,
) -> Any:
    """Return a setting. ``default_help`` describes a default that is no fixed value."""
    metadata = {
        "group": group,
        "kind": kind,
        "help": help,
        "default_help": default_help,
        "affects_result": affects_result,
    }
    return field(default=default, metadata=metadata)


_what = functools.partial(_setting, "what")
_how = functools.partial(_setting, "how")
_run = functools.partial(_setting, "run", affects_result=False)


@dataclass(frozen=True)
class Settings:
    """What a run is asked to do. Names are those of the flags and of the YAML keys."""

    model: str = _what(
        text,
        "published name (BiT-M-R50x1), an .npz file, the folder of a complete run, or with "
        "--from_scratch R<layers>x<width> too",
    )
    dataset: str = _what(
        text,
        "folder or list (one's own images, with --datadir), cifar10, cifar100, imagenet2012, "
        "oxford_flowers102, oxford_iiit_pet, digits, vtab/<task>, or a .yaml file that describes "
        "a data set as those in configs/data do",
    )
    datadir: str | None = _what(
        text,
        "where the data is. folder: train/<class>/* and val/<class>/*, or <class>/* alone. "
        "list: train.csv and val.csv (or .tsv, .txt), a path and a label a line. Others: the "
        "official files",
        None,
        default_help="the cache, for those that can be downloaded",
        affects_result=False,
    )
    val_fraction: float | None = _what(
        fraction,
        "share of each class to validate on, where a folder or list has no validation images",
        None,
        default_help="0.1",
    )
    on_bad_image: str = _what(
        one_of("error", "skip"),
        "error: images that cannot be read are named before training. skip: every image is "
        "decoded once, and those are left out",
        "error",
    )
    bit_pretrained_dir: str | None = _what(
        text,
        "folder of the published .npz files, which are downloaded if missing",
        None,
        default_help="the cache, $BIT_PADDLE_HOME or ~/.cache/bit_paddle",
        affects_result=False,
    )
    from_scratch: bool = _what(switch, "start from random weights instead of a checkpoint", False)
    examples_per_class: int | None = _what(
        whole(1), "few-shot: train on this many images of each class", None
    )
    examples_per_class_seed: int = _what(whole(0), "which few-shot images", 0)

    rule: str = _how(
        one_of(*RECIPES),
        "BiT-HyperRule as the published code has it, which made the published numbers, or as the "
        "paper's text; or upstream training, which `bit_paddle.pretrain` is",
        "code",
    )
    batch: int = _how(
        whole(1), f"images an optimizer step; upstream: {upstream.BATCH}", hyperrule.BATCH
    )
    batch_split: int | str = _how(
        Kind(_auto_or_whole, "N"),
        "micro-batches a batch is computed in; the "
        "result is the same, the memory is not. auto: as few as fit, by estimate on a CPU and by "
        "trying on a GPU, and more if memory runs out later",
        AUTO,
        affects_result=False,
    )
    recompute: str = _how(
        one_of("off", "unit", "block"),
        "keep the inputs of residual units, or of the four blocks of these, alone, and compute the "
        "rest again for the gradients: more time for less memory, and the same result",
        "off",
        affects_result=False,
    )
    amp: str = _how(
        one_of("auto", "off", "bf16", "fp16"),
        "half precision for what goes from layer to layer and what convolutions multiply; all else "
        "is float32, and fp16 scales the loss. auto: bf16 on GPUs from Ampere on, fp16 on Volta "
        "and Turing, else off. On a CPU with bfloat16 (AMX, AVX-512), bf16 is faster, and not auto",
        "auto",
    )
    base_lr: float = _how(
        positive,
        "learning rate after the warm-up; upstream: 0.03 for every 256 images of a batch",
        hyperrule.BASE_LR,
    )
    weight_decay: float = _how(
        not_negative,
        f"of kernels, added to their gradients; upstream: {upstream.WEIGHT_DECAY:g}",
        0.0,
    )
    loss: str = _how(
        one_of(*losses.LOSSES),
        "; ".join(f"{name}: {loss.about}" for name, loss in losses.LOSSES.items()),
        losses.DEFAULT,
    )
    epochs: int | None = _how(
        whole(1),
        "upstream: length of the run, in passes over the training images",
        None,
        default_help=f"{upstream.EPOCHS}",
    )
    warmup: int | None = _how(
        whole(0), "steps of linear warm-up from 0", None, default_help="the rule's"
    )
    steps: int | None = _how(
        whole(1),
        "length of the run; the rule's schedule is scaled to it in its own proportions",
        None,
        default_help="the rule's",
    )
    precrop: int | None = _how(
        whole(1),
        "side that training images are resized to, with --crop; upstream: to which the shorter "
        "side of validation images is",
        None,
        default_help="the rule's",
    )
    crop: int | None = _how(
        whole(32),
        "side of the random crop, and of validation images",
        None,
        default_help="the rule's",
    )
    flip: bool | None = _how(
        switch,
        "do not mirror training images: a mirrored one has another label",
        None,
        default_help="as the data set's file says, else half of them are",
    )
    random_crop: bool | None = _how(
        switch,
        "resize straight to --crop: a part of an image has another label",
        None,
        default_help="likewise",
    )
    seed: int = _how(
        whole(0), "of the data's order, crops, flips and MixUp, and of random weights", 0
    )

    name: str | None = _run(
        text,
        "name of the run's folder",
        None,
        default_help="made of model and dataset, numbered where it exists",
    )
    logdir: str = _run(text, "folder of the runs' folders", "bit_logs")
    repeats: int = _run(
        whole(1),
        "runs, with --seed and --examples_per_class_seed counting up; reports the lowest, the "
        "median and the highest accuracy, as the paper's tables do",
        1,
    )
    eval_every: int | None = _run(whole(1), "validate every so many steps; always at the end", None)
    save: bool = _run(switch, "save neither checkpoints nor the model at the end", True)
    save_every: str = _run(
        Kind(_interval, "N"),
        "a checkpoint every so many steps (500) or minutes (10m), written while training goes on; "
        "one that is due before the last is written waits for that",
        "10m",
    )
    keep: int = _run(whole(1), "how many checkpoints to keep, beside the best", 2)
    resume: str | None = _run(
        text,
        "start from a checkpoint of another run, or the newest of its folder, with its momentum "
        "and step; a run's own checkpoint comes first",
        None,
    )
    skip_nonfinite: int = _run(
        whole(0),
        "leave out the update of a step whose loss or gradient is not finite, up to so many in a "
        "row, instead of ending the run",
        0,
    )
    workers: int = _run(
        whole(0), "threads that decode images; 0: none", min(8, environment.cpu_count())
    )
    cache_gb: float | None = _run(
        not_negative,
        "gigabytes of memory for resized training images, which are kept if all fit",
        None,
        default_help="a quarter of the memory",
    )
    device: str = _run(
        one_of("auto", "cpu", "gpu"), "cpu, gpu, or auto: the GPU if there is one", "auto"
    )
    devices: str | None = _run(
        text,
        "GPUs, such as 0,1: a process on each, which share every batch",
        None,
        default_help="all that are visible",
    )
    nproc: int = _run(
        whole(1), "without a GPU: processes that share every batch on the processors", 1
    )
    shard: bool = _run(
        switch,
        "each process keeps the summed gradients and the momentum of its share of the weights "
        "alone (ZeRO 2): less memory, for momentum above all, and the same result",
        False,
    )
    profile: int = _run(
        whole(0),
        "write where the time of a step goes, over so many steps after the first three: a table, a "
        "picture, and a trace for chrome://tracing",
        0,
    )
    deterministic: bool = _run(
        switch, "on a GPU, only kernels that give the same bits each time; those of a CPU do", False
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
    metadata = FIELDS[name].metadata
    default = metadata["default_help"]
    return f"{metadata['help']} (default: {default})" if default else metadata["help"]


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
        if item.metadata["affects_result"] and name in before and before[name] != getattr(now, name)
    ]


def to_dict(settings: Settings) -> dict[str, Any]:
    """Return ``settings`` as plain values by name."""
    return asdict(settings)


def to_yaml(settings: Settings) -> str:
    """Return ``settings`` as the text of a --config file that gives them back."""
    return yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True)
