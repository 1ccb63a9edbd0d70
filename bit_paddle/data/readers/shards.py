"""Images in tar shards (``shards``), in a folder or at an address; see `data.shards`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bit_paddle.data.images import Parts
from bit_paddle.data.labels import LabelSets
from bit_paddle.data.readers.class_names import find_class_names
from bit_paddle.data.readers.folders import TEST, VALIDATION, check_fraction_is_needed, folder_of
from bit_paddle.data.shards import foreign, index, transfer
from bit_paddle.data.shards.images import ShardImages, held_out
from bit_paddle.data.shards.index import Shard
from bit_paddle.data.shards.pack import UNFINISHED
from bit_paddle.data.shards.stores import Cache, Folder, Store
from bit_paddle.data.spec import VAL_FRACTION, DataSpec
from bit_paddle.errors import ConfigError, DataError, MissingFileError, did_you_mean
from bit_paddle.system import fetch
from bit_paddle.system.text import plural

WINDOW = 8  # shards: the default of `window` in a data set's .yaml file

_CACHED = 2  # windows in the cache: while one ends, the next begins

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")

_MOST_SHARDS = 1_000_000

_USUAL = {"train": ("train",), "val": VALIDATION, "test": (TEST,)}  # names of folders


class Place(NamedTuple):
    """Where the shards of a part are: a folder or an address, and the names of its tars.

    ``names`` None stands for a folder or an address with an index.
    """

    home: str
    names: list[str] | None


def open_shards(spec: DataSpec) -> Parts:
    """Open the shards of ``train``, ``val`` and ``test``.

    Each is a folder that `bit_paddle pack` has written, or the tars of another program: a folder of
    them, or a pattern such as ``train-{000000..000099}.tar``. Without validation images a part of
    the training images is held out. Errors: `ConfigError`, `MissingFileError`, `DataError`,
    `DownloadError`.
    """
    places = _places(spec)
    train = _opened(spec, places["train"])
    notes = [_order_note(train)]
    if not spec.several and len(train.index.images) != len(train.index.labels):
        notes.append(
            "some images have several labels; the first label of each is used. All are used with "
            "several: true in a data set's .yaml file"
        )
    val, test = (
        _with_classes(_opened(spec, places[part]), train) if part in places else None
        for part in ("val", "test")
    )
    if val is not None:
        check_fraction_is_needed(spec, f"{places['val'].home} has validation images")
        return Parts(train, val, tuple(notes), test)
    fraction = VAL_FRACTION if spec.val_fraction is None else spec.val_fraction
    rest, val = held_out(train, fraction)
    if not len(val):
        raise DataError(f"{places['train'].home}: no class has two images; give validation images")
    notes.append(
        f"no validation shards are given: {len(val):,} of {len(train):,} images are held out, "
        f"{fraction:.0%} per {'label' if spec.several else 'class'} (--val_fraction)"
    )
    return Parts(rest, val, tuple(notes), test)


def _order_note(train: ShardImages) -> str:
    """Return a note on the order of training and on the cache."""
    sizes = [shard.size for shard in train.index.shards]
    title = f"{plural(len(sizes), 'shard')} of {sum(sizes) / 1e9:,.2f} GB in all"
    if train.window is None:
        return f"{title}: each epoch is one shuffle of all images"
    most = _CACHED * train.window
    return (
        f"{title}: shuffle window of {plural(train.window, 'shard')} "
        "(`window` in a data set's .yaml file); "
        f"{fetch.cache_dir() / 'shards'} holds {most} of them, {most * max(sizes) / 1e9:,.2f} GB"
    )


# --- Where the parts are ------------------------------------------------------------------------


def _places(spec: DataSpec) -> dict[str, Place]:
    """Return the places of the parts; of validation and test images only if there are any."""
    home, given = spec.datadir or "", {"train": spec.train, "val": spec.val, "test": spec.test}
    if transfer.is_address(home):  # which cannot be listed
        given = {**given, "train": spec.train or "train", "val": spec.val or "val"}
        return {part: _place(_joined(home, name)) for part, name in given.items() if name}
    root = folder_of(spec)
    if (root / UNFINISHED).exists():
        raise DataError(
            f"--datadir {root}: packing was not finished; repeat the command of bit_paddle pack, "
            "which continues it"
        )
    places = {part: _place(_joined(str(root), name)) for part, name in given.items() if name}
    folders = {
        part: next((root / name for name in names if (root / name).is_dir()), None)
        for part, names in _USUAL.items()
    }
    for part, folder in folders.items():
        if part not in places and folder is not None:
            places[part] = _place(str(folder))
    if "train" not in places:
        places = {**_by_names(root), **places}
    return places


def _joined(home: str, name: str) -> str:
    if transfer.is_address(name) or os.path.isabs(name):
        return name
    return f"{home.rstrip('/')}/{name}"


def _place(text: str) -> Place:
    """Return the place of a folder, a tar, or a pattern. Errors: `ConfigError`, `DataError`."""
    home, _, name = text.rpartition("/")
    if _RANGE.search(home):
        raise ConfigError(f"{text}: a range such as {{000..099}} must be in the name of the file")
    if name.endswith(".tar"):
        return Place(home or ".", _expanded(name))
    if transfer.is_address(text) or (Path(text) / index.FILE).exists():
        return Place(text, None)
    names = sorted(path.name for path in Path(text).glob("*.tar"))
    if not names:
        raise MissingFileError(
            f"{text}: has no shards; expected a folder with {index.FILE} or *.tar, or a pattern "
            "such as train-{000000..000099}.tar"
        )
    return Place(text, names)


def _by_names(root: Path) -> dict[str, Place]:
    """Return the places of tars in one folder: val and test are words in their names."""
    place = _place(str(root))
    if place.names is None:
        return {"train": place}
    found: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for name in place.names:
        words = set(re.findall(r"[a-z]+", name.lower()))
        part = next((part for part in ("val", "test") if words & set(_USUAL[part])), "train")
        found[part].append(name)
    if not found["train"]:
        raise DataError(f"{root}: all shards are named after val or test; none is for training")
    return {part: Place(place.home, names) for part, names in found.items() if names}


def _expanded(pattern: str) -> list[str]:
    """Return the names of a pattern with {000000..000099}, as WebDataset writes them."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < _MOST_SHARDS:
        raise ConfigError(f"{pattern}: {match[0]} is no range of numbers, such as {{000..099}}")
    names = (f"{k:0{len(match[1])}d}" for k in range(first, last + 1))
    return [f"{pattern[: match.start()]}{name}{pattern[match.end() :]}" for name in names]


# --- The images of a part -----------------------------------------------------------------------


def _opened(spec: DataSpec, place: Place) -> ShardImages:
    """Return the images at ``place``."""
    window, remote = spec.window or WINDOW, transfer.is_address(place.home)
    most = _CACHED * window if remote else None
    if place.names is None:
        folder = _index_from(place.home) if remote else Path(place.home)
        found = index.read(folder, place.home)
    else:
        folder, found = _indexed(place, most)
    store = _store(place.home, found.shards, folder, most)
    classes = None if place.names is None or remote else _class_names(found.classes, place, spec)
    windowed = remote and len(found.shards) > most
    labels = _labels(found, place, spec)
    return ShardImages(found, store, window if windowed else None, labels=labels, classes=classes)


def _labels(found: index.Index, place: Place, spec: DataSpec) -> LabelSets | None:
    """Return the labels of images that may have several, mapped; None for the first of each.

    Raises `DataError` if there is no such first one, or if it is not all that was packed.
    """
    if spec.several:
        sets = LabelSets(found.label_starts, found.labels)
        if place.names is None:
            return sets
        return LabelSets.of_pairs(sets.images, sets.labels, len(sets))  # theirs have any order
    lengths = np.diff(found.label_starts)
    wrong = lengths != 1 if place.names is None else lengths == 0
    if wrong.any():
        first = int(wrong.argmax())
        raise DataError(
            f"{place.home}: {plural(int(wrong.sum()), 'image')} do not have exactly one label; "
            f"{found.name(first)} has {lengths[first]}. Write several: true into a data set's "
            ".yaml file, as in the data.yaml of bit_paddle pack, and give that to --dataset"
        )
    return None


def _store(home: str, shards: Sequence[Shard], folder: Path, most: int | None) -> Store:
    """Return the shards at ``home``; at most ``most`` of those at an address are in ``folder``."""
    if most is None:
        return Folder(Path(home), shards)
    return Cache(home, shards, folder / "shards", most)


def _index_from(address: str) -> Path:
    """Return a folder of the cache with the index at an address."""
    with tempfile.TemporaryDirectory() as temporary:
        path = transfer.fetch(f"{address}/{index.FILE}", Path(temporary, index.FILE))
        content = path.read_text(encoding="utf-8")
    folder = _cache_folder(f"{address}\n{content}", address)
    try:
        arrays = json.loads(content)["arrays"]
        expected = {f"{key}.npy": dict(arrays[key]) for key in index.ARRAYS}
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{address}/{index.FILE}: is no index of shards ({error})") from error
    for name, sums in expected.items():
        transfer.fetch(f"{address}/{name}", folder / name, sums)
    return transfer.fetch(f"{address}/{index.FILE}", folder / index.FILE).parent


def _indexed(place: Place, most: int | None) -> tuple[Path, index.Index]:
    """Return a folder of the cache with the index of tars that have none, and this index."""
    key, home = "", place.home
    for name in place.names or ():
        key += f"{home}/{name}\n"
        if most is None:
            try:
                state = os.stat(Path(home, name))
            except OSError as error:
                raise MissingFileError(
                    f"{home}/{name}: cannot be read ({error.strerror})"
                ) from error
            key = f"{key}{os.path.realpath(home)} {state.st_size} {state.st_mtime_ns}\n"
    folder = _cache_folder(key, home)
    unknown = [Shard(name, None, None) for name in place.names or ()]
    store = None if most is None else Cache(home, unknown, folder / "shards", most)

    def located(number: int) -> Path:
        return Path(home, unknown[number].name) if store is None else store.path(number)

    foreign.build(folder, [shard.name for shard in unknown], located)
    return folder, index.read(folder, home)


def _cache_folder(key: str, home: str) -> Path:
    digest = hashlib.sha1(key.encode(errors="surrogateescape")).hexdigest()[:16]
    title = re.sub(r"\W+", "-", os.path.basename(home))[:50].strip("-")
    return fetch.cache_dir() / "shards" / f"{title}-{digest}"


def _class_names(labels: Sequence[str], place: Place, spec: DataSpec) -> list[str] | None:
    """Return the names of ``labels`` by a file beside the shards, None if there is no such file."""
    named = find_class_names(Path(place.home), spec.encoding)
    if named is None or not all(label.isdigit() for label in labels):
        return None
    absent = next((label for label in labels if int(label) not in named.names), None)
    if absent is not None:
        raise DataError(f"{named.file}: has no line for the label {absent}")
    return [named.names[int(label)] for label in labels]


def _with_classes(images: ShardImages, train: ShardImages) -> ShardImages:
    """Return ``images`` with the classes of ``train``. Raises `DataError` for another class."""
    if images.classes == train.classes:
        return images
    number = {name: place for place, name in enumerate(train.classes)}
    unknown = next((name for name in images.classes if name not in number), None)
    if unknown is not None:
        raise DataError(
            f"{images.store.title}: class {unknown!r} is not in training "
            f"({did_you_mean(unknown, number)}); the head has one output per training class"
        )
    places, own = np.array([number[name] for name in images.classes]), images.labels
    labels = own.renumbered(places) if isinstance(own, LabelSets) else places[own]
    return images.chosen(np.arange(len(images)), labels, train.classes)
