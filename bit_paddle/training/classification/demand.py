"""The memory that the training of a classifier takes, also with a teacher beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bit_paddle.models import cost
from bit_paddle.models.architecture import Architecture

if TYPE_CHECKING:
    from bit_paddle.config.settings import Settings
    from bit_paddle.training.classification.teacher import Teacher


def demand_of(
    settings: Settings,
    architecture: Architecture,
    crop: int,
    classes: int,
    teacher: Teacher | None = None,
) -> cost.Demand:
    """Return the bytes that training takes, for views of ``crop``.

    A teacher adds its weights. Its forward pass comes first and frees all but the logits, so an
    image takes the larger of the two networks' activations.
    """
    learn, moments = settings.learn, 2 if settings.optimizer == "adam" else 1

    def parts(half: bool, shared: int) -> dict[str, int]:
        own = cost.training_memory(architecture, classes, half, shared, learn, moments)
        return own if teacher is None else {**own, "teacher": teacher.memory(half)}

    def activations(recompute: str, half: bool) -> int:
        own = cost.activations(architecture, crop, recompute, half, learn)
        return own if teacher is None else max(own, teacher.activations(crop, half))

    return cost.Demand(parts, activations, architecture.learned_tensors(classes, learn))
