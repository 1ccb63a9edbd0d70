"""What the times of a race say: medians, ratios to the fastest peers, shares of the limit.

A record is what ``--json`` of the benches writes: {"task", "model", "side", "machine", "races"}.
"machine" is what `machine` found; "races" is {batch: {contender: {"seconds": of each round,
"memory": peak in MB}}}.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import networks

from bit_paddle.models import cost
from bit_paddle.models.architecture import Architecture

STEP, INFERENCE = "training step", "inference"
PRECISIONS = ("float32", "bf16")
Results = dict[str, dict]  # of one race


def precision_of(name: str) -> str:
    """Return the precision of the contender ``name``."""
    return PRECISIONS[name.endswith(" bf16")]


def medians(results: Results) -> dict[str, float]:
    """Return {name: median seconds}."""
    return {name: statistics.median(result["seconds"]) for name, result in results.items()}


def best(
    results: Results,
    peers: Sequence[str],
    precision: str,
    without: Sequence[str] = (networks.FOLDED,),
    quantity: str = "seconds",
) -> str | None:
    """Return the fastest of ``peers`` in ``precision``, or that with the least memory.

    ``without`` leaves out those with one of these words in their names.
    """
    values = medians(results)
    if quantity == "memory":
        values = {name: result["memory"] for name, result in results.items()}
    names = (
        name
        for name in results
        if name.startswith(tuple(peers))
        and precision_of(name) == precision
        and not any(word in name for word in without)
    )
    return min(names, key=values.__getitem__, default=None)


def share_of_limit(record: dict, batch: str, name: str) -> float | None:
    """Return the speed of ``name`` as a share of the machine's matrix product, if that is known.

    Only the multiply-adds of convolutions and of the head count: a training step has three times
    those of a forward pass. So a share of 1 cannot be reached.
    """
    limit = record["machine"].get("limits", {}).get(precision_of(name))
    if limit is None:
        return None
    architecture = Architecture.parse(record["model"])
    count = cost.multiply_adds(architecture, record["side"], networks.CLASSES)
    passes = 3 if record["task"] == STEP else 1
    operations = 2 * passes * int(batch) * count
    return operations / medians(record["races"][batch])[name] / (1e9 * limit["gflops"])


def columns(record: dict) -> list[str]:
    """Return the names of the columns of `rows`."""
    engines = ["to engines"] if record["task"] == INFERENCE else []
    return ["median s", "fastest", "slowest", "to PyTorch", *engines, "of limit", "MB"]


def rows(record: dict, batch: str) -> dict[str, list[str]]:
    """Return {contender: cells}: seconds, ratios of medians, share of the limit, peak memory."""
    results = record["races"][batch]
    middle = medians(results)
    table = {}
    for name, result in results.items():
        seconds, precision = result["seconds"], precision_of(name)
        cells = [f"{x:.4f}" for x in (middle[name], min(seconds), max(seconds))]
        peers = [networks.PYTORCH] + [networks.ENGINES] * (record["task"] == INFERENCE)
        for rival in (best(results, peer, precision) for peer in peers):
            cells.append(f"{middle[name] / middle[rival]:.2f}" if rival else "")
        share = share_of_limit(record, batch, name)
        cells.append("" if share is None else f"{share:.0%}")
        table[name] = [*cells, f"{result['memory']:,.0f}"]
    return table
