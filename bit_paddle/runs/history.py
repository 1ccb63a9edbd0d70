"""What a run has recorded in its folder: settings, metrics, plan, timings. Loads no Paddle."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bit_paddle.config.run_settings import RunSettings
from bit_paddle.config.saved import load_settings
from bit_paddle.errors import ConfigError, MissingFileError
from bit_paddle.models import published
from bit_paddle.runs import checkpoints, logbook
from bit_paddle.runs.folder import CONFIG

PLAN = "plan.json"  # `Plan.to_dict`, in a run's folder

_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")

_SCHEDULE = re.compile(r"^schedule +([\d,]+) steps")

_BEGUN = re.compile(r"^bit_paddle \S+, Paddle ")  # the first line after the plan


@dataclass(frozen=True)
class RunHistory:
    """A run's folder. ``train``, ``val`` and ``test`` are its metrics, a dictionary a step.

    ``planned`` is how many steps it was to make, None where its log is gone; ``said`` is the last
    line of that.
    """

    folder: Path
    name: str
    settings: RunSettings
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    test: list[dict[str, Any]]  # of the best model and of the last one, which may be the same
    plan: str
    timings: str
    planned: int | None
    said: str

    @property
    def step(self) -> int:
        """The last step that it made."""
        return self.train[-1]["step"] if self.train else 0

    @property
    def unfinished(self) -> bool:
        """Whether it has ended, or been read, before its last step."""
        return self.planned is not None and self.step < self.planned

    @property
    def model(self) -> Path | None:
        """The trained model: that of the end, or of the newest checkpoint, or None."""
        found = [self.folder / published.MODEL, *checkpoints.checkpoint_files(self.folder)]
        return next((path for path in found if path.is_file()), None)


def read(folder: Path) -> list[RunHistory]:
    """Return the run in ``folder``; of --repeats and --folds, all of its runs.

    Raises `MissingFileError` where there is none, `ConfigError` for settings that are damaged.
    """
    if (folder / logbook.METRICS).is_file():
        return [_read(folder, folder.resolve().name)]
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; runs are below bit_logs")
    inner = [path.parent for path in folder.glob(f"*/{logbook.METRICS}")]
    inner.sort(key=lambda path: (len(path.name), path.name))  # fold-2 before fold-10
    if not inner:
        raise MissingFileError(
            f"{folder}: is no run's folder: it has no {logbook.METRICS}; runs are below bit_logs"
        )
    return [_read(one, f"{folder.resolve().name}/{one.name}") for one in inner]


def spread(folder: Path) -> str:
    """Return the table of --repeats or --folds in ``folder``; "" if there is none."""
    tables = (folder / name for name in ("folds.txt", "repeats.txt"))
    return next((path.read_text(encoding="utf-8") for path in tables if path.is_file()), "")


def _read(folder: Path, name: str) -> RunHistory:
    settings = load_settings(folder / CONFIG)
    lines, _ = logbook.read_metrics(folder / logbook.METRICS)
    parts = ([one for one in lines if one["kind"] == kind] for kind in logbook.KINDS)
    log = folder / logbook.LOG
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    said = [_STAMP.sub("", line) for line in text.splitlines()]
    timings = [line for line in said if " s in all: " in line]
    plan, planned = _plan(folder, said)
    return RunHistory(
        folder,
        name,
        settings,
        *parts,
        plan,
        "\n".join(timings[-1:]),
        planned,
        said[-1] if said else "",
    )


def _plan(folder: Path, said: list[str]) -> tuple[str, int | None]:
    """Return the plan as text, and its steps (None if unknown).

    Both are in plan.json; runs of version 0.1.0 have them in the log alone, whose lines are
    ``said``. Raises `ConfigError` if plan.json is damaged.
    """
    path = folder / PLAN
    if path.is_file():
        try:
            plan = json.loads(path.read_text(encoding="utf-8"))
            text = "\n".join(f"{title:14}{text}" for title, text in plan["rows"])
            return text, int(plan["steps"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{path}: is not what a run writes ({error})") from error
    end = next((k for k, line in enumerate(said) if _BEGUN.match(line)), 0)
    steps = next((match[1] for match in map(_SCHEDULE.match, said[:end]) if match), None)
    return "\n".join(said[:end]), None if steps is None else int(steps.replace(",", ""))
