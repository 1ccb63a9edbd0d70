"""The settings that choose images, as arguments of `registry.open_dataset`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = ("datadir", "val_fraction", "separator", "group", "exclude")


def data_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ``values`` that choose images; without --fold they are fold 1's."""
    folds = values["folds"]
    fold = (values["fold"] or 1, folds) if folds else None
    return {**{name: values[name] for name in _NAMES}, "fold": fold}
