"""Losses, and MixUp (arXiv 1710.09412): blended images, and the blended loss of two labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

Loss = Callable[[Tensor, np.ndarray], Tensor]  # logits [N, K], labels [N] -> []


def cross_entropy(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Return the mean of log(sum(exp(logits))) - logits[label], of [N, K] and [N].

    Not Paddle's own, which on a CPU lets no probability fall below exp(-64): its loss stays
    finite, and quietly wrong, where a run has diverged.
    """
    true = paddle.take_along_axis(logits, paddle.to_tensor(labels[:, None]), axis=1)
    return (paddle.logsumexp(logits, axis=1) - true.squeeze(1)).mean()


def sigmoid_cross_entropy(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Return the mean over images of the sum over outputs, each a yes or no by itself.

    That is the sum of log(1 + exp(logits)), less logits[label]: one label an image.
    """
    true = paddle.take_along_axis(logits, paddle.to_tensor(labels[:, None]), axis=1)
    return (-F.log_sigmoid(-logits).sum(axis=1) - true.squeeze(1)).mean()


LOSSES: dict[str, Loss] = {"softmax": cross_entropy, "sigmoid": sigmoid_cross_entropy}


def mix(images: Tensor, partners: Tensor, lam: float) -> Tensor:
    """Return lam x images + (1 - lam) x partners, both [N, C, H, W]."""
    return lam * images + (1 - lam) * partners


def loss(
    logits: Tensor,
    labels: np.ndarray,
    partner_labels: np.ndarray,
    lam: float,
    of: Loss = cross_entropy,
) -> Tensor:
    """Return the loss ``of`` both labels, mixed: lam x of(labels) + (1 - lam) x of(partners')."""
    return lam * of(logits, labels) + (1 - lam) * of(logits, partner_labels)
