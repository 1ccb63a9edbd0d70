"""A bad cable: joins a bridge to ``eth0`` of a network namespace, loses frames and delays them.

    python wire.py BRIDGE_END NAMESPACE      # then a line "LOSS DELAY" (0 to 1, seconds) on stdin

It does what `tc netem` does, in kernels without it. TUN/TAP gives whole frames with checksums.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import selectors
import struct
import sys
import time
from collections import deque
from contextlib import suppress

_TUNSETIFF, _TAP, _NO_HEADER = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
_NEWNET = 0x40000000  # CLONE_NEWNET
_FRAME = 1 << 16


def tap(name: str) -> int:
    """Create the network device ``name`` in the namespace of this process; return its frames."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_HEADER))
    return descriptor


def enter(namespace: int) -> None:
    """Enter a network namespace."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def main(outer: str, namespace: str) -> None:
    ends = [tap(outer)]
    with open("/proc/self/ns/net", "rb") as own, open(f"/run/netns/{namespace}", "rb") as other:
        enter(other.fileno())
        ends.append(tap("eth0"))
        enter(own.fileno())  # this process is none of the host's
    print("ready", flush=True)
    loss, delay = 0.0, 0.0
    waiting: deque[tuple[float, int, bytes]] = deque()  # (when it is due, where to, frame)
    with selectors.DefaultSelector() as selector:
        for source in (*ends, 0):
            selector.register(source, selectors.EVENT_READ)
        while True:
            timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            for key, _ in selector.select(timeout):
                if key.fd == 0:
                    words = os.read(0, 100).split()
                    if not words:
                        return
                    loss, delay = map(float, words[-2:])
                    continue
                try:
                    frame = os.read(key.fd, _FRAME)
                except OSError:  # the link is down
                    continue
                if random.random() >= loss:
                    other = ends[key.fd == ends[0]]
                    waiting.append((time.monotonic() + delay, other, frame))
            while waiting and waiting[0][0] <= time.monotonic():
                _, other, frame = waiting.popleft()
                with suppress(OSError):  # the link is down, or full
                    os.write(other, frame)


if __name__ == "__main__":
    main(*sys.argv[1:])
