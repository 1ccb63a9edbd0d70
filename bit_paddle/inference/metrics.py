"""Loss, top-1 and top-5 over all images of a set, counted exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Tally:
    """Sums over images; tallies of parts add up to the tally of the whole."""

    images: int = 0
    loss_sum: float = 0.0
    top1_count: int = 0
    top5_count: int = 0

    def add(self, logits: np.ndarray, labels: np.ndarray, loss: str = "softmax") -> None:
        """Count ``logits`` [N, K] and ``labels`` [N], in float64; ``loss`` is one of `mixup`'s.

        Equal logits rank by class number, as a stable sort ranks them; an image with a logit that
        is not a number counts as wrong.
        """
        logits = logits.astype(np.float64)
        true = np.take_along_axis(logits, labels[:, None], axis=1)  # [N, 1]
        ahead = (logits > true) | (
            (logits == true) & (np.arange(logits.shape[1]) < labels[:, None])
        )
        rank = np.where(np.isfinite(logits).all(axis=1), ahead.sum(axis=1), logits.shape[1])
        with np.errstate(
            invalid="ignore"
        ):  # infinities give a loss that is not a number, as they should
            if loss == "sigmoid":
                losses = np.logaddexp(0, logits).sum(axis=1, keepdims=True) - true
            else:
                highest = logits.max(axis=1, keepdims=True)
                powers = np.exp(logits - highest).sum(axis=1, keepdims=True)
                losses = highest + np.log(powers) - true
        self.images += len(labels)
        self.loss_sum += float(losses.sum())
        self.top1_count += int((rank < 1).sum())
        self.top5_count += int((rank < min(5, logits.shape[1])).sum())

    def summary(self) -> dict[str, float]:
        """Return what there is to say."""
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5, "images": self.images}

    @property
    def loss(self) -> float:
        """Mean loss."""
        return self.loss_sum / self.images

    @property
    def top1(self) -> float:
        """Share of images whose class ranks first."""
        return self.top1_count / self.images

    @property
    def top5(self) -> float:
        """Share of images whose class ranks among the first five (all, where there are fewer)."""
        return self.top5_count / self.images
