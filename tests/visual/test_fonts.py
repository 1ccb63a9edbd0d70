"""Figures with letters that matplotlib's own font does not have."""

import io
import warnings

import numpy as np
import pytest
from matplotlib.font_manager import fontManager
from PIL import Image

from bit_paddle.visual import figures, fonts

CAT, DOG = "猫", "狗"


@pytest.fixture
def font_with_a_cat(tmp_path, only_the_fonts_of_matplotlib):
    """An installed font whose only letter is a full black square."""
    builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder(1000, isTTF=True)
    pen = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord(CAT): "cat"})
    builder.setupGlyf({".notdef": square, "cat": square})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Cats", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "cats.ttf")
    fontManager.addfont(tmp_path / "cats.ttf")


@pytest.fixture(autouse=True)
def only_the_fonts_of_matplotlib(monkeypatch):
    """Whatever this machine has; `addfont` changes the list of a test alone."""
    search = fonts._fonts_with
    search.cache_clear()
    own = [font for font in fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(fontManager, "ttflist", own)
    yield
    search.cache_clear()


def drawn(names):
    """Return the pixels of a confusion matrix; warnings are errors."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.draw_confusion(np.eye(2, dtype=int), names, stream)
    return np.asarray(Image.open(stream).convert("L"))


def bars(picture, axis):
    """Return the lengths of the dark lines along ``axis``."""
    lengths = set()
    for line in np.moveaxis(picture < 128, axis, -1):
        ends = np.flatnonzero(np.diff(np.concatenate([[0], line, [0]])))
        lengths |= set((ends[1::2] - ends[::2]).tolist())
    return lengths


def test_the_letters_of_an_installed_font(font_with_a_cat, capsys):
    """Three cats are a black bar of three letters' width, along both axes."""
    found = [drawn([name, "dog"]) for name in (3 * CAT, "hound")]
    assert capsys.readouterr().err == ""
    side = 10 / 72 * 120  # pixels of a letter
    for axis in (0, 1):
        cats, letters = (any(abs(n - 3 * side) < 2 for n in bars(one, axis)) for one in found)
        assert cats and not letters


def test_letters_of_no_font_are_named_once(font_with_a_cat, capsys):
    for _ in range(2):
        drawn([CAT, DOG])
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith(f"note: no installed font has the letters {DOG}; figures show boxes")


def test_usual_letters_need_no_search(monkeypatch, capsys):
    monkeypatch.setattr(fonts, "_fonts_with", lambda letters: pytest.fail(f"searched {letters}"))
    drawn(["Katze, gato, кот", "σκύλος\nhund"])
    assert capsys.readouterr().err == ""


def test_a_page_keeps_the_letters(capsys):
    """The browser has fonts of its own."""
    with figures._axes("step") as (figure, axes):
        axes.plot([1], [1], label=DOG)
        axes.legend()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert DOG in figures.to_svg(figure)
