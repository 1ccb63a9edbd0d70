"""The bytes that the processes of a run exchange, and how long a network needs for them.

Two libraries exchange them: NCCL between GPUs, gloo between processes on CPUs. gloo's numbers are
those of its code, which `scripts/benchmarks/hosts.py` compares with the counters of the kernel.
NCCL's are those of its ring, and not measured. Bytes are payload: headers of packets add 0.2 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

BYTES = {"float32": 4, "bf16": 2}  # {--reduce_dtype: bytes per number}

_SEGMENT = 1 << 20  # bytes that gloo sends at once, at most


class Traffic(NamedTuple):
    """The bytes that one process sends and receives."""

    sent: float
    received: float

    def seconds(self, gbit: float) -> float:
        """Return the seconds at ``gbit`` Gbit/s in each direction, both at once."""
        return 8 * max(self) / (gbit * 1e9)


def of_step(
    sizes: Sequence[int],
    count: int,
    reduce_dtype: str = "float32",
    shard: bool = False,
    gloo: bool = False,
) -> list[Traffic]:
    """Return the traffic of a step for each of ``count`` processes.

    ``sizes`` are the numbers per learned parameter. Their gradients are summed in a ring. With
    ``shard`` each is reduced to its owner, which broadcasts the updated parameter as float32.
    """
    number = BYTES[reduce_dtype]
    if not shard:
        ring = 2 * (count - 1) / count * number * sum(sizes)
        return [Traffic(ring, ring)] * count
    parts = []
    for size, owner in zip(sizes, owners(sizes, count)):
        reduced = _gloo_reduce(size, number, count) if gloo else _chain(size * number, count)
        parts += [_turned(reduced, owner)]
        parts += [_turned(_broadcast(4 * size, count, gloo), owner)]
    return _sum(parts, count)


def at_start(parameters: int, count: int, gloo: bool = False) -> list[Traffic]:
    """Return the traffic of a start for each of ``count`` processes: rank 0 sends its weights.

    ``parameters`` is their number. A run that resumes sends its momentum in the same way.
    """
    return _broadcast(4 * parameters, count, gloo)


def owners(sizes: Sequence[int], count: int) -> list[int]:
    """Return the owner of each parameter, a rank below ``count``.

    Greedy: the largest parameter goes first, each to the rank with the smallest load so far.
    """
    loads, ranks = [0] * count, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        ranks[index] = loads.index(min(loads))
        loads[ranks[index]] += sizes[index]
    return ranks


# --- From or to rank 0 --------------------------------------------------------------------------


def _broadcast(size: int, count: int, gloo: bool) -> list[Traffic]:
    """Return the traffic of ``size`` bytes from rank 0: gloo has a binomial tree, NCCL a chain."""
    if not gloo:
        return [Traffic(received, sent) for sent, received in _chain(size, count)]
    rounds = math.ceil(math.log2(count))
    children = [
        sum(rank < 2**k and rank + 2**k < count for k in range(rounds)) for rank in range(count)
    ]
    return [Traffic(size * children[rank], size * (rank > 0)) for rank in range(count)]


def _chain(size: int, count: int) -> list[Traffic]:
    """Return the traffic of a reduction to rank 0, through the others one after another."""
    ends = range(count)
    return [Traffic(size * (rank > 0), size * (rank < count - 1)) for rank in ends]


def _gloo_reduce(numbers: int, number: int, count: int) -> list[Traffic]:
    """Return the traffic of a reduction to rank 0: a ring, then each chunk goes to the root.

    The ring ends two segments before the end, whatever the number of segments: of a tensor of more
    than 2 MiB per process it sends more than it needs.
    """
    size = numbers * number
    segment = min(-(-size // (2 * count)), _SEGMENT // number * number)
    segment = -(-segment // number) * number
    segments = -(-max(-(-size // segment), 2 * count) // count) * count
    per_rank = segments // count

    def part(first: int, last: int) -> int:
        return max(0, min(size, last * segment) - min(size, first * segment))

    ends = [(rank % count + 1) * per_rank for rank in range(count + 1)]
    ring = [size - part(end - 2, end) for end in ends]
    chunks = [part(end - per_rank, end) for end in ends[:count]]
    rows = [
        Traffic(ring[rank] + chunks[rank] * (rank > 0), ring[rank + 1]) for rank in range(count)
    ]
    return [Traffic(rows[0].sent, rows[0].received + size - chunks[0]), *rows[1:]]


def _turned(rows: Sequence[Traffic], owner: int) -> list[Traffic]:
    """Return ``rows``, those of rank 0 as the root, with ``owner`` as the root."""
    count = len(rows)
    return [rows[(rank - owner) % count] for rank in range(count)]


def _sum(parts: Iterable[Sequence[Traffic]], count: int) -> list[Traffic]:
    totals = [[0.0, 0.0] for _ in range(count)]
    for rows in parts:
        for total, (sent, received) in zip(totals, rows):
            total[0] += sent
            total[1] += received
    return [Traffic(*total) for total in totals]
