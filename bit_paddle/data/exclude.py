"""Leave images out of a data set by a file of their paths."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from bit_paddle.data import labels
from bit_paddle.data.images import FileImages, Images, Parts
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import DataError, MissingFileError
from bit_paddle.system.text import plural

_SHOWN = 3


def paths_below(images: Images, datadir: str | None) -> list[str]:
    """Return the paths of ``images`` relative to ``datadir``, with /, and absolute outside it.

    If ``datadir`` is a list, paths are relative to its folder; without it, to the images' root.
    Images without a path, which are in memory, have their name.
    """
    if not isinstance(images, FileImages):
        return [images.name(index) for index in range(len(images))]
    root, home = os.path.abspath(images.root or ""), _home(images, datadir)
    return [_below(home, os.path.join(root, path)) for path in images.paths]


def _home(images: FileImages, datadir: str | None) -> str:
    home = os.path.abspath((images.root or "") if datadir is None else datadir)
    return os.path.join(os.path.dirname(home) if os.path.isfile(home) else home, "")


def _below(home: str, path: str) -> str:
    path = os.path.normpath(path)
    return (path[len(home) :] if path.startswith(home) else path).replace(os.sep, "/")


def line(path: str) -> str:
    """Return ``path`` as a line of the file that `without` reads."""
    return path if path[0] != "#" and path == path.strip() else f"./{path}"


def without(parts: Parts, spec: DataSpec) -> Parts:
    """Return ``parts`` without the images that the file ``spec.exclude`` names, and with notes.

    The file has a path per line, as of `paths_below` or absolute; a line that starts with # is a
    comment. Images leave after the split, so the others stay in their part. Errors:
    `MissingFileError`; `DataError` if a part or a training class has no image left.
    """
    home = _home(parts.train, spec.datadir)
    unwanted = {_below(home, line) for line in _lines(Path(spec.exclude))}
    known: set[str] = set()
    title, removed, kept = f"exclude: {spec.exclude}", {}, {}
    for part in ("train", "val", "test"):
        images = getattr(parts, part)
        if not images:
            continue
        names = paths_below(images, spec.datadir)
        known.update(unwanted.intersection(names))
        stays = np.array([name not in unwanted for name in names], bool)
        if not stays.any():
            raise DataError(f"{title}: names all {plural(len(images), f'{part} image')}")
        removed[part] = int((~stays).sum())
        kept[part] = images if stays.all() else images.subset(np.flatnonzero(stays))
    _require_classes(parts.train, kept["train"], title)
    counts = ", ".join(f"{count:,} of {part}" for part, count in removed.items())
    notes = [f"{title}: {plural(sum(removed.values()), 'image')} left out ({counts})"]
    unknown = sorted(unwanted - known)
    if unknown:
        more = f" and {len(unknown) - _SHOWN:,} more" if len(unknown) > _SHOWN else ""
        notes.append(
            f"{title}: {plural(len(unknown), 'path')} of {len(unwanted):,} found no image: "
            f"{', '.join(unknown[:_SHOWN])}{more}; expected paths relative to the folder of the "
            "data" + ("; `classes` may have left these images out" if spec.classes else "")
        )
    return parts._replace(**kept, notes=(*parts.notes, *notes))


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise MissingFileError(f"--exclude {path}: cannot be read ({error.strerror})") from error
    lines = (line.strip() for line in text.split("\n"))  # a name may have U+2028 and the like
    return [line for line in lines if line and line[0] != "#"]


def _require_classes(before: Images, after: Images, title: str) -> None:
    size = len(before.classes)
    counts = [labels.counts(images.labels, size) for images in (before, after)]
    lost = [before.classes[label] for label in np.flatnonzero((counts[0] > 0) & (counts[1] == 0))]
    if lost:
        raise DataError(f"{title}: names all training images of {', '.join(lost[:5])}")
