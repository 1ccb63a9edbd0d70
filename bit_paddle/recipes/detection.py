"""Detection as in Big Transfer (arXiv 1912.11370), section 3.7: RetinaNet on COCO-2017.

The numbers are the paper's. It does not tell the warm-up, which is that of the code that it names
(tensorflow/tpu, models/official/retinanet): one epoch. In that code 0.08 is the learning rate per
64 images, not per 256; which of the two the paper means cannot be told, and its text is taken.
"""

from __future__ import annotations

from bit_paddle.recipes.hyperrule import Schedule

BATCH, EPOCHS = 256, 30

BASE_LR, WEIGHT_DECAY = 0.08, 1e-4

SIDE = 1024  # pixels of an image's longer side

_DROPS = (16, 22)  # of 30 epochs


def base_lr(batch: int) -> float:
    """Return the learning rate after the warm-up: 0.08 per 256 images of the batch."""
    return BASE_LR * batch / BATCH


def schedule(images: int, batch: int, epochs: int = EPOCHS) -> Schedule:
    """Return the schedule for ``epochs`` passes over ``images`` training images.

    The warm-up is one epoch, and at most a tenth of the steps. It starts at 0; in the code that the
    paper names it starts at a tenth of the rate. The rate drops after 16/30 and 22/30 of the steps.
    """
    steps = max(1, epochs * images // batch)
    drops = tuple(drop * epochs * images // (EPOCHS * batch) for drop in _DROPS)
    return Schedule(min(images // batch, steps // 10), drops, steps)
