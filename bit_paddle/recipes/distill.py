"""Distillation by function matching: a student learns the outputs of a teacher.

"Knowledge distillation: A good teacher is patient and consistent" (arXiv 2106.05237). Details that
the paper leaves open are from the authors' code (google-research/big_vision, configs/proj/distill,
its optimizer and its schedule), which trained the published student R50x1_224:

- The optimizer is plain Adam (0.9, 0.999, 1e-8). The authors keep its first moment in bfloat16 to
  save memory; here both moments have the precision of the weights.
- Gradients are clipped at a global norm of 1 before that.
- Weight decay is decoupled, and only kernels have it. A step subtracts 3e-4 of a kernel times the
  schedule's share of the base learning rate (0 to 1), not times the learning rate itself. So
  another --base_lr leaves the decay as it is. PyTorch's AdamW calls the same 0.01 (3e-4 / 0.03).
- The cosine begins after the warm-up and ends at 0 with the last step.
- The authors exchange lambda and 1 - lambda so that an image weighs more than its partner. Every
  image is also a partner, so the blends have the same distribution without that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bit_paddle.recipes.hyperrule import BASE_LR as RULE_LR
from bit_paddle.recipes.hyperrule import Schedule

RULE = "distill"

BATCH, EPOCHS = 4096, 1200  # 1,200 epochs: "a good middle ground" of the authors' 300 to 9,600

BASE_LR, WEIGHT_DECAY = 0.03, 3e-4

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam

CLIP_NORM = 1.0

MIXUP_ALPHA = 1.0  # Beta(1, 1) is uniform

_WARMUP, _WARMUP_SHARE = 5000, 0.2  # at most a fifth of a run, as in `upstream`


@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warm-up from 0, then half a cosine to 0 at the last step; ``drops`` is empty."""

    def learning_rate(self, step: int, base_lr: float = RULE_LR) -> float:
        """Return the learning rate of optimizer step ``step``, counted from 0."""
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        if done < 0:
            return super().learning_rate(step, base_lr)
        return base_lr * (1 + math.cos(math.pi * min(done, 1.0))) / 2

    @property
    def decline(self) -> str:
        return "then a cosine to 0"


def schedule(dataset_size: int, batch: int, epochs: int = EPOCHS) -> Cosine:
    """Return the schedule for ``epochs`` passes over ``dataset_size`` images."""
    steps = epochs * -(-dataset_size // batch)
    return Cosine(min(_WARMUP, int(_WARMUP_SHARE * steps)), (), steps)
