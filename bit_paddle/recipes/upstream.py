"""Upstream training, which makes the published checkpoints: every hyper-parameter of it.

Big Transfer (arXiv 1912.11370), section 4.2, for BiT-S and BiT-M. What the paper does not say is as
in the authors' later code (google-research/big_vision, configs/bit_i21k.py and its optimizer):
weight decay is of kernels alone, a head for sigmoid cross-entropy starts at a bias of -10, and
evaluation cuts the centre of 224 out of an image whose shorter side is 256.
"""

from __future__ import annotations

from bit_paddle.recipes.hyperrule import Resolution, Schedule

RULE = "upstream"

BATCH, EPOCHS = 4096, 90

WEIGHT_DECAY = 1e-4

RESOLUTION = Resolution(256, 224)  # the first is of evaluation: training crops are Inception's

HEAD_BIAS = -10.0  # of a new head, for sigmoid cross-entropy: all outputs are near 0 at first

_LR_PER_256 = 0.03

_DROPS = (30, 60, 80)  # of 90 epochs

_WARMUP, _WARMUP_SHARE = 5000, 0.2  # ILSVRC-2012 takes 28,170 steps


def base_lr(batch: int) -> float:
    """Return the learning rate after the warm-up: 0.03 for every 256 images of a batch."""
    return _LR_PER_256 * batch / 256


def schedule(dataset_size: int, batch: int, epochs: int = EPOCHS) -> Schedule:
    """Return the schedule for ``epochs`` of ``dataset_size`` images.

    Drops are after 30/90, 60/90 and 80/90 of it; warm-up is 5,000 steps, but no more than a fifth
    of a run that is shorter than the paper's.
    """
    steps = epochs * -(-dataset_size // batch)
    drops = tuple(steps * drop // EPOCHS for drop in _DROPS)
    return Schedule(min(_WARMUP, int(_WARMUP_SHARE * steps)), drops, steps)
