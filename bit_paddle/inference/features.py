"""The features of a model for all images of a data set, kept in a cache for the next use."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL

import bit_paddle
from bit_paddle.data import loader
from bit_paddle.data.images import FileImages, Images
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.errors import DataError, WriteError
from bit_paddle.inference.model import TrainedModel
from bit_paddle.inference.trained import TrainedFile, required_preprocessing
from bit_paddle.runs.folder import CONFIG
from bit_paddle.system import fetch, files, progress

_VERSION = "2"  # of the cached files, and of what features are

_MOST_BYTES = 2 * 1024**3  # in one cache folder; the oldest files leave


def features(
    model: TrainedModel, images: Images, batch: int, workers: int, layers: bool = False
) -> np.ndarray:
    """Return the pooled features of all ``images`` in order, float32 [N, C].

    ``layers`` puts the pooled outputs of the four blocks before them, [N, C1 + C2 + C3 + C4 + C].
    The cache is ``features`` in the folder of the model's run, or else in the package's cache. A
    cached result is used if nothing has changed that the numbers depend on: see `_key`. Errors:
    `ConfigError` for a model without features or with an unknown resolution; `DataError` for an
    image that cannot be read or has features that are not finite.
    """
    view = required_preprocessing(model.file)
    compute = model.function(head=False) if not layers else model.pooled()
    place = cache_folder(model.file) / f"{_key(model, view, images, layers)}.npz"
    found = _cached(place, len(images))
    if found is None:
        results = []
        with progress.progress_bar(desc="features", unit="img", total=len(images)) as bar:
            for part in loader.evaluation_batches(images, view, batch, workers):
                results.append(compute(part.images))
                bar.update(len(part.labels))
        found = np.concatenate(results)
        require_finite(found, images)
        _cache(place, found)
    return found


def require_finite(values: np.ndarray, images: Images) -> None:
    """Raise `DataError` if a row of ``values`` [N, C] is not finite."""
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(broken):
        raise DataError(
            f"{images.name(int(broken[0]))}: the model's features are not finite, and so are those "
            f"of {len(broken):,} of {len(values):,} images; the weights may be damaged, or need "
            "--amp off"
        )


def cache_folder(file: TrainedFile) -> Path:
    """Return the folder of cached features for the model in ``file``."""
    run = file.path.parent
    return (run if (run / CONFIG).is_file() else fetch.cache_dir()) / "features"


def _key(model: TrainedModel, view: Preprocessing, images: Images, layers: bool) -> str:
    """Return a hash of all that the features depend on.

    That is the content of the weights, the preprocessing, the images and their order, the layers,
    the device, precision and operators, and the versions of this package, Paddle and Pillow. Files
    of images count by path, size and dates: to read them all would take as long as to decode them.
    """
    key = hashlib.sha256()
    versions = f"{_VERSION}, bit_paddle {bit_paddle.__version__}, Pillow {PIL.__version__}"
    for word in (versions, str(asdict(view)), model.computed_by, str(layers)):
        key.update(f"{word}\n".encode())
    for word in (*_weights(model.file.path), *_identities(images)):
        key.update(word)
    return key.hexdigest()[:32]


def _weights(path: Path) -> Iterator[bytes]:
    """Yield the SHA-256 of the model's file, or of each file of its folder."""
    paths = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    for one in paths:
        status = one.stat()
        yield _digest(one, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)  # the training and the validation images have the same model
def _digest(path: Path, size: int, date: int) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.digest()


def _identities(images: Images) -> Iterator[bytes]:
    """Yield what tells each image from others: path, size and date of a file, or the pixels."""
    for index in range(len(images)):
        if isinstance(images, FileImages):
            path = os.path.abspath(images.name(index))
            status = os.stat(path)
            text = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n"
            yield text.encode(errors="surrogateescape")
        else:
            image = images.image(index)
            yield f"{image.size}".encode() + hashlib.sha256(image.tobytes()).digest()


def _cached(place: Path, rows: int) -> np.ndarray | None:
    """Return the cached features, or None if they are missing or damaged."""
    try:
        with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as arrays:
            values, digest = arrays["values"], arrays["sha256"].tobytes()
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None
    whole = values.dtype == np.float32 and values.ndim == 2 and len(values) == rows
    if not whole or hashlib.sha256(values.tobytes()).digest() != digest:
        return None
    with suppress(OSError):
        os.utime(place)  # the files that were used last stay
    return values


def _cache(place: Path, values: np.ndarray) -> None:
    """Cache ``values``, and remove the oldest files beyond the limit; nothing if impossible."""
    digest = np.frombuffer(hashlib.sha256(values.tobytes()).digest(), np.uint8)
    if values.nbytes > _MOST_BYTES:
        return
    with suppress(OSError, RuntimeError, WriteError):
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write(place, lambda stream: np.savez(stream, values=values, sha256=digest))
        room = _MOST_BYTES
        for old in sorted(place.parent.glob("*.npz"), key=os.path.getmtime, reverse=True):
            room -= old.stat().st_size
            if room < 0:
                old.unlink()
