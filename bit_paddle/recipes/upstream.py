"""Upstream training, which produced the published checkpoints: all of its hyper-parameters.

Big Transfer (arXiv 1912.11370), section 4.2, for BiT-S and BiT-M. Details that the paper leaves
open are from the authors' later code (google-research/big_vision, configs/bit_i21k.py and its
optimizer): only kernels have weight decay, a head for sigmoid cross-entropy starts at a bias of
-10, and evaluation resizes the shorter side to 256 and crops the centre of 224.
"""

from __future__ import annotations

from bit_paddle.recipes.hyperrule import Resolution, Schedule

RULE = "upstream"

BATCH, EPOCHS = 4096, 90

WEIGHT_DECAY = 1e-4

RESOLUTION = Resolution(256, 224)  # only evaluation uses 256: training takes Inception crops

HEAD_BIAS = -10.0  # of a new head for sigmoid cross-entropy: all outputs start near 0

_LR_PER_256 = 0.03

_DROPS = (30, 60, 80)  # of 90 epochs

_WARMUP, _WARMUP_SHARE = 5000, 0.2  # ILSVRC-2012 takes 28,170 steps


def base_lr(batch: int) -> float:
    """Return the learning rate after the warm-up: 0.03 per 256 images of the batch."""
    return _LR_PER_256 * batch / 256


def schedule(dataset_size: int, batch: int, epochs: int = EPOCHS) -> Schedule:
    """Return the schedule for ``epochs`` passes over ``dataset_size`` images.

    The learning rate drops after 30/90, 60/90 and 80/90 of the steps. Warm-up takes 5,000 steps,
    but at most a fifth of the run.
    """
    steps = epochs * -(-dataset_size // batch)
    drops = tuple(steps * drop // EPOCHS for drop in _DROPS)
    return Schedule(min(_WARMUP, int(_WARMUP_SHARE * steps)), drops, steps)
