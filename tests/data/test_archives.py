"""Archives of images as they come: unpacked once, and nothing that is hostile is written."""

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
from bit_paddle.data.readers import archives, members, registry
from bit_paddle.errors import DataError, WriteError
from bit_paddle.system import fetch

FORMATS = {"zip": "zip", "tar": "tar", "tar.gz": "gztar", "tar.xz": "xztar", "tar.bz2": "bztar"}

IMAGES = [f"{part}/{kind}/{n}.png" for part in ("train", "val") for kind in "ab" for n in range(3)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
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


def test_audit_names_paths_within(pets):
    pytest.importorskip("imagehash")
    shutil.copy(pets / "train/a/0.png", pets / "val/a/0.png")
    found = bit.audit(packed(pets)).of("exact copy")
    assert {(one.path, one.other) for one in found} == {("train/a/0.png", "val/a/0.png")}


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


def zeros(stream, size):
    block = bytes(1 << 20)
    for _ in range(size >> 20):
        stream.write(block)


def bomb(tmp_path, kind):
    """Return an archive of about 1 MB that unpacks to 1 GB."""
    path = tmp_path / f"bomb.{kind}"
    if kind == "zip":
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
            file.open("train/a/0.png", "w", force_zip64=True) as stream,
        ):
            zeros(stream, 1 << 30)
        return path
    with tarfile.open(path, "w:gz", compresslevel=1) as file:
        info = tarfile.TarInfo("train/a/0.png")
        info.size = 1 << 30
        with open("/dev/zero", "rb") as stream:
            file.addfile(info, stream)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_refused(kind, tmp_path, cache):
    archive = bomb(tmp_path, kind)
    assert archive.stat().st_size < 6_000_000
    began = time.monotonic()
    with pytest.raises(DataError, match=r"unpacks to 1,0\d\d MB or more .* unpack it yourself"):
        registry.open_dataset("folder", str(archive))
    assert time.monotonic() - began < 20 and not everything(cache) - set(cache.glob(".*.lock"))


def test_a_zip_that_lies_about_its_size(tmp_path, monkeypatch):
    """The real bytes are counted too. (The limits are small here, so that the test is fast.)"""
    monkeypatch.setattr(members, "ALWAYS_ALLOWED", 100_000)
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train/a/0.png", bytes(8_000_000))
    content = bytearray(archive.read_bytes())
    wrong, right = (1000).to_bytes(4, "little"), (8_000_000).to_bytes(4, "little")
    checksum = zlib.crc32(bytes(8_000_000)).to_bytes(4, "little")
    assert content.count(right) == 2 and content.count(checksum) == 2
    archive.write_bytes(content.replace(right, wrong))
    with pytest.raises(DataError):
        registry.open_dataset("folder", str(archive))
    unpacked = fetch.cache_dir() / "archives"
    assert not {path for path in everything(unpacked) if path.suffix != ".lock"}


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
