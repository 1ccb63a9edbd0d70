"""Images with boxes from files of any of three formats; the files tell which."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bit_paddle.data.boxes.annotations import ON_BAD_BOX, BoxedImages
from bit_paddle.data.boxes.coco import read_coco
from bit_paddle.data.boxes.voc import read_voc
from bit_paddle.data.boxes.yolo import class_names, read_yolo
from bit_paddle.errors import ConfigError, DataError, MissingFileError, did_you_mean

_BESIDE = ("images", "JPEGImages")  # folders of images beside the annotations


def read_boxes(
    annotations: str | os.PathLike,
    images: str | os.PathLike | None = None,
    classes: Sequence[str] | None = None,
    on_bad_box: str = "error",
) -> BoxedImages:
    """Return images with boxes.

    ``annotations`` is a COCO file (.json), a folder of Pascal VOC's files (.xml), or a folder of
    YOLO's files (.txt). ``images`` is the folder of the images; without it they are in ``images/``
    or ``JPEGImages/`` beside the annotations, in the folder of the annotations, or, as COCO has it,
    in ``val2017/`` beside the folder of ``instances_val2017.json``. ``classes`` gives the names of
    the classes in their order. Without it they are the file's (COCO), all names sorted (VOC), or
    those of classes.txt or data.yaml in the folder or above it (YOLO).

    Faults are a missing image, a box without area or outside its image, a number that is not
    finite, an unknown class, and incomplete entries. ``on_bad_box`` "error" reports all faults at
    once, "skip" leaves these boxes and images out and counts them in the notes. A box that is only
    partly outside is cut.

    Errors: `ConfigError`, `MissingFileError`, `DataError`.
    """
    if on_bad_box not in ON_BAD_BOX:
        raise ConfigError(f"on_bad_box: is {on_bad_box!r}: {did_you_mean(on_bad_box, ON_BAD_BOX)}")
    path = Path(annotations)
    if not path.exists():
        raise MissingFileError(f"{path}: no such file or folder of boxes")
    root = Path(images) if images is not None else _images_beside(path)
    if path.is_file():
        if path.suffix.lower() != ".json":
            raise DataError(f"{path}: expected a COCO file (.json), or a folder of .xml or .txt")
        return read_coco(path, root, classes, on_bad_box)
    suffixes = {os.path.splitext(name)[1].lower() for name in os.listdir(path)}
    if ".xml" in suffixes:
        return read_voc(path, root, classes, on_bad_box)
    if ".txt" in suffixes:
        return read_yolo(path, root, classes or _classes_near(path), on_bad_box)
    raise DataError(f"{path}: has no .xml file (Pascal VOC) and no .txt file (YOLO)")


def _images_beside(path: Path) -> Path:
    """Return the folder of the images; ``labels/train`` has its images in ``images/train``."""
    path = path.absolute()
    part = path.stem.rpartition("_")[2]
    for other in (path.parent.parent / part, path.parent.parent / "images" / part):
        if path.is_file() and part != path.stem and other.is_dir():
            return other
    for place in range(len(path.parts) - 1, 0, -1):
        if path.parts[place] == "labels":
            other = Path(*path.parts[:place], "images", *path.parts[place + 1 :])
            if other.is_dir():
                return other
    beside = [path.parent / name for name in _BESIDE if (path.parent / name).is_dir()]
    return beside[0] if beside else path if path.is_dir() else path.parent


def _classes_near(folder: Path) -> list[str]:
    """Return the names of YOLO's classes from a file in ``folder`` or at most two folders above."""
    folder = folder.absolute()
    for place in (folder, *list(folder.parents)[:2]):
        for name in ("classes.txt", "data.yaml"):
            if (place / name).is_file():
                return class_names(place / name)
    raise MissingFileError(
        f"{folder}: YOLO's files have numbers alone; give the names of the classes, or write them "
        f"into {folder / 'classes.txt'}, one per line"
    )
