"""Oxford's flowers and pets, and unpacking: small archives in exactly the official structure."""

import contextlib
import functools
import hashlib
import io
import multiprocessing
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from servers import Server

from bit_paddle.data.readers import archives, oxford, registry
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import ConfigError, DataError, DownloadError, MissingFileError, WriteError

FLOWER_SPEC = DataSpec("oxford_flowers102")
PET_SPEC = DataSpec("oxford_iiit_pet")

# By image id, from 1; and the lists, in no order, as the official ones
LABELS = [1, 1, 3, 3, 77, 77, 102, 102, 102]
IDS = {"trnid": [7, 1, 3], "valid": [5, 2], "tstid": [9, 4, 6, 8]}

BREEDS = {1: "Abyssinian", 2: "american_bulldog", 34: "staffordshire_bull_terrier", 37: "x_y_z"}
TRAINVAL = """Abyssinian_100 1 1 1
american_bulldog_12 2 2 1
staffordshire_bull_terrier_9 34 2 22
Abyssinian_101 1 1 1
"""
TEST = """#Image CLASS-ID SPECIES BREED ID

american_bulldog_2 2 2 1
x_y_z_3 37 2 25
"""


def jpeg(number: int) -> bytes:
    """One colour, which tells the images apart; incompressible bytes make it a few kB long."""
    stream = io.BytesIO()
    comment = np.random.default_rng(number).bytes(4000)
    image = Image.new("RGB", (20 + number, 30), (number * 20, 100, 50))
    image.save(stream, "jpeg", quality=95, comment=comment)
    return stream.getvalue()


def write_tar(path: Path, members: dict, mode: str = "w:gz") -> Path:
    """``members``: {name: content, None for a folder, or a TarInfo}."""
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def flower_members() -> dict:
    images = {f"jpg/image_{number:05d}.jpg": jpeg(number) for number in range(1, len(LABELS) + 1)}
    return {"jpg": None, **images}


def write_flowers(folder: Path, labels=LABELS, mode: str = "w:gz", **ids: list) -> Path:
    folder.mkdir(exist_ok=True)
    write_tar(folder / "102flowers.tgz", flower_members(), mode)
    compressed = mode != "w"
    lists = {name: np.array([some], np.uint16) for name, some in {**IDS, **ids}.items()}
    content = {"labels": np.array([labels], np.uint8)}
    savemat(folder / "imagelabels.mat", content, do_compression=compressed)
    savemat(folder / "setid.mat", lists, do_compression=compressed)
    return folder


def write_pets(folder: Path, trainval: str = TRAINVAL, test: str = TEST) -> Path:
    folder.mkdir(exist_ok=True)
    names = [line.split()[0] for line in (TRAINVAL + TEST).splitlines() if line and line[0] != "#"]
    images = {f"images/{name}.jpg": jpeg(number) for number, name in enumerate(names)}
    write_tar(
        folder / "images.tar.gz", {"images": None, **images, "images/Abyssinian_100.mat": b""}
    )
    lists = {"annotations/trainval.txt": trainval.encode(), "annotations/test.txt": test.encode()}
    rest = {"annotations/README": b"x", "annotations/trimaps/Abyssinian_100.png": b"x"}
    write_tar(folder / "annotations.tar.gz", {"annotations": None, **lists, **rest})
    return folder


def flowers(folder: Path, **changes: object):
    return registry.read(DataSpec("oxford_flowers102", str(folder), **changes))


def pets(folder: Path, **changes: object):
    return registry.read(DataSpec("oxford_iiit_pet", str(folder), **changes))


def visible(folder: Path) -> list:
    """Everything but locks, which stay."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def assert_flowers(images, ids):
    assert images.labels.tolist() == [LABELS[number - 1] - 1 for number in ids]
    assert images.labels.dtype == np.int64
    for index, number in enumerate(ids):
        assert images.size(index) == (30, 20 + number)
        pixels = np.asarray(images.image(index)).astype(int)
        assert abs(pixels - [number * 20, 100, 50]).max() < 5


# --- What is read -------------------------------------------------------------------------------


def unpack(folder: Path, keep_archives: bool):
    for archive in [path for path in folder.iterdir() if path.suffix in (".tgz", ".gz")]:
        subprocess.run(["tar", "-xzf", archive, "-C", folder], check=True)
        if not keep_archives:
            archive.unlink()


@pytest.mark.parametrize("where", ["archives", "uncompressed", "folders", "both"])
def test_flowers(where, tmp_path):
    write_flowers(tmp_path, mode="w" if where == "uncompressed" else "w:gz")
    if where in ("folders", "both"):
        unpack(tmp_path, keep_archives=where == "both")
    dataset = flowers(tmp_path)
    assert_flowers(dataset.train, IDS["trnid"])
    assert_flowers(dataset.val, IDS["tstid"])
    assert dataset.train.classes == dataset.val.classes == [str(n) for n in range(1, 103)]
    assert (tmp_path / "jpg").is_dir() and ".jpg.unpacking" not in visible(tmp_path)


def test_flowers_lists_and_the_rest_of_the_description(tmp_path):
    """``trnid+valid`` are the 2,040 images that VTAB trains on, in this order."""
    names = tuple(f"flower {k}" for k in range(102))
    dataset = flowers(
        write_flowers(tmp_path),
        train="trnid+valid",
        val="valid",
        classes=names,
        flip=False,
        random_crop=False,
        resolution="large",
    )
    assert_flowers(dataset.train, IDS["trnid"] + IDS["valid"])
    assert_flowers(dataset.val, IDS["valid"])
    assert tuple(dataset.train.classes) == names
    assert (dataset.flip, dataset.random_crop, dataset.resolution) == (False, False, "large")


@pytest.mark.parametrize("where", ["archives", "folders"])
def test_pets(where, tmp_path):
    write_pets(tmp_path)
    if where == "folders":
        unpack(tmp_path, keep_archives=False)
    train, val = pets(tmp_path)[:2]
    assert [os.path.relpath(train.name(k), tmp_path) for k in range(4)] == [
        "images/Abyssinian_100.jpg",
        "images/american_bulldog_12.jpg",
        "images/staffordshire_bull_terrier_9.jpg",
        "images/Abyssinian_101.jpg",
    ]
    assert train.labels.tolist() == [0, 1, 33, 0] and val.labels.tolist() == [1, 36]
    assert train.labels.dtype == np.int64
    assert [val.size(k) for k in range(2)] == [(30, 24), (30, 25)]
    assert train.classes == val.classes == [BREEDS.get(n, str(n)) for n in range(1, 38)]


def test_pets_lists_and_the_rest_of_the_description(tmp_path):
    names = tuple(f"pet {k}" for k in range(37))
    given = {"classes": names, "flip": False, "random_crop": False, "resolution": "small"}
    (write_pets(tmp_path) / "mine.txt").write_bytes(b"\xef\xbb\xbfx_y_z_3 37 2 25\r\n")
    dataset = pets(tmp_path, train="mine.txt", val="annotations/trainval.txt", **given)
    assert dataset.train.paths == ["images/x_y_z_3.jpg"] and len(dataset.val) == 4
    assert tuple(dataset.val.classes) == names
    assert (dataset.flip, dataset.random_crop, dataset.resolution) == (False, False, "small")


def test_flowers_are_those_that_paddle_has():
    """Not its lists, though: paddle.vision trains on the 6,149 images of ``tstid``."""
    from paddle.vision.datasets import flowers as paddle_flowers

    assert {part.file: part.expected["md5"] for part in oxford.FLOWERS} == {
        "102flowers.tgz": paddle_flowers.DATA_MD5,
        "imagelabels.mat": paddle_flowers.LABEL_MD5,
        "setid.mat": paddle_flowers.SETID_MD5,
    }


# --- Download -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "which, write, read, spec",
    [
        ("FLOWERS", write_flowers, oxford.open_flowers, FLOWER_SPEC),
        ("PETS", write_pets, oxford.open_pets, PET_SPEC),
    ],
)
def test_downloaded_into_the_cache_once(which, write, read, spec, tmp_path, monkeypatch):
    write(tmp_path / "published")
    parts = getattr(oxford, which)
    published = {f"/{part.file}": (tmp_path / "published" / part.file) for part in parts}
    server = Server({name: path.read_bytes() for name, path in published.items()})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(oxford, f"{which}_URL", f"{server.address}/")
    with pytest.raises(DownloadError, match="md5"):
        read(spec)
    hashed = [
        part._replace(
            expected={"md5": hashlib.md5(published[f"/{part.file}"].read_bytes()).hexdigest()}
        )
        for part in parts
    ]
    monkeypatch.setattr(oxford, which, tuple(hashed))
    server.requests.clear()
    first = read(spec)
    assert sorted(path for path, _ in server.requests) == sorted(published)
    server.shutdown()
    server.server_close()
    shutil.rmtree(tmp_path / "published")
    second = read(spec)
    for images in (*first[:2], *second[:2]):
        assert Path(images.root) == tmp_path / "cache" / spec.reader
        assert all(images.image(index).mode == "RGB" for index in range(len(images)))
    assert [images.labels.tolist() for images in first[:2]] == [
        images.labels.tolist() for images in second[:2]
    ]


# --- Faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write, read, file, words",
    [
        (write_flowers, flowers, "setid.mat", "missing setid.mat; leave --datadir out to download"),
        (write_flowers, flowers, "imagelabels.mat", "missing imagelabels.mat; leave"),
        (
            write_flowers,
            flowers,
            "102flowers.tgz",
            r"missing 102flowers.tgz \(or its folder jpg/\)",
        ),
        (write_pets, pets, "images.tar.gz", r"missing images.tar.gz \(or its folder images/\); "),
        (write_pets, pets, "annotations.tar.gz", "missing annotations.tar.gz"),
    ],
)
def test_what_is_missing_is_named(write, read, file, words, tmp_path):
    (write(tmp_path) / file).unlink()
    before = visible(tmp_path)
    with pytest.raises(MissingFileError, match=words):
        read(tmp_path)
    assert visible(tmp_path) == before


@pytest.mark.parametrize("read", [flowers, pets])
def test_no_such_datadir(read, tmp_path):
    with pytest.raises(MissingFileError, match="nowhere: no such folder"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "read, changes, words",
    [
        (flowers, {"train": "trnd"}, "train: 'trnd' is not a list .*did you mean trnid"),
        (flowers, {"val": "trnid+x"}, "val: 'x' is not a list .*choose from trnid, valid, tstid"),
        (flowers, {"train": "trnid+"}, "train: '' is not a list"),
        (flowers, {"classes": ("a", "b")}, "2 names, but oxford_flowers102 has 102 classes"),
    ],
)
def test_settings_are_checked_before_anything_is_read(read, changes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        read(tmp_path / "nowhere", **changes)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"labels": [1, 1, 103, *LABELS[3:]]},
            "imagelabels.mat.* outside 0 … 101.* 102, of image 2",
        ),
        ({"labels": [0, *LABELS[1:]]}, "imagelabels.mat.* outside 0 … 101.* is -1, of image 0"),
        ({"trnid": [1, 10]}, "setid.mat: trnid lists image 10; expected numbers from 1 to 9"),
        ({"tstid": [0]}, "setid.mat: tstid lists image 0;"),
        ({"tstid": []}, "setid.mat: tstid lists no image;"),
    ],
)
def test_flowers_labels_and_ids_are_checked(changes, words, tmp_path):
    with pytest.raises(DataError, match=words):
        flowers(write_flowers(tmp_path, **changes))


@pytest.mark.parametrize("file", ["imagelabels.mat", "setid.mat"])
@pytest.mark.parametrize(
    "content", ["empty", "cut", "a page", "noise", "other variables", "halves"]
)
def test_damaged_mat(file, content, tmp_path):
    path = write_flowers(tmp_path) / file
    if content == "other variables":
        savemat(path, {"x": [[1, 2]]})
    elif content == "halves":
        savemat(path, {name: [[1.5, np.nan]] for name in ("labels", *IDS)})
    else:
        whole = path.read_bytes()
        noise = whole[:128] + np.random.default_rng(0).bytes(len(whole) - 128)
        damaged = {"empty": b"", "cut": whole[: len(whole) // 2], "a page": b"<html>" * 99}
        path.write_bytes(damaged.get(content, noise))
    with pytest.raises(DataError, match=rf"{file}: its \w+ cannot be read .*remove it to download"):
        flowers(tmp_path)


@pytest.mark.parametrize("seed", range(60))
def test_mat_with_a_changed_bit(seed, tmp_path):
    """A compressed one has checksums: what is read is right, or a `DataError`.

    One without compression has none, and SciPy 1.17 dies of some (segmentation fault).
    """
    path = write_flowers(tmp_path) / "setid.mat"
    content = bytearray(path.read_bytes())
    random = np.random.default_rng(seed)
    content[random.integers(128, len(content))] ^= 1 << random.integers(8)
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        dataset = flowers(tmp_path)
        assert_flowers(dataset.train, IDS["trnid"])
        assert_flowers(dataset.val, IDS["tstid"])


@pytest.mark.parametrize(
    "line, words",
    [
        ("Abyssinian_5 1 1", "line 5 is 'Abyssinian_5 1 1'; expected an image, its class 1 … 37"),
        ("Abyssinian_5 one 1 1", "line 5 is"),
        ("Abyssinian_5 -1 1 1", "line 5 is"),
        ("Abyssinian 1 1 1", "line 5 is"),
        ("Abyssinian_5 1 1 1 1", "line 5 is"),
        ("Abyssinian_5 0 1 1", "line 5 is"),
        ("Abyssinian_5 38 1 1", "line 5 is"),
        (f"Abyssinian_5 {'9' * 5000} 1 1", "line 5 is"),
        ("Abyssinian_5 2 1 1", "line 5: Abyssinian_5 is of class 2, which is american_bulldog"),
    ],
)
def test_bad_line_of_pets(line, words, tmp_path):
    with pytest.raises(DataError, match=f"annotations/trainval.txt: {words}"):
        pets(write_pets(tmp_path, TRAINVAL + line + "\n" + TRAINVAL))


def test_pets_list_without_images_or_not_there(tmp_path):
    with pytest.raises(DataError, match="annotations/test.txt: lists no images"):
        pets(write_pets(tmp_path, test="# nothing\n"))
    with pytest.raises(MissingFileError, match="mine.txt: the list cannot be read"):
        pets(tmp_path, train="mine.txt")


# --- Unpacking ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "member",
    [
        {"jpg/../../evil": b"x"},
        {"jpg/../inside": b"x"},
        {"../evil": None},
        {"{tmp}/evil": b"x"},
        {"link": special("jpg/link", tarfile.SYMTYPE, "/etc/passwd")},
        {"link": special("jpg/link", tarfile.LNKTYPE, "jpg/image_00001.jpg")},
        {"pipe": special("jpg/pipe", tarfile.FIFOTYPE)},
        {"device": special("jpg/null", tarfile.CHRTYPE)},
    ],
)
def test_dangerous_members_are_refused(member, tmp_path):
    folder = tmp_path / "data"
    write_flowers(folder)
    member = {name.format(tmp=tmp_path): info for name, info in member.items()}
    write_tar(folder / "102flowers.tgz", {**flower_members(), **member})
    (name,) = [getattr(info, "name", name) for name, info in member.items()]
    before = visible(folder)
    with pytest.raises(
        DataError, match=rf"102flowers.tgz: .*'{re.escape(name)}' is neither .*leads outside"
    ):
        flowers(folder)
    assert visible(folder) == before and visible(tmp_path) == ["data"]


def _cut_in_the_middle(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _cut_at_the_end(content: bytes) -> bytes:
    return content[:-4]


def _changed_byte(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _changed_checksum(content: bytes) -> bytes:
    return content[:-8] + bytes(4) + content[-4:]


def _changed_header(content: bytes) -> bytes:
    return content.replace(b"jpg/image_00005.jpg", b"jpg/image_00055.jpg")


def _cut_in_a_header(content: bytes) -> bytes:
    return content[: content.index(b"jpg/image_00005.jpg") + 100]


@pytest.mark.parametrize(
    "mode, damage",
    [
        ("w:gz", _cut_in_the_middle),
        ("w:gz", _cut_at_the_end),
        ("w:gz", _changed_byte),
        ("w:gz", _changed_checksum),
        ("w", _cut_in_the_middle),
        ("w", _changed_header),
        ("w", _cut_in_a_header),
        ("w:bz2", _cut_in_the_middle),
        ("w", lambda content: b""),
        ("w", lambda content: b"<html>" * 1000),
    ],
)
def test_damaged_archive(mode, damage, tmp_path):
    """tarfile alone takes a damaged header for the end, and never sees gzip's checksum."""
    archive = write_flowers(tmp_path, mode=mode) / "102flowers.tgz"
    damaged = damage(archive.read_bytes())
    assert damaged != archive.read_bytes()
    archive.write_bytes(damaged)
    before = visible(tmp_path)
    with pytest.raises(DataError, match=r"102flowers.tgz: is damaged.*remove it to download"):
        flowers(tmp_path)
    assert visible(tmp_path) == before
    write_flowers(tmp_path)
    assert_flowers(flowers(tmp_path).train, IDS["trnid"])


def test_another_archive(tmp_path):
    write_flowers(tmp_path)
    write_tar(tmp_path / "102flowers.tgz", {"flowers/image_00001.jpg": b"x"})
    before = visible(tmp_path)
    with pytest.raises(DataError, match=r"102flowers.tgz: .*holds no folder jpg/"):
        flowers(tmp_path)
    assert visible(tmp_path) == before


def test_what_a_killed_process_left_is_removed(tmp_path):
    write_flowers(tmp_path)
    left = tmp_path / ".jpg.unpacking" / "jpg"
    left.mkdir(parents=True)
    (left / "image_99999.jpg").write_bytes(b"half")
    assert_flowers(flowers(tmp_path).train, IDS["trnid"])
    assert len(visible(tmp_path / "jpg")) == len(LABELS)
    assert ".jpg.unpacking" not in visible(tmp_path)


def test_unpacked_files_have_the_usual_rights(tmp_path):
    """Whatever the archive says of them."""
    folder, file = tarfile.TarInfo("jpg"), tarfile.TarInfo("jpg/x")
    folder.type, folder.mode, file.mode = tarfile.DIRTYPE, 0, 0
    archives.unpacked(write_tar(tmp_path / "x.tar", {"": folder, "x": file}), tmp_path / "jpg")
    before = os.umask(0)
    os.umask(before)
    assert stat.S_IMODE((tmp_path / "jpg").stat().st_mode) == 0o777 & ~before
    assert stat.S_IMODE((tmp_path / "jpg" / "x").stat().st_mode) == 0o666 & ~before


def test_no_room(tmp_path):
    """The kernel refuses to write beyond a size, as it does on a full disk."""
    write_flowers(tmp_path)
    write_tar(tmp_path / "102flowers.tgz", {**flower_members(), "jpg/last.jpg": bytes(1 << 20)})
    before = visible(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with an OSError
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limit[1]))
    try:
        with pytest.raises(WriteError, match=r"cannot be unpacked to .*jpg .*have room"):
            flowers(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert visible(tmp_path) == before


def _in_a_process(function, count: int = 1) -> list:
    """Run ``function(queue)`` in processes of its own; return what they put there."""
    context = multiprocessing.get_context("spawn")
    queue, barrier = context.Queue(), context.Barrier(count)
    processes = [context.Process(target=function, args=(queue, barrier)) for _ in range(count)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count
    return found


def _open_as_a_guest(queue, barrier, folder):
    """As a user without rights; relative paths, as pytest's folders let nobody else in."""
    os.chdir(folder)
    archives.unpacked(Path("none.tar"), Path("there"))  # imports all that is imported late
    import filelock  # noqa: F401
    import scipy.io  # noqa: F401

    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        queue.put(len(flowers(Path("."))[0]))
    except BaseException as error:
        queue.put(f"{type(error).__name__}: {error}")


def test_datadir_that_cannot_be_written(tmp_path):
    folder = write_flowers(tmp_path / "data")
    (folder / "there").mkdir()
    folder.chmod(0o555)
    try:
        (found,) = _in_a_process(functools.partial(_open_as_a_guest, folder=folder))
        assert found.startswith("WriteError: 102flowers.tgz: cannot be unpacked to jpg (Permission")
        assert "must be writable" in found
        folder.chmod(0o755)
        flowers(folder)
        folder.chmod(0o555)  # what has been unpacked can be read
        assert _in_a_process(functools.partial(_open_as_a_guest, folder=folder)) == [3]
    finally:
        folder.chmod(0o755)


def _unpack_slowly(queue, barrier, folder):
    """The first to enter takes half a second: the other asks in the meantime."""
    extract, entered = archives._extract, []

    def slow(*arguments):
        entered.append(time.monotonic())
        extract(*arguments)
        time.sleep(0.5)

    archives._extract = slow
    barrier.wait(60)
    try:
        flowers(folder)
        found = hashlib.sha1()
        for path in sorted((folder / "jpg").iterdir()):
            found.update(path.name.encode() + path.read_bytes())
        queue.put((len(entered), found.hexdigest()))
    except BaseException as error:
        queue.put((len(entered), repr(error)))


def test_two_processes_at_once(tmp_path):
    write_flowers(tmp_path)
    found = _in_a_process(functools.partial(_unpack_slowly, folder=tmp_path), 2)
    files = sorted((name[4:], content) for name, content in flower_members().items() if content)
    expected = hashlib.sha1(b"".join(name.encode() + content for name, content in files))
    assert sorted(found) == [(0, expected.hexdigest()), (1, expected.hexdigest())]
    assert ".jpg.unpacking" not in visible(tmp_path)
