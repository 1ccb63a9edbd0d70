"""Damaged and hostile files: reading them raises the package's error, or reads them."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bit_paddle.errors import CheckpointError


class Trap:
    """A class whose code writes a file when an object is made or gets its state."""

    def __new__(cls, path: str = ""):
        if path:
            Path(path).touch()
        return super().__new__(cls)

    def __setstate__(self, path: str):
        Path(path).touch()


def _text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def attacks(marker: Path) -> dict[str, bytes]:
    """Return pickles that write ``marker`` if they are unpickled, by the opcode that does it."""
    path, trap = _text(str(marker)), b"chelpers.hostile\nTrap\n"
    command = _text(f"touch {marker}")
    return {
        "REDUCE": b"cos\nsystem\n" + command + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + command + b"\x85R.",
        "INST": b"(" + command + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + command + b"o.",
        "NEWOBJ": b"\x80\x02" + trap + path + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04" + trap + path + b"\x85}\x92.",
        "BUILD": b"\x80\x02" + trap + b")\x81" + path + b"b.",
        "EXT1": b"\x80\x02\x82\xf0" + command + b"\x85R.",
        "eval": b"c__builtin__\neval\n" + _text(f"open({str(marker)!r}, 'w')") + b"\x85R.",
    }


LAUGHS = b")" + b"2\x86" * 100  # a tuple of 2**100 elements, all the same
DEEP = {
    "lists": b"]" * 50_000 + b"a" * 49_999 + b".",
    "tuples": b")" + b"\x85" * 100_000 + b".",
    "marks": b"(" * 100_000 + b".",
    "dictionaries": (b"}" + _text("model")) * 30_000 + b"N" + b"s" * 30_000 + b".",
}


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield damaged copies: flipped bits, odd bytes, pieces lost, moved, or put in, odd lengths."""
    rng = random.Random(seed)
    for _ in range(count):
        copy = bytearray(content)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            place, kind = rng.randrange(len(copy)), rng.randrange(6)
            if kind == 0:
                copy[place] ^= 1 << rng.randrange(8)
            elif kind == 1:
                copy[place] = rng.choice((0, 1, 0x28, 0x2E, 0x52, 0x7F, 0x80, 0xFF))
            elif kind == 2:
                del copy[place : place + rng.choice((1, 4, 100))]
            elif kind == 3:
                copy[place:place] = rng.randbytes(rng.choice((1, 4, 100)))
            elif kind == 4:
                other = rng.randrange(len(copy))
                copy[place : place + 16] = copy[other : other + 16]
            else:
                size = rng.choice((4, 8))
                number = rng.choice((2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
                copy[place : place + size] = (number % 256**size).to_bytes(size, "little")
        yield bytes(copy)


def read_all(kind: type, path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a file, after a check of what it says about them."""
    with kind(path) as file:
        names = [name for name, stored in file.arrays.items() if stored.dtype != "object"]
        arrays = {name: file.read(name) for name in names}
        for name, array in arrays.items():
            shape, dtype = file.arrays[name]
            assert array.shape == shape
            assert array.dtype == ("float32" if dtype == "bfloat16" else dtype)
    return arrays


@contextmanager
def memory(limit: float) -> Iterator[None]:
    """Assert that a block needs less than ``limit`` bytes."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak:,} bytes"


def survives(kind: type, path: Path, megabytes: float = 4, seconds: float = 20) -> str:
    """Read a hostile file: "read", or the message of its `CheckpointError`; nothing else.

    It may need ``megabytes`` of memory and ``seconds`` of the processor.
    """
    begin = time.process_time()
    with memory(megabytes * 2**20):
        try:
            read_all(kind, path)
            outcome = "read"
        except CheckpointError as error:
            outcome = str(error)
    assert time.process_time() - begin < seconds
    return outcome
