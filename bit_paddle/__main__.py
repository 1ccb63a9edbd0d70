"""The console script: ``bit_paddle train …`` runs ``python -m bit_paddle.train …``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from bit_paddle import __version__, errors

COMMANDS = {
    "train": "fine-tune a model on images, by BiT-HyperRule",
    "pretrain": "train a model from scratch, like the published ones",
    "pack": "write a data set into shards, for many images",
    "show": "show the images as the model gets them, before training",
    "audit": "look for copies and wrong labels, before training",
    "plan": "estimate the time and memory of a run, before training",
    "probe": "judge a model's features on images, in minutes",
    "evaluate": "measure a model on the images of a data set",
    "predict": "classify images, or write their features",
    "serve": "answer requests for predictions over HTTP, with a page to try it",
    "bench": "measure a model in every runtime: speed, memory, accuracy",
    "detect": "train, measure and run a detector: objects with boxes",
    "reproduce": "train and measure published accuracies, with verdicts",
    "report": "write a page about runs: curves, accuracy, mistakes",
    "export": "write a model for ONNX, Paddle Inference, timm, Hugging Face",
    "catalog": "list the published models",
    "download": "download the 285 checkpoints of VTAB-1k",
    "selftest": "check this machine and its GPUs, and write one page",
    "compile": "compile the fast operators ahead of their first use",
}

OLD_NAMES = {
    "data.audit": "audit",
    "data.show": "show",
    "native": "compile",
    "bulk": "download",
}  # of version 0.1.0

SHELLS = ("bash", "zsh")

_HELP = """\
usage: bit_paddle COMMAND [its flags], or python -m bit_paddle.COMMAND [its flags]

{commands}

bit_paddle COMMAND --help explains a command. Other flags:
  --version                       print the version
  --print-completion SHELL        print a bash or zsh script that completes commands and flags;
                                  in ~/.bashrc: eval "$(bit_paddle --print-completion bash)"
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command named by the first of ``arguments``; return its exit status.

    Raises `ConfigError` for an unknown name, and the errors of the command.
    """
    name, *rest = _renamed(arguments) or ["--help"]
    if name in COMMANDS:
        return importlib.import_module(f"bit_paddle.{name}").main(rest)
    if name in ("-h", "--help"):
        rows = (f"  {command:10} {about}" for command, about in COMMANDS.items())
        print(_HELP.format(commands="\n".join(rows)), end="")
    elif name == "--version":
        print(f"bit_paddle {__version__}")
    elif name == "--print-completion":
        if len(rest) != 1 or rest[0] not in SHELLS:
            raise errors.ConfigError(f"{name}: choose from {', '.join(SHELLS)}")
        print(completion(rest[0]))
    else:
        raise errors.ConfigError(
            f"{name}: no such command; {errors.did_you_mean(name, COMMANDS)} "
            "(bit_paddle --help lists the commands)"
        )
    return 0


def script() -> NoReturn:
    """Run the console script ``bit_paddle`` and exit."""
    arguments = _renamed(sys.argv[1:])
    if arguments[:1] == ["download"]:
        from bit_paddle import download

        download.script(arguments[1:])  # exits without waiting for a silent server
    sys.exit(errors.run_command(main, arguments))


def _renamed(arguments: Sequence[str]) -> list[str]:
    """Return ``arguments`` with an old name of a command replaced; print a note if it was."""
    if not arguments or arguments[0] not in OLD_NAMES:
        return list(arguments)
    name = OLD_NAMES[arguments[0]]
    print(f"note: this command is now bit_paddle {name}", file=sys.stderr)
    return [name, *arguments[1:]]


# --- Completion ---------------------------------------------------------------------------------

_TRAINING = ("plan", "show")  # commands that also take all flags of train

_PREAMBLE = {  # complete names of models, and files; some versions of shtab change IFS
    "bash": '_bit_paddle_models() {{ IFS=" " compgen -W "{models}" -- "$1"; compgen -f -- "$1"; }}',
    "zsh": "_bit_paddle_models() {{ compadd -- {models}; _files }}",
}


def completion(shell: str) -> str:
    """Return a script for ``shell`` that completes commands, flags, choices and files.

    Raises `ConfigError` if the package ``shtab`` is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise errors.ConfigError("--print-completion: needs shtab: pip install shtab") from None
    from bit_paddle.models import published

    whole = argparse.ArgumentParser(prog="bit_paddle")
    whole.add_argument("--version", action="store_true", help="print the version")
    whole.add_argument("--print-completion", choices=SHELLS, help="print a completion script")
    commands = whole.add_subparsers()
    for name, about in COMMANDS.items():
        parents = [importlib.import_module(f"bit_paddle.{name}").parser()]
        if name in _TRAINING:
            parents.insert(0, importlib.import_module("bit_paddle.train").parser())
        parser = commands.add_parser(
            name, help=about, parents=parents, add_help=False, conflict_handler="resolve"
        )
        _complete_all(parser, shtab)
    models = " ".join([*published.CATALOG, *published.ALIASES])
    return shtab.complete(whole, shell, preamble={shell: _PREAMBLE[shell].format(models=models)})


def _complete_all(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Set the completion of the flags of a command, and of its own commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete_all(inner, shtab)
        else:
            _complete(action, shtab)


def _complete(action: argparse.Action, shtab: Any) -> None:
    """Set the completion of the value of ``action``, unless it has choices of its own."""
    from bit_paddle.config import claims
    from bit_paddle.data import spec
    from bit_paddle.data.readers import registry
    from bit_paddle.inference import formats

    if action.choices or action.nargs == 0:
        return
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if "|" in metavar:
        action.choices = metavar.split("|")
    elif action.dest == "dataset":
        action.choices = sorted({*registry.READERS, *spec.described()})
    elif action.dest == "claims":
        action.choices = sorted(claims.known())
    elif action.dest == "format":
        action.choices = sorted(formats.FORMATS)
    elif action.dest == "model":
        action.complete = dict.fromkeys(SHELLS, "_bit_paddle_models")
    elif metavar in ("DIR", "RUN") or action.dest.endswith("dir"):
        action.complete = shtab.DIRECTORY
    elif metavar.startswith(("FILE", "PATH")) or action.dest in ("images", "resume"):
        action.complete = shtab.FILE


if __name__ == "__main__":
    script()
