"""ImageNet in its published layouts (``imagenet2012``)."""

from __future__ import annotations

import csv
from pathlib import Path

from bit_paddle.data.images import FileImages, Parts
from bit_paddle.data.readers.folders import (
    check_no_class_is_empty,
    class_folders,
    content_of,
    folder_of,
    with_notes,
)
from bit_paddle.data.readers.listing import list_images
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import BitPaddleError, DataError, MissingFileError


def open_imagenet(spec: DataSpec) -> Parts:
    """Open ILSVRC-2012: ``train/<WordNet id>/*``, and ``val/`` likewise or flat.

    The sorted ids are the order of the published heads. The labels of a flat ``val/`` come from a
    file in ``--datadir``: the devkit's ground truth (with its meta.mat), a list of ids, or Kaggle's
    LOC_val_solution.csv. Kaggle's folder ILSVRC/Data/CLS-LOC is found too.
    """
    root = folder_of(spec)
    kaggle = root / "ILSVRC/Data/CLS-LOC"
    parts = kaggle if kaggle.is_dir() else root
    for part in ("train", "val"):
        if not (parts / part).is_dir():
            raise MissingFileError(
                f"--datadir {root}: has no {part}/; expected train/<WordNet id>/*.JPEG and val/, "
                f"found {content_of(root)}"
            )
    train = class_folders(parts / "train", list_images(parts / "train").images, spec.classes)
    check_no_class_is_empty(train, str(parts / "train"), spec.classes)
    listed = list_images(parts / "val").images
    flat = listed.get("", [])
    if not flat:
        val = class_folders(parts / "val", listed, spec.classes, train.classes)
    else:
        try:
            ids = _ground_truth(root, parts / "val", len(flat))
        except BitPaddleError:
            raise
        except Exception as error:  # SciPy raises many types for a damaged file
            raise DataError(
                f"{root}: the labels of val/ cannot be read ({type(error).__name__}: {error}); "
                "are they the official files?"
            ) from error
        unknown = sorted(set(ids.values()) - set(train.classes))
        if unknown and not spec.classes:
            raise DataError(f"{root}: validation class {unknown[0]} is not in train/")
        classes = [*train.classes, *unknown]
        number = {name: label for label, name in enumerate(classes)}
        try:
            labels = [number[ids[path.split(".")[0]]] for path in flat]
        except KeyError as error:
            raise DataError(
                f"{parts / 'val'}: no label for {error}; are these ILSVRC-2012's files?"
            ) from error
        val = FileImages(flat, labels, classes, parts / "val")
    return with_notes(train, val, [], str(parts / "val"))


def _ground_truth(root: Path, val: Path, count: int) -> dict[str, str]:
    """Return {file's name without suffix: WordNet id} of a flat validation folder."""
    homes = [root, root / "ILSVRC2012_devkit_t12/data", val]

    def find(name: str) -> Path | None:
        return next((home / name for home in homes if (home / name).is_file()), None)

    solution = find("LOC_val_solution.csv")
    if solution:
        with open(solution, encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    numbers = find("ILSVRC2012_validation_ground_truth.txt")
    ids = find("imagenet_2012_validation_synset_labels.txt")
    if ids:
        names = ids.read_text(encoding="utf-8").split()
    elif numbers:
        meta = find("meta.mat")
        if meta is None:
            raise MissingFileError(
                f"{numbers}: uses the class numbers of the devkit's meta.mat, but that file is "
                f"missing in {' or '.join(map(str, homes))}"
            )
        from scipy.io import loadmat

        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        by_number = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        names = [by_number[int(word)] for word in numbers.read_text(encoding="utf-8").split()]
    else:
        raise MissingFileError(
            f"{val}: is a flat folder, and the file of its labels is missing; expected "
            "ILSVRC2012_validation_ground_truth.txt and meta.mat (of ILSVRC2012_devkit_t12), "
            "imagenet_2012_validation_synset_labels.txt or LOC_val_solution.csv in "
            f"{' or '.join(map(str, homes))}"
        )
    if len(names) != count:
        raise DataError(f"{ids or numbers}: {len(names)} labels for {count} images in {val}")
    return {f"ILSVRC2012_val_{number:08}": name for number, name in enumerate(names, 1)}
