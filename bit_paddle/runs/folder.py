"""The folder of a run: who has it, how far it got, and where a run starts from.

The order in which a run looks for its start:

1. this run's own newest checkpoint that can be read (``bit_logs/<name>/checkpoints``);
2. the checkpoint of another run that --resume names;
3. the pre-trained weights that --model names;
4. with --from_scratch, random weights.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bit_paddle.config.settings import Settings, differences, load_yaml
from bit_paddle.data import spec as specs
from bit_paddle.errors import BitPaddleError, CheckpointError, ConfigError, MissingFileError
from bit_paddle.models import published
from bit_paddle.runs import logbook
from bit_paddle.runs.checkpoints import (
    CHECKPOINTS,
    Checkpoint,
    open_checkpoint,
    readable,
    set_aside,
)
from bit_paddle.system import files

CONFIG = "config.yaml"

RESULT, REPEATS = "result.json", "repeats.json"

LOCK, OWNER = "run.lock", "run.owner"

_BEFORE_CONFIG = {LOCK, OWNER, logbook.LOG}  # what a run writes before it is known by its settings


@dataclass(frozen=True)
class Start:
    """The folder of a run, and what it starts from."""

    folder: Path
    checkpoints: tuple[Checkpoint, ...] = ()  # newest first; the first that is whole is taken
    result: dict[str, Any] | None = None  # of a run that is complete
    notes: tuple[str, ...] = ()  # what the user should know of the choice
    damaged: tuple[Path, ...] = ()  # checkpoints that cannot be read


def _clear(start: Start) -> None:
    """Remove what a process that was killed had begun to write; put damaged files aside."""
    folder = start.folder
    for leftover in [*folder.glob("*.part"), *(folder / CHECKPOINTS).glob("*.part")]:
        with suppress(OSError):
            leftover.unlink()
    for path in start.damaged:
        set_aside(path)


# --- The start ----------------------------------------------------------------------------------


def default_name(settings: Settings) -> str:
    """Return the run's folder where --name gives none: the model's and the data's names."""
    data = specs.short_name(settings.dataset, settings.datadir)
    few = f"-{settings.examples_per_class}shot" if settings.examples_per_class else ""
    if settings.repeats > 1:
        few += f"-x{settings.repeats}"
    model = settings.model
    return f"{model_name(Path(model)) if published.is_path(model) else model}-{data}{few}"


def model_name(path: Path) -> str:
    """Return what to call the model in a file or folder: those of runs by their run."""
    run = path.resolve().parent
    if run.name == CHECKPOINTS:
        return f"{run.parent.name}-{path.stem}"
    return run.name if path.name == published.MODEL else path.name.replace(".npz", "")


@contextmanager
def claim(settings: Settings, force: bool = False, dry: bool = False) -> Iterator[Start]:
    """Take the folder that the run of ``settings`` belongs in, and hold it until the end.

    With --name that is its folder, whether it is new, holds an unfinished run of these settings, or
    a finished one. Without, it is the first of ``<model>-<data>``, ``…-2``, ``…-3`` that is new or
    holds an unfinished run of these settings. ``force`` takes one of other settings too. The lock
    is the kernel's: it ends with the process, however that ends. ``dry`` touches nothing.

    Raises `ConfigError` where another process has it, the settings differ, something else is in
    its place, or it cannot be written.
    """
    name = settings.name
    candidates = [Path(settings.logdir, name)] if name else files.numbered(
        settings.logdir, default_name(settings)
    )  # fmt: skip
    for folder in candidates:
        lock = None if dry else _lock(folder)
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
                _release(folder, lock)


def _start(folder: Path, settings: Settings, force: bool) -> Start | None:
    """Return the start of the run in ``folder``; None where another folder should be tried."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    names = {name for name in names - _BEFORE_CONFIG if not name.endswith(".part")}
    if not names:
        return Start(folder, _elsewhere(settings, force))
    named = settings.name is not None
    if CONFIG not in names:
        if named:
            raise ConfigError(
                f"--name {settings.name}: {folder} holds something else ({min(names)}); take "
                "another name"
            )
        return None
    try:
        before = _settings_in(folder)
    except BitPaddleError:
        if named:
            raise
        return None
    if (before.get("repeats", 1) == 1) != (settings.repeats == 1):
        if named:
            raise ConfigError(
                f"--name {settings.name}: {folder} holds a run with --repeats "
                f"{before.get('repeats', 1)}; take another name"
            )
        return None
    changed = differences(before, settings)
    ended = result(folder, settings)
    if ended and (not changed or not named):
        return Start(folder, result=ended) if named else None
    if changed and not force:
        if named:
            raise ConfigError(_refusal(f"--name {settings.name}: {folder} holds a run", changed))
        return None
    checkpoints, faults = readable(folder)
    if published.MODEL in names and not checkpoints and not faults:  # older than `RESULT`
        if named:
            raise ConfigError(
                f"--name {settings.name}: {folder} holds a trained model, and no checkpoint to go "
                "on from; take another name"
            )
        return None
    notes, damaged = tuple(faults.values()), tuple(faults)
    if not checkpoints:
        notes += (f"{folder} holds a run without a checkpoint, which begins again",)
    try:
        others = _elsewhere(settings, force)
    except ConfigError:
        if not checkpoints:
            raise
        others = ()  # it has gone since; there are our own
    return Start(folder, (*checkpoints, *others), None, notes, damaged)


def _settings_in(folder: Path) -> dict[Any, Any]:
    """Return the settings of the run in ``folder``. Errors: `MissingFileError`, `ConfigError`."""
    found = load_yaml(folder / CONFIG)
    if not {"model", "dataset"} <= found.keys():
        raise ConfigError(f"{folder / CONFIG}: holds no settings of a run; is it damaged?")
    return found


def _elsewhere(settings: Settings, force: bool) -> tuple[Checkpoint, ...]:
    """Return the checkpoints that --resume names, newest first, or none without it."""
    if settings.resume is None:
        return ()
    path = Path(settings.resume)
    if path.is_dir():
        path = path.parent if path.name == CHECKPOINTS else path
        found, faults = readable(path)
        if not found:
            raise ConfigError(
                f"--resume {path}: holds no checkpoint that can be read"
                + "".join(f"; {fault}" for fault in faults.values())
            )
    else:
        try:
            found = [open_checkpoint(path)]
        except (CheckpointError, MissingFileError) as error:
            raise ConfigError(f"--resume {error}") from error
    changed = differences(found[0].notes["settings"], settings)
    if changed and not force:
        raise ConfigError(_refusal(f"--resume {path}: is a run", changed))
    return tuple(replace(one, elsewhere=True) for one in found)


def check_data(start: Start, data: dict[str, Any]) -> None:
    """Raise `ConfigError` if a run that ``start`` may go on from had other ``data``."""
    for checkpoint in start.checkpoints:
        before = checkpoint.notes["data"]
        changed = [
            f"{key}: {before.get(key)} -> {value}"
            for key, value in data.items()
            if before.get(key) != value
        ]
        if changed:
            raise ConfigError(_refusal(f"{checkpoint.path}: is of a run", changed))


def _refusal(head: str, changed: list[str]) -> str:
    lines = "".join(f"\n  {line}" for line in changed)
    return (
        f"{head} that differs from this one:{lines}\nTake another --name, or --force to go on from "
        "it all the same"
    )


def result(folder: Path, settings: Settings) -> dict[str, Any] | None:
    """Return what the run of ``settings`` in ``folder`` has left if it is complete, or None."""
    path = folder / (REPEATS if settings.repeats > 1 else RESULT)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # none, or damaged: the run is finished again
        return None
    if not isinstance(content, dict) or content.get("count", 1) != settings.repeats:
        return None
    known = {"top1", "top5", "loss"}
    if not known <= content.keys():
        return None
    return {key: math.nan if value is None else value for key, value in content.items()}


# --- The lock -----------------------------------------------------------------------------------

# flock by hand and not `filelock`: where a file system has no flock, its newer versions use a file
# as the lock, which SIGKILL leaves behind; its older ones take an error such as ENOLCK of NFS for a
# lock that is held. Neither notices that another process has removed the folder and made it again.


def _lock(folder: Path) -> int | None:
    """Take ``folder``, made if it is not there; None where a living process has it.

    Returns the descriptor of the lock's file, to be closed. Another process may remove a folder in
    which it has done nothing, just now; hence the tries.
    """
    reason = None
    for _ in range(100):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if folder.exists() and not folder.is_dir():
                raise files.unwritable(folder, "a file is in its place") from error
            if not isinstance(error, (FileNotFoundError, FileExistsError)):
                raise files.unwritable(folder, error.strerror) from error
            reason = error
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(folder / LOCK)):
                break
        except BlockingIOError:
            os.close(lock)
            return None
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(lock)
            raise files.unwritable(folder, f"no lock on it: {error.strerror}") from error
        os.close(lock)
    else:
        why = reason.strerror if reason else "other processes remove it again and again"
        raise files.unwritable(folder, why) from reason
    with suppress(OSError):  # the owner's name is for a message alone
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        files.write_text(
            folder / OWNER, f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
        )
    return lock


def _release(folder: Path, lock: int) -> None:
    """Give ``folder`` back; one in which nothing has been done is removed."""
    with suppress(OSError):
        (folder / OWNER).unlink(missing_ok=True)
        if {path.name for path in folder.iterdir()} == {LOCK}:
            shutil.rmtree(folder)
    os.close(lock)


def forget(folder: Path) -> None:
    """Remove what a run that has done nothing has written, while it holds ``folder``."""
    for path in folder.iterdir():
        if path.name not in (LOCK, OWNER) and path.is_file():
            path.unlink()


def _refuse_if_same(folder: Path, settings: Settings) -> None:
    """Raise `ConfigError` if the living run in ``folder`` is the one that ``settings`` ask for."""
    try:
        same = not differences(_settings_in(folder), settings)
    except BitPaddleError:  # it has not come that far
        same = False
    if settings.name is None and not same:
        return
    with suppress(OSError):
        owner = (folder / OWNER).read_text(encoding="utf-8", errors="replace").strip()
        raise ConfigError(
            f"{folder}: is being run by {owner}; wait for it or stop it, or take another --name"
        )
    raise ConfigError(f"{folder}: is being run by another process; take another --name")
