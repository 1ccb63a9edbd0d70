"""Each loss, against its NumPy twin and against values that were computed by hand."""

import numpy as np
import paddle
import pytest
from helpers.losses import check

from bit_paddle.models.losses import LOSSES, Softmax, class_weights


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


# --- Weights of classes -------------------------------------------------------------------------


def test_weights_by_hand():
    """1 and 4 images: 1 and 1/2, times 5 / (1 x 1 + 4 x 1/2)."""
    found = class_weights(np.array([1, 4]), 0.5)
    np.testing.assert_allclose(found, [5 / 3, 5 / 6], rtol=1e-15)


@pytest.mark.parametrize("power", [0.1, 0.5, 1.0])
def test_the_mean_weight_of_the_training_images_is_1(power):
    counts = np.array([1300, 7, 1, 0, 45])
    weights = class_weights(counts, power)
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1, rel=1e-15)
    assert weights[3] == 0  # no image has this label
    for one, other in ((0, 1), (1, 2), (4, 0)):
        ratio = (counts[one] / counts[other]) ** -power
        assert weights[one] / weights[other] == pytest.approx(ratio, rel=1e-14)


def test_power_1_is_what_scikit_learn_calls_balanced():
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    labels = np.repeat([0, 1, 2], [50, 3, 11])
    expected = sklearn.compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = class_weights(np.bincount(labels), 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_power_0_has_no_weights():
    assert class_weights(np.array([9, 1]), 0.0) is None


@pytest.mark.parametrize("power", [0.3, 1.0])
def test_equal_classes_weigh_exactly_1(power):
    assert class_weights(np.array([7, 7, 7]), power).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_weighted_like_the_loss(name):
    """Each image's gradient times its weight."""
    random = np.random.default_rng(0)
    values, labels, weights = random.normal(size=(4, 3)), np.array([0, 2, 1, 2]), [0.2, 1.0, 5.0]
    gradients = []
    for given in (None, np.array(weights)):
        logits = paddle.to_tensor(values, stop_gradient=False)
        LOSSES[name](logits, labels, given).backward()
        gradients.append(logits.grad.numpy())
    expected = gradients[0] * np.array(weights)[labels][:, None]
    np.testing.assert_allclose(gradients[1], expected, rtol=1e-13)
