"""The losses, one class per loss, MixUp (arXiv 1710.09412), which blends two labels' losses, and
the weights of the classes in a loss.

To add a loss, write a class here and an entry in `LOSSES`; flags, metrics and predictions then know
it. Importing this module does not load Paddle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from bit_paddle.recipes import upstream

if TYPE_CHECKING:
    from paddle import Tensor


class Loss(ABC):
    """A loss of logits [N, K] and labels: int64 [N], one per image.

    With several labels per image they are [N, K], 1 for each label of the image and 0 for others,
    or values between where MixUp has blended two images; only `Sigmoid` takes these. A loss defines
    `losses` in Paddle and `per_image`, the same in NumPy. A call gives their mean.
    """

    about: str  # one line, for --help
    head_bias = 0.0  # the initial bias of a new head

    def __call__(
        self, logits: Tensor, labels: np.ndarray, class_weights: np.ndarray | None = None
    ) -> Tensor:
        """Return the mean loss over the images, a Paddle tensor [] with gradients.

        ``class_weights`` [K] multiply each image's loss by the weight of its only label. The sum
        is divided by the number of images, not by the sum of their weights.
        """
        losses = self.losses(logits, labels)
        if class_weights is not None:
            import paddle

            losses = losses * paddle.to_tensor(class_weights[labels], losses.dtype)
        return losses.mean()

    @abstractmethod
    def losses(self, logits: Tensor, labels: np.ndarray) -> Tensor:
        """Return the losses [N], a Paddle tensor with gradients."""

    @abstractmethod
    def per_image(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the losses [N] of float64 ``logits``; infinite logits give NaN or infinity."""

    @abstractmethod
    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the class probabilities [N, K] of float64 ``logits``."""

    def log_probabilities(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the logarithm of each label's probability [N], of float64 ``logits``."""
        with np.errstate(divide="ignore"):
            return np.log(self.probabilities(logits)[np.arange(len(labels)), labels])

    def energy(self, logits: np.ndarray) -> np.ndarray:
        """Return how much evidence for any class there is [N]: log(sum(exp(logits))).

        It is the negative free energy of arXiv 2010.03759, of float64 ``logits`` [N, K].
        """
        return np.logaddexp.reduce(logits, axis=1)

    @abstractmethod
    def mean_logits(self, logits: np.ndarray) -> np.ndarray:
        """Return logits [N, K] whose probabilities are the mean of those of V sets of logits.

        ``logits`` is float64 [V, N, K]. The result is exact also where probabilities underflow.
        """


class Softmax(Loss):
    """log(sum(exp(logits))) - logits[label]: exactly one class is right."""

    about = "cross-entropy over the classes; each image shows exactly one"

    def losses(self, logits: Tensor, labels: np.ndarray) -> Tensor:
        # On a CPU, Paddle's own cross-entropy lets no probability fall below exp(-64): when a run
        # has diverged, its loss is finite, but wrong.
        import paddle

        assert labels.ndim == 1, "several labels per image are for sigmoid"
        return paddle.logsumexp(logits, axis=1) - _true_logits(logits, labels)

    def per_image(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        highest = logits.max(axis=1)
        powers = np.exp(logits - highest[:, None]).sum(axis=1)
        return highest + np.log(powers) - logits[np.arange(len(labels)), labels]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def log_probabilities(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        highest = logits.max(axis=1)  # without it, exp overflows
        powers = np.exp(logits - highest[:, None]).sum(axis=1)
        return logits[np.arange(len(labels)), labels] - highest - np.log(powers)

    def mean_logits(self, logits: np.ndarray) -> np.ndarray:
        return _log_mean(logits - np.logaddexp.reduce(logits, axis=2, keepdims=True))


class Sigmoid(Loss):
    """sum(log(1 + exp(logits))) - logits[label]: each class is a separate yes or no.

    With several labels per image, the logits of all its labels are subtracted.
    """

    about = (
        "binary cross-entropy per class, as for ImageNet-21k; the bias of a new head starts at "
        f"{upstream.HEAD_BIAS:g}"
    )
    head_bias = upstream.HEAD_BIAS

    def losses(self, logits: Tensor, labels: np.ndarray) -> Tensor:
        import paddle.nn.functional as F

        return -F.log_sigmoid(-logits).sum(axis=1) - _true_logits(logits, labels)

    def per_image(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if labels.ndim == 2:
            return np.logaddexp(0, logits).sum(axis=1) - np.where(labels, logits, 0).sum(axis=1)
        return np.logaddexp(0, logits).sum(axis=1) - logits[np.arange(len(labels)), labels]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return np.exp(-np.logaddexp(0, -logits))

    def log_probabilities(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return -np.logaddexp(0, -logits[np.arange(len(labels)), labels])

    def energy(self, logits: np.ndarray) -> np.ndarray:
        return np.logaddexp(0, logits).sum(axis=1)  # of all yes-or-no questions, arXiv 2111.14818

    def mean_logits(self, logits: np.ndarray) -> np.ndarray:
        return _log_mean(-np.logaddexp(0, -logits)) - _log_mean(-np.logaddexp(0, logits))


LOSSES: dict[str, Loss] = {"softmax": Softmax(), "sigmoid": Sigmoid()}

DEFAULT = "softmax"


def mix(images: Tensor, partners: Tensor, lam: float) -> Tensor:
    """Return lam x images + (1 - lam) x partners, both [N, C, H, W]."""
    return lam * images + (1 - lam) * partners


def mixed(
    loss: Loss,
    logits: Tensor,
    labels: np.ndarray,
    partner_labels: np.ndarray,
    lam: float,
    class_weights: np.ndarray | None = None,
) -> Tensor:
    """Return lam x loss(labels) + (1 - lam) x loss(partner_labels), for blended images.

    With ``class_weights`` [K] each of the two losses has the weight of its own label. With several
    labels per image it is the loss of lam x labels + (1 - lam) x partner_labels, which is the same.
    """
    if labels.ndim == 2:
        return loss(logits, lam * labels + (1 - lam) * partner_labels)
    own, partner = (loss(logits, each, class_weights) for each in (labels, partner_labels))
    return lam * own + (1 - lam) * partner


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || student) of the softmax probabilities [N]; both logits are [N, K].

    It is the loss of distillation at temperature 1 (arXiv 2106.05237), a Paddle tensor with
    gradients to both.
    """
    import paddle

    wanted = teacher - paddle.logsumexp(teacher, axis=1, keepdim=True)
    found = logits - paddle.logsumexp(logits, axis=1, keepdim=True)
    return (wanted.exp() * (wanted - found)).sum(axis=1)


def class_weights(counts: np.ndarray, power: float) -> np.ndarray | None:
    """Return the weight of each class, float64 [K], or None if ``power`` is 0.

    The weight of a class with n of the ``counts`` [K] training images is n^-power, times a factor
    that makes the mean weight over all training images 1. The loader draws every image equally
    often. So the mean weight of a drawn image is 1 too, and the learning rate keeps its meaning.
    With power 1 every class has the same sum of weights. A class without images has weight 0.
    """
    if power == 0:
        return None
    present = counts > 0
    weights = np.zeros(len(counts))
    weights[present] = (counts[present] / counts.max()) ** -power
    return weights * (counts.sum() / (counts * weights).sum())


def _log_mean(logarithms: np.ndarray) -> np.ndarray:
    """Return the logarithm of the mean over the first axis of the numbers themselves."""
    return np.logaddexp.reduce(logarithms, axis=0) - np.log(len(logarithms))


def _true_logits(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Return the logit of each image's label, or the sum of those of its labels, [N]."""
    import paddle

    if labels.ndim == 2:
        return (logits * paddle.to_tensor(labels, logits.dtype)).sum(axis=1)
    return paddle.take_along_axis(logits, paddle.to_tensor(labels[:, None]), axis=1).squeeze(1)
