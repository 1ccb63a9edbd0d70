"""Progress bars: shown on a terminal or in a notebook, and nowhere else."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from tqdm import tqdm


def progress_bar(**options: Any) -> tqdm:
    """Return a tqdm bar that shows itself on a terminal or in a notebook, and nowhere else.

    In a notebook it is a widget; without ipywidgets it is a line of text, one at a time, because
    a cell cannot move its cursor up.
    """
    options = {"dynamic_ncols": True, "leave": False, **options}
    if not in_notebook():
        return tqdm(**{"disable": None, **options})  # None: shown on a terminal alone
    if importlib.util.find_spec("ipywidgets") is None:
        return tqdm(**{"position": 0, **options})
    from tqdm.notebook import tqdm as widget

    return widget(**options)


def bars_are_shown() -> bool:
    """Return whether `progress_bar` shows its bars here."""
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def in_notebook() -> bool:
    """Return whether this process runs the cells of a notebook."""
    ipython = sys.modules.get("IPython")  # not imported here: a notebook has done so
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")
