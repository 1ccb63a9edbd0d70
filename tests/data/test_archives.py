"""``--datadir pets.zip``: archives are unpacked once, and hostile ones not at all."""

import csv
import errno
import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import pytest
from helpers.commands import run_here, wait_until
from helpers.pictures import fill
from test_folders import list_of, names_of, write_images

from bit_paddle import audit, show
from bit_paddle.config import parsing
from bit_paddle.data.readers import archives, members, registry
from bit_paddle.errors import ConfigError, DataError, MissingFileError, WriteError
from bit_paddle.training.plan import make_plan

IMAGES = [f"{name}/{k}.jpg" for name in ("cat", "dog") for k in range(10)]

MB = 1 << 20


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A cache of its own: its folder of unpacked archives."""
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "archives"


@pytest.fixture
def pets(tmp_path):
    write_images(tmp_path / "pets", *IMAGES)
    return tmp_path / "pets"


def packed(folder, kind, inner=""):
    """Return an archive of ``folder`` beside it; its files are in the folder ``inner``, if any."""
    if inner:
        shutil.copytree(folder, folder.parent / "copy" / inner)
    root = folder.parent / "copy" if inner else folder
    return Path(shutil.make_archive(str(folder), kind, root))


def zipped(path, content, **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in content.items():
            file.writestr(name, data)
    return path


def tarred(path, *infos):
    """Write a .tar of (name or TarInfo, content) pairs."""
    with tarfile.open(path, "w") as file:
        for info, content in infos:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def opened(path, reader="folder", **more):
    return registry.open_dataset(reader, str(path), **more)


def everything(folder):
    """The relative paths below ``folder``; locks are not counted, as they stay."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                  if path.suffix != ".lock")  # fmt: skip


# --- What is read -------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["", "my pets"])
@pytest.mark.parametrize("kind", ["zip", "tar", "gztar", "bztar", "xztar"])
def test_an_archive_is_read_as_its_folder(kind, inner, pets, home):
    archive = packed(pets, kind, inner)
    expected = opened(pets)
    for _ in range(2):
        data = opened(archive)
        for one, other in zip(expected[:2], data[:2]):
            assert names_of(one) == names_of(other)
            assert one.image(0).tobytes() == other.image(0).tobytes()
        (folder,) = (path for path in home.iterdir() if path.is_dir())
        assert f"{archive} is read from its unpacked copy {folder}" in data.notes
        date = folder.stat().st_mtime_ns
    assert folder.stat().st_mtime_ns == date


def test_it_is_unpacked_once(pets, home, monkeypatch):
    archive = packed(pets, "zip")
    opened(archive)
    monkeypatch.setattr(archives, "_extract", None)
    opened(archive)
    monkeypatch.undo()
    monkeypatch.setenv("BIT_PADDLE_HOME", str(home.parent))
    (pets / "cat/new.jpg").write_bytes((pets / "cat/0.jpg").read_bytes())
    packed(pets, "zip")  # another size
    data = opened(archive)
    assert len(data.train) + len(data.val) == 21
    date = archive.stat().st_mtime + 5
    os.utime(archive, (date, date))
    opened(archive)
    assert sum(path.is_dir() for path in home.iterdir()) == 3


def test_lists_in_an_archive(tmp_path):
    write_images(tmp_path / "in", "photos/1.jpg", "photos/2.jpg", "photos/3.jpg")
    list_of(tmp_path / "in", "train.csv", ["photos/1.jpg,cat", "photos/2.jpg,dog"])
    list_of(tmp_path / "in", "val.csv", ["photos/3.jpg,dog"])
    for inner in ("", "my lists"):
        data = opened(packed(tmp_path / "in", "zip", inner), "list")
        assert names_of(data.val) == [("photos/3.jpg", "dog")] and data.val.size(0) == (5, 6)


def test_names_that_windows_writes_in_gbk(tmp_path, pets):
    """Without the mark of UTF-8, and with backslashes."""
    image = (pets / "cat/0.jpg").read_bytes()
    names = [f"图片\\{name}\\{k}.jpg" for name in ("苹果", "香蕉") for k in range(5)]
    path = tmp_path / "gbk.zip"
    placeholders = {name: f"{k:0{len(name.encode('gbk'))}d}" for k, name in enumerate(names)}
    zipped(path, dict.fromkeys(placeholders.values(), image))
    content = path.read_bytes()
    for name, placeholder in placeholders.items():
        content = content.replace(placeholder.encode(), name.encode("gbk"))
    path.write_bytes(content)
    assert opened(path).train.classes == ["苹果", "香蕉"]


def test_attributes_of_macos_are_left_out(tmp_path, pets, home):
    content = {name: (pets / name).read_bytes() for name in IMAGES}
    extra = {f"__MACOSX/{name}": b"x" for name in IMAGES}
    data = opened(zipped(tmp_path / "mac.zip", {**content, **extra}))
    assert data.train.classes == ["cat", "dog"]
    assert not [path for path in everything(home) if "MACOSX" in path]


# --- Every command ------------------------------------------------------------------------------


def test_train_plans_an_archive(pets):
    archive, identities = packed(pets, "gztar"), []
    for path in (archive, pets):
        words = ["--model", "R14x0.5", "--from_scratch", "--dataset", "folder"]
        plan = make_plan(parsing.parse([*words, "--datadir", str(path)], "t", registry.find)[0])
        identities.append(plan.data_identity)
        assert "bit_logs/R14x0.5-pets/" in plan.describe()
    assert identities[0] == identities[1]  # so a run resumes when its archive is unpacked by hand
    done = run_here("train", *words, "--datadir", archive, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"{archive} is read from its unpacked copy" in done.stdout


def test_show(pets, tmp_path):
    words = ["--dataset", "folder", "--datadir", str(packed(pets, "zip"))]
    assert show.main([*words, "--output", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_audit_names_paths_that_exclude_takes(tmp_path):
    fill(tmp_path / "d", {"train/a": 6, "train/b": 6, "val/a": 2, "val/b": 2})
    shutil.copy(tmp_path / "d/val/a/0.jpg", tmp_path / "d/train/a/copy.jpg")
    archive = packed(tmp_path / "d", "zip")
    found = audit.audit(str(archive))
    lines = list(found.exclude_lines())
    assert [line for line in lines if line[0] != "#"] == ["train/a/copy.jpg"]
    (tmp_path / "bad.txt").write_text("\n".join(lines))
    data = opened(archive, exclude=str(tmp_path / "bad.txt"))
    assert len(data.train) == 12 and "a/copy.jpg" not in data.train.paths
    assert "1 image left out (1 of train, 0 of val)" in data.notes[-1]


@pytest.mark.slow
def test_fine_tune_and_evaluate(pets, tmp_path, monkeypatch):
    import bit_paddle as bit

    (tmp_path / "home").mkdir()
    monkeypatch.delenv("BIT_PADDLE_HOME")
    (tmp_path / "home/native").symlink_to(registry.archives.fetch.cache_dir() / "native")
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "home"))
    archive = packed(pets, "zip")
    monkeypatch.chdir(tmp_path)
    run = bit.fine_tune(
        "R14x0.5", "pets.zip", from_scratch=True, batch=4, steps=1, precrop=32, crop=32,
        device="cpu",
    )  # fmt: skip
    result = bit.evaluate(run.folder, archive)
    assert result.images == 2
    assert run.folder.name == "R14x0.5-pets"
    folds = bit.fine_tune(
        "R14x0.5", archive, from_scratch=True, batch=4, steps=1, precrop=32, crop=32, folds=2,
        device="cpu", save=False,
    )  # fmt: skip
    with open(folds.folder / "predictions.csv", newline="") as stream:
        rows = {row["path"]: row["label"] for row in csv.DictReader(stream)}
    assert rows == {name: name.split("/")[0] for name in IMAGES}
    audit.audit(archive, predictions=folds.folder / "predictions.csv")


# --- Hostile archives -----------------------------------------------------------------------------


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def unix(name, mode):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


TARS = {
    "dots": [("cat/../../evil.jpg", b"x")],
    "absolute": [("{tmp}/evil.jpg", b"x")],
    "symbolic link": [link("cat/evil", "/etc")],
    "write through a link": [link("cat", "{tmp}"), ("cat/evil.jpg", b"x")],
    "hard link": [link("cat/evil", "/etc/passwd", tarfile.LNKTYPE)],
    "device": [link("cat/evil", "", tarfile.CHRTYPE)],
    "pipe": [link("cat/evil", "", tarfile.FIFOTYPE)],
}

ZIPS = {
    "dots": "cat/../../evil.jpg",
    "dots of Windows": "cat\\..\\..\\evil.jpg",
    "absolute": "{tmp}/evil.jpg",
    "symbolic link": unix("cat/evil", 0o120777),
    "device": unix("cat/evil", 0o020666),
}


def refused(archive, words, home, error=DataError):
    """Assert that ``archive`` is refused, and that nothing is written but locks."""
    before = everything(archive.parent)
    with pytest.raises(error, match=words) as caught:
        opened(archive)
    assert str(caught.value).startswith(f"{archive}: ")
    new = [path for path in everything(archive.parent) if path not in before]
    assert set(new) <= {"home", "home/archives"} and not everything(home)


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize("attack", TARS)
def test_a_tar_that_leads_outside(attack, kind, tmp_path, home):
    evil = []
    for info, content in TARS[attack]:
        if isinstance(info, str):
            info = tarfile.TarInfo(info)
        info.name, info.linkname = (
            text.format(tmp=tmp_path) for text in (info.name, info.linkname)
        )
        evil.append((info, content))
    path = tarred(tmp_path / "evil.tar", ("cat/1.jpg", b"x"), *evil, ("dog/1.jpg", b"x"))
    if kind == "tar.gz":
        path = Path(shutil.move(path, tmp_path / "plain"))
        (tmp_path / "evil.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / "evil.tar.gz"
    refused(path, "is neither a file nor a folder, or leads outside", home)


@pytest.mark.parametrize("attack", ZIPS)
def test_a_zip_that_leads_outside(attack, tmp_path, home):
    name = ZIPS[attack]
    name = name.format(tmp=tmp_path) if isinstance(name, str) else name
    path = zipped(tmp_path / "evil.zip", {"cat/1.jpg": b"x", name: b"/etc", "dog/1.jpg": b"x"})
    refused(path, "is neither a file nor a folder, or leads outside", home)


def bomb(path, claimed=1024 * MB, name="cat/1.jpg"):
    """Write a .zip of 1 MB whose only file has 1 GB; its header says ``claimed`` bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(MB)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("dog/1.jpg", b"x")
        file.writestr(name, block * 1024 + end)
        info = file.getinfo(name)
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, claimed
        info.CRC = 0x3A2A2A5D
    return path


def test_a_zip_of_1_mb_with_1_gb(tmp_path, home):
    path = bomb(tmp_path / "bomb.zip")
    assert path.stat().st_size < 1.2 * MB
    started = time.monotonic()
    refused(path, r"unpacks to 1,074 MB or more from 1\.\d MB, over 100 times its size", home)
    assert time.monotonic() - started < 2  # it is refused by what it says


@pytest.mark.parametrize("claimed", [0, 1000, MB])
def test_a_zip_that_lies_about_its_size(claimed, tmp_path, home):
    """No more than the claimed bytes are read; then the checksum is wrong."""
    refused(bomb(tmp_path / "bomb.zip", claimed), "is damaged, or not an archive", home)


def test_many_files_of_a_zip_count_together(tmp_path, home, monkeypatch):
    monkeypatch.setattr(members, "ALWAYS_ALLOWED", MB)
    content = {f"cat/{k}.jpg": bytes(MB // 4) for k in range(8)}
    path = zipped(tmp_path / "x.zip", content, compression=zipfile.ZIP_DEFLATED)
    refused(path, "unpacks to 2 MB or more from 0.0 MB", home)


def zeros(count):
    """A gzip of ``count`` MB of zeros; several of them in a row are one."""
    return gzip.compress(bytes(MB), 9) * count


def header(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return gzip.compress(info.tobuf())


def test_a_tar_gz_of_1_mb_with_1_gb(tmp_path, home):
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(header("cat/1.jpg", 1024 * MB) + zeros(1024))
    assert path.stat().st_size < 1.2 * MB
    refused(path, r"unpacks to 1,074 MB or more from 1\.\d MB, over 100 times its size", home)


def test_a_tar_gz_that_hides_what_expands(tmp_path, home):
    """Behind the last file, where no header tells a size; and in the header itself."""
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(header("cat/1.jpg", 0) + gzip.compress(bytes(1024)) + zeros(1024))
    refused(path, "unpacks to 25[67] MB or more", home)
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 1024 * MB
    path.write_bytes(gzip.compress(info.tobuf()) + zeros(1024))
    refused(path, "a header has 1,073,741,824 bytes", home)


def test_many_empty_files(tmp_path, home, monkeypatch):
    monkeypatch.setattr(members, "ALWAYS_ALLOWED", MB // 16)
    monkeypatch.setattr(members, "MOST_TIMES", 10)
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(b"".join(
        tarfile.TarInfo(f"cat/{k}.jpg").tobuf() for k in range(1000)
    )))  # fmt: skip
    refused(path, "unpacks to", home)


def test_an_encrypted_zip(tmp_path, home):
    path = zipped(tmp_path / "x.zip", {"cat/1.jpg": b"x", "dog/1.jpg": b"x"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag in the list at the end
    path.write_bytes(content)
    refused(path, "'cat/1.jpg' is encrypted; unpack the archive with its password", home)


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
@pytest.mark.parametrize("content", [b"", b"<html>" * 1000, os.urandom(5000)])
def test_no_archive(name, content, tmp_path, home):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "is damaged, or not an archive", home)


def test_a_file_and_a_folder_of_one_name(tmp_path, home):
    path = tarred(tmp_path / "x.tar", ("cat", b"x"), ("cat/1.jpg", b"x"))
    refused(path, "is damaged, or not an archive", home)


def test_other_files_and_names(tmp_path, pets):
    for reader in ("folder", "list"):
        with pytest.raises(MissingFileError, match="nowhere.zip: no such folder or archive"):
            opened(tmp_path / "nowhere.zip", reader)
    words = ["--model", "BiT-M-R50x1", "--dataset", "folder", "--datadir", "nowhere.zip"]
    with pytest.raises(ConfigError, match="--datadir: nowhere.zip: no such folder or archive"):
        parsing.parse(words, "t", registry.find)
    (tmp_path / "pets.rar").write_bytes(b"Rar!")
    with pytest.raises(MissingFileError, match=r"is a file, expected .* archive \(\.zip \.tar"):
        opened(tmp_path / "pets.rar")
    with pytest.raises(ConfigError, match="is an archive; write --dataset folder --datadir"):
        registry.find(str(packed(pets, "zip")))


# --- The disk, and other processes ----------------------------------------------------------------


def test_too_little_space(pets, home, monkeypatch):
    """It is measured before a large file is written, and reported while one is."""
    write = members.write_member
    (pets / "cat/large.jpg").write_bytes(bytes(MB))
    archive = packed(pets, "tar")
    free = shutil.disk_usage(pets)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(members.shutil, "disk_usage", lambda folder: free)
        refused(archive, "too little space: 0.00 GB are needed, 0.00 GB are free", home, WriteError)

    def full(member, folder, budget):
        write(member, folder, budget)
        if member.name.endswith("9.jpg"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(members, "write_member", full)
        refused(archive, r"cannot be unpacked to .*No space left.*have room", home, WriteError)
    assert len(opened(archive).train) == 19


def test_a_cache_that_cannot_be_made(pets, tmp_path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(WriteError, match=r"pets.zip: cannot be unpacked to .*BIT_PADDLE_HOME"):
        opened(packed(pets, "zip"))


SLOW = """
import sys, time
from bit_paddle.data.readers import members, registry
write = members.write_member
def slow(*arguments):
    time.sleep(0.02)
    write(*arguments)
members.write_member = slow
data = registry.open_dataset("folder", sys.argv[1])
print(len(data.train), len(data.val))
"""


def start(archive):
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(archive)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(archives.__file__).parents[3])},
        text=True,
    )


def test_a_killed_process_and_two_at_once(pets, home):
    archive = packed(pets, "zip")
    process = start(archive)
    wait_until(lambda: home.is_dir() and len(list(home.glob(".*.unpacking/*/*.jpg"))) > 3, process)
    process.kill()
    process.communicate()
    assert not [path for path in home.iterdir() if path.is_dir() and path.name[0] != "."]
    both = [start(archive) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in both] == ["18 2\n"] * 2
    (folder,) = (path for path in home.iterdir() if path.is_dir())
    assert len(everything(folder)) == len(IMAGES) + 2
