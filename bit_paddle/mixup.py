"""MixUp (arXiv 1710.09412) as BiT does it: one lambda a step, partners within a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor


def draw(
    alpha: float, sizes: Sequence[int], generator: np.random.Generator
) -> tuple[float, list[np.ndarray]]:
    """Return lambda ~ Beta(alpha, alpha), and partners for micro-batches of ``sizes`` images.

    Without MixUp (``alpha`` 0) lambda is 1, which changes nothing.
    """
    lam = float(generator.beta(alpha, alpha)) if alpha else 1.0
    return lam, [generator.permutation(size) for size in sizes]


def mix(images: Tensor, partners: np.ndarray, lam: float) -> Tensor:
    """Return lam x image + (1 - lam) x partner's image, [N, C, H, W]."""
    if lam == 1.0:
        return images
    return lam * images + (1 - lam) * paddle.gather(images, paddle.to_tensor(partners))


def loss(logits: Tensor, labels: np.ndarray, partners: np.ndarray, lam: float) -> Tensor:
    """Return the mean cross-entropy, mixed: lam x CE(labels) + (1 - lam) x CE(partners' labels)."""
    own = cross_entropy(logits, labels)
    if lam == 1.0:
        return own
    return lam * own + (1 - lam) * cross_entropy(logits, labels[partners])


def cross_entropy(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Return the mean of log(sum(exp(logits))) - logits[label], of [N, K] and [N].

    Not Paddle's own, which on a CPU lets no probability fall below exp(-64): its loss stays
    finite, and quietly wrong, where a run has diverged.
    """
    true = paddle.take_along_axis(logits, paddle.to_tensor(labels[:, None]), axis=1)
    return (paddle.logsumexp(logits, axis=1) - true.squeeze(1)).mean()
