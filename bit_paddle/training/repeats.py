"""Repeat a run with several seeds and report the spread, as the paper's tables show medians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle import errors
from bit_paddle.config.settings import Settings, to_yaml
from bit_paddle.runs.folder import CONFIG, REPEATS, claim, forget
from bit_paddle.system import files
from bit_paddle.training.launch import Ended, start

COLUMNS = {  # of the table: key of a result: (title, format)
    "top1": ("  top-1", "{:7.2%}"),
    "top5": ("  top-5", "{:7.2%}"),
    "balanced_accuracy": ("balanced", "{:8.2%}"),
    "loss": ("    loss", "{:8.4f}"),
}


def repeat(
    settings: Settings, arguments: Sequence[str], force: bool = False, embedded: bool = False
) -> Ended:
    """Make --repeats runs with consecutive seeds; report and return the spread.

    One folder holds repeats.json, repeats.txt and the runs, ``seed-<seed>``. After a signal, the
    current run saves and ends, and the others do not start; the same command resumes it. The
    arguments are those of `launch.start`.
    """
    with claim(settings, force) as begin:
        folder, results = begin.folder, []
        if begin.result is not None:
            print((folder / "repeats.txt").read_text(), end="")
            return Ended(0, folder, begin.result)
        new = not (folder / CONFIG).exists()
        files.write_text(folder / CONFIG, to_yaml(settings))
        for k in range(settings.repeats):
            changes = {
                "seed": settings.seed + k,
                "examples_per_class_seed": settings.examples_per_class_seed + k,
                "logdir": str(folder),
                "name": f"seed-{settings.seed + k}",
                "repeats": 1,
            }
            words = [f"--{name}={value}" for name, value in changes.items()]
            print(f"--- run {k + 1} of {settings.repeats}: {folder / changes['name']}", flush=True)
            try:
                run_settings = replace(settings, **changes)
                ended = start(run_settings, [*arguments, *words], force, embedded)
            except errors.ConfigError:
                if new and k == 0:
                    forget(folder)
                raise
            if ended.status:
                return ended._replace(folder=folder, result=None)
            results.append({"seed": changes["seed"], **ended.result})
            content = report(results, folder)
    return Ended(0, folder, content)


def report(results: Sequence[dict[str, float]], folder: Path) -> dict[str, Any]:
    """Write, print and return the minimum, median and maximum of the runs so far."""
    columns = {
        key: [result[key] for result in results]
        for key in COLUMNS
        if all(key in result for result in results)  # older versions lack balanced accuracy
    }
    spread = {
        key: {"min": min(values), "median": float(np.median(values)), "max": max(values)}
        for key, values in columns.items()
    }
    rows = [(str(run["seed"]), {key: run[key] for key in columns}) for run in results]
    rows += [
        (title, {key: spread[key][title] for key in columns}) for title in ("min", "median", "max")
    ]
    table = "  ".join(["  seed", *(COLUMNS[key][0] for key in columns)]) + "\n"
    for title, values in rows:
        cells = (COLUMNS[key][1].format(value) for key, value in values.items())
        table += "  ".join([f"{title:>6}", *cells]) + "\n"
    files.write_text(folder / "repeats.txt", table)
    content = {"count": len(results), **spread, "runs": list(results)}
    files.write_text(folder / REPEATS, files.to_json(content))
    print(table, end="", flush=True)
    return content
