"""The results of claims: one page, one table in Markdown, and the same in CSV."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path

from bit_paddle import __version__
from bit_paddle.config.claims import Claim
from bit_paddle.inference.verdicts import RULE, Outcome
from bit_paddle.system import files
from bit_paddle.visual import figures
from bit_paddle.visual.page import document

PAGE, TABLE, CSV = "reproduce.html", "reproduce.md", "reproduce.csv"

HEADER = (
    *("claim", "accuracy", "published", "by others", "ours", "runs", "mean", "95% interval"),
    *("difference", "verdict", "hours"),
)


@dataclass(frozen=True)
class Record:
    """One run for the page: its command, its hours if it ended, and its files."""

    row: str
    run: int
    command: str
    hours: float | None
    logs: Sequence[Path]
    fault: str = ""


@dataclass(frozen=True)
class Results:
    """The results of one claim."""

    claim: Claim
    outcomes: Sequence[Outcome]
    records: Sequence[Record] = ()
    machines: Sequence[str] = field(default_factory=list)

    @property
    def rows(self) -> list[list[str]]:
        """The cells of the table below `HEADER`."""
        return [self._cells(one) for one in self.outcomes]

    def _cells(self, one: Outcome) -> list[str]:
        hours = [run.hours for run in self.records if run.row == one.name and run.hours]
        ends = one.interval and "{:.2f} to {:.2f}".format(*one.interval)
        return [
            self.claim.name,
            one.name,
            "" if one.published is None else str(one.published),
            "; ".join(f"{name} {figure}" for name, figure in one.others.items()),
            one.spread,
            f"{len(one.values)} of {one.wanted}",
            _number(one.mean, ".2f"),
            ends or "",
            _number(one.difference, "+.2f"),
            one.verdict,
            f"{sum(hours):.2f}" if hours else "",
        ]


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def markdown(results: Iterable[Results]) -> str:
    """Return the table of the results in Markdown; accuracies are in %."""
    rows = [list(HEADER), ["---"] * len(HEADER), *(row for each in results for row in each.rows)]
    lines = (" | ".join(cell.replace("|", r"\|") for cell in row) for row in rows)
    return "".join(f"| {line} |\n" for line in lines)


def write(results: Sequence[Results], folder: Path) -> Path:
    """Write page, tables and figures into ``folder``; return the page's path."""
    files.write_text(folder / TABLE, markdown(results))
    rows = (row for each in results for row in each.rows)
    files.write_text(folder / CSV, "".join(map(files.csv_line, (HEADER, *rows))))
    parts = [
        f"<p>bit_paddle {__version__}. Accuracies are in %. {escape(RULE)}</p>",
        *(part for each in results for part in _section(each, folder)),
    ]
    files.write_text(folder / PAGE, document("Published accuracies, reproduced?", "".join(parts)))
    return folder / PAGE


def _section(each: Results, folder: Path) -> Iterable[str]:
    claim = each.claim
    yield f"<h2>{escape(claim.title)}</h2>"
    yield f'<p class="note">{escape(claim.name)}; published: {escape(claim.source)}</p>'
    fewer = [one.name for one in each.outcomes if 0 < len(one.values) < one.wanted]
    if fewer:
        names = ", ".join(fewer)
        yield f"<p><b>Fewer runs than the claim has</b>: {escape(names)}</p>"
    yield f'<div class="wide">{_table([HEADER[1:], *(row[1:] for row in each.rows)])}</div>'
    figure = figures.draw_claim(each.outcomes)
    caption = (
        "Ours (dots: runs; large dot: mean; bar: 95% interval) beside the published accuracy "
        "(diamond; line: range)"
    )
    yield f'<figure style="max-width: 50rem">{figures.to_svg(figure)}'
    yield f"<figcaption>{caption}</figcaption></figure>"
    name = f"{Path(PAGE).stem}-{claim.folder}.png"
    files.write(folder / name, partial(figure.savefig, format="png", dpi=120))
    yield "<h3>Runs</h3>"
    lines = [["run", "logs", "hours", "command", "fault"]]
    for run in each.records:
        hours = "" if run.hours is None else f"{run.hours:.2f}"
        lines.append([f"{run.row}, run {run.run}", "", hours, run.command, run.fault])
    links = [" ".join(_link(path, folder) for path in run.logs) for run in each.records]
    yield f'<div class="wide">{_table(lines, {1: links})}</div>'
    yield f"<h3>Versions and hardware</h3><pre>{escape(chr(10).join(each.machines))}</pre>"


def _link(path: Path, folder: Path) -> str:
    address = escape(os.path.relpath(path, folder).replace(os.sep, "/"), quote=True)
    return f'<a href="{address}">{escape(path.name)}</a>'


def _table(rows: Iterable[Sequence[str]], html: Mapping[int, Sequence[str]] | None = None) -> str:
    """Return rows as an HTML table; the first is its head. ``html`` has whole columns below it."""
    text = ""
    for number, row in enumerate(rows):
        kind = "td" if number else "th"
        cells = [escape(cell) for cell in row]
        for column, content in (html or {}).items():
            cells[column] = content[number - 1] if number else cells[column]
        text += f"<tr>{''.join(f'<{kind}>{cell}</{kind}>' for cell in cells)}</tr>\n"
    return f"<table>{text}</table>"
