"""Cells that hold several labels, such as "cat;dog", in a list that is read with one per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from bit_paddle.data.classes import labels_of
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import DataError

_USUAL = (";", "|", ",")


def check_single(rows: Sequence[tuple[str, str, str]], spec: DataSpec) -> None:
    """Raise `DataError` if a label is made of others: "cat;dog" beside "cat" and "dog;bird".

    ``rows`` are (path, label, line). A label that ``spec.classes`` names is one label.
    """
    labels = {label for _, label, _ in rows}.difference(labels_of(spec.classes))
    for separator in _USUAL:
        made = _made_of_others(labels, separator)
        if made:
            label, line = next((label, line) for _, label, line in rows if label in made)
            raise DataError(
                f"{line}: the label {label!r} seems to be several labels. If an image may have "
                f"several labels, give --separator '{separator}', or write separator: "
                f"'{separator}' in a data set's .yaml file. If {label!r} is the name of one class, "
                "name all classes in such a file (classes: …)"
            )


def _made_of_others(labels: Collection[str], separator: str) -> set[str]:
    """Return those of ``labels`` whose parts all occur in others; at a comma, as whole labels."""
    parts = {label: [part.strip() for part in label.split(separator)] for label in labels}
    known = Counter(part for each in parts.values() for part in each)
    if separator == ",":  # names have commas: "Smith, John"
        known = Counter(dict.fromkeys(labels, 2))
    return {
        label for label, each in parts.items() if len(each) > 1 and all(known[p] > 1 for p in each)
    }
