"""`classes:` of a data set: which labels make which class, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np

from bit_paddle.data import labels as of_images
from bit_paddle.data.images import Images, Parts
from bit_paddle.data.labels import LabelSets
from bit_paddle.data.text import read_text
from bit_paddle.errors import ConfigError, DataError, did_you_mean
from bit_paddle.system.text import plural

Classes = Union[tuple[str, ...], Mapping[str, Sequence[str]]]  # names; or {name: labels}

_SHOWN = 5

_EXPECTED = (
    "expected two or more names, or a file with a name per line, or name: [names in the data]"
)


def parsed(value: Any, folder: Path, encoding: str | None) -> Classes:
    """Return the classes of a YAML file in ``folder``: a list, a mapping, or the name of a file.

    Raises `ConfigError`.
    """
    if isinstance(value, str):
        try:
            lines = read_text(folder / value, encoding).text.splitlines()
        except DataError as error:
            raise ConfigError(f"classes: {error}") from error
        value = [line for line in lines if line.strip()]
    if not isinstance(value, (list, dict)) or len(value) < 2:
        raise ConfigError(f"classes: {_EXPECTED}")
    if isinstance(value, list):
        return tuple(_unique(map(_name, value)))
    merged: dict[str, tuple[str, ...]] = {}
    for key, labels in value.items():
        name = _name(key)
        labels = [name] if labels is None else labels if isinstance(labels, list) else [labels]
        if not labels:
            raise ConfigError(f"classes: {name} has an empty list; {_EXPECTED}")
        merged[name] = tuple(map(_name, labels))
    _unique(label for labels in merged.values() for label in labels)
    return merged


def _name(value: Any) -> str:
    if type(value) not in (str, int, float):
        raise ConfigError(
            f"classes: not all are names ({value!r}); YAML needs quotes around yes, no and null"
        )
    return str(value).strip()


def _unique(names: Iterable[str]) -> list[str]:
    names = list(names)
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ConfigError(f"classes: listed twice: {', '.join(twice[:_SHOWN])}")
    return names


# --- Labels of the data -------------------------------------------------------------------------


def by_name(classes: Classes) -> dict[str, Sequence[str]]:
    """Return the labels of the data that make each class; in a list, the class is the label."""
    if isinstance(classes, Mapping):
        return dict(classes)
    return {name: (name,) for name in classes}


def labels_of(classes: Classes | None) -> list[str]:
    """Return all labels of the data that ``classes`` name; none for None."""
    return [label for labels in by_name(classes or ()).values() for label in labels]


def are_labels(classes: Classes | None, found: Collection[str]) -> bool:
    """Return whether ``classes`` name labels that are ``found``, not the numbers that these are."""
    given = set(labels_of(classes))
    return bool(given) and (given.issubset(found) or given.issuperset(found))


def is_alone(classes: Classes | None, label: str) -> bool:
    """Return whether the images with ``label`` are all images of a class."""
    return classes is None or (label,) in [tuple(labels) for labels in by_name(classes).values()]


# --- Images -------------------------------------------------------------------------------------


def select(parts: Parts, classes: Classes) -> Parts:
    """Return ``parts`` with the images of ``classes`` only, numbered in their order, and notes.

    `Images.classes` of a part are the labels of the data. Errors: `ConfigError` if images are left
    out, but a label of ``classes`` has no image, as one is probably misspelt; `DataError` if no
    image is left to train or to validate on.
    """
    number = {
        label: place for place, labels in enumerate(by_name(classes).values()) for label in labels
    }
    named = {"train": parts.train, "val": parts.val, "test": parts.test}
    every = {part: images for part, images in named.items() if images is not None}
    counts = sum(map(_counts, every.values()), Counter())
    others = Counter({label: count for label, count in counts.items() if label not in number})
    notes = [*parts.notes, *_merged(classes)]
    if others:
        require(number, counts)
        shown = ", ".join(f"{label} {count:,}" for label, count in others.most_common(_SHOWN))
        images = f"and {plural(sum(others.values()), 'image')} are left out"
        if isinstance(parts.train.labels, LabelSets):
            images = "are left out; their images stay"
        notes.append(
            f"classes: {plural(len(others), 'class')} of {len(counts)} {images} "
            f"({shown}{' …' if len(others) > _SHOWN else ''})"
        )
    names = list(by_name(classes))
    chosen: dict[str, Any] = {
        part: _chosen(images, number, names) for part, images in every.items()
    }
    for part, images in every.items():
        if len(images) and not len(chosen[part]) and part != "test":
            raise DataError(f"classes: no {part} image is of {', '.join(names[:_SHOWN])}")
    if "test" in chosen and not len(chosen["test"]):
        chosen["test"] = None
        notes.append("classes: no test image is left, so none is measured at the end of a run")
    return parts._replace(**chosen, notes=tuple(notes))


def require(wanted: Iterable[str], found: Collection[str]) -> None:
    """Raise `ConfigError` if a label of ``wanted`` is not ``found`` in the data."""
    absent = [label for label in wanted if label not in found]
    if absent:
        free = sorted(set(found).difference(wanted))
        raise ConfigError(
            f"classes: {absent[0]!r} is not a class of the data: {did_you_mean(absent[0], free)}"
        )


def _counts(images: Images) -> Counter[str]:
    counts = of_images.counts(images.labels, len(images.classes)).tolist()
    return Counter({label: count for label, count in zip(images.classes, counts) if count})


def _merged(classes: Classes) -> list[str]:
    """Return a note on the classes that are not the label of the same name."""
    merged = [
        f"{name} = {' + '.join(labels)}"
        for name, labels in by_name(classes).items()
        if tuple(labels) != (name,)
    ]
    more = " …" if len(merged) > _SHOWN else ""
    return [f"classes: {', '.join(merged[:_SHOWN])}{more}"] if merged else []


def _chosen(images: Images, number: Mapping[str, int], names: list[str]) -> Images:
    places = [number.get(label, -1) for label in images.classes]
    if images.classes == names and places == list(range(len(names))):
        return images
    if isinstance(images.labels, LabelSets):  # an image without any of the classes stays, as such
        labels = images.labels.renumbered(np.array(places))
        return images.chosen(np.arange(len(images)), labels, names)
    labels = np.array(places)[images.labels]
    stays = np.flatnonzero(labels >= 0)
    return images.chosen(stays, labels[stays], names)
