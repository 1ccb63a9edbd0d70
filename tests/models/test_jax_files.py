"""A checkpoint of big_vision: the tree of its network, and the optimizer's beside it.

tests/data/big_vision.npz.xz has the tree that models/bit_paper.py of
github.com/google-research/big_vision made for ``Model(5, 0.5, (1, 2, 1, 1))`` in flax 0.12.8, and
that of optax's SGD with momentum, under the names that its ``tree_flatten_with_names`` gives.
"""

import lzma

import numpy as np
import paddle
import pytest
from conftest import ROOT

import bit_paddle as bit
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.names import published_key

SMALL = Architecture((1, 2, 1, 1), 0.5)
LOGITS = [  # of the same code in JAX 0.10.2 with zeros around the pooling, as in bit_jax/models.py
    -0.369678795337677,
    -0.42195549607276917,
    -0.6273341774940491,
    -0.33834773302078247,
    -0.45532387495040894,
]


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(lzma.decompress((ROOT / "tests" / "data" / "big_vision.npz.xz").read_bytes()))
    return path


def test_the_weights_are_taken(checkpoint):
    with np.load(checkpoint) as tree, CheckpointFile(checkpoint) as file:
        file.check(SMALL, 5)
        weights = [name for name in tree if name.startswith("params/")]
        assert len(weights) == len(file.shapes) < len(tree.files) / 2
        for name in weights:
            key = published_key(name)
            assert np.array_equal(file.array(key).ravel(), tree[name].ravel()), name


def test_logits_are_those_of_jax(checkpoint):
    pixels = np.arange(64 * 64 * 3) * 7919 % 256 / 127.5 - 1
    image = pixels.reshape(1, 64, 64, 3).transpose(0, 3, 1, 2).astype(np.float32)
    model = bit.create_model(checkpoint)
    model.eval()
    assert np.abs(model(paddle.to_tensor(image)).numpy()[0] - LOGITS).max() < 1e-5
