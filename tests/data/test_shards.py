"""Shards: the same images and batches as from files; what is cut, damaged or unknown is refused."""

import gc
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import cloud, fill
from PIL import Image

from bit_paddle import pack
from bit_paddle.data import fewshot, loader
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.data.readers import registry
from bit_paddle.data.shards import index, pieces
from bit_paddle.data.shards.pieces import Collector
from bit_paddle.data.shards.windows import Windows
from bit_paddle.errors import DataError
from bit_paddle.recipes.hyperrule import Resolution

COUNTS = {"train/cat": 13, "train/dog": 9, "val/cat": 3, "val/dog": 4, "test/cat": 2, "test/dog": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with images of several formats, some of them rotated, transparent or truncated."""
    root = tmp_path_factory.mktemp("pictures")
    fill(root, COUNTS)
    cats = root / "train/cat"
    cloud(50).save(cats / "a.b.png")
    cloud(51).save(cats / "Ünlaut 猫.WEBP", format="WEBP")
    cloud(52).save(cats / "t.tiff", compression="tiff_lzw")
    cloud(53).convert("RGBA").save(cats / "clear.png")
    cloud(54).convert("L").save(cats / "grey.bmp")
    exif = Image.Exif()
    exif[0x0112] = 6
    cloud(55).save(cats / "turned.jpg", exif=exif.tobytes())
    whole = (cats / "0.jpg").read_bytes()
    (cats / "short.jpg").write_bytes(whole[:-40])
    return root


@pytest.fixture(scope="module")
def packed(pictures, tmp_path_factory):
    """The pictures in shards of some images each."""
    folder = tmp_path_factory.mktemp("packed") / "out"
    pack(pictures, folder, shard_mb=0.02)
    return folder


def parts_of(folder, **options):
    return registry.open_dataset(str(folder / "data.yaml"), **options)


def test_images_are_those_of_the_files(pictures, packed):
    files, shards = registry.open_dataset("folder", str(pictures)), parts_of(packed)
    assert len(list((packed / "train").glob("*.tar"))) > 3
    for part in ("train", "val", "test"):
        one, other = getattr(files, part), getattr(shards, part)
        assert len(one) == len(other) and one.classes == other.classes
        assert other.labels.dtype == np.int64 and np.array_equal(one.labels, other.labels)
        for k in range(len(one)):
            assert np.array_equal(np.asarray(one.image(k)), np.asarray(other.image(k)))
            assert one.size(k) == other.size(k)
            assert other.name(k).startswith(str(packed / part))
            assert other.name(k).endswith(f".tar/{one.paths[k]}")
            with open(one.name(k), "rb") as stream:
                assert other.content(k) == stream.read()


def test_the_layout_is_that_of_webdataset(pictures, packed):
    images = registry.open_dataset("folder", str(pictures)).train
    number = 0
    for path in sorted((packed / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for k in range(0, len(members), 3):
                names = [member.name for member in members[k : k + 3]]
                suffix = os.path.splitext(images.paths[number])[1].lower()
                assert names == [f"{number:06d}{end}" for end in (suffix, ".cls", ".json")]
                label = int(tar.extractfile(members[k + 1]).read())
                told = json.load(tar.extractfile(members[k + 2]))
                assert label == images.labels[number]
                assert told == {"name": images.paths[number], "class": images.classes[label]}
                number += 1
    assert number == len(images)
    assert not list(packed.glob("**/*.npz")) and not (packed / "packing.json").exists()


def test_pixels_in_memory_become_png(tmp_path):
    pytest.importorskip("sklearn")
    description = pack("digits", tmp_path / "out", split="val", shard_mb=0.2)
    assert "flip: false" in description.read_text()
    digits = registry.open_dataset("digits").val
    train = tmp_path / "out/train"  # a data set needs training images
    (tmp_path / "out/val").rename(train)
    shards = registry.open_dataset("shards", str(tmp_path / "out"), val_fraction=0.5)
    both = [(part, k) for part in (shards.train, shards.val) for k in range(len(part))]
    found = {part.inner_name(k): np.asarray(part.image(k)) for part, k in both}
    assert len(found) == len(digits)
    for k in range(len(digits)):
        assert np.array_equal(found[f"{digits.name(k)}.png"], digits.pixels[k])


# --- Batches ------------------------------------------------------------------------------------


def batches_of(images, workers, rank=0, world_size=1, start=0, count=9, **options):
    subset, sides = np.arange(len(images)), Resolution(40, 32)
    stream = loader.training_batches(
        images, subset, sides, 6, 3, workers, True, 0.1, 0, start, rank, world_size, **options
    )
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def assert_same_batches(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        for value, expected in zip(one, other):
            assert np.array_equal(value, expected)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2, 4])
def test_batches_are_the_same_bits(pictures, packed, workers, world_size):
    """Over two epochs, and from the middle of one on; of each process."""
    files, shards = registry.open_dataset("folder", str(pictures)), parts_of(packed)
    for rank in range(world_size):
        expected = batches_of(files.train, 0, rank, world_size)
        assert_same_batches(batches_of(shards.train, workers, rank, world_size), expected)
        rest = batches_of(shards.train, workers, rank, world_size, start=2, count=7)
        assert_same_batches(rest, expected[2:])
        view = Preprocessing(32)
        ours, theirs = (
            loader.evaluation_batches(data.val, view, 2, number, rank, world_size)
            for data, number in ((shards, workers), (files, 0))
        )
        assert_same_batches(list(ours), list(theirs))


def test_a_packed_selection_is_that_of_the_files(pictures, packed, tmp_path):
    """--exclude chooses before packing; `classes` and few-shot selection after it."""
    (tmp_path / "exclude.txt").write_text("train/dog/2.jpg\n")
    pack(pictures, tmp_path / "fewer", exclude=tmp_path / "exclude.txt")
    files = registry.open_dataset("folder", str(pictures), exclude=str(tmp_path / "exclude.txt"))
    train = parts_of(tmp_path / "fewer").train
    assert [train.inner_name(k) for k in range(len(train))] == files.train.paths
    paths = {}
    for reader, datadir in (("shards", packed), ("folder", pictures)):
        description = tmp_path / f"{reader}.yaml"
        description.write_text(f"reader: {reader}\ndatadir: {datadir}\nclasses: [dog, cat]\n")
        images = registry.open_dataset(str(description)).train
        subset = fewshot.select(images.labels, 3, 1, images.classes)
        assert images.classes == ["dog", "cat"] and len(subset) == 6
        paths[reader] = [images.name(k).split("/")[-1] for k in subset]
    assert paths["shards"] == paths["folder"]


# --- An index -----------------------------------------------------------------------------------


def test_several_labels_of_an_image(tmp_path):
    """They are compressed rows, and are mapped; they are not read as one label per image."""
    tars = {"000000": [["b", "c"], ["a"]], "000001": [["a", "b", "c"]]}
    for name, rows in tars.items():
        collector = Collector()
        for k, labels in enumerate(rows):
            collector.add(512 * k, b"x" * (k + 1), labels, f"{name}-é{k}.jpg")
        pieces.save(collector.piece(2048, 7), tmp_path / f"{name}.npz")
        (tmp_path / f"{name}.tar").write_bytes(bytes(2048))
    names, parts = [f"{name}.tar" for name in tars], [tmp_path / f"{name}.npz" for name in tars]
    index.build(tmp_path, names, parts, ["a", "b", "c", "d"])
    found = index.read(tmp_path, str(tmp_path))
    assert found.label_starts.tolist() == [0, 2, 3, 6]
    assert found.labels.tolist() == [1, 2, 0, 0, 1, 2]
    assert [found.name(k) for k in range(3)] == ["000000-é0.jpg", "000000-é1.jpg", "000001-é0.jpg"]
    assert found.images["shard"].tolist() == [0, 0, 1]
    assert found.images["length"].tolist() == [1, 2, 1]
    assert not found.images.flags.writeable and isinstance(found.images.base, np.memmap)
    with pytest.raises(
        DataError, match="2 images do not have exactly one label; 000000-é0.jpg has 2"
    ):
        registry.open_dataset("shards", str(tmp_path), val_fraction=0.5)
    description = tmp_path / "all.yaml"
    description.write_text("reader: shards\ndatadir: .\nseveral: true\nval_fraction: 0.4\n")
    data = registry.open_dataset(str(description))
    rows = {part.inner_name(k): own for part in (data.train, data.val)
            for k, own in enumerate(part.labels.tolist())}  # fmt: skip
    assert [rows[found.name(k)] for k in range(3)] == [(1, 2), (0,), (0, 1, 2)]
    assert len(data.train) == 2 and "40% per label" in " ".join(data.notes)
    with pytest.raises(DataError, match="the label 'c' is no class"):
        index.build(tmp_path, names, parts, ["a", "b"])


def test_held_out_images_do_not_depend_on_shards_and_places(pictures, tmp_path):
    contents = []
    for name, size in (("one", 1000), ("two", 0.01)):
        pack(pictures, tmp_path / name, split="train", shard_mb=size)
        data = parts_of(tmp_path / name, val_fraction=0.25)
        held = [data.val.content(k) for k in range(len(data.val))]
        assert np.bincount(data.val.labels).tolist() == [5, 2]
        assert len(data.train) + len(held) == 20 + 9
        assert not {data.train.content(k) for k in range(len(data.train))} & set(held)
        contents.append(held)
    assert sorted(contents[0]) == sorted(contents[1])


def test_an_epoch_goes_through_one_window_after_the_other():
    shards = np.sort(np.random.default_rng(0).integers(0, 10, 1000)).astype(np.uint32)
    windows = Windows(shards, 3)
    orders = [
        np.concatenate([loader.step_positions(1000, 64, 5, 16 * epoch + k, windows)
                        for k in range(16)])
        for epoch in range(2)
    ]  # fmt: skip
    groups = []
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
        of_window, places = [], shards[order]
        while len(places):
            own = set(places[:100].tolist())
            assert len(own) <= 3
            end = int(np.isin(places, list(own)).argmin()) or len(places)
            of_window.append(frozenset(own))
            assert not set(places[end:].tolist()) & own
            places = places[end:]
        groups.append(of_window)
    assert len(groups[0]) == 4 and groups[0] != groups[1]
    whole = loader.step_positions(1000, 1000, 5, 3)
    assert whole.dtype == np.int64 and np.array_equal(np.sort(whole), np.arange(1000))
    assert np.array_equal(whole, np.random.default_rng([5, 0, 3]).permutation(1000))


def held(folder):
    """Return the bytes of files below ``folder`` that are mapped in the memory of this process."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_index_gives_back_its_pages(packed):
    gc.collect()
    before = held(packed)  # what other tests have left
    found = parts_of(packed).train.index
    content = found.images.tobytes(), found.labels.tobytes(), found.names.tobytes()
    assert held(packed) > before
    found.release()
    assert held(packed) == before
    assert content == (found.images.tobytes(), found.labels.tobytes(), found.names.tobytes())
