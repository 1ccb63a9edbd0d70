"""The key `classes` of a data set's file: which classes there are, in which order, and merged."""

import numpy as np
import pytest
from test_folders import list_of, names_of, write_images

from bit_paddle.data.images import ArrayImages
from bit_paddle.data.readers import registry
from bit_paddle.errors import ConfigError, DataError

KINDS = ("beagle", "persian", "pug", "siamese")


@pytest.fixture
def pets(tmp_path):
    root = tmp_path / "pets"
    write_images(root, *(f"{kind}/{n}.png" for kind in KINDS for n in range(12)))
    return root


def opened(root, classes, reader="folder", more="", **options):
    lines = [f"reader: {reader}", f"datadir: {root.name}", classes, more]
    list_of(root.parent, "pets.yaml", lines)
    return registry.open_dataset(str(root.parent / "pets.yaml"), **options)


def labels(images):
    return dict(names_of(images))


def test_a_list_selects_and_orders(pets):
    whole = registry.open_dataset("folder", str(pets))
    data = opened(pets, "classes: [siamese, beagle]")
    assert data.train.classes == data.val.classes == ["siamese", "beagle"]
    assert len(data.train) + len(data.val) == 24
    expected = {path for path, name in names_of(whole.val) if name in data.val.classes}
    assert {path for path, _ in names_of(data.val)} == expected  # the held-out images stay so
    assert all(path.startswith(name) for path, name in names_of(data.train))
    (note,) = (note for note in data.notes if note.startswith("classes"))
    assert note == "classes: 2 classes of 4 and 24 images are left out (persian 12, pug 12)"


def test_a_mapping_merges(pets):
    data = opened(pets, "classes: {dog: [pug, beagle], cat: [persian], siamese: }")
    assert data.train.classes == ["dog", "cat", "siamese"]
    assert np.bincount([*data.train.labels, *data.val.labels]).tolist() == [24, 12, 12]
    belongs = {"pug": "dog", "beagle": "dog", "persian": "cat", "siamese": "siamese"}
    for part in (data.train, data.val):
        assert all(belongs[path.split("/")[0]] == name for path, name in names_of(part))
    assert "classes: dog = pug + beagle, cat = persian" in data.notes
    assert not any("left out" in note for note in data.notes)


def test_all_parts_are_merged_alike(tmp_path):
    root = tmp_path / "pets"
    parts = {"train": 6, "val": 2, "test": 3}
    write_images(
        root, *(f"{part}/{kind}/{n}.png" for part, k in parts.items() for kind in KINDS
                for n in range(k))
    )  # fmt: skip
    data = opened(root, "classes: {cat: [siamese, persian], pug: pug}")
    for images, count in ((data.train, 6), (data.val, 2), (data.test, 3)):
        assert np.bincount(images.labels).tolist() == [2 * count, count]
    assert any("1 class of 4 and 11 images are left out (beagle 11)" in n for n in data.notes)


@pytest.mark.parametrize("folds", [None, (1, 3), (2, 3)])
def test_folds_and_exclude_see_the_chosen_classes(folds, pets, tmp_path):
    options = {} if folds is None else {"fold": folds}
    (tmp_path / "bad.txt").write_text("pug/3.png\nbeagle/0.png\n")
    classes = "classes: {dog: [pug, beagle], cat: persian}"
    data = opened(pets, classes, more="exclude: bad.txt", **options)
    assert len(data.train) + len(data.val) == 34
    whole = registry.open_dataset("folder", str(pets), **options)
    taken = {path for path, _ in names_of(data.val)}
    assert taken == {path for path in labels(whole.val) if not path.startswith("siamese")} - {
        "pug/3.png", "beagle/0.png"
    }  # fmt: skip


def test_labels_of_lists(pets):
    rows = [f"{kind}/{n}.png,{kind}" for kind in KINDS for n in range(12)]
    list_of(pets, "train.csv", rows[::2])
    list_of(pets, "val.csv", rows[1::2])
    data = opened(pets, "classes: {cat: [siamese, persian], pug: pug}", "list")
    assert np.bincount(data.train.labels).tolist() == [12, 6]
    data = opened(pets, "classes: [pug, beagle]", "list")
    assert data.train.classes == ["pug", "beagle"] and len(data.val) == 12


def test_numbers_of_lists(pets):
    """A list of names names the numbers, as before; a mapping merges the numbers themselves."""
    rows = [f"{kind}/{n}.png,{k}" for k, kind in enumerate(KINDS) for n in range(12)]
    list_of(pets, "train.csv", rows[::2])
    list_of(pets, "val.csv", rows[1::2])
    data = opened(pets, f"classes: [{', '.join(KINDS)}]", "list")
    assert data.train.classes == list(KINDS) and labels(data.val)["pug/1.png"] == "pug"
    data = opened(pets, "classes: {dog: [0, 2], cat: [1, 3]}", "list")
    assert labels(data.val)["pug/1.png"] == "dog" and labels(data.val)["siamese/1.png"] == "cat"


def test_images_in_memory():
    pixels = np.arange(4 * 3, dtype=np.uint8).reshape(4, 1, 1, 3)
    images = ArrayImages(pixels, [0, 1, 2, 1], "abc", "four")
    found = images.chosen(np.array([1, 3]), [0, 0], ["b"])
    assert found.pixels.ravel().tolist() == [3, 4, 5, 9, 10, 11] and found.classes == ["b"]


def test_digits(tmp_path):
    pytest.importorskip("sklearn")
    list_of(tmp_path, "odd.yaml", ["reader: digits", "classes: {odd: [1, 3], even: [2, 4]}"])
    data = registry.open_dataset(str(tmp_path / "odd.yaml"))
    assert data.train.classes == ["odd", "even"] and set(data.train.labels) == {0, 1}


@pytest.mark.parametrize(
    "classes, error, words",
    [
        (
            "classes: [pugg, beagle]",
            ConfigError,
            "'pugg' is not a class of the data: did you mean pug",
        ),
        ("classes: {cat: [persian, siamse], pug: }", ConfigError, "'siamse' is not a class"),
        ("classes: {cat: [persian], kitten: [persian]}", ConfigError, "listed twice: persian"),
        ("classes: {cat: [], dog: pug}", ConfigError, "expected two or more names"),
        ("classes: {cat: persian}", ConfigError, "expected two or more names"),
        ("classes: {cat: [persian, {a: b}], dog: pug}", ConfigError, "not all are names"),
        ("classes: {true: persian, dog: pug}", ConfigError, "quotes around yes"),
    ],
)
def test_faults(classes, error, words, pets):
    with pytest.raises(error, match=words):
        opened(pets, classes)


def test_a_part_without_such_images(tmp_path):
    root = tmp_path / "pets"
    write_images(root, *(f"train/{kind}/{n}.png" for kind in KINDS for n in range(3)))
    write_images(root, "val/pug/7.png")
    with pytest.raises(DataError, match="no val image is of beagle, persian"):
        opened(root, "classes: [beagle, persian]")
