"""Write the results of a detector's evaluation into a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bit_paddle.inference import average_precision, misses
from bit_paddle.inference.detecting import Measured
from bit_paddle.system import files
from bit_paddle.visual import detection, figures

MISTAKES = 12  # tiles of each picture


def write_results(found: Measured, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write all files of an evaluation into ``folder``. Raises `WriteError`.

    They are metrics.json, which starts with ``facts``, per_class.csv, detections.json (COCO's file
    of results), precision.png, images.png, and, if there are such mistakes, wrong.png and
    missed.png.
    """
    scores = found.scores.summary()
    summary = {
        **facts,
        **{name: None if math.isnan(value) else value for name, value in scores.items()},
        "images": len(found.images),
        "boxes": int(detection.box_counts(found).sum()),
        "areas": "of boxes, not of outlines: small up to 32 x 32 pixels, large from 96 x 96 on",
    }
    files.write_text(folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
    files.write_text(folder / "per_class.csv", "".join(map(files.csv_line, _per_class(found))))
    results = average_precision.results_json(found.images, found.found)
    files.write_text(folder / "detections.json", json.dumps(results) + "\n")
    curves = figures.draw_precision(found.scores)
    save = partial(figures.save, curves, dpi=150, facecolor="white")
    files.write(folder / "precision.png", save)
    analysis = misses.analysis_of(found, MISTAKES)
    for name in detection.TILES:
        tiles = list(detection.tiles_of(analysis, name))
        picture = folder / f"{name}.png"
        if tiles:
            files.write(picture, partial(detection.write_sheet, tiles))
        else:
            picture.unlink(missing_ok=True)  # that of an earlier evaluation


def _per_class(found: Measured) -> Iterator[tuple]:
    yield "class", "boxes", "ap", "ap50"
    for (name, values), count in zip(found.scores.per_class.items(), detection.box_counts(found)):
        yield name, count, *("" if math.isnan(value) else f"{value:.4f}" for value in values)
