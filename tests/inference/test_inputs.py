"""The images that ``predict`` is given: patterns, and the standard input."""

import io
import os
import sys
from types import SimpleNamespace

import pytest
from helpers.commands import run_outside
from helpers.pictures import cloud, fill

from bit_paddle import create_model, save_npz
from bit_paddle.errors import ConfigError, DataError, MissingFileError
from bit_paddle.inference.inputs import find_images


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    fill(folder, {"p": 2, "p/inner/deep": 1, "p/@eaDir": 1, "p/[ab]": 1, "p/a": 1})
    (folder / "p/notes.txt").write_text("not an image", encoding="utf-8")
    cloud(9).save(folder / "p/x[1].jpg")
    cloud(8).save(folder / "p/x1.jpg")
    return folder


def found(photos, *patterns):
    names, paths, faults = find_images([os.path.join(photos, word) for word in patterns], photos)
    assert names == paths and not faults
    return [os.path.relpath(path, photos).replace(os.sep, "/") for path in paths]


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("p/*.jpg", ["p/0.jpg", "p/1.jpg", "p/x1.jpg", "p/x[1].jpg"]),
        ("p/?.jpg", ["p/0.jpg", "p/1.jpg"]),
        ("p/x[1].jpg", ["p/x[1].jpg"]),  # a file of this very name
        ("p/x[1-9].jpg", ["p/x1.jpg"]),
        ("p/[ab]", ["p/[ab]/0.jpg"]),  # a folder of this very name
        ("p/[ab]/*.jpg", ["p/a/0.jpg"]),
        ("p/i*", ["p/inner/deep/0.jpg"]),  # a folder, as a shell would give it
        ("p/**/0.jpg", ["p/0.jpg", "p/[ab]/0.jpg", "p/a/0.jpg", "p/inner/deep/0.jpg"]),
        ("p/@eaDir/*", ["p/@eaDir/0.jpg"]),  # left out only if it is not named
        ("p/inner/**", ["p/inner/deep/0.jpg"]),  # each image once
    ],
)
def test_a_pattern(pattern, expected, photos):
    assert found(photos, pattern) == expected


def test_a_pattern_that_matches_nothing(photos):
    with pytest.raises(MissingFileError, match=r"\*\.gif: no image matches this pattern"):
        found(photos, "p/0.jpg", "p/*.gif")


def give(monkeypatch, content, terminal=False):
    stream = SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: terminal)
    monkeypatch.setattr(sys, "stdin", stream)


@pytest.mark.parametrize(
    "content, terminal, said",
    [
        (b"", False, "-: the standard input is empty; expected an image"),
        (b"a text", False, "-: the 6 bytes of the standard input are not an image"),
        (b"", True, "-: the standard input is a terminal"),
    ],
)
def test_a_standard_input_without_an_image(content, terminal, said, monkeypatch, tmp_path):
    give(monkeypatch, content, terminal)
    with pytest.raises(DataError, match=said) as raised:
        find_images(["-"], tmp_path)
    assert raised.value.exit_status == 2 and str(tmp_path) not in str(raised.value)


def test_the_standard_input_is_read_once(tmp_path):
    with pytest.raises(ConfigError, match="-: is given twice"):
        find_images(["-", "-"], tmp_path)


def test_predict_a_pattern_and_the_standard_input(photos, tmp_path):
    """The same picture by both ways has the same probabilities."""
    save_npz(create_model("R14x0.5", num_classes=2, seed=1), tmp_path / "m.npz",
             notes={"classes": ["a", "b"], "crop": 32})  # fmt: skip
    with open(photos / "p/0.jpg", "rb") as stream:
        done = run_outside("predict", "-", photos / "p/?.jpg", "--model", tmp_path / "m.npz",
                           "--format", "csv", stdin=stream)  # fmt: skip
    rows = [line.split(",", 1) for line in done.stdout.splitlines()[1:]]
    assert done.returncode == 0, done.stderr
    assert [name for name, _ in rows[::2]] == ["-", *(str(photos / f"p/{k}.jpg") for k in "01")]
    assert [rest for _, rest in rows[:2]] == [rest for _, rest in rows[2:4]]


def test_predict_ends_with_status_2_without_an_image(tmp_path):
    save_npz(create_model("R14x0.5", num_classes=2, seed=1), tmp_path / "m.npz")
    done = run_outside("predict", "-", "--model", tmp_path / "m.npz", input="")
    assert done.returncode == 2
    assert done.stderr.startswith("error: -: the standard input is empty; expected an image")
