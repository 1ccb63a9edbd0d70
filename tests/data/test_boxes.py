"""Readers of boxes: COCO, Pascal VOC and YOLO; all faults at once; hostile files.

Files broken at random are in test_boxes_mutations.py.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.places import SHARED
from PIL import Image

from bit_paddle.data.boxes.reading import read_boxes
from bit_paddle.data.boxes.voc import parse_xml
from bit_paddle.data.boxes.yolo import class_names
from bit_paddle.errors import ConfigError, DataError, MissingFileError

NAMES = ["crow", "owl"]
# (class, x1, y1, x2, y2) of three images of 40 x 30 pixels; the last has none.
BOXES = {
    "a": [("owl", 2, 3, 20, 25), ("crow", 0, 0, 40, 30)],
    "b": [("crow", 10, 10, 30, 20)],
    "c": [],
}


@pytest.fixture
def folder(tmp_path):
    """The same boxes in three formats, beside the images."""
    for kind in ("images", "Annotations", "labels"):
        (tmp_path / kind).mkdir()
    for name, boxes in BOXES.items():
        Image.new("RGB", (40, 30)).save(tmp_path / f"images/{name}.png")
        (tmp_path / f"Annotations/{name}.xml").write_text(xml(name, boxes))
        lines = [
            f"{NAMES.index(label)} {(x1 + x2) / 80:.6f} {(y1 + y2) / 60:.6f} "
            f"{(x2 - x1) / 40:.6f} {(y2 - y1) / 30:.6f}\n"
            for label, x1, y1, x2, y2 in boxes
        ]
        if lines:
            (tmp_path / f"labels/{name}.txt").write_text("".join(lines))
    (tmp_path / "classes.txt").write_text("crow\nowl\n")
    (tmp_path / "coco.json").write_text(json.dumps(coco()))
    return tmp_path


def xml(name, boxes, size="<size><width>40</width><height>30</height></size>", start=""):
    objects = "".join(
        f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, x1, y1, x2, y2 in boxes
    )
    return f"{start}<annotation><filename>{name}.png</filename>{size}{objects}</annotation>"


def coco():
    """The classes have the numbers 3 and 7, in another order than the file's."""
    images = [
        {"id": 10 + k, "file_name": f"{name}.png", "width": 40, "height": 30}
        for k, name in enumerate(BOXES)
    ]
    annotations = [
        {"id": 0, "image_id": image["id"], "category_id": {"owl": 7, "crow": 3}[label],
         "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(label == "crow" and x1 == 0),
         "segmentation": [[0, 0, 1, 1]]}
        for image, boxes in zip(images, BOXES.values())
        for label, x1, y1, x2, y2 in boxes
    ]  # fmt: skip
    categories = [{"id": 7, "name": "owl"}, {"id": 3, "name": "crow"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.mark.parametrize("kind", ["coco.json", "Annotations", "labels"])
def test_three_formats_give_the_same(folder, kind):
    found = read_boxes(folder / kind)
    assert found.classes == NAMES and found.root == folder / "images" and len(found) == 3
    assert found.paths == ["a.png", "b.png", "c.png"] and found.sizes.tolist() == [[30, 40]] * 3
    for name, boxes, labels in zip(BOXES, found.boxes, found.labels):
        expected = np.array([box[1:] for box in BOXES[name]]).reshape(-1, 4)
        assert boxes.dtype == np.float32 and np.array_equal(boxes, expected)
        assert labels.tolist() == [NAMES.index(box[0]) for box in BOXES[name]]
    is_coco = kind == "coco.json"
    assert [one.tolist() for one in found.crowd] == [[False, is_coco], [False], []]
    assert found.category_ids == ([3, 7] if is_coco else [1, 2]) and found.notes == ()
    assert found.ids == ([10, 11, 12] if is_coco else ["a", "b", "c"])


@pytest.mark.parametrize("kind", ["coco.json", "Annotations", "labels"])
def test_the_order_of_the_classes_can_be_given(folder, kind):
    """Training and validation files may have other orders; YOLO's numbers follow the list."""
    found = read_boxes(folder / kind, classes=["owl", "heron", "crow"])
    assert found.classes == ["owl", "heron", "crow"]
    assert found.labels[0].tolist() == ([1, 0] if kind == "labels" else [0, 2])
    if kind == "coco.json":
        assert found.category_ids == [7, None, 3]


BAD = [
    ("owl", 5, 5, 5, 20),  # no area
    ("owl", 5, 5, 3, 20),
    ("owl", 50, 5, 60, 20),  # outside
    ("owl", "nan", 5, 30, 20),
    ("owl", 1, 2, "1e999", 20),
    ("heron", 1, 2, 20, 20),
    ("owl", 30, 20, 55, 20.5),  # cut
]
WORDS = ["boxes without area (2):", "boxes outside their image (1):", "missing images (1):",
         "numbers that are not finite (2):", "unknown classes (1):", ": 7 faults"]  # fmt: skip


def spoil(folder, kind):
    """Write `BAD` into the annotations of image b, and those of an image that is not there."""
    if kind == "Annotations":
        (folder / "Annotations/b.xml").write_text(xml("b", BAD))
        (folder / "Annotations/d.xml").write_text(xml("d", BAD))
    elif kind == "labels":
        lines = ""
        for label, *corners in BAD:
            x1, y1, x2, y2 = map(float, corners)
            numbers = ((x1 + x2) / 80, (y1 + y2) / 60, (x2 - x1) / 40, (y2 - y1) / 30)
            lines += " ".join(map(str, (7 if label == "heron" else 1, *numbers))) + "\n"
        (folder / "labels/b.txt").write_text(lines)
        (folder / "labels/d.txt").write_text(lines)
    else:
        content = coco()
        del content["annotations"][2]  # that of b
        content["images"].append({"id": 99, "file_name": "d.png", "width": 40, "height": 30})
        for number in (11, 99):
            for label, *corners in BAD:
                x1, y1, x2, y2 = map(float, corners)
                box = {"image_id": number, "category_id": 5 if label == "heron" else 7}
                content["annotations"].append({**box, "bbox": [x1, y1, x2 - x1, y2 - y1]})
        (folder / "coco.json").write_text(json.dumps(content))


@pytest.mark.parametrize("kind", ["coco.json", "Annotations", "labels"])
def test_all_faults_at_once(folder, kind):
    spoil(folder, kind)
    classes = NAMES if kind == "Annotations" else None
    with pytest.raises(DataError) as caught:
        read_boxes(folder / kind, classes=classes)
    message = str(caught.value)
    assert all(words in message for words in WORDS), message
    assert "d.png" in message or "image d" in message
    found = read_boxes(folder / kind, classes=classes, on_bad_box="skip")
    assert found.paths == ["a.png", "b.png", "c.png"]
    assert found.boxes[1].tolist() == [[30, 20, 40, 20.5]]
    assert len(found.notes) == 6 and "cut boxes at the edge of their image (1)" in found.notes[-1]


def test_faults_of_coco_files(folder):
    content = coco()
    content["images"] += [{"id": 10, "file_name": "a.png", "width": 40, "height": 30},
                          {"id": 20, "file_name": "../a.png", "width": 40, "height": 30},
                          {"id": 21, "file_name": "a.png", "width": 0, "height": 30},
                          {"id": None, "file_name": "a.png"}, "text"]  # fmt: skip
    content["annotations"] += [{"image_id": 1234, "category_id": 7, "bbox": [1, 1, 2, 2]},
                               {"image_id": 10, "category_id": 7, "bbox": [1, 1, 2]},
                               {"image_id": 10, "category_id": [7], "bbox": [1, 1, 2, 2]},
                               []]  # fmt: skip
    (folder / "coco.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_boxes(folder / "coco.json")
    for words in ("repeated numbers of images", "'../a.png'", "0 x 30 pixels", "images[6]",
                  "images[7]: is 'text'", "image_id 1234", "has bbox [1, 1, 2]", "[7]",
                  "annotations[6]: is []"):  # fmt: skip
        assert words in str(caught.value), words
    assert len(read_boxes(folder / "coco.json", on_bad_box="skip")) == 3


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not COCO's JSON"),
        ('{"images": 1, "annotations": [], "categories": [{"id": 1, "name": "x"}]}', "images is 1"),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}, 5]}', "categories[1]: is 5"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}',
            "no usable box",
        ),
    ],
)
def test_files_that_are_no_coco(folder, content, words):
    (folder / "coco.json").write_text(content)
    with pytest.raises(DataError) as caught:
        read_boxes(folder / "coco.json")
    assert words in str(caught.value)


# --- Pascal VOC ---------------------------------------------------------------------------------


BOMB = '<!DOCTYPE a [<!ENTITY b "xxxxxxxxxx">' + "".join(
    f'<!ENTITY {chr(k + 1)} "{f"&{chr(k)};" * 10}">' for k in range(98, 110)
) + "]>"  # fmt: skip


@pytest.mark.parametrize(
    "start",
    [
        BOMB,
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">',
    ],
)
def test_hostile_xml_is_refused(folder, start):
    (folder / "Annotations/b.xml").write_text(xml("b", [("&n;", 1, 1, 9, 9)], start=start))
    with pytest.raises(DataError, match="document type"):
        read_boxes(folder / "Annotations")
    assert len(read_boxes(folder / "Annotations", on_bad_box="skip")) == 2


@pytest.mark.parametrize("content", ["", "<a>", "text", "<a></b>", "<a>&unknown;</a>", "\0\0"])
def test_files_that_are_no_xml(folder, content):
    (folder / "Annotations/b.xml").write_text(content)
    with pytest.raises(DataError, match=r"b\.xml"):
        read_boxes(folder / "Annotations")


@pytest.mark.parametrize("encoding, declared", [("gb18030", True), ("gb18030", False),
                                                ("utf-16", True), ("utf-8", False)])  # fmt: skip
def test_encodings_of_xml(tmp_path, encoding, declared):
    start = f'<?xml version="1.0" encoding="{encoding}"?>' if declared else ""
    text = xml("b", [("猫头鹰", 1, 1, 9, 9), ("合格产品", 1, 1, 9, 9)], start=start)
    (tmp_path / "b.xml").write_bytes(text.encode(encoding))
    assert parse_xml(tmp_path / "b.xml").findtext("object/name") == "猫头鹰"


def test_sizes_and_names_that_tools_leave_out(folder):
    """An old file name, and no size: the image itself tells."""
    (folder / "Annotations/b.xml").write_text(xml("old", BOXES["b"], size=""))
    zero = "<size><width>0</width><height>0</height></size>"
    (folder / "Annotations/a.xml").write_text(xml("a", BOXES["a"], size=zero))
    found = read_boxes(folder / "Annotations")
    assert found.paths == ["a.png", "b.png", "c.png"] and found.sizes.tolist() == [[30, 40]] * 3


def test_bccd(tmp_path):
    """Two boxes of the XML files are empty; the JSON files have all others, and the same."""
    if not (SHARED / "data/bccd.tar").exists():
        pytest.skip("the data are not here")
    with tarfile.open(SHARED / "data/bccd.tar") as archive:
        archive.extractall(tmp_path)
    folder, classes = tmp_path / "bccd", ["RBC", "WBC", "Platelets"]
    with pytest.raises(DataError) as caught:
        read_boxes(folder / "voc", classes=classes)
    message = str(caught.value)
    assert "boxes without area (2)" in message
    assert "BloodImage_00338.xml" in message and "504, 337, 504, 337" in message
    assert "BloodImage_00343.xml" in message and "181, 329, 181, 329" in message
    voc = read_boxes(folder / "voc", classes=classes, on_bad_box="skip")
    assert len(voc.notes) == 1 and "boxes without area (2)" in voc.notes[0]
    parts = [read_boxes(folder / f"{part}.json") for part in ("train", "val")]
    assert [len(part) for part in parts] == [205, 87] and len(voc) == 292
    assert all(part.classes == classes and part.root == folder / "images" for part in parts)
    by_path = {path: (boxes, labels) for part in parts
               for path, boxes, labels in zip(part.paths, part.boxes, part.labels)}  # fmt: skip
    for path, boxes, labels in zip(voc.paths, voc.boxes, voc.labels):
        assert np.array_equal(by_path[path][0], boxes) and np.array_equal(by_path[path][1], labels)
    assert sum(map(len, voc.boxes)) == 3941


# --- YOLO ---------------------------------------------------------------------------------------


def test_outlines_and_lines_that_are_no_boxes(folder):
    (folder / "labels/b.txt").write_text(
        "1 0.25 0.2 0.5 0.9 0.75 0.3\n\n0 0.5 0.5 0.5\nx 1 1 1 1\n"
    )
    with pytest.raises(DataError) as caught:
        read_boxes(folder / "labels")
    for words in ("line 3: has 4 numbers", "line 4: 'x'"):
        assert words in str(caught.value)
    found = read_boxes(folder / "labels", on_bad_box="skip")
    np.testing.assert_allclose(found.boxes[1], [[10, 6, 30, 27]])


def test_names_of_classes(folder):
    (folder / "classes.txt").unlink()
    with pytest.raises(MissingFileError, match=r"classes\.txt, one per line"):
        read_boxes(folder / "labels")
    for names in ("[crow, owl]", "{0: crow, 1: owl}"):
        (folder / "data.yaml").write_text(f"train: images\nnames: {names}\n")
        assert read_boxes(folder / "labels").classes == NAMES
    for names in ("{1: crow, 2: owl}", "[crow, crow]", "7", "[]"):
        (folder / "data.yaml").write_text(f"names: {names}\n")
        with pytest.raises(DataError, match="names"):
            class_names(folder / "data.yaml")


def test_images_of_nested_labels(folder):
    for kind in ("labels", "images"):
        (folder / "set" / kind / "train").mkdir(parents=True)
    (folder / "labels/a.txt").rename(folder / "set/labels/train/a.txt")
    (folder / "images/a.png").rename(folder / "set/images/train/a.png")
    assert len(read_boxes(folder / "set/labels/train", classes=NAMES)) == 1


def test_the_layout_of_coco(folder):
    """annotations/instances_val2017.json and val2017/, without naming the latter."""
    (folder / "annotations").mkdir()
    (folder / "coco.json").rename(folder / "annotations/instances_val2017.json")
    (folder / "images").rename(folder / "val2017")
    found = read_boxes(folder / "annotations/instances_val2017.json")
    assert found.root == folder / "val2017" and len(found) == 3


def test_wrong_arguments(folder):
    for arguments, error, words in (
        ({"annotations": folder / "no.json"}, MissingFileError, "no such file"),
        ({"annotations": folder / "classes.txt"}, DataError, "expected a COCO file"),
        ({"annotations": folder / "images"}, DataError, "has no .xml file"),
        ({"annotations": folder / "labels", "images": folder / "no"}, MissingFileError, "images"),
        ({"annotations": folder / "labels", "on_bad_box": "skpi"}, ConfigError, "mean skip"),
    ):
        with pytest.raises(error) as caught:
            read_boxes(**arguments)
        assert words in str(caught.value)


def test_a_damaged_image_is_one_fault(folder):
    Path(folder / "images/b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"files that cannot be read \(1\)"):
        read_boxes(folder / "labels")
    assert len(read_boxes(folder / "labels", on_bad_box="skip")) == 2


def test_an_image_of_another_size_than_its_annotations(folder):
    """Its boxes would be elsewhere. A photo that is stored on its side is seen upright."""
    files = read_boxes(folder / "coco.json").files()
    assert files.image(0).size == (40, 30) and files.name(1) == str(folder / "images/b.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(folder / "images/b.png", exif=exif)
    with pytest.raises(DataError, match="b.png: has 30 x 40 pixels upright.*made for 40 x 30"):
        files.image(1)
