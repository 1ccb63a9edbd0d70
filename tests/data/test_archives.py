"""Archives of images as they come: unpacked once, and nothing that is hostile is written."""

import csv
import errno
import gzip
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib

import pytest
from test_folders import list_of, names_of, write_images

import bit_paddle as bit
from bit_paddle import show
from bit_paddle.config import parsing
from bit_paddle.data.readers import archives, members, registry
from bit_paddle.errors import ConfigError, DataError, MissingFileError, WriteError
from bit_paddle.system import fetch

FORMATS = {"zip": "zip", "tar": "tar", "tar.gz": "gztar", "tar.xz": "xztar", "tar.bz2": "bztar"}

IMAGES = [f"{part}/{kind}/{n}.png" for part in ("train", "val") for kind in "ab" for n in range(3)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    # the session's compiled operators: Paddle aborts if one process loads a second copy
    (tmp_path / "cache/native").symlink_to(fetch.cache_dir() / "native")
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "archives"


@pytest.fixture
def pets(tmp_path):
    write_images(tmp_path / "pets", *IMAGES)
    return tmp_path / "pets"


def packed(folder, kind="zip", inner=None):
    """Return an archive of ``folder``, whose name in it is ``inner``."""
    root = folder.parent if inner else folder
    base = folder.parent / "archive"
    return folder.parent / os.path.basename(
        shutil.make_archive(str(base), FORMATS[kind], root, inner)
    )


def everything(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("inner", [None, "pets"])
@pytest.mark.parametrize("kind", FORMATS)
def test_archives_are_read_as_folders(kind, inner, pets, cache):
    archive = packed(pets, kind, inner)
    data = registry.open_dataset("folder", str(archive))
    plain = registry.open_dataset("folder", str(pets))
    for one, other in ((data.train, plain.train), (data.val, plain.val)):
        assert names_of(one) == names_of(other) and one.image(0).size == other.image(0).size
    assert any("is read from its unpacked copy" in note for note in data.notes)
    assert len(everything(cache)) == len(IMAGES) + 1  # and a lock


def test_it_is_unpacked_once_and_anew_when_it_changes(pets, cache, monkeypatch):
    archive = packed(pets)
    first = registry.open_dataset("folder", str(archive)).train
    date = os.stat(first.name(0)).st_mtime_ns
    assert os.stat(registry.open_dataset("folder", str(archive)).train.name(0)).st_mtime_ns == date
    write_images(pets, "train/a/9.png")
    archive.unlink()
    assert len(registry.open_dataset("folder", str(packed(pets))).train) == 7


def test_a_list_in_an_archive(pets):
    list_of(pets, "train.csv", [f"train/{kind}/{n}.png,{kind}" for kind in "ab" for n in range(3)])
    list_of(pets, "val.csv", ["val/a/1.png,a", "val/b/1.png,b"])
    data = registry.open_dataset("list", str(packed(pets, "tar.gz")))
    assert len(data.train) == 6 and len(data.val) == 2


def test_commands_and_calls_take_archives(pets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    archive = packed(pets)
    assert show.main(["--dataset", "folder", "--datadir", str(archive), "--output", "out"]) == 0
    assert "64 training views" in capsys.readouterr().out
    run = bit.fine_tune(
        "R14x0.5", archive, from_scratch=True, steps=1, batch=2, precrop=36, crop=32
    )
    assert run.folder.name == "R14x0.5-archive" and run.result["images"] == 6
    folds = bit.fine_tune(
        "R14x0.5", archive, from_scratch=True, steps=1, batch=2, precrop=36, crop=32, folds=2,
        save=False,
    )  # fmt: skip
    with open(folds.folder / "predictions.csv", newline="") as stream:
        assert {row["path"] for row in csv.DictReader(stream)} == set(IMAGES)
    bit.audit(archive, predictions=folds.folder / "predictions.csv")  # has the same paths


def test_audit_names_paths_that_exclude_takes(pets, tmp_path):
    pytest.importorskip("imagehash")
    shutil.copy(pets / "train/a/0.png", pets / "val/a/0.png")
    found = bit.audit(packed(pets))
    copies = {(one.path, one.other) for one in found.of("exact copy")}
    assert copies == {("train/a/0.png", "val/a/0.png")}
    (tmp_path / "bad.txt").write_text(next(iter(copies))[0])
    options = {"exclude": str(tmp_path / "bad.txt")}
    train = registry.open_dataset("folder", str(tmp_path / "archive.zip"), **options).train
    assert len(train) == 5 and "a/0.png" not in train.paths


# --- Hostile archives ---------------------------------------------------------------------------


def tar_of(path, *members, kind="w"):
    with tarfile.open(path, kind) as file:
        for name, change in members:
            info = tarfile.TarInfo(name)
            info.size = 4
            change(info)
            file.addfile(info, io.BytesIO(b"evil") if info.isreg() else None)
    return path


def link(kind, target):
    def change(info):
        info.type, info.linkname, info.size = kind, target, 0

    return change


@pytest.mark.parametrize(
    "name, change",
    [
        ("../evil.png", lambda info: None),
        ("train/../../evil.png", lambda info: None),
        ("/tmp/bit-paddle-evil.png", lambda info: None),
        ("train/a/0.png", link(tarfile.SYMTYPE, "/etc/passwd")),
        ("train", link(tarfile.SYMTYPE, "..")),
        ("train/a/0.png", link(tarfile.LNKTYPE, "../../evil")),
        ("train/a/0.png", link(tarfile.CHRTYPE, "")),
        ("train/a/0.png", link(tarfile.FIFOTYPE, "")),
    ],
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_nothing_is_written_outside(kind, name, change, tmp_path, cache):
    before = everything(tmp_path)
    if kind == "tar":
        archive = tar_of(tmp_path / "x.tar", ("train/b/1.png", lambda info: None), (name, change))
    else:
        member = tarfile.TarInfo(name)
        change(member)
        modes = {tarfile.SYMTYPE: stat.S_IFLNK, tarfile.CHRTYPE: stat.S_IFCHR}
        modes[tarfile.FIFOTYPE] = stat.S_IFIFO
        if member.type == tarfile.LNKTYPE:
            pytest.skip("zip has no hard links")
        archive = tmp_path / "x.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("train/b/1.png", b"evil")
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = (modes.get(member.type, stat.S_IFREG) | 0o777) << 16
            file.writestr(info, member.linkname or "evil")
    with pytest.raises(DataError, match="leads outside; an archive with links, devices, absolute"):
        registry.open_dataset("folder", str(archive))
    assert {path for path in everything(tmp_path) if path.suffix != ".lock"} == before | {archive}
    assert not os.path.exists("/tmp/bit-paddle-evil.png") and os.listdir(cache) == [
        name for name in os.listdir(cache) if name.endswith(".lock")
    ]


def refused(archive, words, cache):
    """Assert that ``archive`` is refused, and that nothing but locks is left."""
    with pytest.raises(DataError, match=words) as caught:
        registry.open_dataset("folder", str(archive))
    assert str(caught.value).startswith(f"{archive}: ")
    assert not {path for path in everything(cache) if path.suffix != ".lock"}


def zip_bomb(path, claimed=1 << 30):
    """Write a .zip of 1 MB whose second file has 1 GB of zeros, but says ``claimed`` bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("train/b/0.png", b"x")
        file.writestr("train/a/0.png", block * 1024 + end)
        info = file.getinfo("train/a/0.png")
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, claimed
    assert path.stat().st_size < 1.2e6
    return path


def tar_bomb(path, header):
    """Write a .tar.gz of 1 MB: ``header``, and 1 GB of zeros."""
    path.write_bytes(gzip.compress(header) + gzip.compress(bytes(1 << 20), 9) * 1024)
    assert path.stat().st_size < 1.2e6
    return path


def header(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf()


def test_bombs_of_one_gigabyte_are_refused(tmp_path, cache):
    words = r"unpacks to 1,074 MB or more from 1\.\d MB, over 100 times .* unpack it yourself"
    began = time.process_time()
    refused(zip_bomb(tmp_path / "x.zip"), words, cache)
    refused(tar_bomb(tmp_path / "x.tar.gz", header("train/a/0.png", 1 << 30)), words, cache)
    assert time.process_time() - began < 5  # by what they say


def test_bombs_that_hide_their_size(tmp_path, cache):
    """No more is read than a .zip says; a .tar.gz may grow behind its last file, or in a header."""
    for claimed in (0, 1000, 1 << 20):
        refused(zip_bomb(tmp_path / "x.zip", claimed), "is damaged, or not an archive", cache)
    empty = header("train/a/0.png", 0) + bytes(1024)
    refused(tar_bomb(tmp_path / "x.tar.gz", empty), "unpacks to 25[67] MB or more", cache)
    long = header("././@PaxHeader", 1 << 30, tarfile.XHDTYPE)
    refused(tar_bomb(tmp_path / "x.tar.gz", long), "a header has 1,073,741,824 bytes", cache)


def test_files_of_an_archive_count_together(tmp_path, cache, monkeypatch):
    """Also empty ones, which need an entry each."""
    monkeypatch.setattr(members, "ALWAYS_ALLOWED", 60_000)
    monkeypatch.setattr(members, "MOST_TIMES", 10)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for n in range(8):
            file.writestr(f"train/a/{n}.png", bytes(20_000))
    refused(tmp_path / "x.zip", "unpacks to 0 MB or more from 0.0 MB", cache)
    many = b"".join(header(f"train/a/{n}.png", 0) for n in range(1000))
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(many))
    refused(tmp_path / "x.tar.gz", "unpacks to 0 MB or more from 0.0 MB", cache)


def test_a_file_behind_a_link(tmp_path, cache):
    archive = tmp_path / "x.tar"
    tar_of(
        archive, ("train", link(tarfile.SYMTYPE, str(tmp_path))), ("train/0.png", lambda info: None)
    )
    refused(archive, "'train' is neither a file nor a folder, or leads outside", cache)
    assert not (tmp_path / "0.png").exists()


def test_a_compressed_tar_without_members(tmp_path, monkeypatch):
    """Its zeros are read as the end of the archive, and counted."""
    monkeypatch.setattr(members, "ALWAYS_ALLOWED", 100_000)
    archive = tmp_path / "x.tar.gz"
    archive.write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(DataError, match="over 100 times its size"):
        registry.open_dataset("folder", str(archive))


# --- Damage and surroundings ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("damage", ["cut", "text", "empty", "middle"])
def test_damaged_archives(kind, damage, pets, cache):
    archive = packed(pets, kind)
    content = bytearray(archive.read_bytes())
    if damage == "middle":
        if kind == "tar":
            pytest.skip("tar has checksums of its headers only")
        content[len(content) // 2 : len(content) // 2 + 8] = b"\xff" * 8
    new = {"cut": content[: len(content) // 2], "text": b"not found", "empty": b""}
    archive.write_bytes(new.get(damage, content))
    with pytest.raises(DataError, match=r"archive\..*(damaged|not an archive|holds no|class)"):
        registry.open_dataset("folder", str(archive))


def test_an_encrypted_zip(pets):
    archive = packed(pets)
    content = bytearray(archive.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(mark)
        while at >= 0:
            content[at + place] |= 1
            at = content.find(mark, at + 4)
    archive.write_bytes(content)
    with pytest.raises(DataError, match="is encrypted; unpack the archive with its password"):
        registry.open_dataset("folder", str(archive))


def test_names_of_an_old_chinese_windows():
    """They are in GBK, without the mark of UTF-8, so that `zipfile` reads them as cp437."""
    names = [f"train/{kind}/1.png" for kind in ("猫", "小狗", "大熊猫")]
    infos = [zipfile.ZipInfo(name.encode("gb18030").decode("cp437")) for name in names]
    for info in infos:
        info.flag_bits = 0
    assert members._zip_names(infos) == names


def test_several_at_once(pets, cache):
    archive, found = packed(pets), []
    threads = [
        threading.Thread(target=lambda: found.append(archives.cached(archive))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert len(everything(found[0])) == len(IMAGES)


KILLED = """
import os, signal, sys
from pathlib import Path
from bit_paddle.data.readers import archives, members

write, count = members.write_member, 0


def killed(*arguments):
    global count
    count += 1
    if count == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*arguments)


members.write_member = killed
archives.cached(Path(sys.argv[1]))
"""


def test_a_killed_process_leaves_nothing_behind(pets, cache):
    archive = packed(pets)
    done = subprocess.run([sys.executable, "-c", KILLED, archive], capture_output=True)
    assert done.returncode == -9 and len(everything(cache)) > 1
    folder = archives.cached(archive)
    assert len(everything(folder)) == len(IMAGES) == len(everything(cache)) - 1


def test_a_cache_that_cannot_be_made(pets, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "file"))
    with pytest.raises(WriteError, match="BIT_PADDLE_HOME names another folder"):
        registry.open_dataset("folder", str(packed(pets)))


def test_too_little_space(pets, cache, monkeypatch):
    """It is measured before a large file is written, and reported while one is."""
    write = members.write_member
    (pets / "train/a/large.png").write_bytes(bytes(1 << 20))
    archive = packed(pets, "tar")
    free = shutil.disk_usage(pets)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(members.shutil, "disk_usage", lambda folder: free)
        with pytest.raises(WriteError, match="too little space: 0.00 GB are needed, 0.00 GB are"):
            registry.open_dataset("folder", str(archive))

    def full(member, folder, budget):
        write(member, folder, budget)
        if member.name.endswith("2.png"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(members, "write_member", full)
        with pytest.raises(WriteError, match=r"cannot be unpacked to .*No space left.*have room"):
            registry.open_dataset("folder", str(archive))
    assert not {path for path in everything(cache) if path.suffix != ".lock"}
    assert len(registry.open_dataset("folder", str(archive)).train) == 7


def test_no_such_archive(pets, tmp_path):
    for reader in ("folder", "list"):
        with pytest.raises(MissingFileError, match="nowhere.zip: no such folder or archive"):
            registry.open_dataset(reader, str(tmp_path / "nowhere.zip"))
    words = ["--model", "BiT-M-R50x1", "--dataset", "folder", "--datadir", "nowhere.zip"]
    with pytest.raises(ConfigError, match="--datadir: nowhere.zip: no such folder or archive"):
        parsing.parse(words, "t", registry.find)
    (tmp_path / "pets.rar").write_bytes(b"Rar!")
    with pytest.raises(MissingFileError, match=r"is a file, expected .* archive \(\.zip \.tar"):
        registry.open_dataset("folder", str(tmp_path / "pets.rar"))
    with pytest.raises(ConfigError, match="is an archive; write --dataset folder --datadir"):
        registry.find(str(packed(pets)))
