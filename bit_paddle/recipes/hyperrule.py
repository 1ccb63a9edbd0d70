"""BiT-HyperRule: every hyper-parameter of fine-tuning from the data's size and resolution.

Big Transfer (arXiv 1912.11370), section 3.3. The rule has two versions:

``code``
    The rule of the authors' code, which produced the published accuracies.
``paper``
    The rule of the paper's text: drops at 30, 60 and 90 % for every size, no warm-up, and
    448/384 instead of 512/480 for large images unless the model is R152x4.
"""

from __future__ import annotations

from dataclasses import dataclass

BASE_LR = 0.003

BATCH = 512

MOMENTUM = 0.9

SMALL_AREA = 96 * 96  # pixels: smaller originals are small images

SMALL_TASK, MEDIUM_TASK = 20_000, 500_000  # a task is small, or medium, below this many images


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from 0, then a learning rate that falls tenfold after each of ``drops``."""

    warmup: int
    drops: tuple[int, ...]
    steps: int

    def scaled(self, steps: int) -> Schedule:
        """Return this schedule stretched or shrunk to ``steps`` steps, in its own proportions."""

        def scale(step: int) -> int:
            return (step * steps + self.steps // 2) // self.steps

        return type(self)(scale(self.warmup), tuple(scale(drop) for drop in self.drops), steps)

    def learning_rate(self, step: int, base_lr: float = BASE_LR) -> float:
        """Return the learning rate of optimizer step ``step``, counted from 0."""
        if step < self.warmup:
            return base_lr * step / self.warmup  # 0 at step 0: the first update changes nothing
        for drop in self.drops:
            if drop < step:  # not <=: a drop takes effect one step after its boundary
                base_lr /= 10
        return base_lr

    @property
    def decline(self) -> str:
        """How the learning rate falls after the warm-up, in words."""
        return f"divided by 10 after steps {', '.join(map(str, self.drops))}"


@dataclass(frozen=True)
class Resolution:
    """Sides in pixels: ``precrop`` of the resized square image, ``crop`` of its random crop.

    ``alternate`` is that of the crop in every second step; None: all steps have the same.
    """

    precrop: int
    crop: int
    alternate: int | None = None

    def side(self, step: int) -> int:
        """Return the side of the training views of ``step``, counted from 0."""
        return self.alternate if self.alternate and step % 2 else self.crop

    @property
    def largest(self) -> int:
        """The side of the largest training views."""
        return max(self.crop, self.alternate or 0)


def schedule(dataset_size: int, rule: str = "code") -> Schedule:
    """Return the schedule for ``dataset_size`` images, counted after few-shot selection."""
    steps = 500 if dataset_size < SMALL_TASK else 10_000 if dataset_size < MEDIUM_TASK else 20_000
    if rule == "paper":
        return Schedule(0, tuple(steps * percent // 100 for percent in (30, 60, 90)), steps)
    if steps == 500:
        return Schedule(100, (200, 300, 400), steps)  # 40/60/80 %, unlike the paper's 30/60/90 %
    return Schedule(500, tuple(steps * percent // 100 for percent in (30, 60, 90)), steps)


def mixup_alpha(dataset_size: int) -> float:
    """Return MixUp's alpha; 0 means no MixUp."""
    return 0.0 if dataset_size < SMALL_TASK else 0.1


def resolution(height: float, width: float, rule: str = "code", model: str = "") -> Resolution:
    """Return the resolution for original images of ``height`` x ``width`` pixels.

    ``model`` matters only to the paper's rule, where R152x4 gets the larger pair.
    """
    if height * width < SMALL_AREA:
        return Resolution(160, 128)
    if rule == "paper" and "R152x4" not in model:
        return Resolution(448, 384)
    return Resolution(512, 480)
