"""Classification on the report page: its metrics, and the sections on the validation images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from bit_paddle.inference.label_scores import THRESHOLD, LabelAnalysis
from bit_paddle.visual import figures, html, label_results, sheet
from bit_paddle.visual.html import Pictures

if TYPE_CHECKING:
    from bit_paddle.inference.examine import Analysis, JudgedImage

SCORE = ("top-1", "top1")  # the title and the key of the metric that chooses the best model

METRICS = {"top-5": "top5", "balanced accuracy": "balanced_accuracy"}

SHOWN = 20  # a confusion matrix of more classes is a picture, not a table


SEVERAL_SCORE = ("mean average precision", "mean_average_precision")  # with several labels

SEVERAL_METRICS = {"macro F1": "macro_f1", "micro F1": "micro_f1"}


def sections(analysis: Analysis | LabelAnalysis, suffix: str, pictures: Pictures) -> Iterator[str]:
    """Yield the sections of a page; add a function to ``pictures`` for each picture."""
    if isinstance(analysis, LabelAnalysis):
        yield f"<h3>Scores per label</h3>{labels_table(analysis)}"
        return
    yield "<h3>Confusion matrix</h3>"
    yield confusion(analysis)
    draw = partial(figures.draw_confusion, analysis.confusion, analysis.classes)
    pictures[f"confusion{suffix}"] = draw
    for title, images, name in (
        ("Most confident mistakes", analysis.wrong, "mistakes"),
        ("Most confident right predictions", analysis.right, "right"),
    ):
        yield f"<h3>{title}</h3>"
        if not images:
            yield '<p class="note">None.</p>'
            continue
        pairs = [sheet.pair(image) for image in images]
        texts = [_caption(image, analysis.classes) for image in images]
        captions = ["; ".join(filter(None, both)) for both in texts]
        pictures[f"{name}{suffix}"] = partial(sheet.draw_pairs, pairs, captions)
        shown = (html.tile(pair, *text) for pair, text in zip(pairs, texts))
        yield f'<div class="tiles">{"".join(shown)}</div>'
    kind = "its class activation map. Bright places raised the score of the predicted class"
    if any(image.attention for image in (*analysis.wrong, *analysis.right)):
        kind = "the attention of the head. Bright places of stage 3 have more weight"
    yield f'<p class="note">Left: the input image. Right: {kind}.</p>'


def labels_table(analysis: LabelAnalysis) -> str:
    """Return the scores of each label as an HTML table."""
    head, *rows = label_results.per_label(analysis.scores, analysis.classes)
    lines = ["".join(f"<th>{escape(title.replace('_', ' '))}</th>" for title in head)]
    lines += ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    table = "".join(f"<tr>{line}</tr>" for line in lines)
    scores = escape(str(analysis.scores))
    return (
        f'<div class="wide"><table>{table}</table></div><p class="note">{scores}. '
        f"A label is predicted from a probability of {THRESHOLD:g} on.</p>"
    )


# --- Pictures -----------------------------------------------------------------------------------


def confusion(analysis: Analysis) -> str:
    """Return the confusion matrix as HTML: a table for few classes, else a picture."""
    counts, classes = analysis.confusion, analysis.classes
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    if len(counts) > SHOWN:
        alpha = (255 * shares**0.5).round().astype(np.uint8)
        blue = [np.full_like(alpha, value) for value in (59, 130, 246)]
        pixels = np.stack([*blue, alpha], axis=-1)
        side = max(320, 4 * len(counts))
        picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
        return (
            f'<figure><img style="width:100%;max-width:{side}px;border:1px solid var(--line)" '
            f'alt="confusion matrix" src="{html.data_address(picture)}"><figcaption>'
            f"{len(counts)} classes in their order. One row per class, one column per prediction. "
            "A stronger colour means more images.</figcaption></figure>"
        )
    tag = "span" if max(map(len, classes)) > 3 else "b"  # long names are rotated
    head = "".join(f"<th><{tag}>{escape(name)}</{tag}></th>" for name in classes)
    rows = []
    for name, row, row_shares in zip(classes, counts, shares):
        cells = "".join(
            f'<td style="background:rgba(var(--heat),{0.75 * share:.2f})">{count or ""}</td>'
            for count, share in zip(row, row_shares)
        )
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return (
        f'<div class="wide"><table class="confusion"><tr><th></th>{head}</tr>{"".join(rows)}'
        '</table></div><p class="note">Numbers of images. One row per class, one column per '
        "prediction.</p>"
    )


def _caption(image: JudgedImage, classes: Sequence[str]) -> tuple[str, str]:
    """Return the prediction, and for a mistake the right class and the file's name."""
    prediction = f"predicted {classes[image.prediction]} ({image.probability:.0%})"
    right = image.prediction == image.label
    return prediction, "" if right else f"true: {classes[image.label]}; {image.name}"
