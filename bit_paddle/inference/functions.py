"""The functions of a trained model, whichever runtime computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bit_paddle.data.preprocessing import Preprocessing

Function = Callable[[np.ndarray], np.ndarray]  # of images [N, 3, H, W], as for `to_device`


class Functions(NamedTuple):
    """The functions of a model: images to logits [N, K], and images to features [N, C].

    ``maps`` are `predictor.class_maps` of the model, and ``pooled`` is `ResNetV2.forward_pooled`;
    only Paddle computes them, from weights. ``logits`` is None for a model without a head, and
    ``features`` for a folder that was exported with its head. ``computed_by`` names what may change
    their last digits: the runtime and its version, the device, the precision and the operators.
    """

    logits: Function | None
    features: Function | None
    maps: Callable[..., ClassMaps] | None = None
    pooled: Function | None = None
    computed_by: str = ""


class ClassMaps(NamedTuple):
    """Logits [N, K], and of one output per image its map [N, h, w] and the head's bias [N]."""

    logits: np.ndarray
    maps: np.ndarray
    biases: np.ndarray


def of_pixels(run: Function) -> Function:
    """Return ``run`` of float32 images as a function that scales images uint8 to [-1, 1] first."""

    def scaled(images: np.ndarray) -> np.ndarray:
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / np.float32(127.5) - np.float32(1)
        return run(images)

    return scaled


def of_view(functions: Functions, view: Preprocessing | None) -> Functions:
    """Return ``functions`` whose images uint8 are scaled by the mean and std of ``view``."""
    if view is None or view.is_scaled_as_bit:
        return functions
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (view.mean, view.std))

    def scaled(function: Callable) -> Callable:
        def compute(images: np.ndarray, *arguments: Any) -> Any:
            if images.dtype == np.uint8:
                images = (images.astype(np.float32) / np.float32(255) - mean) / std
            return function(images, *arguments)

        return compute

    changed = {name: scaled(f) for name, f in functions._asdict().items() if callable(f)}
    return functions._replace(**changed)
