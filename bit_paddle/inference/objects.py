"""Detections as text: a table, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bit_paddle.errors import printable
from bit_paddle.inference import outputs
from bit_paddle.models.detection.detections import Detections
from bit_paddle.system.files import csv_line
from bit_paddle.system.text import plural


def result_of(name: str, found: Detections, classes: Sequence[str]) -> dict:
    """Return {"image", "objects": [{"class", "score", "box": [x1, y1, x2, y2]}, …]}, best first."""
    objects = [
        {
            "class": classes[label],
            "score": round(score, 6),
            "box": [round(side, 2) for side in box],
        }
        for label, score, box in zip(
            found.classes.tolist(), found.scores.tolist(), found.boxes.tolist()
        )
    ]
    return {"image": name, "objects": objects}


def in_order(stream: Iterable[tuple[int, Detections]]) -> Iterator[tuple[int, Detections]]:
    """Yield the (index, detections) of ``stream`` by their indices 0, 1, 2, …, each once."""
    waiting: dict[int, Detections] = {}
    following = 0
    for index, found in stream:
        waiting[index] = found
        while following in waiting:
            yield following, waiting.pop(following)
            following += 1


def _as_table(results: Iterable[dict], names: Sequence[str]) -> Iterator[str]:
    for result in results:
        objects = result["objects"]
        yield printable(f"{result['image']}: {plural(len(objects), 'object')}") + "\n"
        for item in objects:
            box = " ".join(f"{side:7.1f}" for side in item["box"])
            yield printable(f"{item['score']:9.2%}  {box}  {item['class']}") + "\n"


def _as_csv(results: Iterable[dict], names: Sequence[str]) -> Iterator[str]:
    yield csv_line(("image", "class", "score", "x1", "y1", "x2", "y2"))
    for result in results:
        for item in result["objects"]:
            yield csv_line((result["image"], item["class"], item["score"], *item["box"]))


FORMATS = {"table": _as_table, "json": outputs.FORMATS["json"], "csv": _as_csv}
