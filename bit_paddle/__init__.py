"""Big Transfer (BiT) in PaddlePaddle: the published networks, fine-tuned as published.

``create_model``, ``load_npz`` and ``save_npz`` load Paddle when they are first used; importing the
package does not.
"""

from __future__ import annotations

from typing import Any

from bit_paddle.system import environment

__version__ = "0.1.0"
__all__ = ["__version__", "create_model", "load_npz", "save_npz"]

environment.prepare()  # here because it must come before Paddle is imported, by whomever


def __getattr__(name: str) -> Any:
    if name in ("create_model", "load_npz", "save_npz"):
        from bit_paddle.models import weights

        return getattr(weights, name)
    raise AttributeError(f"module 'bit_paddle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
