"""Notes on class names that mislead: near-equal names, blanks, numbers in the order of text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_SHOWN = 3


def notes(classes: Sequence[str], ordered: bool) -> list[str]:
    """Return notes on ``classes``; ``ordered``: the user gave their order."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        plain = unicodedata.normalize("NFC", " ".join(name.split())).casefold()
        alike.setdefault(plain, []).append(name)
    groups = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    found = []
    if groups:
        more = f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
        found.append(
            "some class names differ only in case, blanks or the encoding of accents: "
            f"{'; '.join(groups[:_SHOWN])}{more}; each is a class of its own"
        )
    blank = [repr(name) for name in classes if name != name.strip()]
    if blank:
        found.append(f"class names begin or end with a blank: {', '.join(blank[:_SHOWN])}")
    numbers = all(name.isascii() and name.isdigit() for name in classes)
    if numbers and not ordered and list(classes) != sorted(classes, key=int):
        first, by_value = list(classes)[:4], sorted(classes, key=int)[:4]
        found.append(
            f"the class names are numbers in the order of text: {', '.join(first)} …, not "
            f"{', '.join(by_value)} …; so the model's outputs count in that order; `classes` in a "
            "data set's .yaml file sets another one"
        )
    return found
