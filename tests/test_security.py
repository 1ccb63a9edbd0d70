"""The promises of docs/security.md: each names tests that exist. Some of the tests are here."""

import io
import os
import re
import stat
import tarfile

import pytest
from conftest import ROOT
from PIL import Image

from bit_paddle.config import claims
from bit_paddle.config.saved import load_yaml
from bit_paddle.data.boxes.yolo import class_names
from bit_paddle.data.images import FileImages
from bit_paddle.data.readers import cifar, hub_layout, parquet, registry
from bit_paddle.errors import BitPaddleError, ConfigError, DataError

PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")
UNTESTED = ("What is not protected", "Mutated inputs")


def promises():
    """Return (promise, tests) of each row of the page's tables of promises."""
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.M)[1:]:
        rows = re.findall(r"^\| (.*) \| (.*) \|$", section, re.M)
        if section.startswith(UNTESTED):
            continue
        assert rows[0] == ("promise", "test"), section[:40]
        found += rows[1:]
    return found


@pytest.mark.parametrize("promise, tests", promises())
def test_a_promise_names_tests_that_exist(promise, tests):
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
    assert named and ", ".join(f"`{file}::{name}`" for file, name in named) == tests
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.M), name


def test_yaml_makes_no_objects(tmp_path):
    """Settings, a data set, a claim, YOLO's classes, a card of the hub, all by the safe loader."""
    marker = tmp_path / "harm"
    attack = f"a: !!python/object/apply:os.system ['touch {marker}']\n"
    path = tmp_path / "data.yaml"
    path.write_text(attack)
    for read in (load_yaml, lambda file: registry.find(str(file)),
                 lambda file: claims.read(file, "x"), class_names):  # fmt: skip
        with pytest.raises(BitPaddleError, match=r"data\.yaml"):
            read(path)
    assert hub_layout.front_matter(f"---\n{attack}---\n") == {}
    assert not marker.exists()


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    """Pillow would run Ghostscript for the file, whatever it is called."""
    from PIL import EpsImagePlugin

    marker, program = tmp_path / "harm", tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {marker}\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None, raising=False)  # looked for once
    path = tmp_path / "cat.jpg"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    images = FileImages([str(path)], [0], ["cat"])
    for read in (images.image, images.size):
        with pytest.raises(DataError, match=r"cat\.jpg"):
            read(0)
    assert "cat.jpg" in images.fault(0, thorough=True)
    assert not marker.exists()
    with Image.open(path) as image, pytest.raises(Exception):  # noqa: B017 (the attack is real)
        image.load()
    assert marker.exists()


def test_a_bomb_in_the_place_of_cifar(tmp_path, monkeypatch):
    layout = cifar.LAYOUTS["cifar10"]
    monkeypatch.setattr(cifar, "_LARGEST", 1_000_000)
    with tarfile.open(tmp_path / layout.archive, "w:gz") as archive:
        info = tarfile.TarInfo(f"{layout.folder}/{layout.meta}")
        info.size = 1_000_001
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(DataError, match=r"batches\.meta has 1,000,001 bytes"):
        registry.open_dataset("cifar10", str(tmp_path))


def test_an_unknown_encoding_in_the_place_of_cifar(tmp_path):
    """`pickle` looks the encoding of a text up; a damaged name of one is a `LookupError`."""
    layout = cifar.LAYOUTS["cifar10"]
    (tmp_path / layout.meta).write_bytes(b"c_codecs\nencode\n(Va\nVno such\ntR.")
    with pytest.raises(DataError, match=r"batches\.meta is damaged"):
        registry.open_dataset("cifar10", str(tmp_path))


def test_a_pyarrow_that_unpickles_is_refused(monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(parquet.importlib.metadata, "version", lambda _: "14.0.0")
    with pytest.raises(ConfigError, match="unpickles what a parquet file asks it to"):
        parquet.check_installed()
