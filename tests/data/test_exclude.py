"""Images that a file of paths leaves out."""

import pytest
from helpers.pictures import fill

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.data.exclude import line, paths_below
from bit_paddle.data.readers import registry
from bit_paddle.training.classification.plan import make_plan


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path / "d", {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2})
    return tmp_path / "d"


def opened(folder, text, dataset="folder", **more):
    file = folder.parent / "bad.txt"
    file.write_text(text, encoding="utf-8-sig")
    return registry.open_dataset(dataset, str(folder), exclude=str(file), **more)


def paths(data, folder):
    parts = (data.train, data.val)
    return [set(paths_below(images, str(folder))) for images in parts]


def test_paths_are_left_out_of_every_part(folder):
    before = paths(registry.open_dataset("folder", str(folder)), folder)
    text = f"# a comment\ntrain/a/1.jpg\r\n\n  ./val/b/0.jpg\n{folder}/train/b/2.jpg\n#val/a/0.jpg"
    data = opened(folder, text)
    assert [len(data.train), len(data.val)] == [6, 3]
    gone = [one - other for one, other in zip(before, paths(data, folder))]
    assert gone == [{"train/a/1.jpg", "train/b/2.jpg"}, {"val/b/0.jpg"}]
    assert data.train.labels.tolist() == [0] * 3 + [1] * 3
    file = folder.parent / "bad.txt"
    assert data.notes == (f"exclude: {file}: 3 images left out (2 of train, 1 of val)",)


def test_odd_names_survive_the_file(tmp_path):
    """A blank or # at the start of a path, and a character that some call a line end."""
    classes = (" blank", "#2", "a\u2028b")
    fill(tmp_path / "d", dict.fromkeys(classes, 6))
    whole = registry.open_dataset("folder", str(tmp_path / "d"), val_fraction=0.3)
    gone = [f"{name}/1.jpg" for name in classes]
    data = opened(tmp_path / "d", "".join(f"{line(path)}\n" for path in gone), val_fraction=0.3)
    before, after = (set().union(*paths(one, tmp_path / "d")) for one in (whole, data))
    assert before - after == set(gone)


def test_unknown_paths_are_reported(folder):
    data = opened(folder, "train/a/1.jpg\na/1.jpg\ntrain/a/9.jpg\n")
    assert data.notes[-1].endswith(
        "2 paths of 3 found no image: a/1.jpg, train/a/9.jpg; expected paths relative to the "
        "folder of the data"
    )


def test_the_held_out_split_of_the_others_does_not_move(tmp_path):
    fill(tmp_path / "d", {"a": 30, "b": 30})
    before = paths(registry.open_dataset("folder", str(tmp_path / "d")), tmp_path / "d")
    gone = {*sorted(before[0])[::7], sorted(before[1])[0]}
    after = paths(opened(tmp_path / "d", "\n".join(gone)), tmp_path / "d")
    assert after == [part - gone for part in before]
    folds = opened(tmp_path / "d", "\n".join(gone), fold=(1, 3))
    whole = registry.open_dataset("folder", str(tmp_path / "d"), fold=(1, 3))
    assert paths(folds, tmp_path / "d") == [part - gone for part in paths(whole, tmp_path / "d")]


def test_lists(folder):
    rows = [f"train/{name}/{k}.jpg,{name}\n" for name in "ab" for k in range(3)]
    (folder / "train.csv").write_text("".join(rows))
    (folder / "val.csv").write_text(f"val/a/0.jpg,a\n{folder}/val/b/0.jpg,b\n")
    data = opened(folder, "train/a/1.jpg\nval/b/0.jpg\n", "list")
    assert paths(data, folder) == [
        {f"train/{path}.jpg" for path in ("a/0", "a/2", "b/0", "b/1", "b/2")},
        {"val/a/0.jpg"},
    ]
    one = opened(folder / "train.csv", "train/a/1.jpg\n", "list", val_fraction=0.3)
    assert len(one.train) + len(one.val) == 5


def test_the_key_of_a_data_set(folder, tmp_path):
    (tmp_path / "pets.yaml").write_text("reader: folder\ndatadir: d\nexclude: lists/bad.txt\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/bad.txt").write_text("train/a/0.jpg\n")
    assert len(registry.open_dataset(str(tmp_path / "pets.yaml")).train) == 7


def test_the_flag_of_training(folder, tmp_path):
    (tmp_path / "bad.txt").write_text("train/a/0.jpg\n")
    words = ["--model", "R14x0.5", "--from_scratch", "--dataset", "folder", "--datadir", folder]
    words = [str(word) for word in [*words, "--exclude", tmp_path / "bad.txt"]]
    plan = make_plan(parsing.parse(words, "t", registry.find)[0])
    assert len(plan.subset) == 7 and "1 image left out" in plan.describe()


@pytest.mark.parametrize(
    "text, words",
    [
        ("val/a/0.jpg\nval/a/1.jpg\nval/b/0.jpg\nval/b/1.jpg", "names all 4 val images"),
        ("".join(f"train/b/{k}.jpg\n" for k in range(4)), "names all training images of b"),
    ],
)
def test_a_part_or_class_without_images(folder, text, words):
    with pytest.raises(errors.DataError, match=words):
        opened(folder, text)


def test_mistakes(folder):
    with pytest.raises(errors.MissingFileError, match="--exclude nowhere.txt: cannot be read"):
        registry.open_dataset("folder", str(folder), exclude="nowhere.txt")
    with pytest.raises(errors.ConfigError, match="--exclude: is not for digits, whose images have"):
        registry.open_dataset("digits", exclude="x.txt")
