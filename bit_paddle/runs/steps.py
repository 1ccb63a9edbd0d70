"""The steps of a run as a list of dictionaries, which a notebook shows as a table."""

from __future__ import annotations

from html import escape
from typing import Any

from bit_paddle.runs.history import RunHistory

SHOWN = 10  # rows of the table, evenly spaced; those with a validation come on top

MEASURED = {
    "classification": ("loss", "top1", "top5", "balanced_accuracy"),
    "detection": ("ap", "ap50", "ap75"),
}


SEVERAL = ("loss", "mean_average_precision", "macro_f1", "micro_f1")  # labels per image


class Steps(list[dict[str, Any]]):
    """One dictionary per step; ``pandas.DataFrame(steps)`` works on it.

    Keys: step, loss, lr, images_per_second; after a validation also val_loss, val_top1, val_top5,
    val_balanced_accuracy, or for a detector val_ap, val_ap50, val_ap75, or with several labels per
    image val_mean_average_precision, val_macro_f1, val_micro_f1. The steps of the best and
    of the last model have test_loss and so on if the data have test images.
    """

    def __init__(self, history: RunHistory):
        rows: dict[int, dict[str, Any]] = {}
        for line in history.train:
            rows[line["step"]] = {k: v for k, v in line.items() if k not in ("kind", "time")}
        names = MEASURED[history.settings.task]
        if any(SEVERAL[1] in line for line in history.val):
            names = SEVERAL
        for line in (*history.val, *history.test):
            row, kind = rows.setdefault(line["step"], {"step": line["step"]}), line["kind"]
            row.update({f"{kind}_{name}": line.get(name) for name in names})
        super().__init__(row for _, row in sorted(rows.items()))

    def _table(self) -> list[list[str]]:
        """Return the header and up to `SHOWN` rows, as strings."""
        names = list(dict.fromkeys(name for row in self for name in row))
        last = len(self) - 1
        places = {last * k // (SHOWN - 1) for k in range(SHOWN)}
        measured = ("val_", "test_")
        shown = [
            row
            for k, row in enumerate(self)
            if k in places or any(name.startswith(measured) for name in row)
        ]
        return [names, *([_text(row.get(name)) for name in names] for row in shown)]

    def __repr__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in table]
        return "\n".join([*lines, f"{len(self)} steps"])

    def _repr_html_(self) -> str:
        head, *body = self._table()
        rows = [_row(head, "th"), *(_row(row, "td") for row in body)]
        return f"<table>{''.join(rows)}</table><p>{len(self)} steps</p>"


def _row(cells: list[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
