"""Images without labels (``unlabelled``), for ``--rule distill``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bit_paddle.data import splits
from bit_paddle.data.images import FileImages, Images, Parts
from bit_paddle.data.readers.folders import (
    VALIDATION,
    check_fraction_is_needed,
    folder_of,
    with_notes,
)
from bit_paddle.data.readers.listing import list_images
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import DataError

CLASS = "unlabelled"  # the only one


def open_unlabelled(spec: DataSpec) -> Parts:
    """Open all images below ``train/`` and ``val/``, or all below --datadir, at any depth.

    Names of folders mean nothing. Without ``val/`` a part is held out, by the hash of a path.
    Raises `DataError` if there are fewer than two images.
    """
    root = folder_of(spec)
    usual = (root / "train").is_dir()
    train = _images(root / "train" if usual else root)
    places = (root / name for name in VALIDATION if usual and (root / name).is_dir())
    val = next(places, None)
    if val is not None:
        check_fraction_is_needed(spec, f"{val} exists")
        return with_notes(train, _images(val), [], str(val))
    if len(train) < 2:
        raise DataError(f"{train.root}: {len(train)} images; expected two or more, at any depth")
    if spec.fold:
        return Parts(train, train.subset(np.arange(0)))
    train, val, note = splits.held_out(train, spec)
    return with_notes(train, val, [note], str(root))


def is_unlabelled(images: Images) -> bool:
    """Return whether ``images`` come from `open_unlabelled`."""
    return list(images.classes) == [CLASS]


def _images(folder: Path) -> FileImages:
    paths = sorted(path for paths in list_images(folder).images.values() for path in paths)
    return FileImages(paths, np.zeros(len(paths), np.int64), [CLASS], folder)
