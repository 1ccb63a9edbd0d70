"""Models as other libraries wrote them: the same bits, and the outputs that they compute.

``scripts/make_foreign_models.py`` wrote data/foreign-models.tar.xz; its ``.json`` files name the
versions. Nothing of it was written by this package but the two ``.pdparams`` files.

float32: sums of up to 2,304 products with rounding error 6e-8, through 14 layers, and an epsilon of
1e-8 instead of 1e-10, give 3e-6 of the largest output; the bar is 1e-5.

The outputs were written with Pillow 13, which resizes the columns of a tall image before its rows.
Earlier versions round other pixels, so with these only the wide image is compared.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import PIL
import pytest
from helpers.foreign import make_foreign_models
from helpers.places import ROOT

import bit_paddle
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.models import published
from bit_paddle.models.checkpoint import CheckpointFile

ARCHIVE = ROOT / "tests/data/foreign-models.tar.xz"

BAR = 1e-5

COMPARED = slice(0 if int(PIL.__version__.split(".")[0]) >= 13 else 1, None)  # tall, wide

CLIP = (make_foreign_models.CLIP["mean"], make_foreign_models.CLIP["std"])


def views(crop: int) -> dict[str, Preprocessing]:
    """Return {folder: preprocessing that its configuration describes}; others have none."""
    half = ((0.5,) * 3,) * 2
    nearest, down = round(crop / 0.875), int(crop / 0.875)
    squash = Preprocessing(crop)
    return {
        "timm/squash": Preprocessing(crop, centre="even"),
        "timm/centre": Preprocessing(crop, down, "bilinear", *half, "even"),
        "timm/clip": Preprocessing(crop, int(crop / 0.9), "bicubic", *CLIP, "even"),
        "transformers/squash": squash,
        "transformers/bin": squash,
        "transformers/shards": squash,
        "transformers/features": squash,
        "transformers/centre": Preprocessing(crop, nearest),
        "transformers/default": Preprocessing(crop, crop, "bicubic", *CLIP),
    }


FILES = [
    *("timm/net.safetensors", "timm/net.pth", "timm/legacy.pth", "timm/training.pth.tar"),
    *("reference/bit.pth.tar", "paddle/2.6.2.pdparams", "paddle/3.3.1.pdparams"),
    *views(128),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign")
    with tarfile.open(ARCHIVE) as archive:
        checked = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(path, **checked)
    yield path
    shutil.rmtree(path)  # 115 MB


def written(folder: Path) -> dict[str, dict]:
    """Return {file: what its library says of it} from all ``.json`` files of ``folder``."""
    files = {}
    for path in folder.glob("*.json"):
        files.update(json.loads(path.read_text())["files"])
    return files


def assert_outputs(folder: Path, name: str, facts: dict, view: Preprocessing | None) -> None:
    """The outputs of a file are its library's, each with its own preprocessing."""
    model = bit_paddle.load(folder / name, crop=facts.get("crop"))
    images = sorted((folder / "images").iterdir())[COMPARED]
    headless = name.endswith("features")
    found = (model.features if headless else model.logits)(images)
    for precision in ("float32", "float64"):
        if precision in facts:  # Paddle's file has no other witness than its own float32
            expected = np.array(facts[precision])[COMPARED]
            assert found.shape == expected.shape and found.dtype == np.float32
            assert np.abs(found - expected).max() <= BAR * np.abs(expected).max(), precision
    assert model.file.preprocessing == (view or Preprocessing(facts["crop"]))
    numbers = [str(k) for k in range(found.shape[1])]
    assert model.classes == ([] if headless else facts.get("classes", numbers))


def assert_arrays(path: Path, net: str, kind: str) -> None:
    """The arrays of a file are those that every library was given, bit for bit."""
    given = dict(make_foreign_models.arrays(net, kind))
    with CheckpointFile(path) as file:
        assert set(file.shapes) == {key for key in given if file.classes or "/head/" not in key}
        for key in file.shapes:
            array = file.array(key)
            assert array.dtype == np.float32
            assert array.tobytes() == given[key].tobytes(), key


@pytest.mark.parametrize("name", FILES)
def test_outputs_and_arrays(name, folder):
    assert_outputs(folder, name, written(folder)[name], views(128).get(name))
    assert_arrays(folder / name, "R14x0.5", "repeated")


def test_every_file_is_tested(folder):
    assert set(written(folder)) == set(FILES)


def test_the_network_is_a_witness(folder):
    """Its outputs depend on the image, the class and the preprocessing; its norms do something."""
    facts = written(folder)
    squash, centre, clip = (
        np.array(facts[f"timm/{view}"]["float64"]) for view in ("squash", "centre", "clip")
    )
    largest = np.abs(squash).max()
    assert np.abs(squash[0] - squash[1]).max() > 0.1 * largest
    assert squash.std(axis=1).min() > 0.1 * largest
    assert np.abs(squash - centre).max() > 0.1 * largest
    assert np.abs(centre - clip).max() > 0.1 * largest
    for key, array in make_foreign_models.arrays("R14x0.5"):
        assert array.std() > 0.01, key


# --- The libraries that are installed, live -----------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "transformers", "paddle"])
@pytest.mark.parametrize("net, crop", [("R14x0.5", 128), ("R26x1", 96)])
def test_an_installed_library(library, net, crop, tmp_path):
    """As above, with random weights, in the version that is here."""
    pytest.importorskip(library)
    if library != "paddle":
        pytest.importorskip("torch")
    make_foreign_models.start(tmp_path, net, "random")
    facts = getattr(make_foreign_models, library)(tmp_path, net, crop)["files"]
    for name in facts:
        assert_outputs(tmp_path, name, facts[name], views(crop).get(name))
        assert_arrays(tmp_path / name, net, "random")


def test_an_export_to_npz_keeps_names_and_preprocessing(folder, tmp_path):
    source = bit_paddle.load(folder / "timm/clip", device="cpu")
    bit_paddle.export(folder / "timm/clip", "npz", tmp_path / "x.npz")
    found = bit_paddle.load(tmp_path / "x.npz", device="cpu")
    assert found.classes == source.classes and found.preprocessing == source.preprocessing
    image = folder / "images/wide.png"
    assert np.array_equal(found.logits(image), source.logits(image))


def test_a_crop_keeps_the_scale_of_the_pixels(folder):
    view = bit_paddle.load(folder / "timm/clip", device="cpu", crop=96).file.preprocessing
    assert view == Preprocessing(96, None, "bicubic", *CLIP, "even")


def test_averaged_weights_are_named(folder, capsys):
    bit_paddle.load(folder / "timm/training.pth.tar", device="cpu", crop=96)
    assert "its averaged weights (state_dict_ema) are used" in capsys.readouterr().err
    bit_paddle.load(folder / "timm/net.pth", device="cpu", crop=96)
    assert "averaged" not in capsys.readouterr().err


def test_a_folder_needs_no_slash(folder, monkeypatch):
    """An existing path is taken, in commands as in Python; but not for a catalogue's name."""
    monkeypatch.chdir(folder / "transformers")
    assert published.resolve("squash") == Path("squash")
    shutil.copytree("squash", "bit-50")
    assert published.resolve("bit-50") == Path("bit-50")
    assert bit_paddle.load("bit-50", device="cpu").classes
    Path("bit-50/model.safetensors").unlink()
    assert published.resolve("bit-50").name == "BiT-M-R50x1-ILSVRC2012"
    Path("BiT-Mini").mkdir()
    assert published.resolve("BiT-Mini").name == "BiT-Mini"
