"""The settings of a run: a frozen dataclass, from a YAML file and flags; all faults at once."""

from __future__ import annotations

import argparse
import math
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml

from bit_paddle import catalog, environment, files, hyperrule, upstream
from bit_paddle.errors import BitPaddleError, ConfigError, did_you_mean

AUTO = "auto"


class BadValue(ValueError, argparse.ArgumentTypeError):
    """A word that a setting cannot have; argparse shows its text too."""


def _text(word: str) -> str:
    if not word:
        raise BadValue("is empty")
    return word


def _switch(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise BadValue(f"is {word!r}, expected true or false")
    return word.lower() == "true"


def whole(least: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from ``least`` on, whose `ValueError` says what is wrong."""

    def parse(word: str) -> int:
        try:
            value = int(word)
        except ValueError:
            raise BadValue(f"is {word!r}, expected a whole number") from None
        if value < least:
            raise BadValue(f"is {value}, expected at least {least}")
        return value

    return parse


def _number(fits: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    """Return a parser of numbers that fit, whose `BadValue` says what is ``expected``."""

    def parse(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            raise BadValue(f"is {word!r}, expected a number") from None
        if not fits(value):
            raise BadValue(f"is {word}, expected {expected}")
        return value

    return parse


positive = _number(lambda value: 0 < value < math.inf, "a positive number")
_not_negative = _number(lambda value: 0 <= value < math.inf, "0 or more")
fraction = _number(lambda value: 0 < value < 1, "a number between 0 and 1")


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(word: str) -> str:
        if word not in choices:
            raise BadValue(f"is {word!r}: {did_you_mean(word, choices)}")
        return word

    parse.choices = choices
    return parse


def _auto_or_whole(word: str) -> int | str:
    return AUTO if word == AUTO else whole(1)(word)


def _interval(word: str) -> str:
    interval(word)
    return word


def interval(word: str) -> tuple[float, float]:
    """Return what a word such as 500 or 10m says: (steps, seconds), one of them infinite.

    Raises `BadValue`.
    """
    try:
        if word.endswith("m"):
            return math.inf, 60 * positive(word[:-1])
        return whole(1)(word), math.inf
    except BadValue:
        raise BadValue(f"is {word!r}, expected steps such as 500, or minutes such as 10m") from None


def _setting(group: str, parse: Callable[[str], Any], help: str, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"group": group, "parse": parse, "help": help})


@dataclass(frozen=True)
class Settings:
    """What a run is asked to do. Names are those of the flags and of the YAML keys."""

    model: str = _setting(
        "what",
        _text,
        "published name (BiT-M-R50x1), an .npz file, or with --from_scratch R<layers>x<width> too",
    )
    dataset: str = _setting(
        "what",
        _text,
        "folder or list (one's own images, with --datadir), cifar10, cifar100, imagenet2012, "
        "oxford_flowers102, oxford_iiit_pet, digits, vtab/<task>, or a .yaml file that describes "
        "a data set as those in configs/data do",
    )
    datadir: str | None = _setting(
        "what",
        _text,
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
        _one_of("error", "skip"),
        "error: images that cannot be read are named before training. skip: every image is "
        "decoded once, and those are left out",
        "error",
    )
    bit_pretrained_dir: str | None = _setting(
        "what",
        _text,
        "folder of the published .npz files, which are downloaded if missing (default: the cache, "
        "$BIT_PADDLE_HOME or ~/.cache/bit_paddle)",
        None,
    )
    from_scratch: bool = _setting(
        "what", _switch, "start from random weights instead of a checkpoint", False
    )
    examples_per_class: int | None = _setting(
        "what", whole(1), "few-shot: train on this many images of each class", None
    )
    examples_per_class_seed: int = _setting("what", whole(0), "which few-shot images", 0)

    rule: str = _setting(
        "how",
        _one_of(*hyperrule.RULES, upstream.RULE),
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
        _one_of("off", "unit", "block"),
        "keep the inputs of residual units, or of the four blocks of these, alone, and compute the "
        "rest again for the gradients: more time for less memory, and the same result",
        "off",
    )
    amp: str = _setting(
        "how",
        _one_of("auto", "off", "bf16", "fp16"),
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
        _not_negative,
        f"of kernels, added to their gradients; upstream: {upstream.WEIGHT_DECAY:g}",
        0.0,
    )
    loss: str = _setting(
        "how",
        _one_of("softmax", "sigmoid"),
        "cross-entropy over the classes; or over yes and no of each class by itself, as for "
        f"ImageNet-21k, with a new head's bias at {upstream.HEAD_BIAS:g}",
        "softmax",
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
        _switch,
        "do not mirror training images: a mirrored one has another label (default: as the data "
        "set's file says, else half of them are)",
        None,
    )
    random_crop: bool | None = _setting(
        "how",
        _switch,
        "resize straight to --crop: a part of an image has another label (default: likewise)",
        None,
    )
    seed: int = _setting(
        "how", whole(0), "of the data's order, crops, flips and MixUp, and of random weights", 0
    )

    name: str | None = _setting(
        "run",
        _text,
        "name of the run's folder (default: made of model and dataset, numbered where it exists)",
        None,
    )
    logdir: str = _setting("run", _text, "folder of the runs' folders", "bit_logs")
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
    save: bool = _setting("run", _switch, "save neither checkpoints nor the model at the end", True)
    save_every: str = _setting(
        "run",
        _interval,
        "a checkpoint every so many steps (500) or minutes (10m), written while training goes on",
        "10m",
    )
    keep: int = _setting("run", whole(1), "how many checkpoints to keep, beside the best", 2)
    resume: str | None = _setting(
        "run",
        _text,
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
        "run", whole(0), "threads that decode images; 0: none", min(8, environment.cpu_count())
    )
    cache_gb: float | None = _setting(
        "run",
        _not_negative,
        "gigabytes of memory for resized training images, which are kept if all fit (default: a "
        "quarter of the memory)",
        None,
    )
    device: str = _setting(
        "run", _one_of("auto", "cpu", "gpu"), "cpu, gpu, or auto: the GPU if there is one", "auto"
    )
    devices: str | None = _setting(
        "run",
        _text,
        "GPUs, such as 0,1: a process on each, which share every batch (default: all that are "
        "visible)",
        None,
    )
    nproc: int = _setting(
        "run", whole(1), "without a GPU: processes that share every batch on the processors", 1
    )
    shard: bool = _setting(
        "run",
        _switch,
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
        _switch,
        "on a GPU, only kernels that give the same bits each time; those of a CPU do",
        False,
    )


_FIELDS: dict[str, Field] = {item.name: item for item in fields(Settings)}
_GROUPS = {
    "what": "what to train on what",
    "how": "how: by the rule, unless told otherwise",
    "run": "the run",
}
_EPILOG = """\
examples:
  python -m bit_paddle.train --model BiT-M-R50x1 --dataset cifar10
      fine-tunes by BiT-HyperRule: --model and --dataset are all it needs
  python -m bit_paddle.train --model BiT-M-R50x1 --dataset folder --datadir pets --dry-run
      shows the plan for pets/train/<class>/*.jpg and pets/val/<class>/*.jpg, and stops
  python -m bit_paddle.train --model BiT-M-R50x1 --dataset folder --datadir pets --repeats 5
      five runs, and the lowest, median and highest accuracy of them
  python -m bit_paddle.train --config configs/cifar10_R50x1.yaml --examples_per_class 5
      a published recipe, few-shot; flags win over the file
  python -m bit_paddle.train --model BiT-Mini --dataset digits --steps 100 --batch 64 --base_lr 0.1
      a small checkpoint that is in the package, on scikit-learn's digits: needs no download

The run writes bit_logs/<name>/: train.log, metrics.jsonl, VisualDL scalars, config.yaml,
checkpoints/, model.npz and result.json. However it was stopped, the same command goes on from its
newest checkpoint, and ends with the same weights as if it had not been stopped. SIGINT (Ctrl-C),
SIGTERM and the notice of pre-emption SIGUSR1 end it after the current micro-batch, with a
checkpoint; a second Ctrl-C ends it at once.
"""


@dataclass(frozen=True)
class Request:
    """What a command line asks for, beside the settings."""

    dry_run: bool = False
    force: bool = False


def help_of(name: str) -> str:
    """Return the help of a setting, for another command that has it too."""
    return _FIELDS[name].metadata["help"]


class Parser(argparse.ArgumentParser):
    """Raises `ConfigError` instead of leaving."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {self.prog} --help lists the flags")


def parser(
    prog: str,
    description: str = "Fine-tune a Big Transfer (BiT) model on images, by BiT-HyperRule.",
    epilog: str = _EPILOG,
) -> argparse.ArgumentParser:
    """Return the command's parser; its values are words, which `settings` checks all at once."""
    result = Parser(
        prog=prog,
        allow_abbrev=False,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=description,
    )
    groups = {key: result.add_argument_group(title) for key, title in _GROUPS.items()}
    groups["what"].add_argument(
        "--config",
        metavar="FILE.yaml",
        help="settings from a file, such as the config.yaml of an earlier run; flags win",
    )
    for name, item in _FIELDS.items():
        text, parse = item.metadata["help"], item.metadata["parse"]
        if item.default is MISSING:
            text += " (required)"
        elif item.default is not None and parse is not _switch:
            text += f" (default: {item.default})"
        if parse is _switch:
            group, opposite = groups[item.metadata["group"]], "the opposite, where a file has it"
            for flag, value in ((f"--{name}", "true"), (f"--no-{name}", "false")):
                usual = (value == "true") != (item.default is not False)
                aliases = ["--no-crop"] if flag == "--no-random_crop" else []
                group.add_argument(
                    *aliases,
                    flag,
                    dest=name,
                    action="store_const",
                    const=value,
                    help=text if usual else opposite,
                )
        else:
            numbers = (positive, _not_negative, fraction)
            usual = "WORD" if parse is _text else "X" if parse in numbers else "N"
            groups[item.metadata["group"]].add_argument(
                f"--{name}", help=text, metavar="|".join(getattr(parse, "choices", [usual]))
            )
    groups["run"].add_argument(
        "--dry-run", action="store_true", help="print the whole plan and stop"
    )
    groups["run"].add_argument(
        "--force",
        action="store_true",
        help="go on from a checkpoint although settings or data have changed",
    )
    groups["run"].add_argument(
        "--traceback", action="store_true", help="show where an error came from"
    )
    return result


def outer_parser(prog: str, usage: str, description: str, epilog: str) -> Parser:
    """Return the parser of a command ``prog`` that takes all flags of training too.

    It knows its own alone, which are to be added; ``{flags}`` in ``epilog`` becomes the others.
    """
    flags = textwrap.fill(
        " ".join(f"--{name}" for name in ("config", *_FIELDS)), 96, break_on_hyphens=False
    )
    return Parser(
        prog=prog,
        usage=usage,
        description=description,
        epilog=epilog.format(flags=textwrap.indent(flags, "  ")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse(
    arguments: Sequence[str], prog: str, find_dataset: Callable[..., object]
) -> tuple[Settings, Request]:
    """Return the settings that ``arguments`` and their --config ask for, and the rest of them.

    ``find_dataset(dataset, datadir=, val_fraction=)`` raises what is wrong with these
    (`readers.find`). Raises one `ConfigError` or `MissingFileError` that lists every fault.
    """
    command = parser(prog)
    known, unknown = command.parse_known_args(list(arguments))
    flags = {option for action in command._actions for option in action.option_strings}
    faults = [
        f"{word}: no such flag; {did_you_mean(word.split('=')[0], flags)}"
        if word.startswith("-")
        else f"{word!r}: does not belong to a flag"
        for word in unknown
    ]
    given: dict[str, tuple[str, str]] = {}  # name -> (where from, word)
    if known.config is not None:
        given.update(_read_yaml(known.config, faults))
    given.update(
        {
            name: (f"--{name}", getattr(known, name))
            for name in _FIELDS
            if getattr(known, name) is not None
        }
    )
    values: dict[str, Any] = {}
    for name, (source, word) in given.items():
        try:
            item = _FIELDS[name]
            unset = item.default is None and word.lower() == "none"  # a file's value taken back
            values[name] = None if unset else item.metadata["parse"](word)
        except ValueError as fault:
            faults.append(f"{source}: {fault}")
    if values.get("rule") == upstream.RULE:
        values = {**_upstream(values), **values}
    faults += [
        f"--{name}: is required"
        for name, item in _FIELDS.items()
        if item.default is MISSING and name not in given
    ]
    faults += _combined_faults(
        {**{name: item.default for name, item in _FIELDS.items()}, **values}, find_dataset
    )
    if faults:
        raise ConfigError(
            "; ".join(faults)
            if len(faults) == 1
            else f"{len(faults)} faults\n  " + "\n  ".join(faults)
        )
    return Settings(**values), Request(known.dry_run, known.force)


def _upstream(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of upstream training, of which the settings ``values`` are given."""
    batch = values.get("batch", upstream.BATCH)
    found = {
        "batch": batch,
        "base_lr": upstream.base_lr(batch),
        "weight_decay": upstream.WEIGHT_DECAY,
    }
    return found if values.get("steps") else {**found, "epochs": upstream.EPOCHS}


def _combined_faults(values: dict[str, Any], find_dataset: Callable[..., object]) -> list[str]:
    """Return the faults of settings that are well-formed each by itself; unset ones are MISSING."""
    faults = []
    dataset, model = values["dataset"], values["model"]
    if dataset is not MISSING:
        try:
            find_dataset(dataset, datadir=values["datadir"], val_fraction=values["val_fraction"])
        except BitPaddleError as fault:
            faults.append(str(fault))
    if model is not MISSING:
        try:
            found = catalog.resolve(model, pretrained=not values["from_scratch"])
            if values["from_scratch"] and isinstance(found, Path):
                faults.append(
                    f"--model: {model} is a checkpoint file, which --from_scratch would not "
                    "read; give an architecture such as R50x1"
                )
        except BitPaddleError as fault:
            faults.append(f"--model: {fault}")
    batch, split = values["batch"], values["batch_split"]
    if split != AUTO and batch % split:
        below = next(n for n in range(min(split, batch), 0, -1) if batch % n == 0)
        above = [n for n in range(split, min(batch, 2 * split) + 1) if batch % n == 0][:1]
        near = [below, *above]
        faults.append(
            f"--batch_split: is {split}, which does not divide --batch {batch}; "
            f"{' or '.join(map(str, sorted(near)))} would"
        )
    if values["epochs"] is not None and values["rule"] != upstream.RULE:
        faults.append("--epochs: is for --rule upstream; fine-tuning goes by --steps")
    elif values["epochs"] is not None and values["steps"] is not None:
        faults.append("--epochs and --steps: both say how long the run is; take one")
    precrop, crop = values["precrop"], values["crop"]
    if (precrop is None) != (crop is None):
        faults.append(
            "--precrop and --crop: only one is given; they replace the rule's pair together"
        )
    elif crop is not None and precrop < crop:
        faults.append(
            f"--precrop: is {precrop}, smaller than --crop {crop}, which is cut out of it"
        )
    if values["datadir"] is not None and not Path(values["datadir"]).exists():
        faults.append(f"--datadir: {values['datadir']}: no such folder")
    if values["devices"] is not None and values["device"] == "cpu":
        faults.append(f"--devices: is {values['devices']}, but --device is cpu")
    name = values["name"]
    if name is not None and (Path(name).name != name or name in (".", "..")):
        faults.append(f"--name: is {name!r}, expected a folder's name, without {os.sep}")
    return faults


def load_yaml(path: str | os.PathLike, flag: str = "") -> dict[Any, Any]:
    """Return what a YAML file of settings, which ``flag`` names, holds, unchecked.

    Errors: `MissingFileError`, `ConfigError`.
    """
    return files.read_yaml(path, f"{flag} {path}".strip(), "model: BiT-M-R50x1")


def _read_yaml(path: str, faults: list[str]) -> dict[str, tuple[str, str]]:
    """Return {setting: (where from, word)} of a YAML file; add its mistakes to ``faults``."""
    result = {}
    for key, value in load_yaml(path, "--config").items():
        if key not in _FIELDS:
            faults.append(f"{path}: {key!r} is no setting; {did_you_mean(str(key), _FIELDS)}")
        elif isinstance(value, (dict, list)):
            faults.append(f"{path}: {key} is {value!r}, expected one value")
        elif value is not None:
            result[key] = (f"{path}: {key}", str(value))
    return result


def differences(before: Mapping[str, Any], now: Settings) -> list[str]:
    """Return what has changed of the settings that decide a run's result, a line each.

    A data set may have moved (its images are compared elsewhere), and how a batch is split changes
    rounding alone. What ``before`` does not have, an older version did not know.
    """
    return [
        f"{name}: {before[name]} -> {getattr(now, name)}"
        for name, item in _FIELDS.items()
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
