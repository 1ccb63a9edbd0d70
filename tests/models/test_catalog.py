"""Names, architectures and parameter counts of the published models."""

from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import make_checkpoint

from bit_paddle import catalog
from bit_paddle.errors import ConfigError
from bit_paddle.models import npz
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.published import CATALOG, NETWORKS, find, locate
from bit_paddle.models.resnetv2 import ResNetV2

#: Of each published architecture without its head, which adds (features + 1) classes.
PARAMETERS = {
    "R50x1": 23_500_352,
    "R50x3": 211_174_080,
    "R101x1": 42_492_480,
    "R101x3": 381_789_888,
    "R152x2": 232_238_208,
    "R152x4": 928_340_224,
}


def test_every_architecture_has_a_row():
    published = {entry.architecture.name for entry in CATALOG.values() if not entry.packaged}
    assert published == set(NETWORKS) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    """The table, the network, our list of shapes and an independent one agree."""
    architecture = Architecture.parse(name)
    assert architecture.name == name
    with paddle.LazyGuard():  # shapes without memory: R152x4 would need 4 GB
        model = ResNetV2(architecture, num_classes=1000)
    head = (architecture.features + 1) * 1000
    assert (
        sum(int(np.prod(parameter.shape)) for parameter in model.parameters())
        == PARAMETERS[name] + head
    )
    layers, width = (int(number) for number in name[1:].split("x"))
    theirs = dict(make_checkpoint.shapes(make_checkpoint.UNITS[layers], width, 1000))
    assert dict(npz.shapes(architecture, 1000)) == theirs
    assert sum(int(np.prod(shape)) for shape in theirs.values()) == PARAMETERS[name] + head


def test_published_names():
    for upstream in "SM":
        for name in PARAMETERS:
            assert CATALOG[f"BiT-{upstream}-{name}"].classes == {"S": 1000, "M": 21843}[upstream]
    assert find("BiT-M-R50x1").url == "https://storage.googleapis.com/bit_models/BiT-M-R50x1.npz"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("BiT-M-R50x2", "BiT-M-R50x1"),
        ("bit-m-r152x3", "BiT-M-R152x4"),
        ("BiT-L-R152x4", "never released"),
    ],
)
def test_unknown_names_say_what_to_take(name, expected):
    with pytest.raises(ConfigError, match=expected):
        find(name)


@pytest.mark.parametrize(
    "units, width",
    [((1, 1, 1), 1), ((1, 0, 1, 1), 1), ((1, 1, 1, 1), 0.3), ((1, 1, 1, 1), 0), ((1, 1, 1, 1), -1)],
)
def test_impossible_architectures(units, width):
    with pytest.raises(ConfigError):
        Architecture(units, width)


def test_parse():
    assert Architecture.parse("R26x1.5") == Architecture((2, 2, 2, 2), 1.5)
    assert Architecture.parse("R27x1") is None and Architecture.parse("ResNet") is None


def test_locate(tmp_path, monkeypatch):
    entry = find("BiT-M-R50x1-run0-dtd")
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert locate(entry) == tmp_path / "cache" / "BiT-M-R50x1-run0-dtd.npz"
    assert locate(entry, "own") == Path("own/BiT-M-R50x1-run0-dtd.npz")
    (tmp_path / "BiT-M-R50x1-run0-dtd.npz").touch()
    assert locate(entry) == Path("BiT-M-R50x1-run0-dtd.npz")


def test_every_published_file_is_listed():
    """12 pre-trained, 6 + 1 fine-tuned, 285 of VTAB, 8 of the distillation paper."""
    assert len(CATALOG) == 12 + 6 + 1 + 285 + 8 + 1
    assert len({entry.file for entry in CATALOG.values()}) == len(CATALOG)
    vtab = [entry for entry in CATALOG.values() if entry.file.startswith("vtab/")]
    assert len(vtab) == 285
    assert sum(entry.bytes for entry in vtab) == pytest.approx(0.36e12, rel=0.02)
    for name, size in (("BiT-M-R50x1", 0.27), ("BiT-M-R152x4", 4.43), ("BiT-S-R101x3", 1.55)):
        assert CATALOG[name].bytes / 1e9 == pytest.approx(size, abs=0.006)


@pytest.mark.parametrize(
    "name, classes, file, preprocessing, accuracy",
    [
        (
            "BiT-M-R101x3-run0-caltech101",
            102,
            "vtab/BiT-M-R101x3-run0-caltech101.npz",
            (480, None),
            None,
        ),
        (
            "BiT-M-R50x1-run2-dsprites-xpos",
            16,
            "vtab/BiT-M-R50x1-run2-dsprites-xpos.npz",
            (128, None),
            None,
        ),
        ("R50x1_224", 1000, "distill/R50x1_224.npz", (224, 256), 82.8),
        ("R152x2_T_pet128", 37, "distill/R152x2_T_pet128.npz", (128, None), None),
        ("BiT-M-R152x4-ILSVRC2012", 1000, "BiT-M-R152x4-ILSVRC2012.npz", (480, None), 84.936),
        ("resnetv2_50x1_bit.goog_in21k", 21843, "BiT-M-R50x1.npz", (224, 256), None),
        (
            "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384",
            1000,
            "distill/R152x2_T_384.npz",
            (384, 384),
            84.3,
        ),
    ],
)
def test_entries(name, classes, file, preprocessing, accuracy):
    entry = find(name)
    assert (entry.classes, entry.file, entry.accuracy) == (classes, file, accuracy)
    assert (entry.preprocessing.crop, entry.preprocessing.resize) == preprocessing


def test_another_base_address(monkeypatch):
    monkeypatch.setenv("BIT_PADDLE_BASE_URL", "http://127.0.0.1:8000/mirror")
    assert find("R50x1_160").url == "http://127.0.0.1:8000/mirror/distill/R50x1_160.npz"


def test_table(capsys):
    assert catalog.main(["R50x1", "IMAGENET21K"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "name",
        "classes",
        "of",
        "GB",
        "preprocessing",
        "top-1",
        *["names", "in", "other", "libraries"],
    ]
    assert row.split()[:4] == ["BiT-M-R50x1", "21,843", "imagenet21k", "0.27"]
    assert len(catalog.table().splitlines()) == 1 + len(CATALOG)
    with pytest.raises(ConfigError, match="did you mean .*caltech101"):
        catalog.main(["caltech-101"])
