"""MixUp and its loss, against their formulas in NumPy."""

import numpy as np
import paddle
import pytest

from bit_paddle.data.loader import draw_mixup
from bit_paddle.models import losses


def test_mix_and_loss(dtype):
    random = np.random.default_rng(0)
    images = random.normal(size=(5, 3, 4, 4)).astype(dtype)
    logits = random.normal(size=(5, 7)).astype(dtype)
    labels, partners, lam = random.integers(0, 7, 5), random.permutation(5), 0.3
    bar = {"float64": 1e-14, "float32": 1e-6}[dtype]
    mixed = losses.mix(paddle.to_tensor(images), paddle.to_tensor(images[partners]), lam).numpy()
    assert np.abs(mixed - (lam * images + (1 - lam) * images[partners])).max() <= bar
    entropy = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(5), labels]
    other = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(5), labels[partners]]
    found = float(
        losses.mixed(losses.Softmax(), paddle.to_tensor(logits), labels, labels[partners], lam)
    )
    assert found == pytest.approx((lam * entropy + (1 - lam) * other).mean(), rel=10 * bar)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_each_label_of_a_blended_image_has_its_own_weight(name):
    random = np.random.default_rng(0)
    logits, lam, weights = random.normal(size=(5, 3)), 0.3, np.array([0.5, 1.0, 3.0])
    labels, partners = np.array([0, 1, 2, 2, 0]), np.array([2, 0, 2, 1, 1])
    loss = losses.LOSSES[name]
    own, other = loss.per_image(logits, labels), loss.per_image(logits, partners)
    expected = (lam * weights[labels] * own + (1 - lam) * weights[partners] * other).mean()
    found = losses.mixed(loss, paddle.to_tensor(logits), labels, partners, lam, weights)
    assert float(found) == pytest.approx(expected, rel=1e-13)


def test_draws_lambda_then_partners():
    lam, partners = draw_mixup(0.1, 7, np.random.default_rng(5))
    random = np.random.default_rng(5)
    assert lam == random.beta(0.1, 0.1) and partners.tolist() == random.permutation(7).tolist()
    assert draw_mixup(0.0, 3, np.random.default_rng(0))[0] == 1.0


def test_lambda_is_beta_distributed():
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1)), within five standard errors."""
    draws = np.array([draw_mixup(0.1, 0, np.random.default_rng(k))[0] for k in range(4000)])
    variance = 1 / (4 * 1.2)
    assert abs(draws.mean() - 0.5) < 5 * np.sqrt(variance / 4000)
    assert draws.var() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("gap", [10.0, 100.0, 1000.0])
def test_cross_entropy_does_not_saturate(gap, dtype):
    """Paddle's own stops at 64 on a CPU; and its gradient is softmax minus one-hot all the way."""
    logits = paddle.to_tensor(np.array([[gap, 0.0]], dtype), stop_gradient=False)
    loss = losses.Softmax()(logits, np.array([1]))
    loss.backward()
    assert float(loss) == pytest.approx(gap, rel=1e-4)
    assert logits.grad.numpy()[0] == pytest.approx([1, -1], abs=1e-4)


def test_cross_entropy_of_infinity_is_not_finite():
    logits = paddle.to_tensor(np.array([[np.inf, 0.0]], np.float32))
    assert not np.isfinite(float(losses.Softmax()(logits, np.array([1]))))
