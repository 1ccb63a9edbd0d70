"""Choose and lock a run's folder, and find what the run starts from.

A run starts from the first of these that exists:

1. its own newest readable checkpoint (``bit_logs/<name>/checkpoints``);
2. the checkpoint of another run, given by --resume;
3. the pre-trained weights given by --model;
4. random weights, with --from_scratch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bit_paddle.config.run_settings import RunSettings
from bit_paddle.config.saved import differences, kind_of, load_yaml
from bit_paddle.errors import BitPaddleError, CheckpointError, ConfigError, MissingFileError
from bit_paddle.models import hub, published
from bit_paddle.models.containers.folder import WEIGHTS
from bit_paddle.runs import lease, locking, logbook
from bit_paddle.runs.checkpoints import (
    CHECKPOINTS,
    Checkpoint,
    open_checkpoint,
    readable,
    set_aside,
)
from bit_paddle.runs.locking import LOCK, OWNER
from bit_paddle.runs.results import FOLDS, RESULT, result, summary
from bit_paddle.system import files

CONFIG = "config.yaml"

_BEFORE_CONFIG = {LOCK, OWNER, logbook.LOG}  # files that a run writes before `CONFIG`


@dataclass(frozen=True)
class Start:
    """The folder of a run, and the checkpoints that it may start from."""

    folder: Path
    checkpoints: tuple[Checkpoint, ...] = ()  # newest first; the first intact one is used
    result: dict[str, Any] | None = None  # None unless the run is complete
    notes: tuple[str, ...] = ()  # messages for the user about the choice
    damaged: tuple[Path, ...] = ()  # checkpoints that cannot be read


def _clear(start: Start) -> None:
    """Remove the partial files of a killed process; rename damaged checkpoints."""
    folder = start.folder
    for leftover in [*folder.glob("*.part"), *(folder / CHECKPOINTS).glob("*.part")]:
        with suppress(OSError):
            leftover.unlink()
    for path in start.damaged:
        set_aside(path)


# --- The start ----------------------------------------------------------------------------------


def unstarted(settings: RunSettings) -> Start:
    """Return the folder of a run by its name, whatever is there: for a plan without a run."""
    return Start(Path(settings.logdir, settings.name or default_name(settings)))


def default_name(settings: RunSettings) -> str:
    """Return the name of the run's folder without --name: those of the model and the data."""
    model = settings.model
    is_path = published.is_path(model)
    name = model_name(Path(model)) if is_path else re.sub(r"[/:]+", "-", model)
    return f"{name}-{settings.data_name}"


def model_name(path: Path) -> str:
    """Return a name for the model in a file or folder; a run's model has the name of its run.

    A model in the cache of the Hugging Face hub has the name of its repository.
    """
    if repository := hub.repository_of(path):
        return repository.name
    run = path.resolve().parent
    if run.name == CHECKPOINTS:
        return f"{run.parent.name}-{path.stem}"
    if path.name in (published.MODEL, *WEIGHTS):
        return run.name
    ending = next((ending for ending in published.ENDINGS if path.name.endswith(ending)), "")
    return path.name[: len(path.name) - len(ending)]


@contextmanager
def claim(settings: RunSettings, force: bool = False, dry: bool = False) -> Iterator[Start]:
    """Choose and lock the folder for the run of ``settings``; yield its `Start`.

    With --name, that folder is chosen if it is new or holds a run of these settings, finished or
    not. Without, it is the first of ``<model>-<data>``, ``…-2``, ``…-3`` that is new or holds an
    unfinished run of these settings. ``force`` accepts a run of other settings too. The kernel
    releases the lock when the process ends, however it ends. ``dry`` changes and locks nothing.

    Raises `ConfigError` if another process has the lock, the settings differ, the folder is not a
    run's, or it cannot be written.
    """
    if settings.name:
        candidates = [Path(settings.logdir, settings.name)]
    else:
        candidates = files.numbered(settings.logdir, default_name(settings))
    for folder in candidates:
        lock = None if dry else locking.take(folder)
        try:
            if lock is None and not dry:
                _refuse_if_same(folder, settings)
                continue
            start = _start(folder, settings, force)
            if start is not None:
                if not dry:
                    _clear(start)
                yield start
                return
        finally:
            if lock is not None:
                locking.release(folder, lock)


def _start(folder: Path, settings: RunSettings, force: bool) -> Start | None:
    """Return the start of the run in ``folder``, or None if the next folder should be tried."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    names = {name for name in names - _BEFORE_CONFIG if not name.endswith(".part")}
    if not names:
        return Start(folder, _elsewhere(settings, force))
    named = settings.name is not None
    if CONFIG not in names:
        if named:
            raise ConfigError(
                f"--name {settings.name}: {folder} is not the folder of a run (it holds "
                f"{min(names)}); take another name"
            )
        return None
    try:
        before = _settings_in(folder)
    except BitPaddleError:
        if named:
            raise
        return None
    other = _other_kind(before, settings)
    if other:
        if named:
            raise ConfigError(
                f"--name {settings.name}: {folder} holds a run {other}; take another name"
            )
        return None
    changed = differences(before, settings)
    if changed and _is_without_steps(folder):
        note = f"{folder}: the run of other settings there made no step; this run takes its place"
        return Start(folder, _elsewhere(settings, force), notes=(note,))
    ended = result(folder, settings)
    if ended and (not changed or not named):
        return Start(folder, result=ended) if named else None
    if changed and not force:
        if named:
            raise ConfigError(_refusal(f"--name {settings.name}: {folder} holds a run", changed))
        return None
    checkpoints, faults = readable(folder)
    if published.MODEL in names and not checkpoints and not faults:  # of before `RESULT` existed
        if named:
            raise ConfigError(
                f"--name {settings.name}: {folder} holds a trained model, but no checkpoint to "
                "resume from; take another name"
            )
        return None
    notes, damaged = tuple(faults.values()), tuple(faults)
    if not checkpoints:
        notes += (f"{folder}: the run has no readable checkpoint; it starts from the beginning",)
    try:
        others = _elsewhere(settings, force)
    except ConfigError:
        if not checkpoints:
            raise
        others = ()  # the run of --resume may be removed: this run has its own checkpoints
    return Start(folder, (*checkpoints, *others), None, notes, damaged)


def _is_without_steps(folder: Path) -> bool:
    """Return whether the run in ``folder`` has made no step, so that nothing is lost without it."""
    made = (f"{CHECKPOINTS}/*", published.MODEL, RESULT, f"*/{CONFIG}")
    if any(path for pattern in made for path in folder.glob(pattern)):
        return False
    lines, unreadable = logbook.read_metrics(folder / logbook.METRICS)
    return not lines and not unreadable


def _settings_in(folder: Path) -> dict[Any, Any]:
    """Return the run's settings in ``folder``. Raises `MissingFileError` or `ConfigError`."""
    values = load_yaml(folder / CONFIG)
    if kind_of(values) is None:
        raise ConfigError(f"{folder / CONFIG}: has no settings of a run; is it damaged?")
    return values


def _other_kind(before: dict[Any, Any], settings: RunSettings) -> str:
    """Return what kind of run the settings ``before`` are, "" if of the same kind as now."""
    kind = kind_of(before)
    if kind is not None and kind.task != settings.task:
        return f"of another task, {kind.task}"
    if summary(before) == summary(vars(settings)):
        return ""
    several = "folds" if summary(before) == FOLDS else "repeats"
    return f"with --{several} {before.get(several, 1)}"


def _elsewhere(settings: RunSettings, force: bool) -> tuple[Checkpoint, ...]:
    """Return the checkpoints of --resume, newest first; empty without it."""
    if settings.resume is None:
        return ()
    path = Path(settings.resume)
    if path.is_dir():
        path = path.parent if path.name == CHECKPOINTS else path
        checkpoints, faults = readable(path)
        if not checkpoints:
            raise ConfigError(
                f"--resume {path}: holds no checkpoint that can be read"
                + "".join(f"; {fault}" for fault in faults.values())
            )
    else:
        try:
            checkpoints = [open_checkpoint(path)]
        except (CheckpointError, MissingFileError) as error:
            raise ConfigError(f"--resume {error}") from error
    before = checkpoints[0].notes["settings"]
    kind = kind_of(before)
    if kind is not None and kind.task != settings.task:
        raise ConfigError(f"--resume {path}: is a run of another task, {kind.task}")
    changed = differences(before, settings)
    if changed and not force:
        raise ConfigError(_refusal(f"--resume {path}: is a run", changed))
    return tuple(replace(checkpoint, elsewhere=True) for checkpoint in checkpoints)


def check_data(start: Start, data: dict[str, Any]) -> None:
    """Raise `ConfigError` if the run of a checkpoint in ``start`` had other ``data``."""
    for checkpoint in start.checkpoints:
        before = checkpoint.notes["data"]
        changed = [
            f"{key}: {before.get(key)} -> {value}"
            for key, value in data.items()
            if before.get(key) != value
        ]
        if changed:
            raise ConfigError(_refusal(f"{checkpoint.path}: belongs to a run", changed))


def _refusal(head: str, changed: list[str]) -> str:
    lines = "".join(f"\n  {line}" for line in changed)
    return (
        f"{head} that differs from this one:{lines}\nTake another --name, or --force to resume "
        "from it anyway"
    )


# --- The lock -----------------------------------------------------------------------------------


def forget(folder: Path) -> None:
    """Remove the files of a run that has made no step, while it holds the lock of ``folder``."""
    for path in folder.iterdir():
        if path.name not in (LOCK, OWNER) and path.is_file():
            path.unlink()


def _refuse_if_same(folder: Path, settings: RunSettings) -> None:
    """Raise `ConfigError` if the run that holds ``folder`` is the one of ``settings``."""
    try:
        before = _settings_in(folder)
        same = not _other_kind(before, settings) and not differences(before, settings)
    except BitPaddleError:  # that run has not written its settings yet
        same = False
    if settings.name is None and not same:
        return
    with suppress(OSError):
        owner = lease.owner((folder / OWNER).read_bytes())
        raise ConfigError(
            f"{folder}: is in use by {owner}; wait for it, stop it, or take another --name"
        )
    raise ConfigError(f"{folder}: is in use by another process; take another --name")
