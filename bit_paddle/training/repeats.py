"""Repeat a run with several seeds and report the spread, as the paper's tables show medians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle import errors
from bit_paddle.config.run_settings import RunSettings
from bit_paddle.config.saved import to_yaml
from bit_paddle.runs.folder import CONFIG, claim, forget
from bit_paddle.runs.results import REPEATS
from bit_paddle.system import files
from bit_paddle.training.launch import Ended, MakePlan, start

COLUMNS = {  # of the table, the score first: key of a task's result: (title, format)
    "ap": ("     AP", "{:7.2%}"),
    "ap50": ("   AP50", "{:7.2%}"),
    "ap75": ("   AP75", "{:7.2%}"),
    "mean_average_precision": ("    mAP", "{:7.2%}"),
    "macro_f1": ("macro F1", "{:8.2%}"),
    "micro_f1": ("micro F1", "{:8.2%}"),
    "top1": ("  top-1", "{:7.2%}"),
    "top5": ("  top-5", "{:7.2%}"),
    "balanced_accuracy": ("balanced", "{:8.2%}"),
    "loss": ("    loss", "{:8.4f}"),
}


def repeat(
    settings: RunSettings,
    arguments: Sequence[str],
    make_plan: MakePlan,
    force: bool = False,
    embedded: bool = False,
) -> Ended:
    """Make --repeats runs with consecutive seeds; report and return the spread.

    One folder holds repeats.json, repeats.txt and the runs, ``seed-<seed>``. After a signal, the
    current run saves and ends, and the others do not start; the same command resumes it. The
    arguments are those of `launch.start`.
    """
    runs = [
        {
            **{name: getattr(settings, name) + k for name in settings.seeds},
            "name": f"seed-{settings.seed + k}",
            "repeats": 1,
        }
        for k in range(settings.repeats)
    ]
    return carry_out(settings, arguments, make_plan, runs, report, "repeats.txt", force, embedded)


def carry_out(
    settings: RunSettings,
    arguments: Sequence[str],
    make_plan: MakePlan,
    runs: Sequence[dict[str, Any]],
    report: Callable[[Sequence[dict[str, Any]], Path], dict[str, Any]],
    table: str,
    force: bool,
    embedded: bool,
) -> Ended:
    """Make ``runs`` in one folder, one after another; return the last ``report``.

    A run is given by its changes of ``settings``. ``report`` takes the results so far, each with
    the first change of its run, and the folder; it writes ``table`` among its files.
    """
    with claim(settings, force) as begin:
        folder, results = begin.folder, []
        if begin.result is not None:
            errors.tell((folder / table).read_text(encoding="utf-8"), end="")
            return Ended(0, folder, begin.result)
        new = not (folder / CONFIG).exists()
        files.write_text(folder / CONFIG, to_yaml(settings))
        for number, run in enumerate(runs, 1):
            changes = {**run, "logdir": str(folder)}
            words = [f"--{name}={value}" for name, value in changes.items()]
            errors.tell(f"--- run {number} of {len(runs)}: {folder / changes['name']}")
            try:
                run_settings = replace(settings, **changes)
                ended = start(run_settings, [*arguments, *words], make_plan, force, embedded)
            except errors.ConfigError:
                if new and number == 1:
                    forget(folder)
                raise
            if ended.status:
                return ended._replace(folder=folder, result=None)
            key, value = next(iter(run.items()))
            results.append({key: value, **ended.result})
            content = report(results, folder)
    return Ended(0, folder, content)


def report(results: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Write, print and return the minimum, median and maximum of the runs so far."""
    text, spread = table(results, "seed")
    files.write_text(folder / "repeats.txt", text)
    content = {"count": len(results), **spread, "runs": list(results)}
    files.write_text(folder / REPEATS, files.to_json(content))
    errors.tell(text, end="")
    return content


def table(results: Sequence[dict[str, Any]], title: str) -> tuple[str, dict[str, Any]]:
    """Return a table of runs, named by the key ``title``, with their spread; and the spread."""
    spread = _spread(results)
    tests = [
        name for name in ("best", "last") if all(name in run.get("test", {}) for run in results)
    ]
    if tests:
        spread["test"] = {name: _spread([run["test"][name] for run in results]) for name in tests}
    columns = [key for key in COLUMNS if key in spread]
    score, (score_title, score_format) = columns[0], COLUMNS[columns[0]]
    test_heads = [f"test {score_title.strip()}, {name}" for name in tests]
    heads = [f"{title:>6}", *(COLUMNS[key][0] for key in columns), *test_heads]
    text = "  ".join(heads) + "\n"
    rows = [(str(run[title]), run) for run in results]
    for key in ("min", "median", "max"):
        values: dict[str, Any] = {name: spread[name][key] for name in columns}
        values["test"] = {name: {score: spread["test"][name][score][key]} for name in tests}
        rows.append((key, values))
    for name, run in rows:
        cells = [f"{name:>6}", *(COLUMNS[key][1].format(run[key]) for key in columns)]
        cells += [
            score_format.format(run["test"][model][score]).rjust(len(head))
            for model, head in zip(tests, test_heads)
        ]
        text += "  ".join(cells) + "\n"
    return text, spread


def _spread(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    columns = {
        key: [result[key] for result in results]
        for key in COLUMNS
        if all(key in result for result in results)  # older versions lack balanced accuracy
    }
    return {
        key: {"min": min(values), "median": float(np.median(values)), "max": max(values)}
        for key, values in columns.items()
    }
