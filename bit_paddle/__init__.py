"""Big Transfer (BiT) in PaddlePaddle: the published networks, fine-tuned as published.

``fine_tune``, ``load``, ``evaluate``, ``compare``, ``export`` and ``list_models`` are in
`bit_paddle.api`, ``train_detector`` and ``open_detector`` in `bit_paddle.detection_api`,
``create_model``, ``load_npz`` and ``save_npz`` in `bit_paddle.models.weights`.
They are imported at their first use, and Paddle with them: importing the package is quick.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

from bit_paddle.system import signals

signals.prepare()  # before the other imports, which take a fraction of a second

from bit_paddle.system import environment  # noqa: E402

__version__ = "0.2.0"

_HOMES = {
    **dict.fromkeys(("compare", "fine_tune", "list_models", "load"), "bit_paddle.api"),
    **dict.fromkeys(("open_detector", "train_detector"), "bit_paddle.detection_api"),
    **dict.fromkeys(("create_model", "load_npz", "save_npz"), "bit_paddle.models.weights"),
}

_CALLABLE = (
    "audit",
    "evaluate",
    "export",
    "pack",
    "probe",
    "reproduce",
    "serve",
)  # also the commands' modules, see `_make_callable`

__all__ = ["__version__", *_CALLABLE, *_HOMES]

environment.prepare()  # here because it must come before Paddle is imported, by whomever
signals.shield()


def __getattr__(name: str) -> Any:
    if name in _CALLABLE:
        return importlib.import_module(f"bit_paddle.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bit_paddle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _make_callable(module: str, function: Callable) -> None:
    """Make the module of a command callable, as its function of the same name in the package.

    Every import of this submodule sets the package's attribute to the module. So the module and the
    function must be one object.
    """

    class CallableModule(types.ModuleType):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return function(*arguments, **options)

        __call__.__doc__ = function.__doc__

    sys.modules[module].__class__ = CallableModule
