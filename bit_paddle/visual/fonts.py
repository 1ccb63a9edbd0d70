"""Fonts for the letters in a figure, such as those of Chinese class names."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 10  # missing letters in a note


@contextmanager
def for_letters_of(figure: Figure) -> Iterator[None]:
    """Let ``figure`` be drawn with installed fonts that have its letters, without warnings.

    Letters that no font has are drawn as boxes, and a note on standard error names them once.
    """
    from matplotlib import font_manager
    from matplotlib.text import Text

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_ticklabels()  # which have no text before, unless the figure was drawn
    texts = figure.findobj(Text)
    letters = {letter for text in texts for letter in text.get_text() if letter.isprintable()}
    usual = font_manager.findfont(font_manager.FontProperties())
    missing = _missing(frozenset(letters), usual)
    if missing:
        more = _fonts_with(missing)
        for text in texts:
            text.set_fontfamily([*text.get_fontfamily(), *more])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def _missing(letters: frozenset[str], font: str) -> frozenset[str]:
    """Return those of ``letters`` that a font file does not have."""
    from matplotlib.ft2font import FT2Font

    known = FT2Font(font).get_charmap()
    return frozenset(letter for letter in letters if ord(letter) not in known)


@functools.cache
def _fonts_with(letters: frozenset[str]) -> list[str]:
    """Return the families of as few installed fonts as have ``letters``; report what none has."""
    from matplotlib.font_manager import fontManager

    missing: dict[str, frozenset[str]] = {}
    for font in fontManager.ttflist:
        boxes = font.name.startswith("Last Resort")  # has one for every letter
        if font.style == "normal" and font.name not in missing and not boxes:
            with suppress(OSError, RuntimeError):  # deleted, or damaged
                missing[font.name] = _missing(letters, font.fname)
    found = []
    while letters and missing:
        name = min(missing, key=lambda name: (len(letters & missing[name]), "Sans" not in name))
        if missing[name] >= letters:
            break
        found.append(name)
        letters &= missing.pop(name)
    if letters:
        some = "".join(sorted(letters)[:_SHOWN])
        print(
            f"note: no installed font has the letters {some}; figures show boxes instead. For "
            "Chinese, Japanese and Korean install Noto Sans CJK",
            file=sys.stderr,
        )
    return found
