"""COCO's JSON: images, annotations with ``bbox`` [x, y, width, height], and categories."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bit_paddle.data.boxes.annotations import BoxedImages, Collector, is_number
from bit_paddle.errors import DataError, MissingFileError


def read_coco(
    path: Path, root: Path, classes: Sequence[str] | None = None, on_bad_box: str = "error"
) -> BoxedImages:
    """Return the images of the JSON file ``path``, whose image files are in ``root``.

    ``classes`` gives the order of the classes; without it they are the file's, by their numbers.
    Regions with ``iscrowd`` are crowds. ``on_bad_box``: see `Collector.finished`. Errors:
    `MissingFileError`, `DataError`.
    """
    content = load(path)
    of_file = categories(content, path)
    names = list(of_file.values()) if classes is None else list(classes)
    numbers = {name: number for number, name in of_file.items()}
    found = Collector(str(path), root, names)
    images: dict[Any, Any] = {}  # None: an image that cannot be used; its fault is recorded
    for place, image in enumerate(_dictionaries(content, "images", found)):
        where = f"images[{place}]"
        number, name = image.get("id"), image.get("file_name")
        if not is_id(number) or not isinstance(name, str):
            found.fault("incomplete entries", f"{where}: has id {number!r}, file_name {name!r}")
        elif number in images:
            found.fault("repeated numbers of images", f"{where}: {number!r}")
        else:
            images[number] = found.image(
                name, image.get("height"), image.get("width"), number, where
            )
    for place, box in enumerate(_dictionaries(content, "annotations", found)):
        where = f"annotations[{place}]"
        number, category, corners = (box.get(key) for key in ("image_id", "category_id", "bbox"))
        if not is_id(number) or number not in images:
            found.fault("boxes of unknown images", f"{where}: image_id {number!r}")
        elif images[number] is None:
            continue
        elif not isinstance(corners, list) or len(corners) != 4:
            found.fault("incomplete entries", f"{where}: has bbox {corners!r:.60}")
        else:
            name = of_file.get(category, category) if is_id(category) else category
            crowd = box.get("iscrowd") in (1, True)
            found.box(images[number], _corners(corners), name, crowd, where)
    return found.finished(on_bad_box, [numbers.get(name) for name in names])


def load(path: Path) -> dict[str, Any]:
    """Return the content of a COCO file, without outlines. Errors: those of `read_coco`."""
    try:
        with open(path, "rb") as stream:  # outlines are most of COCO's own files
            content = json.load(stream, object_hook=_without_outline)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error})") from error
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
        raise DataError(f"{path}: is not COCO's JSON, which has images, annotations and categories")
    return content


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def categories(content: dict[str, Any], path: Path) -> dict[int, str]:
    """Return the names of the categories by number, in the order of the numbers."""
    entries = content["categories"]
    entries = entries if isinstance(entries, list) else []
    faults, names = [], {}
    for place, entry in enumerate(entries):
        number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (0, 0)
        if isinstance(number, bool) or not isinstance(number, int) or not isinstance(name, str):
            faults.append(f"categories[{place}]: is {entry!r:.60}, expected a number id and a name")
        elif number in names or name in names.values():
            faults.append(f"categories[{place}]: repeats {number} or {name!r}")
        else:
            names[number] = name
    if faults or not names:
        raise DataError(f"{path}: {'; '.join(faults[:20]) or 'has no categories'}")
    return dict(sorted(names.items()))


def _dictionaries(content: dict[str, Any], key: str, found: Collector) -> list[dict[str, Any]]:
    entries = content[key]
    if not isinstance(entries, list):
        raise DataError(f"{found.title}: {key} is {entries!r:.60}, expected a list")
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            found.fault("incomplete entries", f"{key}[{place}]: is {entry!r:.60}")
    return [entry if isinstance(entry, dict) else {} for entry in entries]


def is_id(value: Any) -> bool:
    """Return whether ``value`` can be the number of an image or a category."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _corners(bbox: Sequence[Any]) -> list[Any]:
    """Return the corners of ``bbox`` [x, y, width, height]; what is no number stays itself."""
    x, y, width, height = bbox
    if not all(map(is_number, bbox)):
        return list(bbox)
    return [x, y, float(x) + width, float(y) + height]
