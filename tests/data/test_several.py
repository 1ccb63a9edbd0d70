"""Data with several labels per image: lists, tables, labels.csv, COCO, and what is refused."""

import json

import numpy as np
import pytest
from helpers.tags import NAMES, make_tags

from bit_paddle.data.labels import LabelSets, counts, named
from bit_paddle.data.readers import registry
from bit_paddle.errors import ConfigError, DataError, MissingFileError


@pytest.fixture(scope="module")
def tags(tmp_path_factory):
    return make_tags(tmp_path_factory.mktemp("tags"))


def expected(part, number):
    return [tuple(NAMES[k] for k in range(4) if n % 16 >> k & 1) for n in range(number)]


def opened(dataset, folder, **options):
    return registry.open_dataset(dataset, str(folder), **options)


def rows_of(folder, part):
    lines = (folder / "labels.csv").read_text().splitlines()[1:]
    return [line.split(",") for line in lines if line.startswith(part)]


def check(data, train=24, val=12):
    for images, part, number in ((data.train, "train", train), (data.val, "val", val)):
        assert isinstance(images.labels, LabelSets) and list(images.classes) == list(NAMES)
        order = np.argsort([images.name(k) for k in range(len(images))])
        found = named(images.labels[order], images.classes)
        assert found == expected(part, number)
        images.image(0)


def test_a_folder_through_its_labels_file(tags):
    data = opened("folder", tags, separator=";")
    check(data)
    assert data.test is None


def test_three_parts_in_one_file(tags, tmp_path):
    """test/ is measured at the end of a run; without val/ it validates, as for class folders."""
    for part, link in (("train", "train"), ("val", "val"), ("test", "val")):
        (tmp_path / part).symlink_to(tags / link)
    lines = [",".join(row) for part in ("train", "val") for row in rows_of(tags, part)]
    test = [line.replace("val/", "test/") for line in lines if line.startswith("val/")]
    (tmp_path / "labels.csv").write_text("\n".join([*lines, *test]))
    data = opened("folder", tmp_path, separator=";")
    check(data)
    assert len(data.test) == 12 and data.test.labels.tolist() == data.val.labels.tolist()
    (tmp_path / "labels.csv").write_text("\n".join([*lines[:24], *test]))
    data = opened("folder", tmp_path, separator=";")
    assert data.test is None and len(data.val) == 12
    assert any("are used for validation" in note for note in data.notes)


def test_lists_with_a_separator(tags, tmp_path):
    for part in ("train", "val"):
        text = "".join(f"{tags}/{path},{cell.replace(';', ' | ')}\n" for path, cell in
                       rows_of(tags, part))  # fmt: skip
        (tmp_path / f"{part}.csv").write_text("path,label\n" + text)
    check(opened("list", tmp_path, separator="|"))
    spec = tmp_path / "tags.yaml"
    spec.write_text(f"reader: list\ndatadir: {tmp_path}\nseparator: '|'\n")
    check(registry.open_dataset(str(spec)))


def test_a_line_per_label(tags, tmp_path):
    """The labels of all lines of an image are joined."""
    lines = [f"{tags}/{path},{label}" for path, cell in rows_of(tags, "train")
             for label in cell.split(";")]  # fmt: skip
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    data = opened("list", tmp_path, separator=";", val_fraction=0.25)
    assert len(data.train) + len(data.val) == 24
    total = counts(data.train.labels, 4) + counts(data.val.labels, 4)
    assert total.tolist() == [12, 12, 12, 8]


def write_table(tags, tmp_path, more=""):
    for part in ("train", "val"):
        rows = [f"{tags}/{path}," + ",".join(str(int(name in cell.split(";"))) for name in NAMES)
                for path, cell in rows_of(tags, part)]  # fmt: skip
        rows = [",".join(("image", *NAMES)) + more, *(row + (more and ",7") for row in rows)]
        (tmp_path / f"{part}.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_a_table_of_0_and_1(tags, tmp_path):
    check(opened("table", write_table(tags, tmp_path)))
    check(opened("list", tmp_path, separator=";"))


def test_a_column_that_is_no_label(tags, tmp_path):
    write_table(tags, tmp_path, ",patient")
    with pytest.raises(DataError, match=r"train.csv:2: found '7' in the column patient, expected"):
        opened("table", tmp_path)
    spec = tmp_path / "tags.yaml"
    spec.write_text(f"reader: table\ndatadir: {tmp_path}\nclasses: [{', '.join(NAMES)}]\n")
    check(registry.open_dataset(str(spec)))
    data = opened("table", tmp_path, group="patient", val_fraction=None)
    check(data)
    assert data.train.groups == ["7"] * 24


def test_a_table_names_each_label_once(tags, tmp_path):
    write_table(tags, tmp_path, ",blue")
    with pytest.raises(DataError, match=r"train.csv: has several columns 'blue', expected one"):
        opened("table", tmp_path)


def test_a_test_list_without_labels_is_left_out(tags, tmp_path):
    """As competitions have it."""
    write_table(tags, tmp_path)
    rows = [f"{tags}/val/{k:02}.png,0,0,0,0" for k in range(4)]
    (tmp_path / "test.csv").write_text("\n".join([f"image,{','.join(NAMES)}", *rows]))
    data = opened("table", tmp_path)
    check(data)
    assert data.test is None
    assert any("no image has a label, so its images are not measured" in n for n in data.notes)


def write_coco(tags, folder, names=("train.json", "val.json"), prefix=""):
    for part, name in zip(("train", "val"), names):
        rows = rows_of(tags, part)
        images = [{"id": 7 * k, "file_name": prefix + path} for k, (path, _) in enumerate(rows)]
        boxes = [{"id": n, "image_id": 7 * k, "category_id": 10 + NAMES.index(label)}
                 for k, (_, cell) in enumerate(rows) for n, label in enumerate(cell.split(";") * 2)
                 if label]  # fmt: skip
        categories = [{"id": 10 + k, "name": name} for k, name in enumerate(NAMES)]
        content = {"images": images, "annotations": boxes, "categories": categories}
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def test_coco(tags, tmp_path):
    for part in ("train", "val"):
        (tmp_path / part).symlink_to(tags / part)
    check(opened("coco", write_coco(tags, tmp_path)))


def test_the_layout_of_coco_itself(tags, tmp_path):
    names = [f"annotations/instances_{part}2017.json" for part in ("train", "val")]
    write_coco(tags, tmp_path, names)
    for part in ("train", "val"):
        (tmp_path / f"{part}2017").mkdir()
        (tmp_path / f"{part}2017" / part).symlink_to(tags / part)
    check(opened("coco", tmp_path))


def test_one_annotations_file_is_split(tags, tmp_path):
    write_coco(tags, tmp_path, ("annotations.json", "not-read.json"))
    (tmp_path / "images").mkdir()
    (tmp_path / "images/train").symlink_to(tags / "train")
    data = opened("coco", tmp_path, val_fraction=0.25)
    assert len(data.train) + len(data.val) == 24 and 4 <= len(data.val) <= 8
    assert any("about 25% per label" in note for note in data.notes)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["annotations"][0].update(category_id=99), r"annotations\[0\]: has image_id"),
        (lambda c: c["annotations"][0].update(image_id=[1]), r"annotations\[0\]: has image_id"),
        (lambda c: c["images"][1].update(id=0), r"images\[1\]: has id 0"),
        (lambda c: c["images"][0].pop("file_name"), r"images\[0\]: has id 0 and file_name None"),
        (lambda c: c.update(images=[]), "has no images"),
        (lambda c: c.update(annotations=[]), "no training image has a label"),
    ],
)
def test_faults_of_coco_are_named(change, message, tags, tmp_path):
    write_coco(tags, tmp_path, prefix=f"{tags}/")
    content = json.loads((tmp_path / "train.json").read_text())
    change(content)
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        opened("coco", tmp_path)


def test_numbers_and_their_names(tags, tmp_path):
    rows = [(path, ";".join(str(NAMES.index(label)) for label in cell.split(";") if label))
            for path, cell in rows_of(tags, "train")]  # fmt: skip
    for part in ("train", "val"):
        (tmp_path / f"{part}.csv").write_text("".join(f"{tags}/{a},{b}\n" for a, b in rows))
    (tmp_path / "label_list.txt").write_text("\n".join(f"{k} {n}" for k, n in enumerate(NAMES)))
    data = opened("list", tmp_path, separator=";")
    assert data.train.classes == list(NAMES)
    assert named(data.train.labels, NAMES) == expected("train", 24)


def test_classes_choose_merge_and_order(tags, tmp_path):
    spec = tmp_path / "tags.yaml"
    spec.write_text(
        f"reader: folder\ndatadir: {tags}\nseparator: ';'\n"
        "classes: {warm: [coral, amber], blue: }\n"
    )
    data = registry.open_dataset(str(spec))
    assert data.train.classes == ["warm", "blue"] and len(data.train) == 24
    found = data.train.labels.dense(2)
    wanted = [("amber" in row or "coral" in row, "blue" in row) for row in expected("train", 24)]
    assert np.array_equal(found, wanted)
    assert any("1 class of 4 are left out; their images stay (dun 12)" in n for n in data.notes)


def test_folds_have_every_label(tags):
    sizes, total = [], np.zeros(4, int)
    for fold in (1, 2, 3):
        data = opened("folder", tags, separator=";", fold=(fold, 3))
        assert len(data.train) + len(data.val) == 36
        found = counts(data.val.labels, 4)
        assert (np.abs(found - (counts(data.train.labels, 4) + found) / 3) < 2).all()
        sizes.append(len(data.val))
        total += found
    assert sum(sizes) == 36 and data.folds == tuple(sizes)
    assert any("iterative stratification" in note for note in data.notes)


def test_the_order_of_a_list_does_not_choose_the_split(tags, tmp_path):
    found = []
    for name, step in (("one", 1), ("other", -1)):
        folder = tmp_path / name
        folder.mkdir()
        rows = rows_of(tags, "train")[::step]
        (folder / "train.csv").write_text("".join(f"{tags}/{a},{b}\n" for a, b in rows))
        data = opened("list", folder, separator=";")
        found.append(sorted(data.val.paths))
    assert found[0] == found[1] and found[0]


def test_a_group_is_not_split(tags):
    data = opened("folder", tags, separator=";", fold=(1, 2), group=r"/(\d)\d\.")
    tens = [{path.split("/")[1][0] for path in part.paths} for part in (data.train, data.val)]
    assert not tens[0] & tens[1] and all(tens)


def test_images_can_be_excluded(tags, tmp_path):
    (tmp_path / "bad.txt").write_text("train/03.png\n")
    data = opened("folder", tags, separator=";", exclude=str(tmp_path / "bad.txt"))
    assert len(data.train) == 23 and "train/03.png" not in data.train.paths


# --- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cells", [("cat", "dog", "cat;dog"), ("cat", "dog", "dog|cat"), ("cat", "dog", '"cat,dog"')]
)
def test_a_cell_with_several_labels_says_how(cells, tmp_path):
    """Case 6 of the inputs that misled version 0.1.0: it made a third class of them."""
    (tmp_path / "train.csv").write_text("".join(f"{k}.jpg,{c}\n" for k, c in enumerate(cells)))
    with pytest.raises(DataError, match="seems to be several labels.*--separator '[;|,]'"):
        opened("list", tmp_path)


@pytest.mark.parametrize("cells", [("Smith, John", "Doe, John", "Smith, Ann"), ("a;b", "c;d"),
                                   ("tabby, tabby cat", "tabby")])  # fmt: skip
def test_names_with_such_marks_stay(cells, tmp_path):
    rows = [f'{k}.jpg,"{cell}"\n' for k, cell in enumerate([*cells, *cells] * 10)]
    (tmp_path / "train.csv").write_text("".join(rows))
    data = opened("list", tmp_path)
    assert data.train.classes == sorted(cells) and not isinstance(data.train.labels, LabelSets)


def test_a_class_may_be_named_so(tmp_path):
    cells = ["cat", "dog", "cat;dog"] * 4
    (tmp_path / "train.csv").write_text("".join(f"{k}.jpg,{c}\n" for k, c in enumerate(cells)))
    spec = tmp_path / "both.yaml"
    spec.write_text(f"reader: list\ndatadir: {tmp_path}\nclasses: [cat, dog, cat;dog]\n")
    assert registry.open_dataset(str(spec)).train.classes == ["cat", "dog", "cat;dog"]


def test_a_separator_is_not_for_other_readers(tmp_path):
    with pytest.raises(ConfigError, match="--separator: is not for cifar10"):
        registry.find("cifar10", separator=";")
    spec = tmp_path / "x.yaml"
    spec.write_text("reader: list\nseparator: ' '\n")
    with pytest.raises(ConfigError, match="separator: is ' ', expected a text such as ';'"):
        registry.find(str(spec))
    with pytest.raises(MissingFileError, match=r"has no labels.csv, which --separator needs"):
        opened("folder", tmp_path, separator=";")


def test_a_label_that_training_lacks(tags, tmp_path):
    (tmp_path / "labels.csv").write_text("train/a.png,cat\ntrain/b.png,dog\nval/c.png,cow\n")
    with pytest.raises(DataError, match=r"labels.csv:3: class 'cow' is not in training"):
        opened("folder", tmp_path, separator=";")
