"""Folds and groups: which images validate, and that a group is never split."""

import numpy as np
import pytest

from bit_paddle.data import splits
from bit_paddle.data.images import FileImages
from bit_paddle.data.readers import registry
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import ConfigError, DataError


def files(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


def opened(root, **options):
    return registry.open_dataset("folder", root, **options)


def folds_of(root, folds, **options):
    """{relative path: its fold}; every image validates exactly once."""
    result = {}
    for k in range(1, folds + 1):
        data = opened(root, fold=(k, folds), **options)
        assert not set(data.val.paths) & set(data.train.paths)
        for path in data.val.paths:
            assert result.setdefault(path, k) == k
        assert len(data.val) == data.folds[k - 1]
    assert len(result) == sum(data.folds) == len(data.train) + len(data.val)
    return result


NAMES = [f"{name}/{k}.png" for name in ("cat", "dog", "owl") for k in range(30)]


def test_the_fold_is_a_share_of_the_hash():
    """sha1 of the path, in [0, 1), times K: by hand for one path, and in order of the rank."""
    import hashlib

    number = int(hashlib.sha1(b"cat/7.png").hexdigest(), 16) / 2**160
    assert splits.fold_of("cat/7.png", 5) == int(5 * number) + 1
    by_rank = sorted(NAMES, key=splits.rank)
    in_order = [splits.fold_of(name, 7) for name in by_rank]
    assert in_order == sorted(in_order) and set(in_order) == set(range(1, 8))


def test_an_image_that_is_added_moves_no_other(tmp_path):
    before = folds_of(files(tmp_path, NAMES), 5)
    after = folds_of(files(tmp_path, ["cat/new.png", "owl/a/b.png", "dog/0a.png"]), 5)
    assert len(after) == len(before) + 3
    assert {path: after[path] for path in before} == before


def test_training_and_validation_are_pooled_and_test_stays_out(tmp_path):
    names = [f"train/{name}" for name in NAMES] + [f"val/{name[:4]}v{name[4:]}" for name in NAMES]
    root = files(tmp_path, [*names, "test/cat/t.png", "test/dog/t.png"])
    folds = folds_of(root, 4)
    assert set(folds) == set(names)
    data = opened(root, fold=(1, 4))
    assert sorted(data.test.paths) == ["cat/t.png", "dog/t.png"]
    assert any("(90) and validation images (90) are pooled" in note for note in data.notes)
    # the hash is that of the path below its part: a file may move from val to train
    assert all(fold == splits.fold_of(path.split("/", 1)[1], 4) for path, fold in folds.items())


def test_test_images_stay_out_without_validation_images(tmp_path):
    root = files(tmp_path, [f"train/{name}" for name in NAMES] + ["test/cat/t.png"])
    data = opened(root, fold=(1, 3))
    assert len(data.test) == 1 and len(data.train) + len(data.val) == 90


def test_few_images(tmp_path):
    root = files(tmp_path, ["a/1.png", "a/2.png", "b/1.png", "b/2.png"])
    with pytest.raises(DataError, match="--folds 9: fold . has no image; 4 images are few"):
        opened(root, fold=(1, 9))


def test_a_class_in_one_fold_is_reported(tmp_path):
    root = files(tmp_path, [*NAMES, "rare/1.png"])
    notes = opened(root, fold=(2, 3)).notes
    fold = splits.fold_of("rare/1.png", 3)
    assert any(f"all images of rare (fold {fold}) are in one fold" in note for note in notes)


@pytest.mark.parametrize("option", [{"fold": (1, 3)}, {"group": "(x)"}])
def test_images_without_paths(option):
    with pytest.raises(ConfigError, match="is not for cifar10, whose images have no paths"):
        registry.find("cifar10", **option)


# --- Groups -------------------------------------------------------------------------------------

PATIENTS = [
    f"{name}/patient{k % 12:02}_{k}.png" for name in ("cat", "dog", "owl") for k in range(40)
]
PATTERN = r"(patient\d+)_"


def patients(images):
    return {path.split("/")[-1].split("_")[0] for path in images.paths}


def test_planted_groups_are_never_split_by_folds(tmp_path):
    root = files(tmp_path, PATIENTS)
    without = opened(root, fold=(1, 3))
    assert patients(without.train) & patients(without.val)  # the control: paths split patients
    folds_of(root, 3, group=PATTERN)
    for k in (1, 2, 3):
        data = opened(root, fold=(k, 3), group=PATTERN)
        assert patients(data.val) and not patients(data.train) & patients(data.val)
    assert any("120 images are in 12 groups by --group" in note for note in data.notes)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.6])
def test_planted_groups_are_never_held_out_in_part(tmp_path, fraction):
    root = files(tmp_path, PATIENTS)
    without = opened(root, val_fraction=fraction)
    assert patients(without.train) & patients(without.val)
    data = opened(root, val_fraction=fraction, group=PATTERN)
    assert not patients(data.train) & patients(data.val)
    assert fraction <= len(data.val) / 120 <= fraction + 0.15
    assert set(data.train.labels) == set(data.val.labels) == {0, 1, 2}


def test_every_class_keeps_a_training_group(tmp_path):
    """Two groups that both classes share, and one more of a: b must not lose both."""
    root = files(tmp_path, ["a/p1_1.png", "a/p2_1.png", "a/p3_1.png", "b/p1_2.png", "b/p2_2.png"])
    data = opened(root, val_fraction=0.9, group=r"(p\d)_")
    assert set(data.train.labels) == {0, 1}


def test_one_group_cannot_be_held_out(tmp_path):
    root = files(tmp_path, ["a/p1_1.png", "a/p1_2.png", "b/p2_1.png", "b/p2_2.png"])
    with pytest.raises(DataError, match="no group can be held out"):
        opened(root, group=r"(p\d)_")


def test_paths_without_a_group_are_counted(tmp_path):
    root = files(tmp_path, [*PATIENTS, "cat/loose.png", "dog/other.png"])
    data = opened(root, group=PATTERN)
    assert any("2 images without a group" in note and "14 groups" in note for note in data.notes)


def test_groups_in_given_parts_are_reported(tmp_path):
    names = ["train/a/p1_1.png", "train/b/p2_1.png", "val/a/p1_2.png", "val/b/p3_1.png"]
    notes = opened(files(tmp_path, names), group=r"(p\d)_").notes
    assert any(
        "1 group of validation images also in earlier parts, such as 'p1'" in n for n in notes
    )


@pytest.mark.parametrize(
    "group, words", [("patient", "has 0 groups"), ("(a)(b)", "has 2"), ("(", "not a regular")]
)
def test_a_wrong_expression(group, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        registry.find("folder", datadir=str(tmp_path), group=group)


@pytest.mark.parametrize("group", ["patient", "3", r"/(p\d+)-"])
def test_a_column_of_a_list(tmp_path, group):
    lines = [f"i/p{k % 6}-{k}.png,{'ab'[k % 2]},p{k % 6}" for k in range(60)]
    (tmp_path / "all.csv").write_text("\n".join(["path,label,patient", *lines]))
    data = registry.open_dataset("list", str(tmp_path / "all.csv"), group=group, val_fraction=0.3)
    sides = [{path.split("-")[0] for path in part.paths} for part in (data.train, data.val)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


@pytest.mark.parametrize("group, words", [("person", "neither a column"), ("7", "columns 1 to 3")])
def test_a_wrong_column(tmp_path, group, words):
    (tmp_path / "all.csv").write_text("path,label,patient\n1.png,a,x\n2.png,b,y\n")
    with pytest.raises(ConfigError, match=words):
        registry.open_dataset("list", str(tmp_path / "all.csv"), group=group)


def test_the_held_out_images_of_0_1_0():
    """As version 0.1.0 held them out; no image may move without --group."""
    images = FileImages(NAMES, np.repeat(np.arange(3), 30), ["cat", "dog", "owl"], "x")
    _, val, _ = splits.held_out(images, DataSpec("folder"))
    held = {"cat": (18, 26, 8), "dog": (19, 26, 7), "owl": (22, 23, 28)}
    assert set(val.paths) == {f"{name}/{k}.png" for name, numbers in held.items() for k in numbers}
