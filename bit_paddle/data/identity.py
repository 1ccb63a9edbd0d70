"""Tell two sets of images apart by their names and labels."""

from __future__ import annotations

import hashlib
import os

import numpy as np

from bit_paddle.data.images import Images
from bit_paddle.data.shards.images import ShardImages


def digest(*parts: tuple[Images, np.ndarray]) -> str:
    """Return a hash of the names and labels of images by their indices, int64 [N].

    Images in shards count by their checksums, not by their names.
    """
    result = hashlib.sha256()
    for images, indices in parts:
        if isinstance(images, ShardImages):
            result.update(images.digest(indices).encode())
            continue
        names = zip(images.labels[indices].tolist(), _names_below_root(images, indices.tolist()))
        text = "".join(f"{label} {name}\n" for label, name in names)
        result.update(text.encode(errors="surrogateescape"))
    return result.hexdigest()[:16]


def _names_below_root(images: Images, indices: list[int]) -> list[str]:
    """Return `Images.name` without the images' root, in a third of the time."""
    root, paths = os.fspath(getattr(images, "root", "")), getattr(images, "paths", None)
    if paths is None:
        return [images.name(index).removeprefix(root) for index in indices]
    start = os.path.join(root, "")[len(root) :]
    chosen = map(paths.__getitem__, indices)
    return [path.removeprefix(root) if path.startswith(os.sep) else start + path for path in chosen]
