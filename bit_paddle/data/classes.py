"""Select, order and merge the classes of a data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from bit_paddle.data.images import Parts
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import ConfigError, DataError, did_you_mean
from bit_paddle.system.text import plural

_SHOWN = 5  # classes in a note


def chosen(parts: Parts, spec: DataSpec) -> Parts:
    """Return ``parts`` with the classes ``spec.classes`` in their order, and with notes.

    A class has the images of one class of the data, or of those that ``spec.merge`` names. The
    images of the others are left out. Every image stays in its part. Errors: `ConfigError` (the
    data have no such class), `DataError` (a part has no image left).
    """
    names = list(spec.classes or ())
    sources = spec.merge or [(name,) for name in names]
    known = list(parts.train.classes)
    number_of = {source: number for number, group in enumerate(sources) for source in group}
    unknown = [source for source in number_of if source not in known]
    if unknown:
        raise ConfigError(
            f"classes: {unknown[0]!r} is not a class of the data: {did_you_mean(unknown[0], known)}"
        )
    numbers = np.array([number_of.get(name, -1) for name in known])
    counts = np.zeros(len(known), np.int64)
    kept: dict[str, Any] = {}
    for part in ("train", "val", "test"):
        images = getattr(parts, part)
        if images is None or not len(images):
            kept[part] = images if images is None else images.chosen(np.arange(0), [], names)
            continue
        counts += np.bincount(images.labels, minlength=len(known))
        labels = numbers[images.labels]
        places = np.flatnonzero(labels >= 0)
        if not len(places):
            raise DataError(f"classes: no {part} image is of {', '.join(names[:_SHOWN])}")
        kept[part] = images.chosen(places, labels[places], names)
    return parts._replace(**kept, notes=(*parts.notes, *_notes(spec, known, counts, numbers < 0)))


def _notes(spec: DataSpec, known: list[str], counts: np.ndarray, out: np.ndarray) -> list[str]:
    notes = []
    if out.any():
        largest = sorted(np.flatnonzero(out), key=lambda label: -counts[label])[:_SHOWN]
        first = ", ".join(f"{known[label]} {counts[label]:,}" for label in largest)
        more = " …" if out.sum() > _SHOWN else ""
        notes.append(
            f"classes: {plural(int(out.sum()), 'class')} of {len(known)} and "
            f"{plural(int(counts[out].sum()), 'image')} are left out ({first}{more})"
        )
    merged = [
        f"{name} = {' + '.join(group)}"
        for name, group in zip(spec.classes or (), spec.merge or ())
        if group != (name,)
    ]
    if merged:
        more = " …" if len(merged) > _SHOWN else ""
        notes.append(f"classes: {', '.join(merged[:_SHOWN])}{more}")
    return notes
