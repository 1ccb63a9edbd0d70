"""Progress bars: shown on a terminal or in a notebook, and nowhere else."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm


def progress_bar(**options: Any) -> tqdm:
    """Return a tqdm bar that shows itself on a terminal or in a notebook, and nowhere else."""
    hidden = False if in_notebook() else None  # None: shown on a terminal alone
    return tqdm(disable=hidden, dynamic_ncols=True, leave=False, **options)


def in_notebook() -> bool:
    """Return whether this process runs the cells of a notebook."""
    ipython = sys.modules.get("IPython")  # not imported here: a notebook has done so
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")
