"""Write the table of speeds: ``python scripts/benchmarks/speed.py --logdir bit_logs/speed``.

Reads all files of the folder that `step.py --json` and `inference.py --json` wrote, and writes
table.md: first our ratios and shares of the machine's limit, then every contender.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import machine
import standings
from networks import (
    ENGINES,
    EXPORTED,
    FOLDED,
    FROZEN,
    IN_PARTS,
    OBVIOUS,
    OBVIOUS_SET,
    OURS,
    PURE,
    PYTORCH,
)

from bit_paddle import errors
from bit_paddle.system import files

Cell = Callable[[dict, str], str]  # a record and a batch size -> a ratio, or ""


def main(arguments: list[str]) -> int:
    """Write and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--logdir", type=Path, required=True, help="folder of the .json files")
    flags = parser.parse_args(arguments)
    records = [json.loads(path.read_text()) for path in sorted(flags.logdir.glob("*.json"))]
    if not records:
        raise errors.DataError(f"--logdir: {flags.logdir} has no .json file")
    text = table(records)
    files.write_text(flags.logdir / "table.md", text)
    print(text, end="")
    return 0


def table(records: list[dict]) -> str:
    """Return the page of all records."""
    batches = sorted({int(batch) for record in records for batch in record["races"]})
    columns = ["what", "precision", "measure", *(f"batch {batch}" for batch in batches)]
    text = f"# Speed\n\n{line(*columns)}{'|---' * len(columns)}|\n"
    for record in records:
        for precision, measure, cell in summary(record):
            cells = [cell(record, str(b)) if str(b) in record["races"] else "" for b in batches]
            text += line(name_of(record), precision, measure, *cells) if any(cells) else ""
    text += f"\nA training step takes {span(records)} of the time of the fastest PyTorch.\n"
    for record in records:
        title = name_of(record)
        text += f"\n## {title[0].upper()}{title[1:]}\n\n"
        text += "".join(f"- {fact}\n" for fact in machine.lines(record["machine"]))
        for batch in record["races"]:
            columns = [f"batch {batch}", *standings.columns(record)]
            text += f"\n{line(*columns)}{'|---' * len(columns)}|\n"
            rows = standings.rows(record, batch).items()
            text += "".join(line(name, *cells) for name, cells in rows)
    return text


def line(*cells: str) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |\n"


def name_of(record: dict) -> str:
    """Return what was timed, such as "training step of R50x1 at 128"."""
    return f"{record['task']} of {record['model']} at {record['side']}"


def summary(record: dict) -> Iterator[tuple[str, str, Cell]]:
    """Yield the rows of the first table that a record can have: precision, measure, cells."""
    for precision in standings.PRECISIONS:
        half = " bf16" if precision == "bf16" else ""
        pytorch = partial(standings.best, peers=PYTORCH, precision=precision)
        compared = {"to the fastest PyTorch": (OURS, pytorch)}
        if record["task"] == standings.INFERENCE:
            unfrozen = partial(pytorch, without=(FOLDED, FROZEN))
            compared["to the fastest PyTorch without `freezing`"] = (OURS, unfrozen)
            by_hand = partial(pytorch, without=())
            compared["to the fastest PyTorch, kernels standardized by hand too"] = (OURS, by_hand)
            engines = partial(pytorch, peers=ENGINES)
            compared["to the faster of OpenVINO and ONNX Runtime"] = (OURS, engines)
        compared |= {
            "Paddle's own operators to the fastest PyTorch": (PURE, pytorch),
            "exported folder to the fastest PyTorch": (EXPORTED, pytorch),
            "to the obvious Paddle code": (OURS, named(OBVIOUS + half)),
            "to the same with MKL set": (OURS, named(OBVIOUS_SET + half)),
            "one of 4 micro-batches to a step": (OURS + IN_PARTS, named(OURS + half)),
        }
        yield precision, "the fastest PyTorch", partial(name_of_best, find=pytorch)
        for measure, (name, rival) in compared.items():
            yield precision, measure, ratio(name + half, rival)
        least = partial(pytorch, quantity="memory")
        yield precision, "peak memory to the least of PyTorch", ratio(OURS + half, least, "memory")
        yield precision, "share of the limit", partial(share, name=OURS + half)
        yield precision, "share of the limit, fastest PyTorch", partial(share, name=pytorch)


def name_of_best(record: dict, batch: str, find: Callable[[dict], str | None]) -> str:
    """Return the contender that ``find`` finds, without its precision."""
    return (find(record["races"][batch]) or "").replace(" bf16", "")


def named(name: str) -> Callable[[dict], str]:
    """Return the function that finds the contender ``name`` in any results."""
    return lambda results: name


def ratio(name: str, rival: Callable[[dict], str | None], quantity: str = "seconds") -> Cell:
    """Return the function for a cell: ``name`` divided by what ``rival`` finds in the results."""

    def cell(record: dict, batch: str) -> str:
        results = record["races"][batch]
        other = rival(results)
        if name not in results or other not in results:
            return ""
        if quantity == "memory":
            return f"{results[name]['memory'] / results[other]['memory']:.2f}"
        values = standings.medians(results)
        return f"{values[name] / values[other]:.2f}"

    return cell


def share(record: dict, batch: str, name: str | Callable[[dict], str | None]) -> str:
    """Return the share of the machine's limit, or nothing if it is not known."""
    results = record["races"][batch]
    name = name if isinstance(name, str) else name(results)
    found = name in results and standings.share_of_limit(record, batch, name)
    return f"{found:.0%}" if found else ""


def span(records: list[dict]) -> str:
    """Return the lowest and highest ratio of a training step, in any precision, as text."""
    found = []
    for record in records:
        for batch in record["races"] if record["task"] == standings.STEP else ():
            for precision in standings.PRECISIONS:
                rival = partial(standings.best, peers=PYTORCH, precision=precision)
                name = OURS + (" bf16" if precision == "bf16" else "")
                found.append(ratio(name, rival)(record, batch))
    found = sorted(filter(None, found))
    return f"{found[0]} to {found[-1]}" if found else "an unknown part"


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
