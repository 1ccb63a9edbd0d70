"""The bytes that the processes of a run exchange, and how long a network needs for them.

Two libraries exchange them: NCCL between GPUs, gloo between processes on CPUs. gloo's numbers are
those of its code; `scripts/benchmarks/scaling.py --hosts 2 4` compares them with the counters of
the kernel. NCCL's are those of its ring, and not measured. Bytes are payload: headers of packets
add 0.2 % to large tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bit_paddle.config.run_settings import RunSettings
from bit_paddle.models import cost

BYTES = {"float32": 4, "bf16": 2}  # {--reduce_dtype: bytes per number}

SPEEDS = (1, 10, 25, 100)  # of networks, in Gbit/s

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
    number, total = BYTES[reduce_dtype], sum(sizes)
    if not (shard and gloo):
        back = 4 if shard else number
        ring = (count - 1) / count * (number + back) * total
        return [Traffic(ring, ring)] * count
    parts = []
    for size, owner in zip(sizes, owners(sizes, count)):
        back = _gloo_broadcast(4 * size, count)
        parts.append(_gloo_reduce(size, number, count, owner))
        parts.append([back[(rank - owner) % count] for rank in range(count)])
    every = [[one[rank] for one in parts] for rank in range(count)]
    return [Traffic(sum(t.sent for t in one), sum(t.received for t in one)) for one in every]


def at_start(parameters: int, count: int, gloo: bool = False) -> list[Traffic]:
    """Return the traffic of a start for each of ``count`` processes: rank 0 sends its weights.

    ``parameters`` is their number. A run that resumes sends its momentum in the same way.
    """
    if gloo:
        return _gloo_broadcast(4 * parameters, count)
    last = count - 1  # NCCL passes them on from one to the next
    size = 4 * parameters
    return [Traffic(size * (rank < last), size * (rank > 0)) for rank in range(count)]


def rows(settings: RunSettings, demand: cost.Demand, gpus: int) -> list[tuple[str, str]]:
    """Return the lines of a plan on traffic: none for one process, else those of the busiest."""
    count = max(gpus, settings.nproc)
    if count == 1:
        return []
    gloo = gpus == 1
    step = busiest(of_step(demand.learned, count, settings.reduce_dtype, settings.shard, gloo))
    start = busiest(at_start(demand.parts(False, 1)["weights"] // 4, count, gloo))
    library = "gloo, as measured" if gloo else "NCCL's ring, not measured"
    what = f"each of {count} {'processes' if gloo else 'GPUs'}"
    lines = [
        f"{what} sends up to {step.sent / 1e6:,.1f} MB per step and receives up to "
        f"{step.received / 1e6:,.1f} MB",
        f"({library}). At the start rank 0 sends its weights: {start.sent / 1e6:,.1f} MB",
    ]
    if settings.reduce_dtype != "bf16":
        half = busiest(of_step(demand.learned, count, "bf16", settings.shard, gloo))
        lines.append(f"With --reduce_dtype bf16 a step sends up to {half.sent / 1e6:,.1f} MB")
    speeds = "".join(f"{gbit:>11}" for gbit in SPEEDS)
    lines.append(f"{'Gbit/s':12}{speeds}")
    for title, one in (("a step", step), ("the start", start)):
        times = (f"{1000 * one.seconds(gbit):,.1f} ms" for gbit in SPEEDS)
        lines.append(f"{title:12}" + "".join(f"{time:>11}" for time in times))
    lines.append("The network works beside the last backward pass of a step; the rest adds to it")
    return [("traffic", lines[0]), *(("", line) for line in lines[1:])]


def busiest(every: Iterable[Traffic]) -> Traffic:
    """Return the most that any process sends, and the most that any receives."""
    sent, received = zip(*every)
    return Traffic(max(sent), max(received))


def owners(sizes: Sequence[int], count: int) -> list[int]:
    """Return the owner of each parameter, a rank below ``count``.

    Greedy: the largest parameter goes first, each to the rank with the smallest load so far.
    """
    loads, ranks = [0] * count, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        ranks[index] = loads.index(min(loads))
        loads[ranks[index]] += sizes[index]
    return ranks


# --- gloo, from or to rank 0 --------------------------------------------------------------------


def _gloo_broadcast(size: int, count: int) -> list[Traffic]:
    """Return the traffic of ``size`` bytes from rank 0, in a binomial tree."""
    rounds = math.ceil(math.log2(count))
    children = [
        sum(rank < 2**k and rank + 2**k < count for k in range(rounds)) for rank in range(count)
    ]
    return [Traffic(size * children[rank], size * (rank > 0)) for rank in range(count)]


def _gloo_reduce(numbers: int, number: int, count: int, root: int) -> list[Traffic]:
    """Return the traffic of a reduction to ``root``: a ring, then each chunk goes there.

    The ring stops two segments before its end, whatever their number. So it sends more than it
    needs of a tensor with more than two segments (2 MiB) per process.
    """
    size = numbers * number
    segment = min(-(-size // (2 * count)), _SEGMENT // number * number)
    segment = -(-segment // number) * number
    segments = -(-max(-(-size // segment), 2 * count) // count) * count
    per_rank = segments // count

    def part(first: int, last: int) -> int:
        return max(0, min(size, last * segment) - min(size, first * segment))

    ends = [(rank + 1) * per_rank for rank in range(count)]
    ring = [size - part(end - 2, end) for end in ends]
    chunks = [part(end - per_rank, end) for end in ends]
    traffic = []
    for rank, chunk in enumerate(chunks):
        gathered = (0, size - chunk) if rank == root else (chunk, 0)
        traffic.append(Traffic(ring[rank] + gathered[0], ring[(rank + 1) % count] + gathered[1]))
    return traffic
