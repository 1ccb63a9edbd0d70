"""MixUp (arXiv 1710.09412): blended images, and the blended loss of their two labels."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor


def mix(images: Tensor, partners: Tensor, lam: float) -> Tensor:
    """Return lam x images + (1 - lam) x partners, both [N, C, H, W]."""
    return lam * images + (1 - lam) * partners


def loss(logits: Tensor, labels: np.ndarray, partner_labels: np.ndarray, lam: float) -> Tensor:
    """Return the mean cross-entropy, mixed: lam x CE(labels) + (1 - lam) x CE(partners' labels)."""
    return lam * cross_entropy(logits, labels) + (1 - lam) * cross_entropy(logits, partner_labels)


def cross_entropy(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Return the mean of log(sum(exp(logits))) - logits[label], of [N, K] and [N].

    Not Paddle's own, which on a CPU lets no probability fall below exp(-64): its loss stays
    finite, and quietly wrong, where a run has diverged.
    """
    true = paddle.take_along_axis(logits, paddle.to_tensor(labels[:, None]), axis=1)
    return (paddle.logsumexp(logits, axis=1) - true.squeeze(1)).mean()
