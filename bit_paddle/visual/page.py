"""The report: one HTML page about one or several runs; it needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from bit_paddle import __version__
from bit_paddle.models import published
from bit_paddle.runs.history import RunHistory
from bit_paddle.visual import classification, detection, figures
from bit_paddle.visual.html import Pictures

if TYPE_CHECKING:
    from bit_paddle.inference import examine, label_scores, misses

    Analysis = Union[examine.Analysis, label_scores.LabelAnalysis, misses.Analysis]

TASKS = {"classification": classification, "detection": detection}

_STYLE = """\
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --paper: #fff; --line: #d1d9e0;
  --block: #f6f8fa; --heat: 37, 99, 235; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --paper: #0d1117; --line: #3d444d; --block: #151b23;
    --heat: 96, 165, 250; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 1280px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p, figcaption, .note { color: var(--soft); }
.grid { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
.runs { display: grid; gap: 0 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); }
.runs > section { min-width: 0; }
.tiles { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
figure { margin: 0; min-width: 0; }
figure svg { width: 100%; height: auto; color: var(--ink); }
.tiles div { display: flex; gap: 3px; }
.grid div > img { max-width: 100%; }
.tiles img { flex: 1; min-width: 0; aspect-ratio: 1; border-radius: 3px; }
figcaption { font-size: .8rem; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .25rem .55rem; text-align: right; border: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
.confusion td, .confusion th { text-align: center; min-width: 2rem; }
.confusion span { writing-mode: vertical-rl; transform: rotate(180deg); }
.confusion th:first-child { max-width: 7rem; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  body { padding: .8rem; }
  .confusion td, .confusion th { min-width: 0; padding: .25rem .2rem; font-size: .7rem; } }
pre { background: var(--block); border: 1px solid var(--line); padding: .8rem; overflow-x: auto;
  font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
"""  # noqa: E501


# --- The page -----------------------------------------------------------------------------------


def page(
    runs: Sequence[RunHistory],
    analyses: Sequence[Analysis | str],
    pictures: Pictures,
    tables: Sequence[str] = (),
) -> str:
    """Return the page as HTML; add a function to ``pictures`` for every picture of the page.

    ``analyses`` has one analysis per run, or the reason why there is none. ``tables`` are those of
    --repeats and --folds.
    """
    title = ", ".join(run.name for run in runs)
    curves = []
    for name, (label, figure) in figures.draw_curves(runs).items():
        curves.append(
            f"<figure>{figures.to_svg(figure)}<figcaption>{escape(label)}</figcaption></figure>"
        )
        pictures[name] = partial(figures.save, figure, dpi=150)
    sections = []
    for number, (run, analysis) in enumerate(zip(runs, analyses), 1):
        suffix = f"-{number}" if len(runs) > 1 else ""
        parts = _run_parts(run, analysis, suffix, pictures)
        sections.append(f"<section>{''.join(parts)}</section>")
    return document(
        title,
        f"<p>bit_paddle {__version__}</p>\n"
        f'<div class="wide">{summary(runs)}</div>\n'
        f"{''.join(f'<pre>{escape(table)}</pre>' for table in tables)}"
        f'<h2>Training</h2>\n<div class="grid">{"".join(curves)}</div>\n'
        f'<div class="runs">{"".join(sections)}</div>\n',
    )


def document(title: str, body: str) -> str:
    """Return a page that needs no network: ``body`` is its HTML below the title."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}</style></head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}</body></html>\n"
    )


def summary(runs: Iterable[RunHistory]) -> str:
    """Return an HTML table with one column per run."""
    columns = []
    for run in runs:
        last = run.val[-1] if run.val else {}
        (title, key), metrics = _metrics(run)
        best = max((line[key] for line in run.val if line.get(key) is not None), default=None)
        speeds = [line["images_per_second"] for line in run.train if "images_per_second" in line]
        loss = last.get("loss")
        steps = f"{run.step:,}"
        if run.unfinished:
            steps += f" of {run.planned:,}"
        columns.append(
            {
                "": run.name,
                "model": Path(run.settings.model).name,
                "data": run.settings.data_title,
                **({} if run.settings.learn == "all" else {"learns": run.settings.learn}),
                "steps": steps,
                f"last {title}": _percent(last.get(key)),
                f"best {title}": _percent(best),
                **{f"last {name}": _percent(last.get(k)) for name, k in metrics.items()},
                **({} if loss is None else {"last validation loss": f"{loss:.4f}"}),
                **_test(run, title, key),
                "images per second (median)": f"{np.median(speeds):.0f}" if speeds else "",
            }
        )
    rows = []
    for title in dict.fromkeys(title for column in columns for title in column):
        kind = "td" if title else "th"
        cells = (f"<{kind}>{escape(column.get(title, ''))}</{kind}>" for column in columns)
        rows.append(f"<tr><th>{title}</th>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _metrics(run: RunHistory) -> tuple[tuple[str, str], dict[str, str]]:
    """Return title and key of the score that chose the best model, and those of other metrics."""
    task = TASKS[run.settings.task]
    if task is classification and any(classification.SEVERAL_SCORE[1] in line for line in run.val):
        return classification.SEVERAL_SCORE, classification.SEVERAL_METRICS
    return task.SCORE, task.METRICS


def _test(run: RunHistory, title: str, key: str) -> dict[str, str]:
    """Return the rows on the test images, which the end of a run measures; {} before that."""
    best = [line for line in run.test if line.get("best")]
    last = [line for line in run.test if line["step"] == run.step]
    return {
        f"test {title}, {model} model": f"{_percent(line.get(key))} (step {line['step']:,})"
        for model, lines in (("best", best), ("last", last))
        for line in lines
    }


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _run_parts(
    run: RunHistory,
    analysis: Analysis | str,
    suffix: str,
    pictures: Pictures,
) -> Iterable[str]:
    yield f"<h2>{escape(run.name)}</h2>"
    if run.unfinished:
        yield (
            f'<p class="note"><b>Not complete:</b> {run.step:,} of {run.planned:,} steps. The last '
            f"line of the log: {escape(run.said)}</p>"
        )
    if run.model and run.model.name != published.MODEL:
        yield f'<p class="note">The model is the checkpoint {escape(run.model.name)}.</p>'
    if isinstance(analysis, str):
        yield f'<p class="note">{escape(analysis)}</p>'
    else:
        yield from TASKS[run.settings.task].sections(analysis, suffix, pictures)
    if run.timings:
        yield f"<h3>Time</h3><pre>{escape(run.timings)}</pre>"
    if run.plan:
        yield f"<h3>Plan</h3><pre>{escape(run.plan)}</pre>"
