"""Loss, top-1 and top-5 accuracy over all images of a data set, counted exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bit_paddle.models.losses import DEFAULT, LOSSES


@dataclass
class Tally:
    """Sums over images, to which `add` adds one batch after another."""

    images: int = 0
    loss_sum: float = 0.0
    top1_count: int = 0
    top5_count: int = 0

    def add(self, logits: np.ndarray, labels: np.ndarray, loss: str = DEFAULT) -> None:
        """Add ``logits`` [N, K] and ``labels`` [N]; ``loss`` is a name in `LOSSES`.

        All is computed in float64. Equal logits rank by class number, as in a stable sort. An image
        with a logit that is not finite counts as wrong.
        """
        logits = logits.astype(np.float64)
        true = np.take_along_axis(logits, labels[:, None], axis=1)  # [N, 1]
        ahead = (logits > true) | (
            (logits == true) & (np.arange(logits.shape[1]) < labels[:, None])
        )
        rank = np.where(np.isfinite(logits).all(axis=1), ahead.sum(axis=1), logits.shape[1])
        with np.errstate(invalid="ignore"):  # the loss of infinite logits may be NaN
            losses = LOSSES[loss].per_image(logits, labels)
        self.images += len(labels)
        self.loss_sum += float(losses.sum())
        self.top1_count += int((rank < 1).sum())
        self.top5_count += int((rank < min(5, logits.shape[1])).sum())

    def summary(self) -> dict[str, float]:
        """Return loss, top-1, top-5 and the number of images."""
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5, "images": self.images}

    @property
    def loss(self) -> float:
        """The mean loss."""
        return self.loss_sum / self.images

    @property
    def top1(self) -> float:
        """The share of images whose own class ranks first."""
        return self.top1_count / self.images

    @property
    def top5(self) -> float:
        """The share of images whose own class ranks among the first five, or among all if fewer."""
        return self.top5_count / self.images


def interval(top1: float, images: int) -> tuple[float, float]:
    """Return the 95% interval (Wilson's) of an accuracy that was measured on so many images."""
    from scipy.stats import binomtest

    bounds = binomtest(round(top1 * images), images).proportion_ci(0.95, "wilson")
    return float(bounds.low), float(bounds.high)
