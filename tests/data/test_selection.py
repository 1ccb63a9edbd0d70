"""`classes:` for every kind of label, and the images that are left out by it."""

from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from helpers.pictures import fill
from test_folders import IDS, TRUTH, imagenet, list_of, names_of, write_images
from test_oxford import IDS as LISTS
from test_oxford import flowers, pets, write_flowers, write_pets

from bit_paddle.config import parsing
from bit_paddle.data.readers import registry
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import ConfigError, DataError
from bit_paddle.runs.folder import check_data
from bit_paddle.training.classification.plan import make_plan

CATS = {"cat": ["persian", "siamese"], "dog": ["beagle", "pug"]}

FOUR = ["beagle", "persian", "pug", "siamese"]


def described(folder, classes, reader="folder"):
    path = folder / "data.yaml"
    keys = {"reader": reader, "datadir": ".", "classes": classes}
    path.write_text(yaml.safe_dump(keys, sort_keys=False))
    return str(path)


def opened(folder, classes, reader="folder", **more):
    return registry.open_dataset(described(folder, classes, reader), **more)


def paths(images):
    return set(images.paths)


@pytest.fixture(scope="module")
def breeds(tmp_path_factory):
    """Parts for training, validation and test of four breeds and a bird."""
    folder = tmp_path_factory.mktemp("breeds")
    counts = {"train": 3, "val": 2, "test": 1}
    names = [*FOUR, "bird"]
    fill(folder, {f"{part}/{name}": k for part, k in counts.items() for name in names})
    return folder


# --- Folders ------------------------------------------------------------------------------------


def test_a_list_selects_and_orders(breeds):
    data = opened(breeds, ["pug", "bird"])
    for images, count in ((data.train, 3), (data.val, 2), (data.test, 1)):
        expected = [("pug", k) for k in range(count)] + [("bird", k) for k in range(count)]
        assert names_of(images) == [(f"{name}/{k}.jpg", name) for name, k in expected]
        assert images.classes == ["pug", "bird"]
        assert images.labels.tolist() == [0] * count + [1] * count
    assert data.notes == (
        "classes: 3 classes of 5 and 18 images are left out (beagle 6, persian 6, siamese 6)",
    )


def test_a_mapping_merges(breeds):
    data = opened(breeds, {**CATS, "bird": None})
    assert data.train.classes == data.val.classes == data.test.classes == ["cat", "dog", "bird"]
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 3
    breed_of = {name: kind for kind, names in CATS.items() for name in names}
    for images in (data.train, data.val, data.test):
        for path, kind in names_of(images):
            folder = path.split("/")[0]
            assert kind == breed_of.get(folder, folder)
    renamed = opened(breeds, {name.upper(): name for name in ["beagle", "bird", *FOUR[1:]]})
    assert renamed.train.classes == ["BEAGLE", "BIRD", *map(str.upper, FOUR[1:])]
    short = opened(breeds, {"bird": "bird", "dog": "pug"}).val
    assert names_of(short)[-1] == ("pug/1.jpg", "dog") and len(short) == 4


def test_all_names_in_another_order_read_what_they_read_before(breeds):
    """The order of the images decides the batches of a run."""
    names = ["siamese", "bird", "pug", "beagle", "persian"]
    data = opened(breeds, names)
    assert data.train.paths == [f"{name}/{k}.jpg" for name in names for k in range(3)]
    assert data.train.labels.tolist() == np.repeat(range(5), 3).tolist() and not data.notes


@pytest.mark.parametrize(
    "classes, words",
    [
        (["pug", "beagel"], "'beagel' is not a class of the data: did you mean beagle"),
        (
            {"cat": ["persian", "siames"], "dog": "pug"},
            "'siames' is not a class of the data: did you mean siamese",
        ),
    ],
)
def test_a_misspelt_folder(classes, words, breeds):
    with pytest.raises(ConfigError, match=words):
        opened(breeds, classes)


def test_folders_that_training_lacks_or_that_are_empty(tmp_path):
    """Without `classes` both are errors."""
    write_images(tmp_path, *(f"{part}/{name}/1.jpg" for part in ("train", "val") for name in "ab"))
    write_images(tmp_path, "val/unsure/1.jpg")
    (tmp_path / "train/empty").mkdir()
    with pytest.raises(DataError, match="no images in empty"):
        registry.open_dataset("folder", str(tmp_path))
    data = opened(tmp_path, ["b", "a"])
    assert names_of(data.val) == [("b/1.jpg", "b"), ("a/1.jpg", "a")]
    assert data.notes[-1].endswith("1 class of 3 and 1 image are left out (unsure 1)")
    (tmp_path / "train/empty/notes.txt").write_text("x")
    with pytest.raises(DataError, match="no images in empty; known extensions"):
        opened(tmp_path, ["a", "empty"])


def test_a_part_without_an_image_of_the_classes(tmp_path):
    write_images(tmp_path, *(f"train/{name}/1.jpg" for name in "abc"))
    write_images(tmp_path, "val/c/1.jpg", "test/c/1.jpg")
    with pytest.raises(DataError, match="classes: no val image is of a, b"):
        opened(tmp_path, ["a", "b"])
    write_images(tmp_path, "val/a/1.jpg")
    data = opened(tmp_path, ["a", "b"])
    assert data.test is None and "no test image is left" in data.notes[1]
    assert data.notes[2] == "no validation images of b"


# --- Which images are held out ------------------------------------------------------------------


@pytest.mark.parametrize("classes", [FOUR[:2], CATS, {"x": FOUR[:3], "siamese": None}])
@pytest.mark.parametrize("options", [{}, {"val_fraction": 0.3}, {"fold": (2, 4)}])
def test_a_selection_moves_no_image_to_another_part(classes, options, tmp_path):
    write_images(tmp_path, *(f"{name}/{k}.jpg" for name in FOUR for k in range(13)))
    whole = registry.open_dataset("folder", str(tmp_path), **options)
    some = opened(tmp_path, classes, **options)
    members = {name for labels in classes.values() for name in labels or ["siamese"]} \
        if isinstance(classes, dict) else set(classes)  # fmt: skip
    for one, other in zip(whole[:2], some[:2]):
        assert paths(other) == {path for path in one.paths if path.split("/")[0] in members}
    assert some.train.classes == list(classes)
    assert sum(some.folds) == (13 * len(members) if options.get("fold") else 0)


def test_a_class_of_one_image_may_be_left_out_or_merged(tmp_path):
    write_images(tmp_path, *(f"{name}/{k}.jpg" for name in "ab" for k in range(5)), "c/1.jpg")
    with pytest.raises(DataError, match="is the only image of class 'c'"):
        registry.open_dataset("folder", str(tmp_path))
    with pytest.raises(DataError, match="is the only image of class 'c'"):
        opened(tmp_path, ["c", "a"])
    assert len(opened(tmp_path, ["a", "b"]).train) == 8
    assert len(opened(tmp_path, {"a": None, "rest": ["b", "c"]}).train) == 9


# --- Lists --------------------------------------------------------------------------------------


@pytest.fixture
def lists(tmp_path):
    list_of(tmp_path, "train.csv", [f"{name}{k}.png,{name}" for k in "12" for name in FOUR])
    list_of(tmp_path, "val.csv", [*(f"{name}3.png,{name}" for name in FOUR), "5.png,bird"])
    return tmp_path


def test_lists_of_names(lists):
    with pytest.raises(DataError, match="class 'bird' is not in training"):
        registry.open_dataset("list", str(lists))
    data = opened(lists, ["siamese", "beagle"], "list")
    assert names_of(data.train) == [
        (f"{name}{k}.png", name) for k in "12" for name in ("beagle", "siamese")
    ]
    assert data.train.labels.tolist() == [1, 0, 1, 0]
    assert "3 classes of 5 and 7 images are left out" in data.notes[0]
    data = opened(lists, CATS, "list")
    assert data.train.labels.tolist() == [1, 0, 1, 0] * 2 and data.val.classes == ["cat", "dog"]
    assert data.val.labels.tolist() == [1, 0, 1, 0] and "(bird 1)" in data.notes[1]


def test_a_misspelt_label(lists):
    with pytest.raises(ConfigError, match="'siames' is not a class of the data: did you mean sia"):
        opened(lists, ["siames", "pug"], "list")
    every = [*FOUR, "bird", "unicorn"]  # more outputs than classes, as before
    data = opened(lists, every, "list")
    assert data.train.classes == every and "no training images of bird, unicorn" in data.notes


def test_numbers(tmp_path):
    """A list of other names stands for 0, 1, …, as before; numbers choose, a mapping names them."""
    list_of(tmp_path, "train.txt", [f"{k}.png {k % 4}" for k in range(8)])
    list_of(tmp_path, "val.txt", ["8.png 3", "9.png 1"])

    def labels(classes):
        return opened(tmp_path, classes, "list").train.labels.tolist()

    assert labels(["a", "b", "c", "d"]) == [0, 1, 2, 3] * 2
    assert labels([3, 0]) == [1, 0, 1, 0]
    assert labels({"odd": [1, 3], "zero": 0}) == [1, 0, 0, 1, 0, 0]
    with pytest.raises(DataError, match="class '2' is not in the given classes"):
        labels(["a", "b"])
    with pytest.raises(ConfigError, match="'a' is not a class of the data: choose from 0, 1, 2, 3"):
        labels({"a": None, "b": None})


def test_numbers_that_a_file_names(tmp_path):
    list_of(tmp_path, "train_list.txt", [f"{k}.png {k % 4}" for k in range(8)])
    list_of(tmp_path, "val_list.txt", ["8.png 3"])
    list_of(tmp_path, "label_list.txt", [f"{k} {name}" for k, name in enumerate(FOUR)])
    data = opened(tmp_path, ["siamese", "beagle"], "list")
    assert names_of(data.train) == [
        ("0.png", "beagle"), ("3.png", "siamese"), ("4.png", "beagle"), ("7.png", "siamese")
    ]  # fmt: skip
    assert opened(tmp_path, CATS, "list").train.labels.tolist() == [1, 0, 1, 0] * 2
    assert opened(tmp_path, [*"abcd"], "list").train.labels.tolist() == [0, 1, 2, 3] * 2
    (tmp_path / "label_list.txt").write_text("0 a\n0 b\n")  # damaged, and not needed
    assert opened(tmp_path, [*"abcd"], "list").train.labels.tolist() == [0, 1, 2, 3] * 2


# --- Published data sets ------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["flat", "folders"])
def test_imagenet(layout, tmp_path):
    imagenet(tmp_path)
    if layout == "flat":
        ids = "".join(f"{IDS[label]}\n" for label in TRUTH)
        (tmp_path / "imagenet_2012_validation_synset_labels.txt").write_text(ids)
    else:
        for number, label in enumerate(TRUTH, 1):
            name = f"ILSVRC2012_val_{number:08}.JPEG"
            (tmp_path / "val" / IDS[label]).mkdir(exist_ok=True)
            (tmp_path / "val" / name).rename(tmp_path / "val" / IDS[label] / name)
    data = opened(tmp_path, {"x": [IDS[2], IDS[0]], "y": IDS[1]}, "imagenet2012")
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1]
    found = {path[-13:-5]: name for path, name in names_of(data.val)}
    assert [found[f"{k:08}"] for k in range(1, 5)] == ["y" if k == 1 else "x" for k in TRUTH]
    data = opened(tmp_path, [IDS[2], IDS[1]], "imagenet2012")
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert len(data.val) == sum(label != 0 for label in TRUTH)


def test_oxford(tmp_path):
    write_pets(tmp_path / "pets")
    every = pets(tmp_path / "pets")
    data = pets(tmp_path / "pets", classes=("american_bulldog", "Abyssinian"))
    assert names_of(data.train) == [
        pair for pair in names_of(every.train) if pair[1] in data.train.classes
    ]
    assert data.train.labels.tolist() == [1, 0, 1] and data.val.labels.tolist() == [0]
    with pytest.raises(ConfigError, match="'abyssinian' is no class .*did you mean Abyssinian.*37"):
        pets(tmp_path / "pets", classes=("abyssinian", "american_bulldog"))
    write_flowers(tmp_path / "flowers")
    whole = flowers(tmp_path / "flowers").train
    numbers = [label + 1 for label in sorted(set(whole.labels.tolist()))]
    merged = {"some": tuple(map(str, numbers[1:])), "first": (str(numbers[0]),)}
    labels = flowers(tmp_path / "flowers", classes=merged, val="trnid").train.labels
    assert labels.tolist() == [int(label == numbers[0] - 1) for label in whole.labels]
    assert len(labels) == len(LISTS["trnid"])


def test_tf_flowers(tmp_path):
    names = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    write_images(tmp_path, *(f"{name}/{k}.jpg" for name in names for k in range(10)))
    data = opened(tmp_path, {"rose": "roses", "other": ["tulips", "daisy"]}, "tf_flowers")
    assert data.train.labels.tolist() == [0] * 9 + [1] * 18 and len(data.val) == 3


def test_sizes_that_are_known_without_reading():
    """They are of all classes."""
    assert registry.known(DataSpec("oxford_iiit_pet", classes=("pug", "beagle"))) == (
        None, 2, "large"
    )  # fmt: skip
    assert registry.known(DataSpec("oxford_iiit_pet", classes=tuple("abcdefg" * 5 + "ab"))) == (
        3680, 37, "large"
    )  # fmt: skip
    merged = {"x": ("1", "2"), "y": ("3",)}
    assert registry.known(DataSpec("list", train="train800val200.txt", classes=merged))[:2] == (
        None, 2
    )  # fmt: skip


# --- The file, and runs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "classes, words",
    [
        ({"a": ["x"]}, "two or more names"),
        ({"a": ["x"], "b": ["y", "x"]}, "classes: listed twice: x"),
        ({"a": ["b"], "b": None}, "classes: listed twice: b"),
        ({"a": [], "b": None}, "classes: a has an empty list; expected two or more names"),
        ({True: "x", "b": None}, r"not all are names \(True\); YAML needs quotes"),
        ({"a": [True], "b": None}, r"not all are names \(True\); YAML needs quotes"),
        ({"a": {"x": "y"}, "b": None}, "not all are names"),
        (3, "two or more names"),
    ],
)
def test_faults_of_the_file(classes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        opened(tmp_path, classes)


def test_excluded_images_of_other_classes(breeds, tmp_path):
    (tmp_path / "bad.txt").write_text("train/pug/0.jpg\ntrain/bird/0.jpg\n")
    data = opened(breeds, ["pug", "beagle"], exclude=str(tmp_path / "bad.txt"))
    assert len(data.train) == 5 and "`classes` may have left these images out" in data.notes[-1]


@pytest.mark.parametrize(
    "changed, words",
    [
        (["dog", "cat"], "classes: .*'cat', 'dog'.* -> .*'dog', 'cat'"),
        (["cat", "dog", "bird"], "training images: 4 -> 6"),
        ({"cat": "bird", "dog": None}, "names and labels"),  # only the images tell them apart
    ],
)
def test_a_run_does_not_resume_with_other_classes(changed, words, tmp_path):
    write_images(tmp_path, *(f"{name}/{k}.jpg" for name in ("cat", "dog", "bird") for k in "123"))

    def identity(classes):
        flags = ["--model", "R14x0.5", "--from_scratch", "--dataset", described(tmp_path, classes)]
        return make_plan(parsing.parse(flags, "t", registry.find)[0]).data_identity

    before = SimpleNamespace(notes={"data": identity(["cat", "dog"])}, path="last.npz")
    start = SimpleNamespace(checkpoints=[before])
    check_data(start, identity({"cat": ["cat"], "dog": None}))
    with pytest.raises(ConfigError, match=words):
        check_data(start, identity(changed))
