"""What every loss must fulfil."""

import numpy as np
import paddle

from bit_paddle.models.losses import Loss


def check(loss: Loss, scale: float) -> None:
    """Compare Paddle's loss with its NumPy twin, in float64, on logits of about ``scale``."""
    random = np.random.default_rng(0)
    logits = scale * random.normal(size=(6, 5))
    labels = random.integers(0, 5, 6)
    twin = loss.per_image(logits, labels)
    assert twin.shape == (6,) and np.isfinite(twin).all() and (twin >= 0).all()
    found = loss(paddle.to_tensor(logits), labels)
    assert found.shape == [] and found.dtype == paddle.float64
    np.testing.assert_allclose(float(found), twin.mean(), rtol=1e-12)
    weights = random.uniform(0.1, 10, 5)
    weighted = loss(paddle.to_tensor(logits), labels, weights)
    np.testing.assert_allclose(float(weighted), (weights[labels] * twin).mean(), rtol=1e-12)
    probabilities = loss.probabilities(logits)
    assert probabilities.shape == (6, 5)
    assert (probabilities >= 0).all() and (probabilities <= 1).all()
    assert loss.about.strip() and "\n" not in loss.about


def check_sets(loss: Loss, scale: float) -> None:
    """Compare Paddle's loss of several labels per image with its NumPy twin, as `check` does."""
    random = np.random.default_rng(0)
    logits, targets = scale * random.normal(size=(6, 5)), random.random((6, 5)) < 0.4
    targets[0] = False
    twin = loss.per_image(logits, targets)
    assert twin.shape == (6,) and np.isfinite(twin).all() and (twin >= 0).all()
    found = loss(paddle.to_tensor(logits), targets)
    assert found.shape == [] and found.dtype == paddle.float64
    np.testing.assert_allclose(float(found), twin.mean(), rtol=1e-12)
