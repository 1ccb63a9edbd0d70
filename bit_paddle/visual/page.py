"""The report: one HTML page of one or several runs, which needs no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from bit_paddle import __version__
from bit_paddle.models import published
from bit_paddle.runs.history import RunHistory
from bit_paddle.visual import figures, sheet

if TYPE_CHECKING:
    from bit_paddle.inference.examine import Analysis, JudgedImage


Pictures = dict[str, Callable[[BinaryIO], object]]  # name -> what writes it as a PNG


SHOWN = 20  # classes of a confusion matrix that is a table; more become a picture

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
    found: Sequence[RunHistory],
    analyses: Sequence[Analysis | str],
    pictures: Pictures,
) -> str:
    """Return the page; put what draws each of its pictures as a PNG into ``pictures``."""
    title = ", ".join(run.name for run in found)
    curves = []
    for name, (label, figure) in figures.draw_curves(found).items():
        curves.append(
            f"<figure>{figures.to_svg(figure)}<figcaption>{escape(label)}</figcaption></figure>"
        )
        pictures[name] = partial(figure.savefig, format="png", dpi=150)
    sections = []
    for number, (run, seen) in enumerate(zip(found, analyses), 1):
        suffix = f"-{number}" if len(found) > 1 else ""
        sections.append(f"<section>{''.join(_run_parts(run, seen, suffix, pictures))}</section>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}</style></head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>bit_paddle {__version__}</p>\n"
        f'<div class="wide">{summary(found)}</div>\n'
        f'<h2>Training</h2>\n<div class="grid">{"".join(curves)}</div>\n'
        f'<div class="runs">{"".join(sections)}</div>\n</body></html>\n'
    )


def summary(found: Iterable[RunHistory]) -> str:
    """Return a table with a column a run."""
    columns = []
    for run in found:
        last = run.val[-1] if run.val else {}
        best = max((one["top1"] for one in run.val if "top1" in one), default=None)
        speeds = [one["images_per_second"] for one in run.train if "images_per_second" in one]
        loss = last.get("loss")
        columns.append(
            {
                "": run.name,
                "model": Path(run.settings.model).name,
                "data": run.settings.dataset,
                "steps": f"{run.step:,}{f' of {run.planned:,}' if run.unfinished else ''}",
                "top-1 at the end": _percent(last.get("top1")),
                "best top-1": _percent(best),
                "top-5 at the end": _percent(last.get("top5")),
                "validation loss": "" if loss is None else f"{loss:.4f}",
                "images a second (median)": f"{np.median(speeds):.0f}" if speeds else "",
            }
        )
    rows = []
    for title in columns[0]:
        kind = "td" if title else "th"
        cells = (f"<{kind}>{escape(column[title])}</{kind}>" for column in columns)
        rows.append(f"<tr><th>{title}</th>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _run_parts(
    run: RunHistory,
    seen: Analysis | str,
    suffix: str,
    pictures: Pictures,
) -> Iterable[str]:
    yield f"<h2>{escape(run.name)}</h2>"
    if run.unfinished:
        yield (
            f'<p class="note"><b>Not complete:</b> {run.step:,} of {run.planned:,} steps. Its log '
            f"ends: {escape(run.said)}</p>"
        )
    if run.model and run.model.name != published.MODEL:
        yield f'<p class="note">Its model is that of {escape(run.model.name)}.</p>'
    if isinstance(seen, str):
        yield f'<p class="note">{escape(seen)}</p>'
    else:
        yield "<h3>What it takes for what</h3>"
        yield confusion(seen)
        draw = partial(figures.draw_confusion, seen.confusion, seen.classes)
        pictures[f"confusion{suffix}"] = draw
        for title, answers, name in (
            ("Its most confident mistakes", seen.wrong, "mistakes"),
            ("Where it looks when it is right", seen.right, "right"),
        ):
            yield f"<h3>{title}</h3>"
            if not answers:
                yield '<p class="note">None.</p>'
                continue
            pairs = [sheet.pair(answer) for answer in answers]
            words = [_caption(answer, seen.classes) for answer in answers]
            captions = ["; ".join(filter(None, both)) for both in words]
            pictures[f"{name}{suffix}"] = partial(sheet.draw_pairs, pairs, captions)
            shown = map(_figure, pairs, words)
            yield f'<div class="tiles">{"".join(shown)}</div>'
        yield (
            '<p class="note">Left what the network saw, right its class activation map: bright is '
            "what spoke for the class that it took the image for.</p>"
        )
    if run.timings:
        yield f"<h3>Time</h3><pre>{escape(run.timings)}</pre>"
    if run.plan:
        yield f"<h3>Plan</h3><pre>{escape(run.plan)}</pre>"


# --- Pictures -----------------------------------------------------------------------------------


def confusion(seen: Analysis) -> str:
    """Return the confusion matrix: as a table where it is small, else as a picture."""
    counts = seen.confusion
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    if len(counts) > SHOWN:
        alpha = (255 * shares**0.5).round().astype(np.uint8)
        pixels = np.stack([np.full_like(alpha, v) for v in (59, 130, 246)] + [alpha], axis=-1)
        side = max(320, 4 * len(counts))
        picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
        return (
            f'<figure><img style="width:100%;max-width:{side}px;border:1px solid var(--line)" '
            f'alt="confusion matrix" src="{_data(picture)}"><figcaption>{len(counts)} classes, in '
            "order: a row a class, a column a prediction; stronger is more</figcaption></figure>"
        )
    tag = "span" if max(map(len, seen.classes)) > 3 else "b"  # long names stand upright
    head = "".join(f"<th><{tag}>{escape(name)}</{tag}></th>" for name in seen.classes)
    rows = []
    for name, some, parts in zip(seen.classes, counts, shares):
        cells = "".join(
            f'<td style="background:rgba(var(--heat),{0.75 * share:.2f})">{count or ""}</td>'
            for count, share in zip(some, parts)
        )
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return (
        f'<div class="wide"><table class="confusion"><tr><th></th>{head}</tr>{"".join(rows)}'
        '</table></div><p class="note">A row a class, a column a prediction: images.</p>'
    )


def _caption(answer: JudgedImage, classes: Sequence[str]) -> tuple[str, str]:
    said = f"{classes[answer.prediction]}, {answer.probability:.0%} sure"
    right = answer.prediction == answer.label
    return said, "" if right else f"is {classes[answer.label]}; {answer.name}"


def _figure(pair: sheet.Pair, words: tuple[str, str]) -> str:
    pictures = "".join(f'<img alt="" src="{_data(one)}">' for one in pair)
    said, truth = map(escape, words)
    return (
        f"<figure><div>{pictures}</div><figcaption><b>{said}</b><br>{truth}</figcaption></figure>"
    )


def _data(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
