"""The command line of training, and of commands that take its flags; reports all faults at once."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass
from functools import partial
from typing import Any, NoReturn, TypeVar

from bit_paddle.config import run_settings, saved, settings
from bit_paddle.config import types as argtypes
from bit_paddle.config.contradictions import contradictions, defaults_of_data
from bit_paddle.config.run_settings import RunSettings, fields_of
from bit_paddle.config.settings import Settings
from bit_paddle.errors import ConfigError, did_you_mean
from bit_paddle.system import environment, runtimes

_EPILOG = """\
examples:
  python -m bit_paddle.train --model BiT-M-R50x1 --dataset cifar10
      fine-tunes by BiT-HyperRule: only --model and --dataset are required
  python -m bit_paddle.train --model BiT-M-R50x1 --dataset folder --datadir pets --dry-run
      prints the plan for pets/train/<class>/*.jpg and pets/val/<class>/*.jpg, and stops
  python -m bit_paddle.train --model BiT-M-R50x1 --dataset folder --datadir pets --repeats 5
      trains five times, and reports the lowest, median and highest accuracy
  python -m bit_paddle.train --config configs/cifar10_R50x1.yaml --examples_per_class 5
      trains a published recipe with 5 images per class; flags override the file
  python -m bit_paddle.train --model BiT-Mini --dataset digits --steps 100 --batch 64 --base_lr 0.1
      trains a small checkpoint of this package on scikit-learn's digits, without a download

The run writes bit_logs/<name>/: train.log, metrics.jsonl, VisualDL scalars, config.yaml,
checkpoints/, model.npz and result.json. If the run was stopped, the same command resumes it from
its newest checkpoint; the final weights are the same as without the stop. SIGINT (Ctrl-C), SIGTERM
and SIGUSR1 (notice of pre-emption) end the run after the current micro-batch, with a checkpoint. A
second Ctrl-C ends it at once.
"""


_Kind = TypeVar("_Kind", bound=RunSettings)


@dataclass(frozen=True)
class Request:
    """Flags of training that are not settings."""

    dry_run: bool = False
    force: bool = False


class Parser(argparse.ArgumentParser):
    """The parser of every command. It has the flag --traceback; its errors are `ConfigError`.

    Flags cannot be abbreviated. Help texts keep their line breaks.
    """

    def __init__(self, prog: str, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog=prog, **{**options, "allow_abbrev": False})
        self.add_argument(
            "--traceback", action="store_true", help="print the Python traceback of an error"
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the values of the flags; a `ConfigError` suggests a name for an unknown flag."""
        try:
            known, unknown = self.parse_known_args(args, namespace)
        except ConfigError as fault:  # a required flag that is missing may only be misspelt
            flags = {option for action in self._actions for option in action.option_strings}
            words = [word for word in args or () if word.startswith("--")]
            unknown = [word for word in words if word.split("=")[0] not in flags]
            raise ConfigError("; ".join([*self.faults(unknown), str(fault)])) from None
        if faults := self.faults(unknown):
            self.error("; ".join(faults))
        return known

    def faults(self, unknown: Sequence[str], outer: Iterable[str] = ()) -> list[str]:
        """Return a fault for each of the ``unknown`` words; ``outer`` flags are suggested too."""
        flags = [option for action in self._actions for option in action.option_strings]
        flags.sort(key="--traceback".__eq__)  # last: suggestions start with the command's own flags
        faults = []
        for before, word in zip(["", *unknown], unknown):
            if word.startswith("-"):
                near = did_you_mean(word.split("=")[0], [*flags, *outer])
                faults.append(f"{word}: no such flag; {near}")
            elif not before.startswith("-"):  # else it is the value of the unknown flag
                faults.append(f"{word!r}: does not belong to a flag")
        return faults

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {self.prog} --help lists the flags")


def parser(
    prog: str,
    description: str = "Fine-tune a Big Transfer (BiT) model on images, by BiT-HyperRule.",
    epilog: str = _EPILOG,
    defaults: Mapping[str, str] | None = None,
    kind: type[RunSettings] = Settings,
) -> Parser:
    """Return the parser of a command with all settings of ``kind``, which stay words until `parse`.

    ``defaults`` replace the defaults of settings in the help.
    """
    result = Parser(prog, description=description, epilog=epilog)
    groups = {key: result.add_argument_group(title) for key, title in kind.groups.items()}
    groups["what"].add_argument(
        "--config",
        type=argtypes.file_path,
        metavar="FILE.yaml",
        help="file of settings, such as the config.yaml of an earlier run; flags override it",
    )
    for name, item in fields_of(kind).items():
        type_, help = item.metadata["kind"], _help(item, (defaults or {}).get(name))
        group = groups[item.metadata["group"]]
        if type_.is_switch:
            _add_switch(group, name, help, on=item.default is not False)
        else:
            group.add_argument(f"--{name}", help=help, metavar=type_.metavar)
    groups["run"].add_argument(
        "--dry-run", action="store_true", help="print the plan of the run, and stop"
    )
    groups["run"].add_argument(
        "--force",
        action="store_true",
        help="resume from a checkpoint even if settings or data have changed",
    )
    return result


def _help(item: Field, default: str | None) -> str:
    """Return the help of a setting; ``default`` replaces its own default."""
    help, kind = item.metadata["help"], item.metadata["kind"]
    if item.default is MISSING:
        return f"{help} (required)"
    if default is None and item.default is not None and not kind.is_switch:
        default = item.default
    if default is None:
        return run_settings.help_of(item)
    return f"{help} (default: {default})"


def _add_switch(group: Any, name: str, help: str, on: bool) -> None:
    """Add --name and --no-name; ``help`` explains the flag that changes the default, ``on``."""
    opposite = f"opposite of --{'no-' if on else ''}{name}, to override a --config file"
    group.add_argument(
        f"--{name}",
        dest=name,
        action="store_const",
        const="true",
        help=opposite if on else help,
    )
    aliases = ["--no-crop"] if name == "random_crop" else []
    group.add_argument(
        *aliases,
        f"--no-{name}",
        dest=name,
        action="store_const",
        const="false",
        help=help if on else opposite,
    )


def outer_parser(
    prog: str, usage: str, description: str, epilog: str, kind: type[RunSettings] = Settings
) -> Parser:
    """Return a parser for the own flags of a command that also takes all flags of training.

    The caller adds the own flags. ``{flags}`` in ``epilog`` becomes the list of training's flags.
    """
    flags = textwrap.fill(
        " ".join(f"--{name}" for name in ("config", *fields_of(kind))), 96, break_on_hyphens=False
    )
    epilog = epilog.format(flags=textwrap.indent(flags, "  "))
    return Parser(prog, usage=usage, description=description, epilog=epilog)


def parse(
    arguments: Sequence[str],
    prog: str,
    find_dataset: Callable[..., Any],
    outer: Iterable[str] = (),
    unused: Iterable[str] = (),
) -> tuple[Settings, Request]:
    """Return the settings of a classification and the other flags; see `parse_as`.

    ``find_dataset(dataset, **data_options(…))`` returns the description of the data, and raises an
    error if these are wrong (`registry.find`).
    """
    faults = partial(contradictions, find_dataset=find_dataset)
    by_data = partial(defaults_of_data, find_dataset=find_dataset)
    return parse_as(Settings, parser(prog), arguments, faults, outer, unused, by_data)


def parse_as(
    kind: type[_Kind],
    command: Parser,
    arguments: Sequence[str],
    contradictions: Callable[[dict[str, Any], set[str]], list[str]],
    outer: Iterable[str] = (),
    unused: Iterable[str] = (),
    defaults_of: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: {},
) -> tuple[_Kind, Request]:
    """Return the settings of ``kind`` and the other flags of ``arguments`` and their --config.

    ``command`` is the `parser` of that kind. ``contradictions(values, unclear)`` returns the faults
    of settings together; it is explained in `config.contradictions`. ``outer`` are the command's
    own flags, which are suggested for a misspelt flag. ``unused`` settings keep their defaults.
    ``defaults_of(values)`` returns defaults that depend on other settings, beside those of the
    recipe. Raises one `ConfigError` that lists every fault.
    """
    every = fields_of(kind)
    known, unknown = command.parse_known_args(list(arguments))
    faults = command.faults(unknown, outer)
    words: dict[str, tuple[str, str]] = {}  # name -> (source, word)
    if known.config is not None:
        words.update(_read_yaml(known.config, kind, faults))
    given = {name: getattr(known, name) for name in every}
    words.update({name: (f"--{name}", word) for name, word in given.items() if word is not None})
    words = {name: item for name, item in words.items() if name not in unused}
    values: dict[str, Any] = {}
    unclear = set()
    for name, (source, word) in words.items():
        try:
            item = every[name]
            unset = item.default is None and word.lower() == "none"  # overrides a file's value
            values[name] = None if unset else item.metadata["kind"](word)
        except ValueError as fault:
            faults.append(f"{source}: {fault}")
            unclear.add(name)
    values = {**kind.recipe_defaults(values), **values}
    defaults = {name: item.default for name, item in every.items()}
    values = {**defaults_of({**defaults, **values}), **values}
    faults += [
        f"--{name}: is required"
        for name, item in every.items()
        if item.default is MISSING and name not in words
    ]
    faults += contradictions({**defaults, **values}, unclear)
    if faults:
        raise ConfigError(
            "; ".join(faults)
            if len(faults) == 1
            else f"{len(faults)} faults\n  " + "\n  ".join(faults)
        )
    return kind(**values), Request(known.dry_run, known.force)


def _read_yaml(path: str, kind: type[RunSettings], faults: list[str]) -> dict[str, tuple[str, str]]:
    """Return {setting: (source, word)} of a YAML file; add its mistakes to ``faults``."""
    result = {}
    every, content = fields_of(kind), saved.load_yaml(path, "--config")
    other = saved.other_kind(content, kind)
    if other is not None:
        faults.append(f"{path}: has the settings of {other.task}; they are for {other.prog}")
        return {}
    for key, value in content.items():
        if key == saved.TASK and value == kind.task:
            continue
        if key not in every:
            faults.append(f"{path}: {key!r} is no setting; {did_you_mean(str(key), every)}")
        elif isinstance(value, (dict, list)):
            faults.append(f"{path}: {key} is {value!r}, expected one value")
        elif value is not None:
            result[key] = (f"{path}: {key}", str(value))
    return result


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every command that runs a trained model."""
    parser.add_argument(
        "--model",
        type=argtypes.file_path,
        required=True,
        help=f"model to run: {argtypes.MODELS}; also an export of --format paddle or onnx (CPU)",
    )
    parser.add_argument(
        "--bit_pretrained_dir",
        type=argtypes.file_path,
        metavar="DIR",
        help=settings.help_of("bit_pretrained_dir"),
    )
    parser.add_argument(
        "--crop",
        type=argtypes.whole(32),
        metavar="N",
        help="side in pixels to which images are resized (default: that of the checkpoint)",
    )
    add_machine_flags(parser, 32)


def add_runtime_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag of the commands that can run a model by other libraries than Paddle."""
    choices, default = runtimes.CHOICES, runtimes.AUTO
    parser.add_argument("--runtime", choices=choices, default=default, help=runtimes.HELP)


def add_gpu_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the commands that estimate a run on GPUs."""
    for flag, parse, default, metavar, text in (
        (
            "gpu_memory",
            argtypes.positive,
            32.0,
            "GiB",
            "memory of one GPU, in units of 2^30 bytes (default: 32)",
        ),
        ("gpus", argtypes.whole(1), 1, "N", "number of GPUs that share every batch (default: 1)"),
        (
            "images_per_second",
            argtypes.positive,
            None,
            "X",
            "training speed of one GPU, to estimate the time",
        ),
    ):
        parser.add_argument(f"--{flag}", type=parse, default=default, metavar=metavar, help=text)


def add_machine_flags(parser: argparse.ArgumentParser, batch: int) -> None:
    """Add the flags on the machine; ``batch`` is the default of --batch."""
    parser.add_argument(
        "--batch",
        type=argtypes.whole(1),
        default=batch,
        metavar="N",
        help=f"batch size: images per forward pass (default: {batch})",
    )
    parser.add_argument(
        "--workers",
        type=argtypes.whole(0),
        default=min(8, environment.cpu_count()),
        metavar="N",
        help=settings.help_of("workers"),
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help=f"{settings.help_of('device')} (default: auto)",
    )
    parser.add_argument(
        "--amp",
        choices=("auto", "off", "bf16", "fp16"),
        default="off",
        help="mixed precision: faster on hardware with half-precision units, but rounded to 3 "
        "(bf16) or 4 digits (fp16). auto: the GPU's fastest (default: off)",
    )
