"""Pack images into shards: tars of about one size in the layout of WebDataset, and their index.

A shard is there completely or not at all. After a stop, the next call continues behind the last
whole shard. The index is written last; until then `UNFINISHED` marks the folder.
"""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from bit_paddle.data import identity
from bit_paddle.data.images import FileImages, Images
from bit_paddle.data.labels import LabelSets, named
from bit_paddle.data.shards import index, pieces
from bit_paddle.data.shards.images import ShardImages
from bit_paddle.data.shards.pieces import Collector, Piece, Summed
from bit_paddle.errors import ConfigError, DataError
from bit_paddle.system import files
from bit_paddle.system.progress import progress_bar

UNFINISHED = "packing.json"

_AHEAD = 64  # images that are read together

_PIECE = ".index.npz"  # beside a shard, until the index of all is written


class _Encoded(NamedTuple):
    content: bytes
    suffix: str
    name: str


def pack(parts: Mapping[str, Images], folder: Path, shard_bytes: int, workers: int) -> None:
    """Write ``parts`` {name: images} into the folders ``folder/name``.

    The bytes of image files stay as they are; pixels in memory become PNG. A shard ends with the
    image that reaches ``shard_bytes``. ``workers`` threads read files. Errors: `ConfigError` if the
    folder holds something else, `DataError` for an image that cannot be read, `WriteError`.
    """
    wanted = {
        "shard_bytes": shard_bytes,
        "parts": {
            name: {
                "images": len(images),
                "classes": list(images.classes),
                "names and labels": identity.digest((images, np.arange(len(images)))),
            }
            for name, images in parts.items()
        },
    }
    _claim(folder, wanted)
    total = sum(map(len, parts.values()))
    with (
        progress_bar(desc="packing", unit="img", total=total) as bar,
        ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        for name, images in parts.items():
            _pack_part(images, folder / name, shard_bytes, pool, bar)


def finish(folder: Path) -> None:
    """Remove the mark of an unfinished pack, and what was kept to continue it."""
    (folder / UNFINISHED).unlink()
    for path in folder.glob(f"*/*{_PIECE}"):
        path.unlink()


def _claim(folder: Path, wanted: dict[str, Any]) -> None:
    """Mark ``folder`` as being packed. Raises `ConfigError` if it holds other files."""
    mark = folder / UNFINISHED
    files.make_folder(folder, "--output")
    if mark.exists():
        try:
            same = json.loads(mark.read_text(encoding="utf-8")) == json.loads(files.to_json(wanted))
        except (OSError, ValueError):
            same = False
        if not same:
            raise ConfigError(
                f"--output {folder}: was begun with other images or another --shard_mb; repeat the "
                "same command to continue it, or remove the folder"
            )
    elif any(folder.iterdir()):
        raise ConfigError(f"--output {folder}: is not empty; name a new folder")
    else:
        files.write_text(mark, files.to_json(wanted))


def _pack_part(
    images: Images, folder: Path, shard_bytes: int, pool: ThreadPoolExecutor, bar: tqdm
) -> None:
    files.make_folder(folder, "--output")
    for left in folder.glob("*.part"):  # of a process that was killed
        left.unlink()
    done, shards = 0, []
    for number in itertools.count():
        if done >= len(images):
            break
        path = folder / f"{number:06d}.tar"
        piece = _finished(path) or _write_shard(images, done, path, shard_bytes, pool)
        done += len(piece.images)
        shards.append(path)
        bar.update(len(piece.images))
    parts = [_piece_of(path) for path in shards]
    index.build(folder, [path.name for path in shards], parts, images.classes)


def _piece_of(shard: Path) -> Path:
    return shard.with_suffix(_PIECE)


def _finished(path: Path) -> Piece | None:
    """Return the piece of the shard ``path`` if both are whole."""
    piece = pieces.load(_piece_of(path))
    whole = piece is not None and path.is_file() and path.stat().st_size == piece.size
    return piece if whole else None


def _write_shard(
    images: Images, start: int, path: Path, shard_bytes: int, pool: ThreadPoolExecutor
) -> Piece:
    """Write images from ``start`` on into the shard ``path``, and return its piece."""
    collector, digits = Collector(), max(6, len(str(len(images))))
    sums: list[Summed] = []

    def fill(stream: BinaryIO) -> None:
        tar = Summed(stream)
        for number, one in enumerate(_read(images, start, pool), start):
            key, own = f"{number:0{digits}d}", images.labels[number : number + 1]
            labels = list(named(own, images.classes)[0])
            place = pieces.write_member(tar, f"{key}{one.suffix}", one.content)
            told = {"name": one.name, "labels": labels}
            if not isinstance(own, LabelSets):
                told = {"name": one.name, "class": labels[0]}
                pieces.write_member(tar, f"{key}.cls", str(own[0]).encode())
            pieces.write_member(tar, f"{key}.json", json.dumps(told).encode())
            collector.add(place, one.content, labels, one.name)
            if tar.size >= shard_bytes:
                break
        pieces.write_end(tar)
        sums.append(tar)

    files.write(path, fill)
    piece = collector.piece(sums[0].size, sums[0].crc32c)
    pieces.save(piece, _piece_of(path))
    return piece


def _read(images: Images, start: int, pool: ThreadPoolExecutor) -> Iterator[_Encoded]:
    for first in range(start, len(images), _AHEAD):
        chunk = range(first, min(first + _AHEAD, len(images)))
        yield from pool.map(partial(_encoded, images), chunk)


def _encoded(images: Images, number: int) -> _Encoded:
    """Return the file of an image. Raises `DataError`."""
    if isinstance(images, FileImages):
        name = images.paths[number].replace(os.sep, "/")
        try:
            content = Path(images.name(number)).read_bytes()
        except OSError as error:
            raise DataError(f"{images.name(number)}: cannot be read ({error.strerror})") from error
    elif isinstance(images, ShardImages):
        content, name = images.content(number), images.inner_name(number)
    else:
        buffer, name = io.BytesIO(), f"{images.name(number)}.png"
        images.image(number).save(buffer, format="PNG")
        content = buffer.getvalue()
    if not 0 < len(content) <= pieces.LONGEST:
        raise DataError(f"{images.name(number)}: has {len(content):,} bytes, which is no image")
    return _Encoded(content, os.path.splitext(name)[1].lower(), name)
