"""The settings of a server: where it listens, what it accepts, how long it waits."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from bit_paddle.config.types import BadValue, not_negative, positive, text, whole
from bit_paddle.errors import ConfigError

KEY = "BIT_PADDLE_API_KEY"  # environment variable

SOCKET = "BIT_PADDLE_SOCKET"  # environment variable: the number of the parent's socket

_MOST_MEGAPIXELS = 178  # Pillow refuses larger images


def _flag(default: Any, kind: Callable[[str], Any], metavar: str, help: str) -> Any:
    metadata = {"kind": kind, "metavar": metavar, "help": f"{help} (default: {default})"}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server; each but the last two is a flag of ``bit_paddle serve``.

    Megabytes and megapixels are millions. ``key`` is what requests must send; empty: they need no
    key. Raises `ConfigError` for a value that cannot work.
    """

    host: str = _flag("127.0.0.1", text, "ADDRESS", "address to listen at; 0.0.0.0: all networks")
    port: int = _flag(8000, whole(0, most=65535), "N", "port to listen at; 0: any free port")
    batch: int = _flag(32, whole(1), "N", "most images per forward pass")
    batch_wait_ms: float = _flag(
        5.0, not_negative, "X", "milliseconds that an image waits for others, to share its batch"
    )
    queue: int = _flag(
        256, whole(1), "N", "most images that wait or are computed; more are refused (status 429)"
    )
    images: int = _flag(64, whole(1), "N", "most images per request")
    body_mb: int = _flag(32, whole(1), "N", "most megabytes per request")
    image_mb: int = _flag(16, whole(1), "N", "most megabytes per image file")
    megapixels: int = _flag(50, whole(1, most=_MOST_MEGAPIXELS), "N", "most megapixels per image")
    receive_seconds: float = _flag(
        20.0, positive, "X", "seconds for the headers of a request, and for its body; a slower "
        "sender is cut off"
    )  # fmt: skip
    answer_seconds: float = _flag(
        60.0, positive, "X", "seconds for the answer, from the end of the request on"
    )
    allow_urls: bool = False
    key: str = field(default_factory=lambda: os.environ.get(KEY, ""), repr=False)

    def __post_init__(self) -> None:
        for item in flags():
            try:
                value = item.metadata["kind"](str(getattr(self, item.name)))
            except BadValue as fault:
                raise ConfigError(f"{item.name}: {fault}") from None
            object.__setattr__(self, item.name, value)
        if self.images > self.queue:
            raise ConfigError(
                f"images: is {self.images}, and queue is {self.queue}; a request with more images "
                "than the queue holds would always be refused; raise queue, or lower images"
            )
        if self.image_mb > self.body_mb:
            raise ConfigError(
                f"image_mb: is {self.image_mb}, and body_mb is {self.body_mb}; an image is a part "
                "of the body; raise body_mb, or lower image_mb"
            )


def flags() -> list[Any]:
    """Return the fields of `ServerSettings` that are flags, with kind, metavar and help."""
    return [item for item in fields(ServerSettings) if item.metadata]


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
