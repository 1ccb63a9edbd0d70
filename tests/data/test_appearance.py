"""Near copies by perceptual hashes, and unusual images."""

import sys

import numpy as np
import pytest
from helpers.pictures import cloud
from PIL import Image, ImageOps

from bit_paddle import errors
from bit_paddle.data import appearance
from bit_paddle.data.images import ArrayImages, FileImages


def looks(folder, images, **options):
    for number, image in enumerate(images):
        image.save(folder / f"{number:03}.png")
    paths = sorted(path.name for path in folder.iterdir())
    return appearance.looks(FileImages(paths, [0] * len(paths), ["x"], folder), 2)


def test_near_copies_survive_compression_resizing_and_mirroring(tmp_path):
    images = [cloud(seed, 120, 100) for seed in range(40)]
    images[3].save(tmp_path / "900.jpg", quality=20)
    images[5].resize((50, 41)).save(tmp_path / "901.png")
    ImageOps.mirror(images[7]).save(tmp_path / "902.png")
    ImageOps.mirror(images[9]).resize((70, 60)).save(tmp_path / "903.jpg", quality=50)
    seen = looks(tmp_path, images)
    found = list(appearance.near_copies(seen, range(len(seen))))
    assert sorted(pair[:2] for pair in found) == [(3, 40), (5, 41), (7, 42), (9, 43)]
    assert all(0.98 < score <= 1 for _, _, score in found)


def test_images_that_one_colour_fills_are_no_copies_of_each_other(tmp_path):
    blank = [Image.new("RGB", (60, 50), color) for color in ("white", "black", "red")]
    blank[0].putpixel((9, 9), (0, 0, 0))
    found = looks(tmp_path, [cloud(0), *blank])
    assert list(appearance.near_copies(found, range(4))) == []
    odd = list(appearance.oddities(found))
    assert [row[:2] for row in odd] == [("one colour", k) for k in (1, 2, 3)]
    assert odd[0][3] == "one colour fills 100%, as 3 of 4 images"


def test_close_pairs_are_those_of_a_search_over_all():
    random = np.random.default_rng(0)
    rows, columns = random.normal(size=(2, 57, 8)).astype(np.float32)
    close = appearance.close_pairs(rows, columns, 3.0, block=10)
    found = {(i, j): value for i, js, values in close for j, value in zip(js, values)}
    products = rows @ columns.T
    expected = {
        (i, j): products[i, j] for i in range(57) for j in range(i + 1, 57) if products[i, j] >= 3
    }
    assert found == pytest.approx(expected) and len(found) > 100


def test_thousands_of_equal_images_make_few_pairs():
    """Each image is still matched with the first ones."""
    rows = np.ones((3000, 4), np.float32)
    close = list(appearance.close_pairs(rows, rows, 4.0))
    assert sum(len(js) for _, js, _ in close) < 3000 * appearance.ENOUGH
    assert {j for _, js, _ in close for j in js} == set(range(1, 3000))


def test_tiny_long_and_rare(tmp_path):
    images = [cloud(seed, 90, 80) for seed in range(150)]
    images[4], images[6] = cloud(4, 30, 20), cloud(6, 400, 80)
    images[8] = images[8].convert("L")
    rows = {row[0]: row[1:] for row in appearance.oddities(looks(tmp_path, images))}
    assert rows == {
        "tiny": (4, 20, "20 x 30 pixels, as 1 of 150 images; median side 80"),
        "long": (6, 5, "80 x 400 pixels, as 1 of 150 images; median side 80"),
        "rare mode": (8, 1 / 150, "mode L, as 1 of 150 images; most are RGB"),
    }


def test_what_most_images_are_is_not_unusual(tmp_path):
    images = [cloud(seed, 120, 20).convert("L") for seed in range(20)]
    assert list(appearance.oddities(looks(tmp_path, images))) == []
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    small = ArrayImages(pixels, np.zeros(20), ["x"], "digits")
    assert list(appearance.oddities(appearance.looks(small, 2))) == []


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "zzz.jpg").write_bytes(b"\xff\xd8\xff nothing")
    ((kind, index, _, why),) = appearance.oddities(looks(tmp_path, [cloud(0), cloud(1)]))
    assert (kind, index) == ("unreadable", 2) and "zzz.jpg" in why


def test_without_imagehash(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(errors.ConfigError, match=r"needs ImageHash: pip install -e '\.\[audit\]'"):
        looks(tmp_path, [cloud(0)])
