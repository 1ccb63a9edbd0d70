"""Which images validate, by hash: a fraction of each class, or one of K folds; groups stay whole.

The fold of an image depends on nothing but its name, so an image that is added moves no other. The
price: a class of n images has about n / K images in a fold, but not exactly (binomially many).
With several labels per image, `stratification` deals the images out, in the order of the hashes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from bit_paddle.data.classes import is_alone
from bit_paddle.data.images import FileImages, Parts
from bit_paddle.data.labels import LabelSets, counts, joined, members
from bit_paddle.data.spec import VAL_FRACTION, DataSpec
from bit_paddle.data.stratification import parts_of
from bit_paddle.errors import ConfigError, DataError
from bit_paddle.system.text import plural


def rank(name: str) -> bytes:
    """Return the hash that orders names; it is the same on every machine."""
    return hashlib.sha1(name.replace(os.sep, "/").encode(errors="surrogateescape")).digest()


def fold_of(name: str, folds: int) -> int:
    """Return the fold, 1 to ``folds``, of an image or a group with this name."""
    return int.from_bytes(rank(name), "big") * folds // 256**20 + 1


# --- Groups -------------------------------------------------------------------------------------


def group_pattern(group: str) -> re.Pattern[str]:
    """Return the expression of --group. Raises `ConfigError` unless it has exactly one group."""
    try:
        pattern = re.compile(group)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"--group: {group!r} is not a regular expression ({error})") from error
    if pattern.groups != 1:
        raise ConfigError(
            f"--group: {group!r} has {pattern.groups} groups in ( ), expected one, which finds the "
            r"name in a path, such as '(patient\d+)_'; (?: ) does not count. The name of a column "
            "is for lists"
        )
    return pattern


def group_names(images: FileImages, spec: DataSpec) -> Sequence[str]:
    """Return the name of each image's group: its path, if it is in no group.

    The names are kept in ``images.groups``; a reader of lists has filled that from a column.
    """
    if images.groups is None and spec.group is not None:
        pattern = group_pattern(spec.group)
        paths = (path.replace(os.sep, "/") for path in images.paths)
        matches = map(pattern.search, paths)
        images.groups = [(match and match[1]) or own for match, own in zip(matches, images.paths)]
    return images.paths if images.groups is None else images.groups


def group_notes(parts: Parts, spec: DataSpec) -> list[str]:
    """Return notes on the number of groups, and on groups that are in several parts."""
    if spec.group is None:
        return []
    every = {"training": parts.train, "validation": parts.val, "test": parts.test}
    named = [(title, part, group_names(part, spec)) for title, part in every.items() if part]
    sizes: dict[str, int] = defaultdict(int)
    alone = 0
    for _, part, names in named:
        for name, path in zip(names, part.paths):
            sizes[name] += 1
            alone += path == name or path.endswith(os.sep + name)  # a pooled path is longer
    note = (
        f"{sum(sizes.values()):,} images are in {plural(len(sizes), 'group')} by --group, the "
        f"largest of {plural(max(sizes.values()), 'image')}"
    )
    if alone:
        note += f"; {plural(alone, 'image')} without a group by it, each a group of its own"
    notes, before = [note], set(named[0][2])
    for title, _, names in named[1:]:
        both = before & set(names)
        if both:
            notes.append(
                f"{plural(len(both), 'group')} of {title} images also in earlier parts, such as "
                f"{min(both)!r}: that part is not independent of training"
            )
        before |= set(names)
    return notes


# --- A fraction ---------------------------------------------------------------------------------


def held_out(images: FileImages, spec: DataSpec) -> tuple[FileImages, FileImages, str]:
    """Return training and validation images, and a note: ``spec.val_fraction`` per class is held.

    One image per class at least is for validation. The split depends only on the images' relative
    paths (or the names of their groups), and is the same on every machine. An added image moves at
    most one other image per class. The images that a smaller fraction holds out are among those of
    a larger one. A group is held out as a whole, unless a class would have no training image left.
    Of images with several labels, about the fraction of each label is held out.

    Raises `DataError` if a class has one image, or if no group can be held out; with
    ``spec.measured`` that class has no validation images instead.
    """
    fraction = VAL_FRACTION if spec.val_fraction is None else spec.val_fraction
    names = group_names(images, spec)
    if isinstance(images.labels, LabelSets):
        part = dealt(images.labels, names, (1 - fraction, fraction), len(images.classes))
        if (part.all() or not part.any()) and not spec.measured:
            raise DataError(
                f"{images.root}: {len(set(names)):,} images or groups are too few to hold out "
                f"{fraction:.0%}; give validation images"
            )
        note = (
            f"no validation images are given: {part.sum():,} of {len(images):,} images are held "
            f"out, about {fraction:.0%} per label (--val_fraction)"
        )
        train, val = (images.subset(np.flatnonzero(part == number)) for number in (0, 1))
        return train, val, note
    classes: list[dict[str, set[str]]] = [{} for _ in images.classes]  # group -> paths
    for name, path, label in zip(names, images.paths, images.labels):
        classes[label].setdefault(name, set()).add(path)
    chosen: set[str] = set()
    for label, groups in enumerate(classes):
        total = sum(map(len, groups.values()))
        if total == 1 and not spec.measured and is_alone(spec.classes, images.classes[label]):
            (path,) = next(iter(groups.values()))
            raise DataError(
                f"{os.path.join(images.root, path)}: is the only image of class "
                f"{images.classes[label]!r}, so none is left for validation; add images of this "
                "class, or give validation images"
            )
        wanted, held = max(1, round(fraction * total)), 0
        for name in sorted(groups, key=rank)[:-1]:
            if held >= wanted:
                break
            if spec.group is None or _leaves_training(classes, chosen | {name}):
                chosen.add(name)
                held += len(groups[name])
    if not chosen and not spec.measured:
        raise DataError(
            f"{images.root}: no group can be held out by --group {spec.group!r}: every class has "
            "images of one group only; give validation images"
        )
    held_images = np.array([name in chosen for name in names])
    note = (
        f"no validation images are given: {held_images.sum():,} of {len(images):,} images are held "
        f"out, {fraction:.0%} per class (--val_fraction)"
    )
    parts = (images.subset(np.flatnonzero(where)) for where in (~held_images, held_images))
    return (*parts, note)


def dealt(
    labels: LabelSets, names: Sequence[str], shares: Sequence[float], classes: int
) -> np.ndarray:
    """Return the part of each image, int64 [N], with about its share of each label.

    Images of one of the ``names`` are one group, which stays whole.
    """
    number = {name: place for place, name in enumerate(sorted(set(names), key=rank))}
    unit = np.array([number[name] for name in names])
    sets = LabelSets.of_pairs(unit[labels.images], labels.labels, len(number))
    return parts_of(sets, np.bincount(unit), shares, classes)[unit]


def _leaves_training(classes: Sequence[dict[str, set[str]]], chosen: set[str]) -> bool:
    return all(groups.keys() - chosen for groups in classes if groups)


# --- Folds --------------------------------------------------------------------------------------


def cut(parts: Parts, spec: DataSpec) -> Parts:
    """Return ``parts`` with fold k of K as validation images, where ``spec.fold`` is (k, K).

    Training and validation images are pooled first; test images stay apart. Raises `DataError` if
    a fold is empty.
    """
    fold, folds = spec.fold
    images, notes = _pooled(parts.train, parts.val, spec)
    names = group_names(images, spec) if images.groups is None else images.groups
    if isinstance(images.labels, LabelSets):
        shares, count = np.full(folds, 1 / folds), len(images.classes)
        of_image = dealt(images.labels, names, shares, count) + 1
        how = "each with about the same number of images of each label (iterative stratification)"
    else:
        of_image = np.array([fold_of(name, folds) for name in names])
        by = "path" if spec.group is None else "group's name"
        how = f"the hash of an image's {by} chooses its fold"
    sizes = np.bincount(of_image, minlength=folds + 1)[1:]
    what = "images" if spec.group is None else "groups"
    if not sizes.all():
        distinct = set(names)
        fits = (n for n in range(folds - 1, 1, -1) if len({fold_of(x, n) for x in distinct}) == n)
        most = len(distinct) if isinstance(images.labels, LabelSets) else next(fits, None)
        raise DataError(
            f"--folds {folds}: fold {int(sizes.argmin()) + 1} has no image; {len(distinct):,} "
            f"{what} are few for so many folds"
            + (f"; take --folds {most}" if most else "; add images")
        )
    notes.insert(
        0,
        f"{len(images):,} images in {folds} folds of {sizes.min():,} to {sizes.max():,} images; "
        f"{how}",
    )
    notes += _thin_classes(images, of_image, folds)
    train, val = (images.subset(np.flatnonzero(w)) for w in (of_image != fold, of_image == fold))
    return Parts(train, val, (*parts.notes, *notes), parts.test, tuple(sizes.tolist()))


def _pooled(train: FileImages, val: FileImages, spec: DataSpec) -> tuple[FileImages, list[str]]:
    """Return the images of both parts, each once, and notes. Their names for the hash are kept."""
    names = [*group_names(train, spec), *group_names(val, spec)]
    roots = [os.fspath(part.root) for part in (train, val) if len(part)]
    root = roots[0] if len(set(roots)) == 1 else os.path.commonpath(roots)
    paths: list[str] = []
    for part in (train, val):
        inner = os.path.relpath(part.root, root) if os.fspath(part.root) != root else ""
        paths += [os.path.join(inner, path) for path in part.paths]
    labels = joined([train.labels, val.labels])
    first: dict[tuple, int] = {}
    for index, image in enumerate(zip(paths, labels.tolist())):
        first.setdefault(image, index)
    notes = []
    if len(val):
        notes.append(
            f"training ({len(train):,}) and validation images ({len(val):,}) are pooled for the "
            "folds; only test images stay apart"
        )
    if len(first) < len(paths):
        notes.append(f"{len(paths) - len(first):,} images are listed twice, and taken once")
    pooled = FileImages(paths, labels, train.classes, root, names)
    return pooled.subset(np.array(list(first.values()))), notes


def _thin_classes(images: FileImages, of_image: np.ndarray, folds: int) -> list[str]:
    """Return notes on classes that some folds lack, and on those that a training set lacks."""
    found = np.zeros((len(images.classes), folds), np.int64)
    indices, labels = members(images.labels)
    np.add.at(found, (labels, of_image[indices] - 1), 1)
    few, single, notes = [], [], []
    for name, row in zip(images.classes, found):
        if np.count_nonzero(row) == 1:
            single.append(f"{name} (fold {row.argmax() + 1})")
        elif row.sum() and not row.all():
            few.append(f"{name} ({row.sum()} images)")
    if few:
        notes.append(f"not every fold has images of {_first(few)}")
    if single:
        notes.append(
            f"all images of {_first(single)} are in one fold: its run trains without them, so they "
            "count as wrong; add images, or take another --folds"
        )
    return notes


# --- Classes without images ---------------------------------------------------------------------


def absences(parts: Parts) -> list[str]:
    """Return a note for each part that has no images of some classes."""
    notes = []
    for part, title in ((parts.train, "training"), (parts.val, "validation"), (parts.test, "test")):
        if part is not None:
            found = counts(part.labels, len(parts.train.classes))
            unseen = [parts.train.classes[label] for label in np.flatnonzero(found == 0)]
            notes += [f"no {title} images of {_first(unseen)}"] if unseen else []
    return notes


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"
