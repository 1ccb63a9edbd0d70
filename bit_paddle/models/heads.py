"""The kinds of head that a classifier can have, and their arrays; does not load Paddle.

`layers` computes them. The last layer of each is linear and starts at zero. All kinds read the last
stage: [N, C, H/32, W/32] after the last norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from bit_paddle.errors import ConfigError, did_you_mean

LINEAR, MAX_MEAN, LOCAL, CONV = "linear", "max+mean", "local", "conv"

METAVAR = f"{LINEAR}|{MAX_MEAN}|{LOCAL}|{CONV}:C"

HELP = (
    f"head of the network. {LINEAR}: mean over the image, then a linear layer, as in the paper; "
    f"{MAX_MEAN}: maximum and mean; {LOCAL}: these two, and a mean of stage 3 whose weights are a "
    f"learned attention over its places; {CONV}:C, such as {CONV}:256: a 1x1 convolution to C "
    "channels before the mean"
)

GROUPS = 32  # of the convolution's GroupNorm, as of all others

_PREFIX = "resnet/head/"  # of the keys of all heads

_LAST = {LINEAR: "conv2d", MAX_MEAN: "max_mean", LOCAL: "local", CONV: "conv_mean"}  # last layers


def parse(head: str) -> str:
    """Return ``head`` if it is a kind of head; raise `ConfigError` for anything else."""
    kind, _, channels = head.partition(":")
    if kind != CONV and head in _LAST:
        return head
    if kind != CONV:
        expected = (LINEAR, MAX_MEAN, LOCAL, f"{CONV}:256")
        raise ConfigError(f"is {head!r}: {did_you_mean(head, expected)}")
    if not channels.isdecimal() or not int(channels) or int(channels) % GROUPS:
        raise ConfigError(
            f"is {head!r}: expected {CONV}:C, where C is a multiple of {GROUPS}, the number of "
            f"groups of its GroupNorm, such as {CONV}:256"
        )
    return f"{CONV}:{int(channels)}"


def channels_of(head: str) -> int:
    """Return the channels of the convolution of ``head``; 0 for a head without one."""
    return int(head.partition(":")[2] or 0)


def inputs(head: str, features: int) -> int:
    """Return how many numbers the last layer of ``head`` takes, of a network's ``features``."""
    if head == MAX_MEAN:
        return 2 * features
    return 2 * features + features // 2 if head == LOCAL else channels_of(head) or features


def last_name(head: str) -> str:
    """Return the name of the last layer of ``head`` in keys and parameters."""
    return _LAST[head.partition(":")[0]]


def last_path(head: str) -> str:
    """Return the name of the last layer of ``head`` in the network: its parameters' prefix."""
    return "head" if head == LINEAR else f"head.{last_name(head)}"


def last_keys(head: str) -> tuple[str, str]:
    """Return the published keys of the last layer of ``head``: kernel and bias."""
    last = f"{_PREFIX}{last_name(head)}"
    return f"{last}/kernel", f"{last}/bias"


def is_key(key: str) -> bool:
    """Return whether a published key belongs to a head of any kind."""
    return key.startswith(_PREFIX)


def shapes(head: str, features: int, classes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (key, shape) for every array of ``head`` in an ``.npz`` file; none without classes.

    The key of the last layer tells the kind of the head.
    """
    if not classes:
        return
    channels, size = channels_of(head), inputs(head, features)
    if channels:
        yield f"{_PREFIX}projection/standardized_conv2d/kernel", (1, 1, features, channels)
        yield f"{_PREFIX}projection/group_norm/gamma", (channels,)
        yield f"{_PREFIX}projection/group_norm/beta", (channels,)
    if head == LOCAL:
        yield f"{_PREFIX}attention3/kernel", (1, 1, features // 2, 1)
        yield f"{_PREFIX}attention4/kernel", (1, 1, features, 1)
    kernel, bias = last_keys(head)
    yield kernel, (1, 1, size, classes) if head == LINEAR else (size, classes)
    yield bias, (classes,)


def parameters(head: str, features: int, classes: int) -> int:
    """Return the number of parameters of ``head``."""
    return sum(math.prod(shape) for _, shape in shapes(head, features, classes))


def found(arrays: Mapping[str, tuple[int, ...]]) -> tuple[str, int]:
    """Return the head and its number of outputs, by the {key: shape} of a file's ``arrays``.

    Without a head they are ``linear`` and 0.
    """
    for kind in _LAST:
        kernel, bias = last_keys(kind)
        if arrays.get(bias):
            size = (arrays.get(kernel) or (0,))[0]
            return f"{CONV}:{size}" if kind == CONV else kind, arrays[bias][-1]
    return LINEAR, 0


def noun(head: str) -> str:
    """Return "head", with its kind if that is not the rule's."""
    return "head" if head == LINEAR else f"head ({head})"
