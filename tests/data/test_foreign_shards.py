"""Shards of other programs and at addresses: indexed once, cached within a bound, verified."""

import io
import json
import tarfile
import time

import numpy as np
import pytest
from helpers.pictures import cloud, fill
from servers import Server

from bit_paddle import pack
from bit_paddle.data import check, loader
from bit_paddle.data.readers import registry
from bit_paddle.data.shards.images import ShardImages
from bit_paddle.errors import ConfigError, DataError, DownloadError, MissingFileError
from bit_paddle.recipes.hyperrule import Resolution
from bit_paddle.system import fetch


def jpeg(seed):
    buffer = io.BytesIO()
    cloud(seed, 40, 36).save(buffer, format="JPEG")
    return buffer.getvalue()


def tar_of(path, members, format=tarfile.PAX_FORMAT):
    """Write a tar by the standard library, with ``members`` {name: content}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def opened(folder, **options):
    return registry.open_dataset("shards", str(folder), **options)


def names_of(images):
    return [images.inner_name(k) for k in range(len(images))]


def test_labels_and_names(tmp_path):
    """As numbers or texts, in .cls or .json; other members and long names do no harm."""
    long = "x" * 150
    tar_of(tmp_path / "a-train-0.tar", {
        "n/10.txt": b"?", "n/10.jpg": jpeg(0), "n/10.cls": b"10\n",
        "n/9.cls": b"9", "n/9.v2.json": b"{", "n/9.jpg": jpeg(1),
        f"{long}.JPEG": jpeg(2), f"{long}.json": b'{"label": 2, "width": 40}',
    })  # fmt: skip
    tar_of(tmp_path / "a-train-1.tar", {"m.png": jpeg(3), "m.json": b'{"class": "10"}',
                                        "o.jpg": jpeg(4), "o.json": b"[9, 2]"},
           tarfile.GNU_FORMAT)  # fmt: skip
    tar_of(tmp_path / "a-validation-0.tar", {"v.jpg": jpeg(5), "v.cls": b"2"})
    data = opened(tmp_path)
    assert data.train.classes == data.val.classes == ["2", "9", "10"] and data.test is None
    assert names_of(data.train) == ["n/10.jpg", "n/9.jpg", f"{long}.JPEG", "m.png", "o.jpg"]
    assert data.train.labels.tolist() == [2, 1, 0, 2, 1] and data.val.labels.tolist() == [0]
    assert [data.train.content(k) for k in range(5)] == list(map(jpeg, range(5)))
    assert any("several labels" in note for note in data.notes)
    (tmp_path / "all.yaml").write_text("reader: shards\ndatadir: .\nseveral: true\n")
    every = registry.open_dataset(str(tmp_path / "all.yaml"))
    assert every.train.labels.tolist() == [(2,), (1,), (0,), (2,), (0, 1)]
    assert every.val.labels.tolist() == [(0,)]
    (tmp_path / "labels.txt").write_text("2 two\n9 nine\n10 ten\n")
    assert opened(tmp_path).val.classes == ["two", "nine", "ten"]


def test_patterns(tmp_path):
    for part, count in (("t", 12), ("v", 1)):
        for k in range(count):
            tar_of(tmp_path / f"{part}-{k:03d}.tar", {"a.jpg": jpeg(k), "a.cls": b"%d" % (k % 2)})
    path = tmp_path / "data.yaml"
    path.write_text("reader: shards\ndatadir: .\ntrain: t-{002..011}.tar\nval: v-000.tar\n")
    data = registry.open_dataset(str(path))
    assert len(data.train) == 10 and len(data.val) == 1
    assert data.train.content(0) == jpeg(2)
    for text, fault in (("t-{009..002}.tar", "no range"), ("{0..1}/t.tar", "name of the file")):
        path.write_text(f"reader: shards\ndatadir: .\ntrain: '{text}'\n")
        with pytest.raises(ConfigError, match=fault):
            registry.open_dataset(str(path))
    path.write_text("reader: shards\ndatadir: .\ntrain: t-{000..012}.tar\n")
    with pytest.raises(MissingFileError, match=r"t-012\.tar"):
        registry.open_dataset(str(path))


def test_the_index_is_made_once_and_again_after_a_change(tmp_path, monkeypatch):
    """If Ctrl-C stops it, what was indexed before is not read again."""
    from bit_paddle.data.shards import foreign

    read, piece_of = [], foreign.piece_of

    def spied(path):
        read.append(path.name)
        if read == ["0.tar", "1.tar"]:
            raise KeyboardInterrupt
        return piece_of(path)

    monkeypatch.setattr(foreign, "piece_of", spied)
    members = {"a.jpg": jpeg(9), "a.cls": b"1", "b.jpg": jpeg(8), "b.cls": b"1"}
    for k in range(3):
        tar_of(tmp_path / f"{k}.tar", {**members, "c.jpg": jpeg(k), "c.cls": b"0"})
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path)
    data = opened(tmp_path)
    opened(tmp_path)
    assert read == ["0.tar", "1.tar", "1.tar", "2.tar"] and len(data.train) + len(data.val) == 9
    tar_of(tmp_path / "1.tar", members)
    data = opened(tmp_path)
    assert read[4:] == ["0.tar", "1.tar", "2.tar"] and len(data.train) + len(data.val) == 8


@pytest.mark.parametrize(
    "fault, text",
    [
        ("cut", r"1\.tar: is no whole tar"),
        ("cut at a member", r"1\.tar: is no whole tar \(it has no end"),
        ("damaged header", r"1\.tar: is no whole tar \(it has no end"),
        ("compressed", r"1\.tar: is no whole tar.*decompressed first"),
        ("no label", r"1\.tar: the sample b has no label"),
        ("no image", r"1\.tar: the sample b has no image"),
        ("two images", r"1\.tar: the sample b has two images"),
        ("empty label", r"1\.tar/b\.jpg: its \.cls has no label"),
        ("wrong json", r"1\.tar/b\.jpg: its \.json has no label"),
        ("empty image", r"1\.tar/b\.jpg: has 0 bytes"),
    ],
)
def test_a_faulty_shard_is_named(fault, text, tmp_path):
    members = {"a.jpg": jpeg(0), "a.cls": b"0", "b.jpg": jpeg(1), "b.cls": b"1"}
    tar_of(tmp_path / "0.tar", members)
    if fault == "no label":
        del members["b.cls"]
    elif fault == "no image":
        del members["b.jpg"]
    elif fault == "two images":
        members["b.png"] = jpeg(2)
    elif fault == "empty label":
        members["b.cls"] = b" "
    elif fault == "wrong json":
        members["b.json"] = json.dumps({"label": {"x": 1}}).encode()
        del members["b.cls"]
    elif fault == "empty image":
        members["b.jpg"] = b""
    path = tar_of(tmp_path / "1.tar", members)
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset_data + 512
    if fault == "cut":
        path.write_bytes(content[: end - 1200])
    elif fault == "cut at a member":
        path.write_bytes(content[:end])
    elif fault == "damaged header":
        path.write_bytes(content[: end - 1024] + b"?" * 512 + content[end - 512 :])
    elif fault == "compressed":
        with tarfile.open(path, "w:gz") as tar:
            tar.add(tmp_path / "0.tar", "a.jpg")
    with pytest.raises(DataError, match=text):
        opened(tmp_path)


def test_images_that_cannot_be_decoded_are_skipped(tmp_path, monkeypatch):
    """All are decoded once; the next call decodes the unusable ones alone."""
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "cache"))
    members = {}
    for number in range(12):
        content = b"no image" if number in (3, 7) else jpeg(number)
        members |= {f"{number:02}.jpg": content, f"{number:02}.cls": b"ab"[number % 2 :][:1]}
    tar_of(tmp_path / "train/0.tar", members)
    tar_of(tmp_path / "val/0.tar", {"v.jpg": jpeg(20), "v.cls": b"a"})
    train, looked = opened(tmp_path).train, []
    check.require_usable([(train, np.arange(12))], 2)
    fault = ShardImages.fault
    monkeypatch.setattr(
        ShardImages, "fault", lambda self, *rest: looked.append(rest) or fault(self, *rest)
    )
    for count in (12, 2):
        looked.clear()
        rest, lines = check.usable(train, 2, every_class=True)
        assert names_of(rest) == [f"{k:02}.jpg" for k in range(12) if k not in (3, 7)]
        assert rest.labels.tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0, 1]
        assert len(lines) == 2 and "0.tar/03.jpg: not an image" in lines[0]
        assert len(looked) == count
    with pytest.raises(DataError, match="2 of 12 images cannot be used"):
        check.require_usable([(train, np.arange(12))], 2, thorough=True)


# --- Addresses ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("remote")
    fill(root / "images", {"train/a": 20, "train/b": 20, "val/a": 3, "val/b": 3})
    pack(root / "images", root / "out", shard_mb=0.02)
    return root / "out"


@pytest.fixture
def server(packed):
    found = Server({f"/{path.relative_to(packed)}": path.read_bytes()
                    for path in packed.rglob("*") if path.is_file()})  # fmt: skip
    yield found
    found.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(fetch, "FIRST_PAUSE", 0.01)
    return tmp_path / "cache/shards"


def epoch(images, steps, batch=8):
    stream = loader.training_batches(
        images, np.arange(len(images)), Resolution(40, 32), batch, 0, 2
    )
    found = [next(stream) for _ in range(steps)]
    stream.close()
    return found


def test_all_shards_in_the_cache_give_the_bits_of_files(packed, server, cache):
    """The transfer of the first shard breaks off, and its rest follows."""
    here, there = opened(packed), None
    assert 4 < len(here.train.index.shards) <= 16
    there = opened(server.address)
    assert there.train.window is None and any("one shuffle" in note for note in there.notes)
    server.faults += ["drop"]
    server.requests.clear()
    for one, other in zip(epoch(here.train, 7), epoch(there.train, 7)):
        assert all(np.array_equal(*pair) for pair in zip(one, other))
    paths = [path for path, _ in server.requests]
    assert len(set(paths)) == len(paths) - 1 == len(here.train.index.shards)
    assert there.val.name(0).startswith(f"{server.address}/val/000000.tar/")
    server.requests.clear()
    again = opened(server.address)
    epoch(again.train, 5)
    assert {path for path, _ in server.requests} == {"/train/index.json", "/val/index.json"}


def test_the_cache_is_bounded_and_the_window_is_stated(packed, server, cache, tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text(f"reader: shards\ndatadir: {server.address}\nwindow: 1\n")
    data = registry.open_dataset(str(path))
    assert any("shuffle window of 1 shard" in note for note in data.notes)
    count = len(data.train.index.shards)
    batches = epoch(data.train, 19, batch=2)  # the last of the 20 is prepared ahead
    seen = np.concatenate([batch.indices for batch in batches])
    order = data.train.of("shard", seen).astype(int)
    assert len(set(seen.tolist())) == 38
    assert np.count_nonzero(np.diff(order)) == len(set(order.tolist())) - 1 >= count - 2
    assert len(list(cache.glob("train-*/shards/*.tar"))) == 2
    assert len([path for path, _ in server.requests if path.endswith(".tar")]) == count
    for old in cache.glob("train-*/shards/*.tar"):
        old.unlink()
    stream = loader.training_batches(
        registry.open_dataset(str(path)).train, np.arange(40), Resolution(40, 32), 2, 0, 0
    )
    assert len(set(data.train.of("shard", next(stream).indices).tolist())) == 1
    until = time.monotonic() + 20
    while len(list(cache.glob("train-*/shards/*.tar"))) < 2:  # the next window's comes meanwhile
        assert time.monotonic() < until
        time.sleep(0.01)
    stream.close()
    path.write_text(f"reader: shards\ndatadir: {server.address}\nwindow: 0\n")
    with pytest.raises(ConfigError, match="window: is 0, expected a number of shards"):
        registry.open_dataset(str(path))


@pytest.mark.parametrize("name", ["train/labels.npy", "train/000001.tar"])
def test_a_file_at_an_address_that_is_not_what_it_should_be_is_named(name, server, cache):
    server.no_hashes = True
    content = server.published[f"/{name}"]
    server.published[f"/{name}"] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(DownloadError, match=f"{server.address}/{name}"):
        epoch(opened(server.address).train, 5)
    del server.published[f"/{name}"]
    with pytest.raises(DownloadError, match=f"{server.address}/{name}.*404"):
        epoch(opened(server.address).train, 5)
    server.published[f"/{name}"] = content
    assert len(epoch(opened(server.address).train, 5)) == 5


def test_tars_of_others_at_an_address(packed, server, cache, tmp_path):
    path, last = tmp_path / "data.yaml", len(list(packed.glob("train/*.tar"))) - 1
    path.write_text(f"reader: shards\ndatadir: {server.address}\n"
                    f"train: train/{{000000..{last:06d}}}.tar\nval: val/000000.tar\n")  # fmt: skip
    data = registry.open_dataset(str(path))
    assert data.train.classes == ["0", "1"] and len(data.train) == 40
    here = {member.name: member for member in tarfile.open(
        fileobj=io.BytesIO(server.published["/train/000000.tar"]))}  # fmt: skip
    assert data.train.inner_name(0) in here


def test_other_protocols_are_those_of_fsspec(packed, cache, tmp_path):
    pytest.importorskip("fsspec")
    here, there = opened(packed), opened(f"file://{packed}")
    for one, other in zip(epoch(here.train, 5), epoch(there.train, 5)):
        assert all(np.array_equal(*pair) for pair in zip(one, other))
    (shard,) = cache.glob("train-*/shards/000000.tar")
    content = shard.read_bytes()
    shard.unlink()
    shard.with_name("000000.tar.part").write_bytes(content[:5000])  # an interrupted transfer
    assert len(epoch(opened(f"file://{packed}").train, 5)) == 5 and shard.read_bytes() == content
    shard.unlink()
    shard.with_name("000000.tar.part").write_bytes(b"?" * 5000)
    with pytest.raises(DownloadError, match=r"000000\.tar: what arrived"):
        epoch(opened(f"file://{packed}").train, 5)
    with pytest.raises(ConfigError, match="nowhere://"):
        opened("nowhere://x")
