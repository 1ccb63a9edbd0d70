"""The names of every library stand for the published keys, and so do their layouts."""

import numpy as np
import pytest

from bit_paddle.models import names, npz
from bit_paddle.models.architecture import Architecture

KEYS = [key for key, _ in npz.shapes(Architecture((3, 4, 11, 1), 0.5), 7)]


def reference_name(key):
    """Return the name in the authors' PyTorch code (bit_pytorch/models.py)."""
    name = names.parameter_name(key)
    if name.startswith("block"):
        name = name.replace("proj.conv.", "downsample.")
        for number, letter in enumerate("abc", 1):
            name = name.replace(f".{letter}.norm.", f".gn{number}.")
            name = name.replace(f".{letter}.conv.", f".conv{number}.")
        return f"body.{name}"
    if name.startswith("norm."):
        return f"head.gn{name[4:]}"
    return name.replace("root_block.", "root.").replace("head.", "head.conv.")


def jax_name(key):
    """Return the name in the authors' JAX code (bit_jax/models.py)."""
    name = key[len("resnet/") :]
    for number, letter in enumerate("abc", 1):
        name = name.replace(f"/{letter}/group_norm/", f"/gn{number}/")
        name = name.replace(f"/{letter}/standardized_conv2d/", f"/conv{number}/")
    for ours, theirs in (
        ("/a/proj/standardized_conv2d/", "/conv_proj/"),
        ("root_block/standardized_conv2d/", "root_block/conv_root/"),
        ("group_norm/", "norm-pre-head/"),
        ("head/conv2d/", "conv_head/"),
        ("gamma", "scale"),
        ("beta", "bias"),
    ):
        name = name.replace(ours, theirs)
    return name


LIBRARIES = {
    "ours": names.parameter_name,
    "timm": names.timm_name,
    "transformers": names.huggingface_name,
    "transformers, without its head": lambda key: names.huggingface_name(key).replace("bit.", ""),
    "reference PyTorch": reference_name,
    "reference JAX": jax_name,
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_there_and_back(library):
    found = [LIBRARIES[library](key) for key in KEYS]
    assert len(set(found)) == len(KEYS)
    assert [names.published_key(name) for name in found] == KEYS


EXAMPLES = {
    "stages.0.blocks.0.downsample.conv.weight": "block1/unit01/a/proj/standardized_conv2d/kernel",
    "stages.2.blocks.10.norm3.bias": "block3/unit11/c/group_norm/beta",
    "stem.conv.weight": "root_block/standardized_conv2d/kernel",
    "head.fc.bias": "head/conv2d/bias",
    "norm.weight": "group_norm/gamma",
    "bit.encoder.stages.3.layers.2.conv2.weight": "block4/unit03/b/standardized_conv2d/kernel",
    "embedder.convolution.weight": "root_block/standardized_conv2d/kernel",
    "classifier.1.weight": "head/conv2d/kernel",
    "body.block1.unit01.downsample.weight": "block1/unit01/a/proj/standardized_conv2d/kernel",
    "head.gn.bias": "group_norm/beta",
    "head.conv.weight": "head/conv2d/kernel",
    "root.conv.weight": "root_block/standardized_conv2d/kernel",
    "block2.unit04.a.conv.weight": "block2/unit04/a/standardized_conv2d/kernel",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    assert names.published_key(name) == f"resnet/{EXAMPLES[name]}"


@pytest.mark.parametrize(
    "name", ["layer1.0.conv1.weight", "vit.encoder.layer.0.output", "fc.weight", "x", "epoch", ""]
)
def test_other_names_are_no_keys(name):
    assert names.published_key(name) not in KEYS


@pytest.mark.parametrize(
    ("name", "shape", "published"),
    [
        ("stem.conv.weight", (64, 3, 7, 7), (7, 7, 3, 64)),
        ("root_block/conv_root/kernel", (7, 7, 3, 64), (7, 7, 3, 64)),
        ("head.fc.weight", (10, 2048, 1, 1), (1, 1, 2048, 10)),
        ("classifier.1.weight", (10, 2048), (1, 1, 2048, 10)),
        ("head.weight", (2048, 10), (1, 1, 2048, 10)),
        ("head/kernel", (2048, 10), (1, 1, 2048, 10)),
        ("norm.bias", (2048,), (2048,)),
        ("norm-pre-head/bias", (1, 1, 1, 2048), (2048,)),
        ("norm-pre-head/bias", (1, 2, 1, 2048), (1, 2, 1, 2048)),
        ("norm.weight", (), ()),
    ],
)
def test_layouts(name, shape, published):
    assert names.published_shape(name, shape) == published
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    found = names.to_published(name, array)
    assert found.shape == published and np.shares_memory(found, array)
    if name == "stem.conv.weight":
        assert found[1, 2, 0, 5] == array[5, 0, 1, 2]
    if len(published) == 4 and published[0] == 1 and len(shape) > 1 and published[3] == 10:
        classes_first = name != "head.weight" and "kernel" not in name
        assert found[0, 0, 3, 7] == array.reshape(-1)[7 * 2048 + 3 if classes_first else 37]


def test_enormous_shapes_need_no_memory():
    shape = (1 << 40, 1 << 40, 1 << 40, 1 << 40)
    assert names.published_shape("stem.conv.weight", shape) == shape
