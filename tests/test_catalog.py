"""Names, architectures and parameter counts of the published models."""

import numpy as np
import paddle
import pytest
from conftest import make_checkpoint

from bit_paddle import catalog, npz
from bit_paddle.catalog import CATALOG, PARAMETERS, Architecture
from bit_paddle.errors import ConfigError, MissingFileError
from bit_paddle.models import ResNetV2


def test_every_architecture_has_a_row():
    assert {entry.architecture.name for entry in CATALOG.values()} == set(PARAMETERS)


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
    assert (
        catalog.find("BiT-M-R50x1").url
        == "https://storage.googleapis.com/bit_models/BiT-M-R50x1.npz"
    )


@pytest.mark.parametrize(
    "name, expected",
    [
        ("BiT-M-R50x2", "BiT-M-R50x1"),
        ("bit-m-r152x4", "BiT-M-R152x4"),
        ("BiT-L-R152x4", "never released"),
    ],
)
def test_unknown_names_say_what_to_take(name, expected):
    with pytest.raises(ConfigError, match=expected):
        catalog.find(name)


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


def test_locate_searches_folders_in_order(tmp_path, monkeypatch):
    entry = catalog.find("BiT-M-R50x1")
    cache, own = tmp_path / "cache", tmp_path / "own"
    monkeypatch.setenv("BIT_PADDLE_HOME", str(cache))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match="storage.googleapis.com/bit_models/BiT-M-R50x1.npz"):
        catalog.locate(entry)
    cache.mkdir()
    (cache / "BiT-M-R50x1.npz").touch()
    assert catalog.locate(entry) == cache / "BiT-M-R50x1.npz"
    with pytest.raises(MissingFileError):
        catalog.locate(entry, own)
    own.mkdir()
    (own / "BiT-M-R50x1.npz").touch()
    assert catalog.locate(entry, own) == own / "BiT-M-R50x1.npz"
