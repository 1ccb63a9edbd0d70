"""Each loss, against its NumPy twin and against values that were computed by hand."""

import numpy as np
import paddle
import pytest
from helpers.losses import check

from bit_paddle.models.losses import LOSSES, Softmax


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_twin_in_numpy(name, scale):
    check(LOSSES[name], scale)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_probabilities_of_softmax_sum_to_1(scale):
    logits = scale * np.random.default_rng(1).normal(size=(6, 5))
    np.testing.assert_allclose(Softmax().probabilities(logits).sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize(
    "name, logits, expected",
    [
        ("softmax", [0.0, 0.0], np.log(2)),
        ("softmax", [1000.0, 0.0], 1000.0),
        ("sigmoid", [0.0, 0.0], 2 * np.log(2)),
        ("sigmoid", [1000.0, 0.0], 1000.0 + np.log(2)),
    ],
)
def test_losses_of_one_image(name, logits, expected):
    """The label is class 1."""
    logits, labels = np.array([logits]), np.array([1])
    assert LOSSES[name].per_image(logits, labels)[0] == pytest.approx(expected, rel=1e-12)
    found = LOSSES[name](paddle.to_tensor(logits), labels)
    assert float(found) == pytest.approx(expected, rel=1e-12)
