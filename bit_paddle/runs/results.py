"""The file that holds the result of a run, or of several runs in one folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bit_paddle.config.run_settings import RunSettings

RESULT, REPEATS, FOLDS = "result.json", "repeats.json", "folds.json"


def summary(settings: Mapping[str, Any]) -> str:
    """Return the name of the file with the result of ``settings``."""
    if settings.get("folds") and not settings.get("fold"):
        return FOLDS
    return REPEATS if settings.get("repeats", 1) != 1 else RESULT


def result(folder: Path, settings: RunSettings) -> dict[str, Any] | None:
    """Return the result of the run of ``settings`` in ``folder``, or None if it is incomplete."""
    path = folder / summary(vars(settings))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # damaged: the run resumes and writes it again
        return None
    if not isinstance(content, dict) or content.get("count", 1) != settings.runs:
        return None
    if not {"steps", "runs"} & content.keys():  # of a run, of several runs
        return None
    return _with_nan(content)


def _with_nan(content: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a JSON file, where null stands for a value that is not finite."""
    return {
        key: _with_nan(value) if isinstance(value, dict) else math.nan if value is None else value
        for key, value in content.items()
    }
