"""HEIC of telephones: read with pillow-heif, and named with the command that installs it."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from test_folders import list_of, write_images

from bit_paddle.data import check, decoding
from bit_paddle.data.images import FileImages
from bit_paddle.data.readers import registry
from bit_paddle.errors import DataError
from bit_paddle.inference import inputs

RED, BLUE = (200, 30, 40), (30, 40, 200)


def heic(path, orientation=1, size=(64, 48)):
    """Write a HEIC file, red on its left and blue on its right half, as its pixels are stored."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="HEIF", quality=95, exif=exif.tobytes())
    return path


@pytest.fixture
def without_heif(monkeypatch):
    """The package is not installed, and Pillow does not know the format."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    decoding.heif_is_installed.cache_clear()
    yield
    decoding.heif_is_installed.cache_clear()


def near(pixel, colour):
    return np.abs(np.subtract(pixel, colour)).max() < 25


@pytest.mark.parametrize(
    "orientation, size, red",
    [
        (1, (64, 48), (5, 24)),
        (3, (64, 48), (58, 24)),
        (6, (48, 64), (24, 5)),  # a quarter to the right: the left side is on top
        (8, (48, 64), (24, 58)),
    ],
)
@pytest.mark.parametrize("name", ["1.heic", "2.HEIF", "3.hif", "called.jpg"])
def test_heic_is_upright(name, orientation, size, red, tmp_path):
    path = heic(tmp_path / name, orientation)
    one = FileImages([name], [0], ["a"], tmp_path)
    image = one.image(0)
    assert (image.mode, image.size, one.size(0)) == ("RGB", size, size[::-1])
    assert near(image.getpixel(red), RED)
    assert near(image.getpixel((size[0] - 1 - red[0], size[1] - 1 - red[1])), BLUE)
    assert one.fault(0) is None and inputs.read_image(path).size == size


def test_a_folder_of_heic(tmp_path):
    """Threads decode them, as they decode all images."""
    for k in range(20):
        heic(tmp_path / f"{'ab'[k % 2]}/{k}.HEIC")
    data = registry.open_dataset("folder", str(tmp_path))
    assert (len(data.train), len(data.val)) == (18, 2) and len(data.notes) == 1
    check.require_usable([(data.train, np.arange(18))], 2)
    with ThreadPoolExecutor(4) as pool:
        assert all(
            near(image.getpixel((2, 2)), RED) for image in pool.map(data.train.image, range(18))
        )
    assert len(inputs.find_images([str(tmp_path)], tmp_path)[1]) == 20


def test_a_damaged_heic_is_named(tmp_path):
    path = heic(tmp_path / "1.heic")
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"1\.heic"):
        FileImages(["1.heic"], [0], ["a"], tmp_path).image(0)


HINT = r"HEIC images need pillow-heif: pip install -e '\.\[heic\]'"


def test_without_the_package(tmp_path, without_heif):
    """Each is counted, and the command that installs it is named; after that they are read."""
    write_images(tmp_path, *(f"{label}/{k}.jpg" for label in "ab" for k in range(2)))
    (tmp_path / "a/3.heic").write_bytes(b"\0\0\0\x20ftypheic" + bytes(50))
    (tmp_path / "b/4.HEIF").write_bytes(b"\0\0\0\x20ftypmif1" + bytes(50))
    data = registry.open_dataset("folder", str(tmp_path))
    assert len(data.train) + len(data.val) == 4
    assert "2 files in the class folders" in data.notes[1] and ".heic 1, .heif 1" in data.notes[1]
    assert "HEIC images need pillow-heif: pip install -e '.[heic]'" in data.notes[1]
    list_of(tmp_path, "train.csv", ["a/3.heic,a", "b/4.HEIF,b"])
    list_of(tmp_path, "val.csv", ["a/0.jpg,a"])
    listed = registry.open_dataset("list", str(tmp_path)).train
    with pytest.raises(DataError, match=f"a/3.heic: {HINT}"):
        listed.image(0)
    with pytest.raises(DataError, match=f"4.HEIF: {HINT}"):
        check.require_usable([(listed, np.arange(2))], 1)


def test_only_heic_without_the_package(tmp_path, without_heif):
    for name in ("a/1.heic", "b/2.heic"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"\0\0\0\x20ftypheic" + bytes(50))
    with pytest.raises(DataError, match=f"no images in a, b; .*{HINT}"):
        registry.open_dataset("folder", str(tmp_path))


def test_the_cached_list_knows_no_package(tmp_path, monkeypatch):
    """Installing pillow-heif between two starts needs no other change."""
    for k in range(4):
        heic(tmp_path / f"{'ab'[k % 2]}/{k}.heic")
        write_images(tmp_path, f"{'ab'[k % 2]}/{k}.png")
    with monkeypatch.context() as patch:
        patch.setattr("bit_paddle.data.readers.listing.heif_is_installed", lambda: False)
        data = registry.open_dataset("folder", str(tmp_path))
        assert len(data.train) + len(data.val) == 4
    data = registry.open_dataset("folder", str(tmp_path))
    assert len(data.train) + len(data.val) == 8
