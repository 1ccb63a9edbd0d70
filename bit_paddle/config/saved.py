"""Settings in files: read, compared with those of today, written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict
from typing import Any

import yaml

from bit_paddle.config.detection_settings import DetectionSettings
from bit_paddle.config.run_settings import RunSettings, fields_of
from bit_paddle.config.settings import Settings
from bit_paddle.errors import ConfigError, did_you_mean
from bit_paddle.models import published
from bit_paddle.system import files

TASK = "task"  # the key that names the task; files of classification do not have it

KINDS: dict[str, type[RunSettings]] = {kind.task: kind for kind in (Settings, DetectionSettings)}


def load_yaml(path: str | os.PathLike, flag: str = "") -> dict[Any, Any]:
    """Return the content of a YAML file of settings, unchecked; errors name it by ``flag``.

    Errors: `MissingFileError`, `ConfigError`.
    """
    return files.read_yaml(path, f"{flag} {path}".strip(), "model: BiT-M-R50x1")


def load_settings(path: str | os.PathLike) -> RunSettings:
    """Return the settings in the config.yaml of a run of any task.

    Errors: `MissingFileError`, `ConfigError`.
    """
    values = load_yaml(path)
    task = str(values.pop(TASK, Settings.task))
    if task not in KINDS:
        raise ConfigError(f"{path}: task is {task!r}; {did_you_mean(task, KINDS)}")
    kind = KINDS[task]
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{path}: is not what a run writes ({error})") from error


def kind_of(values: Mapping[str, Any]) -> type[RunSettings] | None:
    """Return the class of the settings ``values`` of a run; None if they are not complete."""
    kind = KINDS.get(str(values.get(TASK, Settings.task)))
    return kind if kind is not None and required(kind) <= values.keys() else None


def other_kind(content: Mapping[Any, Any], kind: type[RunSettings]) -> type[RunSettings] | None:
    """Return the class of another task that the ``content`` of a file is for, or None.

    A file that does not name its task is for another one if it has what only that one requires.
    """
    if TASK in content:
        named = KINDS.get(str(content[TASK]))
        return None if named is kind else named
    return next(
        (one for one in KINDS.values() if (required(one) - fields_of(kind).keys()) & set(content)),
        None,
    )


def required(kind: type[RunSettings]) -> set[str]:
    """Return the names of the settings of a task that have no default."""
    return {name for name, item in fields_of(kind).items() if item.default is MISSING}


def differences(before: Mapping[str, Any], now: RunSettings) -> list[str]:
    """Return the changed settings among those that affect a run's result, one line per setting.

    A data set may move to another folder (its images are compared elsewhere), and the split of a
    batch only changes rounding. An older version may have written ``before``: the settings that it
    lacks had their defaults, and it kept a model's name as it was typed.
    """
    every = fields_of(type(now))
    before = {**{name: item.default for name, item in every.items()}, **before}
    before["model"] = published.canonical(str(before["model"]))
    return [
        f"{name}: {before[name]} -> {getattr(now, name)}"
        for name, item in every.items()
        if item.metadata["affects_result"] and before[name] != getattr(now, name)
    ]


def to_dict(settings: RunSettings) -> dict[str, Any]:
    """Return ``settings`` as plain values by name, after the name of their task."""
    task = {} if settings.task == Settings.task else {TASK: settings.task}
    return {**task, **asdict(settings)}


def to_yaml(settings: RunSettings) -> str:
    """Return ``settings`` as the text of a --config file that restores them."""
    return yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True)
