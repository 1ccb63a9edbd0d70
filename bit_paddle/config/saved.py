"""Settings in files: read, compared with those of today, written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml

from bit_paddle.config.settings import FIELDS, Settings
from bit_paddle.models import published
from bit_paddle.system import files


def load_yaml(path: str | os.PathLike, flag: str = "") -> dict[Any, Any]:
    """Return the content of a YAML file of settings, unchecked; errors name it by ``flag``.

    Errors: `MissingFileError`, `ConfigError`.
    """
    return files.read_yaml(path, f"{flag} {path}".strip(), "model: BiT-M-R50x1")


def differences(before: Mapping[str, Any], now: Settings) -> list[str]:
    """Return the changed settings among those that affect a run's result, one line per setting.

    A data set may move to another folder (its images are compared elsewhere), and the split of a
    batch only changes rounding. An older version may have written ``before``: the settings that it
    lacks had their defaults, and it kept a model's name as it was typed.
    """
    before = {**{name: item.default for name, item in FIELDS.items()}, **before}
    before["model"] = published.canonical(str(before["model"]))
    return [
        f"{name}: {before[name]} -> {getattr(now, name)}"
        for name, item in FIELDS.items()
        if item.metadata["affects_result"] and before[name] != getattr(now, name)
    ]


def to_dict(settings: Settings) -> dict[str, Any]:
    """Return ``settings`` as plain values by name."""
    return asdict(settings)


def to_yaml(settings: Settings) -> str:
    """Return ``settings`` as the text of a --config file that restores them."""
    return yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True)
