"""Data sets of the Hugging Face hub, and parquet files: real files of pyarrow, a real server."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from helpers.hub import TOKEN, Hub
from PIL import Image

import bit_paddle as bit
from bit_paddle.data import splits
from bit_paddle.data.readers import hub_layout, members, parquet, registry
from bit_paddle.errors import ConfigError, DataError, DownloadError, MissingFileError
from bit_paddle.system import fetch, hub_errors

pa = pytest.importorskip("pyarrow")
pytest.importorskip("huggingface_hub")
import pyarrow.parquet as pq  # noqa: E402

NAMES = ["cat", "dog"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(seed, side=8):
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def pictures(count, first=0, paths=True):
    return [
        {"bytes": png(first + k), "path": f"{first + k:03d}.png" if paths else None}
        for k in range(count)
    ]


def table(images, labels, names=NAMES, image="image", label="label", rows=4, **more):
    """A parquet file as `datasets` writes it."""
    kind = {"_type": "ClassLabel", "names": names} if names else {"_type": "Value"}
    features = {image: {"_type": "Image"}, label: kind}
    columns = {image: pa.array(images, IMAGE), label: pa.array(labels), **more}
    made = pa.table(columns)
    info = json.dumps({"info": {"features": features}})
    made = made.replace_schema_metadata({"huggingface": info} if names else None)
    stream = io.BytesIO()
    pq.write_table(made, stream, row_group_size=rows, compression="zstd")
    return stream.getvalue()


def part(count, first=0):
    return table(pictures(count, first), [k % 2 for k in range(count)])


THREE = {
    "README.md": b"---\nlicense: mit\n---\n# Pets\n",
    "data/train-00000-of-00002.parquet": part(6),
    "data/train-00001-of-00002.parquet": part(4, 6),
    "data/validation-00000-of-00001-b42a775f407cee45.parquet": part(2, 10),
    "data/test-00000-of-00001.parquet": part(4, 12),
}


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = Hub({"datasets/me/pets": dict(THREE)})
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "native").symlink_to(fetch.cache_dir() / "native")  # compiled once
    for module in (hub_errors, fetch):
        monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    for name, value in {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path / "hf"),
        "BIT_PADDLE_HOME": str(tmp_path / "home"),
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.close()


@pytest.fixture
def local(monkeypatch, tmp_path):
    """Open parquet files: local({name: bytes}, **options)."""
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "home"))

    def opened(files, **options):
        root = tmp_path / "files"
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        return registry.open_dataset("hf", str(root), **options)

    return opened


def described(tmp_path, text):
    (tmp_path / "set.yaml").write_text(text)
    return str(tmp_path / "set.yaml")


def pixels(images):
    return [np.asarray(images.image(k)).tobytes() for k in range(len(images))]


def expected(first, count):
    every = (png(k) for k in range(first, first + count))
    return [np.asarray(Image.open(io.BytesIO(data))).tobytes() for data in every]


# --- From the hub ---------------------------------------------------------------------------------


def test_three_splits_of_a_repository(server):
    data = registry.open_dataset("hf:me/pets")
    assert data.train.paths == [f"{k:03d}.png" for k in range(10)]
    for images, first, count in ((data.train, 0, 10), (data.val, 10, 2), (data.test, 12, 4)):
        assert pixels(images) == expected(first, count)
        assert images.labels.tolist() == [0, 1] * (count // 2) and images.classes == NAMES
    server.requests.clear()
    again = registry.open_dataset("hf:me/pets")
    assert again.train.root == data.train.root
    assert server.asked("GET") == ["/api/datasets/me/pets/revision/main"]


def test_only_the_needed_files_are_downloaded(server):
    server.repositories["datasets/me/pets"]["original/photos.zip"] = b"of no use"
    registry.open_dataset("hf:me/pets")
    assert not server.asked("GET", "photos.zip")


def test_without_the_hub(server, monkeypatch, capsys):
    before = registry.open_dataset("hf:me/pets")
    server.faults[:] = [503] * 40
    assert registry.open_dataset("hf:me/pets").train.root == before.train.root
    assert "the copy in the cache is used" in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert registry.open_dataset("hf:me/pets").train.root == before.train.root
    with pytest.raises(DownloadError, match=r"hf:me/pets@v1: is not in the cache"):
        registry.open_dataset("hf:me/pets@v1")


def test_a_new_commit_is_new_data(server):
    before = registry.open_dataset("hf:me/pets")
    pinned = f"hf:me/pets@{server.commit('datasets/me/pets')}"
    assert registry.open_dataset(pinned).train.root == before.train.root
    server.repositories["datasets/me/pets"]["data/test-00000-of-00001.parquet"] = part(2, 40)
    after = registry.open_dataset("hf:me/pets")
    assert pixels(after.test) == expected(40, 2)
    server.requests.clear()
    assert len(registry.open_dataset(pinned).test) == 4 and not server.requests


@pytest.mark.parametrize(
    "access, name, error, words",
    [
        (None, "hf:me/nothing", ConfigError, "me/nothing: the hub has no such repository"),
        (None, "hf:me/pets@v7", ConfigError, "has no such revision"),
        ("gated", "hf:me/pets", DownloadError, "is gated: accept its conditions .* HF_TOKEN"),
        (None, "hf:pets", ConfigError, "expected hf:OWNER/NAME .*ylecun/mnist"),
    ],
)
def test_refused(access, name, error, words, server):
    server.access["datasets/me/pets"] = access
    with pytest.raises(error, match=words):
        registry.open_dataset(name)


def test_a_gated_repository_with_a_token(server, monkeypatch):
    server.access["datasets/me/pets"] = "gated"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert len(registry.open_dataset("hf:me/pets").train) == 10


def test_wrong_bytes_are_not_unpacked(server, tmp_path):
    server.cdn_faults[:] = ["wrong bytes"] * 20
    with pytest.raises(DownloadError, match="does not have the sha256"):
        registry.open_dataset("hf:me/pets")
    assert not list((tmp_path / "home" / "parquet").glob("*"))


def test_the_hub_s_own_conversion(server, tmp_path):
    server.repositories["datasets/me/pets"] = {"README.md": b"", "train.zip": b"x"}
    branch = "datasets/me/pets@refs/convert/parquet"
    server.repositories[branch] = {
        "default/train/0000.parquet": part(4),
        "default/test/0000.parquet": part(2, 4),
    }
    data = registry.open_dataset("hf:me/pets")
    assert (len(data.train), len(data.val), data.test) == (4, 2, None)
    server.repositories[branch] = {
        f"{name}/partial-train/0000.parquet": part(4) for name in ("big", "small")
    }
    with pytest.raises(ConfigError, match="hf:me/pets: the data set has the subsets big, small"):
        registry.open_dataset("hf:me/pets")
    data = registry.open_dataset(described(tmp_path, "reader: hf:me/pets\nsubset: small\n"))
    assert any("first 5 GB" in note for note in data.notes)


def test_a_script_is_not_run(server):
    server.repositories["datasets/me/pets"] = {"pets.py": b"raise SystemExit('run')"}
    with pytest.raises(DataError, match=r"script pets\.py, which is not run"):
        registry.open_dataset("hf:me/pets")
    server.repositories["datasets/me/pets"] = {"a.csv": b""}
    with pytest.raises(DataError, match="has no parquet files, and the hub has not converted it"):
        registry.open_dataset("hf:me/pets")


# --- Splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, found",
    [
        (["data/train-00000-of-00001.parquet", "data/extra-00000-of-00001.parquet", "x.parquet"],
         {"train": 1, "extra": 1}),
        (["training/0.parquet", "a/dev/0.parquet", "a/eval_1/0.parquet"],
         {"train": 1, "validation": 1, "test": 1}),
        (["my_train_file.parquet", "train1.parquet", "val.parquet", "testfile.parquet"],
         {"train": 2, "validation": 1}),
        (["train_set/test/0.parquet", "train_set/train/0.parquet"], {"train": 1, "test": 1}),
        (["trainer.parquet", "latest.parquet"], {"train": 2}),
    ],
)  # fmt: skip
def test_splits_by_names(names, found):
    splits = hub_layout.find_subset(names, {}, None).splits
    assert {split: len(files) for split, files in splits.items()} == found


CARD = """---
configs:
- config_name: photos
  default: true
  data_files:
  - split: train
    path: ["a/*.parquet", "more/**/x[0-9].parquet"]
  - split: holdout
    path: b.parquet
- config_name: drawings
  data_files: "c/*"
dataset_info:
- config_name: photos
  features:
  - name: label
    dtype:
      class_label:
        names:
          '0': crow
          '1': owl
---
"""


def test_splits_by_the_card(tmp_path, local):
    card = hub_layout.front_matter(CARD)
    files = ["a/1.parquet", "a/z/2.parquet", "b.parquet", "c/3.parquet", "more/p/q/x1.parquet"]
    splits = hub_layout.find_subset(files, card, None).splits
    assert splits == {"train": ["a/1.parquet", "more/p/q/x1.parquet"], "holdout": ["b.parquet"]}
    assert hub_layout.find_subset(files, card, "drawings").splits == {"train": ["c/3.parquet"]}
    with pytest.raises(ConfigError, match="subset: is 'drawing'; did you mean drawings"):
        hub_layout.find_subset(files, card, "drawing")
    content = {"README.md": CARD.encode(), "a/1.parquet": part(8), "b.parquet": part(2, 8)}
    data = local(content)
    assert data.train.classes == ["crow", "owl"] and len(data.train) + len(data.val) == 8
    assert any("splits that are not read: holdout" in note for note in data.notes)
    text = f"reader: hf\ndatadir: {tmp_path / 'files'}\nval: holdout\n"
    data = registry.open_dataset(described(tmp_path, text))
    assert (len(data.train), pixels(data.val)) == (8, expected(8, 2))


def test_the_file_of_the_data_set_chooses_splits(server, tmp_path):
    def open_described(keys):
        return registry.open_dataset(described(tmp_path, f"reader: hf:me/pets\n{keys}\n"))

    data = open_described("val: test\ntest: validation")
    assert (len(data.train), len(data.val), len(data.test)) == (10, 4, 2)
    data = open_described("val: test")  # as in other data sets, then no test images
    assert (len(data.train), len(data.val), data.test) == (10, 4, None)
    with pytest.raises(ConfigError, match="train: the split 'test' is named twice"):
        open_described("train: test\nval: test")
    with pytest.raises(ConfigError, match="val: is 'validaton'; did you mean validation"):
        open_described("val: validaton")


HUGE = f"---\na: 0x{'f' * 4000}\n---"  # Python cannot print it


@pytest.mark.parametrize(
    "text", ["", "# Pets", "---\n{[\n---\n", "---\n- a\n---\n", "---\n1\n---", HUGE]
)
def test_a_readme_without_use(text):
    assert hub_layout.front_matter(text) == {}


def test_a_class_with_a_number_of_5000_digits():
    names = {"1": "owl", "9" * 5000: "crow", "0": "elk"}
    feature = {"name": "label", "dtype": {"class_label": {"names": names}}}
    found = hub_layout.class_names({"dataset_info": {"features": [feature]}}, None)
    assert found == {"label": ["crow", "elk", "owl"]}


def test_validation_is_held_out_by_the_paths(local):
    """By the hash of an image's path, in whatever order and shards the rows are."""
    labels = [k % 2 for k in range(40)]
    one = local({"train.parquet": table(pictures(40), labels)})
    held = {path for path in (f"{k:03d}.png" for k in range(40)) if path in one.val.paths}
    by_rank = [
        path
        for label in (0, 1)
        for path in sorted((f"{k:03d}.png" for k in range(label, 40, 2)), key=splits.rank)[:2]
    ]
    assert held == set(by_rank) and len(one.train) == 36
    rows = [(image, label) for image, label in zip(pictures(40), labels)][::-1]
    two = local({
        "train.parquet": table(*zip(*rows[:15])),
        "train2.parquet": table(*zip(*rows[15:])),
    })  # fmt: skip
    assert set(two.val.paths) == held


def test_test_images_without_labels(local):
    """Of a competition: -1, null, or no column of labels; then validation is held out."""
    train = table(pictures(20), [0, 1] * 10)
    for labels in ([-1, -1], [None, None]):
        unlabelled = table(pictures(2, 30), pa.array(labels, pa.int64()))
        data = local({"train.parquet": train, "test.parquet": unlabelled})
        assert data.test is None and len(data.val) == 2 and len(data.train) == 18
        assert any("2 test images without a label, so its images" in n for n in data.notes)
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(pictures(2, 30), IMAGE)}), stream)
    data = local({"train.parquet": train, "test.parquet": stream.getvalue()})
    assert data.test is None and len(data.val) == 2


def test_a_repository_that_datasets_itself_filled(server):
    """Version 5.2 of `datasets`: load_dataset("imagefolder"), train_test_split, push_to_hub."""
    with tarfile.open(Path(__file__).with_name("pushed-by-datasets-5.2.tar.xz")) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}
    assert sorted(files) == [
        "README.md",
        "data/test-00000-of-00001.parquet",
        *(f"data/train-0000{k}-of-00002.parquet" for k in range(2)),
    ]
    server.repositories["datasets/me/pets"] = files
    data = registry.open_dataset("hf:me/pets")
    assert data.train.classes == ["cat", "dog", "owl"]
    assert (len(data.train), len(data.val)) == (9, 3)
    for images in (data.train, data.val):
        for k, path in enumerate(images.paths):
            name, number = path[:3], int(path[3:5])
            assert images.classes[images.labels[k]] == name and path == f"{name}{number:02d}.png"
            colour = (20 * number, 255 - 20 * number, 100)
            assert images.image(k).getpixel((4, 4)) == colour and images.size(k) == (6, 9)


# --- Columns --------------------------------------------------------------------------------------


def test_several_columns(tmp_path, local):
    more = {
        "img2": pa.array(pictures(4, 50), IMAGE),
        "coarse": pa.array(["b", "a", "b", "a"]),
        "id": pa.array([3, 4, 5, 6]),
    }
    content = {"train.parquet": table(pictures(4), [0, 1, 0, 1], **more)}
    with pytest.raises(ConfigError, match=r"2 columns may be the image: image, img2.*`image: imag"):
        local(content)
    text = f"reader: hf\ndatadir: {tmp_path / 'files'}\nimage: img2\nlabel: coarse\n"
    data = registry.open_dataset(described(tmp_path, text), val_fraction=0.5)
    assert data.train.classes == ["a", "b"]
    both = dict(zip(data.train.paths + data.val.paths, [*data.train.labels, *data.val.labels]))
    assert both == {"050.png": 1, "051.png": 0, "052.png": 1, "053.png": 0}
    for image, label, words in (
        ("img2", "corse", "label: is 'corse', not a column of .*did you mean coarse"),
        ("img2", "image", "label: the column 'image' of .* is struct.*, expected numbers or texts"),
        ("id", "coarse", "image: the column 'id' of .* is int64, expected a struct"),
    ):
        text = f"reader: hf\ndatadir: {tmp_path / 'files'}\nimage: {image}\nlabel: {label}\n"
        with pytest.raises(ConfigError, match=words):
            registry.open_dataset(described(tmp_path, text))


def test_several_class_labels(tmp_path, local):
    """As CIFAR-100 on the hub: fine_label and coarse_label."""
    features = {"img": {"_type": "Image"}}
    for name in ("fine_label", "coarse_label"):
        features[name] = {"_type": "ClassLabel", "names": [f"{name}{k}" for k in range(3)]}
    made = pa.table({
        "img": pa.array(pictures(6), IMAGE),
        "fine_label": pa.array([0, 1, 2] * 2),
        "coarse_label": pa.array([0, 1] * 3),
    })  # fmt: skip
    made = made.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    stream = io.BytesIO()
    pq.write_table(made, stream)
    with pytest.raises(ConfigError, match=r"fine_label, coarse_label.*`label: fine_label`"):
        local({"train.parquet": stream.getvalue()})
    text = f"reader: hf\ndatadir: {tmp_path / 'files'}\nlabel: coarse_label\n"
    data = registry.open_dataset(described(tmp_path, text))
    assert data.train.classes == [f"coarse_label{k}" for k in range(3)]
    assert any("no training images of coarse_label2" in note for note in data.notes)


@pytest.mark.parametrize(
    "labels, keys, classes, expected",
    [
        ([10, 2, 10, 2], "", ["2", "10"], [1, 0, 1, 0]),
        (["b", "a", "b", "a"], "", ["a", "b"], [1, 0, 1, 0]),
        (["b", "a", "b", "a"], "classes: [b, a]", ["b", "a"], [0, 1, 0, 1]),
        ([0, 1, 0, 1], "classes: [crow, owl]", ["crow", "owl"], [0, 1, 0, 1]),
        ([10, 2, 10, 2], "classes: ['10', '2']", ["10", "2"], [0, 1, 0, 1]),
        ([0, 1, 2, 1], "classes: {x: [2, 0], y: 1}", ["x", "y"], [0, 1, 0, 1]),
        ([0, 1, 0, 1], "classes: ['1', '3']", ["1", "3"], [0, 1, 0, 1]),  # names of 0 and 1
        (["a", "b", "c", "b"], "classes: {x: [c, a], y: b}", ["x", "y"], [0, 1, 0, 1]),
    ],
)
def test_labels_without_class_names(labels, keys, classes, expected, tmp_path, local):
    content = {"train.parquet": table(pictures(4), labels, None), "val.parquet": part(2, 4)}
    content["val.parquet"] = table(pictures(2, 4), labels[:2], None)
    local(content)
    text = f"reader: hf\ndatadir: {tmp_path / 'files'}\n{keys}\n"
    data = registry.open_dataset(described(tmp_path, text))
    assert data.train.classes == classes and data.train.labels.tolist() == expected
    assert data.val.labels.tolist() == expected[:2]


@pytest.mark.parametrize("names", [["cat", "dog", "owl"], None])
def test_a_selection_of_labels(names, tmp_path, local):
    content = {"train.parquet": table(pictures(4), [0, 2, 1, 2], names)}
    content["val.parquet"] = table(pictures(2, 4), [0, 1], names)
    local(content)
    first, last = ("cat", "owl") if names else ("0", "2")
    text = f"reader: hf\ndatadir: {tmp_path / 'files'}\nclasses: ['{last}', '{first}']\n"
    data = registry.open_dataset(described(tmp_path, text))
    assert data.train.labels.tolist() == [1, 0, 0] and data.val.labels.tolist() == [1]
    assert data.train.classes == [last, first]
    assert "1 class of 3 and 2 images are left out" in data.notes[-2]
    words = "'x' is not a class" if names else "label 2, which is no class"
    with pytest.raises((ConfigError, DataError), match=words):
        registry.open_dataset(described(tmp_path, text.replace(f"'{first}'", "x")))


@pytest.mark.parametrize(
    "texts",
    [pa.array(["a", "b"] * 2, pa.large_string()), pa.array(["a", "b"] * 2).dictionary_encode()],
    ids=["long", "dictionary"],
)
def test_other_texts_and_binaries(texts, tmp_path, monkeypatch):
    """Strings as pandas writes them, and images as plain bytes, named by `image:`."""
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "home"))
    made = pa.table({
        "photo": pa.array([png(k) for k in range(4)], pa.large_binary()),
        "kind": texts,
    })  # fmt: skip
    pq.write_table(made, tmp_path / "pets.parquet")
    text = "reader: hf\ndatadir: pets.parquet\nimage: photo\n"
    data = registry.open_dataset(described(tmp_path, text), val_fraction=0.5)
    assert sorted([*data.train.paths, *data.val.paths]) == [f"{k:07d}.png" for k in range(4)]
    assert data.train.classes == ["a", "b"]
    with pytest.raises(DataError, match=r"no column of images, .* it has photo \(large_binary\)"):
        registry.open_dataset("hf", str(tmp_path / "pets.parquet"))


# --- Faults ---------------------------------------------------------------------------------------


def test_paths_of_images_stay_inside(tmp_path, local):
    paths = ["../../x.png", "/etc/y.png", "a/z.png", "a/z.png", "a", "a/z.png/b.png", "C:\\w.png",
             "", "..", "n\n\x1b.png", "é" * 300 + ".png", "a//q"]  # fmt: skip
    images = [{"bytes": png(k), "path": path} for k, path in enumerate(paths)]
    labels = [k % 2 for k in range(len(paths))]
    data = local({"train.parquet": table(images, labels)})
    both = dict(zip(data.train.paths + data.val.paths, pixels(data.train) + pixels(data.val)))
    assert len(both) == len(paths) and sorted(both.values()) == sorted(expected(0, len(paths)))
    assert {"x.png", "y.png", "a/z.png", "a/z~2.png", "w.png", "0000007.png"} <= set(both)
    home = tmp_path / "home"
    assert not [path for path in tmp_path.rglob("*.png") if not path.is_relative_to(home)]


def test_null_and_damaged_images(local):
    images = pictures(6)
    images[1], images[2] = None, {"bytes": b"no image", "path": "bad.png"}
    data = local({"train.parquet": table(images, [0, 1] * 3), "val.parquet": part(2, 9)})
    assert any("1 train image without content" in note for note in data.notes)
    faults = [data.train.fault(k) for k in range(6)]
    assert [fault is None for fault in faults] == [True, False, False, True, True, True]
    assert "bad.png" in faults[2]


@pytest.mark.parametrize(
    "labels, words",
    [
        ([0, 1, 2, 1], r"002\.png: has the label 2, which is no class"),
        ([0, -1, 0, 1], r"1 image of the split train have no label .*'label', such as 001\.png"),
        ([0, None, None, 1], "2 images of the split train have no label"),
    ],
)
def test_labels_without_a_class(labels, words, local):
    with pytest.raises(DataError, match=words):
        local({"train.parquet": table(pictures(4), labels)})


def test_files_that_cannot_be_read(local, tmp_path):
    whole = part(8)
    middle = len(whole) // 2
    for damaged in (
        b"", b"not parquet", whole[:-20],
        whole[:middle] + bytes(300) + whole[middle + 300 :],
    ):  # fmt: skip
        with pytest.raises(DataError, match=r"train\.parquet: is damaged, or no parquet file"):
            local({"train.parquet": damaged})
        assert not list((tmp_path / "home" / "parquet").glob("[!.]*"))
    empty = pa.table({"image": pa.array([], IMAGE), "label": pa.array([], pa.int64())})
    stream = io.BytesIO()
    pq.write_table(empty, stream)
    with pytest.raises(DataError, match="the split train has no images"):
        local({"train.parquet": stream.getvalue()})
    images = [{"bytes": None, "path": "/home/me/1.png"}] * 2
    with pytest.raises(DataError, match="row 0 has no bytes, but only the path /home/me/1.png"):
        local({"train.parquet": table(images, [0, 1])})
    with pytest.raises(DataError, match="has no parquet files, but .*write them with Dataset"):
        (tmp_path / "files" / "train.parquet").unlink()
        local({"data-00000-of-00001.arrow": b""})
    with pytest.raises(MissingFileError, match="no such folder"):
        registry.open_dataset("hf", str(tmp_path / "nothing"))


def test_a_damaged_schema_does_not_end_the_process(tmp_path):
    """A column that must not be null, and has facts about nulls: pyarrow may call terminate()."""
    old = b"%\x02\x18\x05bytes"
    assert part(4).count(old) == 1
    (tmp_path / "train.parquet").write_bytes(part(4).replace(old, old.replace(b"\x02", b"\x00")))
    code = "import sys; from bit_paddle.data.readers import registry as r; "
    code += "r.open_dataset('hf', sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "DataError" in done.stderr, done.stderr[-2000:]


def test_bombs(local, monkeypatch):
    """Zeros that shrink, and one image that a dictionary repeats in every row."""
    monkeypatch.setattr(members, "ALWAYS_ALLOWED", 100_000)
    zeros = [{"bytes": bytes(1_000_000 + k), "path": None} for k in range(4)]
    same = [{"bytes": png(0, 40), "path": None}] * 3000
    for images in (zeros, same):
        with pytest.raises(DataError, match="100 times the size of the files"):
            local({"train.parquet": table(images, [0, 1] * (len(images) // 2), rows=5000)})


def test_an_unpacked_copy_that_is_incomplete_is_made_again(local, tmp_path):
    content = {"train.parquet": part(8), "val.parquet": part(2, 8)}
    data = local(content)
    (tmp_path / "home" / "parquet").joinpath(data.train.name(3)).write_bytes(b"")
    assert local(content).train.image(3).size == (8, 8)


def test_options_that_contradict(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"--datadir: is not for hf:me/pets"):
        registry.find("hf:me/pets", datadir=str(tmp_path))
    with pytest.raises(ConfigError, match="--datadir: is required by --dataset hf"):
        registry.find("hf")
    with pytest.raises(ConfigError, match="image: is not for folder"):
        registry.find(described(tmp_path, "reader: folder\ndatadir: .\nimage: a\n"))
    with pytest.raises(ConfigError, match="reader: 'hf:pets' is no repository"):
        registry.find(described(tmp_path, "reader: hf:pets\n"))
    with pytest.raises(ConfigError, match=r"write --dataset hf --datadir a\.parquet"):
        registry.find("a.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(parquet.importlib.metadata, "version", lambda name: "14.0.0")
        with pytest.raises(ConfigError, match=r"pyarrow 14\.0\.0 unpickles .*; update it"):
            registry.open_dataset("hf", str(tmp_path))
    monkeypatch.setattr(parquet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"need the package pyarrow: pip install .*\[parquet\]"):
        registry.open_dataset("hf", str(tmp_path))


# --- Commands -------------------------------------------------------------------------------------


def test_pyarrow_is_loaded_for_parquet_files_only():
    code = "import sys, bit_paddle.data.readers.registry; sys.exit('pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_groups_folds_and_exclude(server, tmp_path):
    data = registry.open_dataset("hf:me/pets", group=r"^\d\d(\d)", fold=(1, 3))
    assert sum(data.folds) == 12 and len(data.test) == 4
    last = [{path[-5] for path in images.paths} for images in (data.train, data.val)]
    assert not last[0] & last[1]
    (tmp_path / "bad.txt").write_text("train/003.png\nval/010.png\n")
    data = registry.open_dataset("hf:me/pets", exclude=str(tmp_path / "bad.txt"))
    assert (len(data.train), len(data.val)) == (9, 1) and "003.png" not in data.train.paths


def test_audit_names_paths_that_exclude_takes(server):
    server.repositories["datasets/me/pets"]["data/test-00000-of-00001.parquet"] = part(2)
    found = bit.audit("hf:me/pets", workers=1).of("exact copy")
    pairs = {frozenset((copy.path, copy.other)) for copy in found}
    assert frozenset(("test/000.png", "train/000.png")) in pairs


@pytest.mark.slow
def test_fine_tune_and_evaluate(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = {"from_scratch": True, "precrop": 40, "crop": 32, "batch": 4, "steps": 1}
    run = bit.fine_tune("R14x0.5", "hf:me/pets", **tiny)
    assert run.folder.name == "R14x0.5-pets" and "test" in run.result
    again = bit.evaluate(run.best, "hf:me/pets", split="test")
    assert again.images == 4
