"""Progress bars: shown on a terminal or in a notebook, and nowhere else."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


def progress_bar(**options: Any) -> tqdm:
    """Return a tqdm bar that is only shown on a terminal."""
    return tqdm(disable=None, dynamic_ncols=True, leave=False, **options)
