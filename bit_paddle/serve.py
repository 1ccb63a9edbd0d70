"""Answer requests for predictions over HTTP: ``python -m bit_paddle.serve --help``.

`serving` holds the server and its page. To call this module is to call `serve`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from bit_paddle import _make_callable, errors
from bit_paddle.config import parsing
from bit_paddle.config.types import file_path, whole
from bit_paddle.inference.arguments import address
from bit_paddle.inference.model import TrainedModel
from bit_paddle.inference.trained import find_trained, required_preprocessing, resolve_trained
from bit_paddle.serving import settings as settings_of
from bit_paddle.serving.settings import KEY, SOCKET, ServerSettings
from bit_paddle.system.runtimes import AUTO

PROG = "python -m bit_paddle.serve"

_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")

_EPILOG = f"""\
routes:
  POST /predict      classes of one or many images
  POST /features     features of one or many images
  POST /explain      where the network looks in one image, as PNG
  GET  /model        facts about the model
  GET  /             a page to try the model in a browser
  GET  /docs         all routes
  GET  /healthz, /readyz, /metrics

If the environment variable {KEY} is set, requests must send its value:
the header Authorization: Bearer KEY. SIGTERM and Ctrl-C end the server after the requests that it
has accepted.

examples:
  bit_paddle serve bit_logs/pets
  curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/predict
  bit_paddle serve BiT-M-R50x1-ILSVRC2012 --host 0.0.0.0 --port 80 --workers 4
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Errors: `bit_paddle.errors`."""
    flags = _parse(arguments)
    values: dict[str, Any] = {item.name: getattr(flags, item.name) for item in settings_of.flags()}
    values["allow_urls"] = flags.allow_urls
    if flags.workers == 1 or SOCKET in os.environ:
        names = ("device", "amp", "crop", "runtime")
        options = {name: getattr(flags, name) for name in names}
        serve(flags.model, directory=flags.bit_pretrained_dir, **options, **values)
        return 0
    _require_packages()
    from bit_paddle.serving import processes

    settings = ServerSettings(**values)
    required_preprocessing(find_trained(flags.model, flags.bit_pretrained_dir, flags.crop))
    _warn_without_key(settings)
    return processes.supervise(arguments, flags.workers, settings)


def serve(
    model: TrainedModel | str | os.PathLike,
    *,
    device: str = "auto",
    amp: str = "off",
    crop: int | None = None,
    runtime: str = AUTO,
    directory: str | os.PathLike | None = None,
    **settings: Any,
) -> None:
    """Answer requests over HTTP, as the command does, until a signal comes.

    ``model`` is a result of `load` or an argument of it (with ``device``, ``amp``, ``crop``,
    ``runtime`` and ``directory``). ``settings`` are the flags of ``bit_paddle serve`` by name,
    without ``workers``: ``port=8080, allow_urls=True``. Outside of the main thread the server ends
    with the process.

    Errors: `ConfigError` (also for an address that cannot be used), and those of `load`.

        bit_paddle.serve("bit_logs/pets", port=8080)
    """
    known = [item.name for item in fields(ServerSettings)]
    if unknown := [name for name in settings if name not in known]:
        near = errors.did_you_mean(unknown[0], known)
        raise errors.ConfigError(f"{unknown[0]}: no such setting; {near}")
    chosen = ServerSettings(**settings)
    _require_packages()
    from bit_paddle.serving import processes

    if not isinstance(model, TrainedModel):
        file = find_trained(address(model), directory, crop)
        model = TrainedModel(file, device, amp, runtime=runtime)
    if SOCKET not in os.environ:  # else the parent has warned
        _warn_without_key(chosen)
    processes.serve(model, chosen)


def _require_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.ConfigError(f"serve: needs {missing[0]}: {errors.install_hint('serve')}")


def _warn_without_key(settings: ServerSettings) -> None:
    if not settings.key and not settings_of.is_loopback(settings.host):
        print(
            f"warning: --host {settings.host}: everyone who reaches this address can use the "
            f"model; set the environment variable {KEY} to demand a key",
            file=sys.stderr,
        )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = parsing.Parser(prog=PROG, description=__doc__.split(":")[0] + ".", epilog=_EPILOG)
    parser.add_argument(
        "given", type=file_path, nargs="?", metavar="MODEL", help="the same as --model"
    )
    parsing.add_flags(parser)
    parsing.add_runtime_flag(parser)
    for action in parser._actions:
        if action.dest == "model":
            action.required = False
        elif action.dest == "workers":
            action.type, action.default = whole(1), 1
            action.help = (
                "processes that answer requests; each holds the model, and they share the "
                "processors (default: 1)"
            )
        elif action.dest == "batch":
            action.help = f"most images per forward pass (default: {action.default})"
    for item in settings_of.flags():
        if item.name != "batch":
            kind, metavar, help = (item.metadata[key] for key in ("kind", "metavar", "help"))
            parser.add_argument(
                f"--{item.name}", type=kind, default=item.default, metavar=metavar, help=help
            )
    parser.add_argument(
        "--allow-urls",
        action="store_true",
        help="fetch images from web addresses in requests; addresses of private networks and of "
        "this machine are refused",
    )
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    flags = parser().parse_args(arguments)
    if (flags.given is None) == (flags.model is None):
        raise errors.ConfigError(
            f"MODEL: give one model, as in: bit_paddle serve bit_logs/pets; {PROG} --help lists "
            "the flags"
        )
    flags.model = flags.model or flags.given
    resolve_trained(flags.model)  # report a wrong name before loading anything
    return flags


_make_callable(__name__, serve)

if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
