"""What a model computes on the way to its outputs, by name; `verify` compares it with an export.

The names are ``stage 1`` to ``stage 4`` (maps before activation), ``features`` (what the last layer
takes) and ``output`` (the logits, or the features without a head). A head of zeros has the same
outputs for every image, so they say nothing about an export. Then ``output of a random head`` is
there too: random numbers take the place of the last layer, in memory only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bit_paddle.errors import DifferenceError

if TYPE_CHECKING:
    from bit_paddle.models.resnetv2 import ResNetV2

Head = tuple[np.ndarray, np.ndarray]  # weight [C, K] and bias [K] of the last linear layer

Activations = dict[str, np.ndarray]

Inspect = Callable[[Sequence[np.ndarray]], list[Activations]]  # of batches [N, 3, H, W]

STAGES = tuple(f"stage {number}" for number in range(1, 5))

FEATURES, OUTPUT, RANDOM = "features", "output", "output of a random head"


def random_head(model: ResNetV2) -> Head | None:
    """Return random numbers in the shapes of the head if its weight is zero, else None."""
    if not model.num_classes or np.any(model.last_linear.weight.numpy()):
        return None
    random = np.random.default_rng(0)
    shape = model.last_linear.weight.shape
    weight = random.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0]))
    return weight, random.standard_normal(shape[1], np.float32)


def of_model(model: ResNetV2, head: Head | None = None) -> Inspect:
    """Return the function that computes the activations; ``head`` is that of `random_head`."""
    import paddle
    from paddle import nn

    def one(batch: np.ndarray) -> Activations:
        images = paddle.to_tensor(batch)
        found = dict(zip(STAGES, (stage.numpy() for stage in model.forward_stages(images))))
        features = model.forward_joined(images)
        found[FEATURES] = found[OUTPUT] = features.numpy()
        if model.num_classes:
            found[OUTPUT] = nn.Linear.forward(model.last_linear, features).numpy()
        if head is not None:
            weight, bias = (array.astype(batch.dtype) for array in head)
            found[RANDOM] = found[FEATURES] @ weight + bias
        return found

    def inspect(batches: Sequence[np.ndarray]) -> list[Activations]:
        with paddle.no_grad():
            return [one(batch) for batch in batches]

    return inspect


def require_same_head(found: Head, model: ResNetV2) -> None:
    """Raise `DifferenceError` unless the head in an export has the bits of the model's."""
    for name, array in zip(("weight", "bias"), found):
        if not np.array_equal(array, getattr(model.last_linear, name).numpy()):
            raise DifferenceError(
                f"exported head.{name} differs from the model's; nothing was written"
            )
