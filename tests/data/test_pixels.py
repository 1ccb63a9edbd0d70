"""32-bit pixels, whose range the file of a data set states."""

import itertools
import json
import shutil
import struct

import numpy as np
import pytest
from conftest import run_train
from helpers import commands
from PIL import Image

from bit_paddle.config.settings import Settings
from bit_paddle.data import check, stamps
from bit_paddle.data.readers import registry
from bit_paddle.errors import ConfigError, DataError
from bit_paddle.training.classification.plan import make_plan

LOW, HIGH = -100.0, 924.0

RAMP = np.array([[-5000, LOW, -96, 0], [412, 920, HIGH, 1e6]])  # what follows is by hand
SCALED = [[0, 0, 1, 25], [128, 254, 255, 255]]


def write_deep(root, ramp=RAMP, kind=np.float32, **options):
    """Write a folder of 32-bit TIFF files, two of each class, and its data set file."""
    for part, label in itertools.product(("train", "val"), "ab"):
        (root / part / label).mkdir(parents=True)
        for number in range(2):
            path = root / part / label / f"{number}.tif"
            Image.fromarray(ramp.astype(kind)).save(path, **options)
    return root


def deep_spec(root, text=f"pixel_range: [{LOW}, {HIGH}]"):
    path = root.parent / "deep.yaml"
    path.write_text(f"reader: folder\ndatadir: {root}\n{text}\n")
    return str(path)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_a_stated_range_scales_32_bit_pixels(kind, tmp_path):
    data = registry.open_dataset(deep_spec(write_deep(tmp_path / "d", kind=kind)))
    for images in (data.train, data.val, data.val.chosen(np.array([1]), [0], ["x"])):
        assert np.array_equal(images.image(0), np.repeat(np.array(SCALED)[..., None], 3, 2))
        assert images.fault(0) is None


def test_the_lowest_value_may_be_white(tmp_path):
    root = write_deep(tmp_path / "d", tiffinfo={262: 0})  # PhotometricInterpretation
    found = registry.open_dataset(deep_spec(root)).val.image(0)
    assert np.array_equal(np.asarray(found)[..., 0], 255 - np.array(SCALED))


def test_unsigned_values_keep_their_sign(tmp_path):
    """Pillow reads a TIFF of unsigned 32-bit values as signed."""
    ramp = np.array([[0, 2**31 - 1, 2**31, 2**32 - 1]], np.uint32)
    root = write_deep(tmp_path / "d", ramp.view(np.int32), np.int32)
    signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, kind, 0) for kind in (2, 1))
    for path in root.rglob("*.tif"):
        content = path.read_bytes()
        assert content.count(signed) == 1  # the tag SampleFormat; Pillow writes no other one
        path.write_bytes(content.replace(signed, unsigned))
        with Image.open(path) as image:
            assert image.mode == "I" and image.tag_v2[339] == (1,)
    found = registry.open_dataset(deep_spec(root, f"pixel_range: [0, {2**32 - 1}]")).val.image(0)
    assert np.asarray(found)[0, :, 0].tolist() == [0, 127, 128, 255]


def test_a_pixel_that_is_not_a_number_names_its_file(tmp_path):
    root = write_deep(tmp_path / "d", np.array([[0, np.inf, -np.inf, 5]]))
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(root / "val/b/0.tif")
    data = registry.open_dataset(deep_spec(root))
    assert np.asarray(data.val.image(0))[0, :, 0].tolist() == [25, 255, 0, 26]
    with pytest.raises(DataError, match=r"val/b/0\.tif.*1 of its 32-bit pixels are NaN"):
        data.val.image(2)
    with pytest.raises(DataError, match=r"val/b/0\.tif"):
        check.require_usable([(data.val, np.arange(4))], 1)


def test_without_a_range_the_message_names_the_key(tmp_path, monkeypatch):
    """Also after the files were found to be sound with a range."""
    monkeypatch.setattr(stamps, "SETTLED", 0)
    root = write_deep(tmp_path / "d")
    images = registry.open_dataset(deep_spec(root)).val
    check.require_usable([(images, np.arange(4))], 1)
    images = registry.open_dataset("folder", str(root)).val
    with pytest.raises(DataError, match=r"4 of 4 images(.|\n)*pixel_range: \[low, high\]"):
        check.require_usable([(images, np.arange(4))], 1)


def test_a_range_changes_no_other_pixels(image_folder, tmp_path):
    """Also not those of 16 bits."""
    shutil.copytree(image_folder, tmp_path / "d")
    deep = np.arange(400, dtype=np.uint16).reshape(20, 20) * 100
    for suffix in ("png", "tif"):
        Image.fromarray(deep).save(tmp_path / f"d/val/amber/deep.{suffix}")
    plain = registry.open_dataset("folder", str(tmp_path / "d")).val
    ranged = registry.open_dataset(deep_spec(tmp_path / "d", "pixel_range: [5, 6]")).val
    assert len(plain) == 17 and plain.paths == ranged.paths
    for index in range(17):
        assert np.array_equal(plain.image(index), ranged.image(index))


@pytest.mark.parametrize("value", ["5", "[1]", "[1, 2, 3]", "[2, 2]", "[3, 1]", "[0, .inf]",
                                   "[0, .nan]", "[a, 1]", "[false, true]", "{0: 1}"])  # fmt: skip
def test_ranges_that_are_none_are_refused(value, tmp_path):
    with pytest.raises(ConfigError, match=r"pixel_range: is .*, expected two numbers"):
        registry.find(deep_spec(tmp_path, f"pixel_range: {value}"))


def test_a_range_is_for_image_files(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("reader: cifar10\npixel_range: [0, 1]\n")
    with pytest.raises(ConfigError, match="pixel_range: is not for cifar10"):
        registry.find(str(path))


def test_a_range_is_part_of_the_data_of_a_run(tmp_path):
    """So a run does not resume with another one; see `runs.folder.check_data`."""
    root = write_deep(tmp_path / "d")

    def identity(text):
        options = {"from_scratch": True, "precrop": 36, "crop": 32}
        return make_plan(Settings("R14x0.5", deep_spec(root, text), **options)).data_identity

    one, other = identity("pixel_range: [0, 1]"), identity("pixel_range: [0, 2]")
    assert one != other and identity("pixel_range: [0.0, 1.0]") == one
    assert json.loads(json.dumps(one)) == one  # as a checkpoint keeps it


@pytest.mark.slow
def test_the_commands_heed_the_range(tmp_path):
    """A run with another range is refused; `evaluate`, `show` and `audit` read the same key."""
    pytest.importorskip("imagehash")
    noise = np.random.default_rng(0).normal(400, 300, (40, 40))
    data = deep_spec(write_deep(tmp_path / "d", noise))
    flags = ["--model", "R14x0.5", "--from_scratch", "--dataset", data, "--precrop", 36]
    flags += ["--crop", 32, "--batch", 2, "--logdir", tmp_path, "--name", "run"]
    done = run_train(*flags, "--steps", 2, "--save_every", 1)
    assert done.returncode == 0, done.stderr
    for result in (tmp_path / "run/result.json", *tmp_path.glob("run/checkpoints/*2.npz")):
        result.unlink()
    deep_spec(tmp_path / "d", "pixel_range: [0, 1]")
    done = run_train(*flags, "--steps", 2)
    assert done.returncode == 2 and "pixel range: [-100.0, 924.0] -> [0.0, 1.0]" in done.stderr
    deep_spec(tmp_path / "d", "")
    for words in (
        ["train", *flags, "--steps", 2],
        ["evaluate", "--model", tmp_path / "run", "--dataset", data, "--output", tmp_path / "e"],
        ["show", "--dataset", data, "--output", tmp_path / "s.png"],
    ):
        done = commands.run(*words)
        assert done.returncode and "pixel_range: [low, high]" in done.stderr, words
    done = commands.run("audit", "--dataset", data, "--output", tmp_path / "a0")
    assert done.stdout.count("pixel_range") or "32-bit" in (tmp_path / "a0/audit.csv").read_text()
    deep_spec(tmp_path / "d")
    for words in (
        ["evaluate", "--model", tmp_path / "run", "--dataset", data, "--output", tmp_path / "e"],
        ["show", "--dataset", data, "--output", tmp_path / "s.png"],
        ["audit", "--dataset", data, "--output", tmp_path / "a1"],
    ):
        done = commands.run(*words)
        assert done.returncode == 0, (words, done.stderr)
    assert "32-bit" not in (tmp_path / "a1/audit.csv").read_text()
