"""BiT for `paddle.hub`: ``paddle.hub.load("<this folder>", "R50x1", source="local")``.

Weights are random by default. With ``pretrained=True`` they are loaded from the published
checkpoint, which is downloaded if it is missing.
"""

from __future__ import annotations

from bit_paddle import create_model as _create_model
from bit_paddle.models.architecture import Architecture as _Architecture

dependencies = ["paddle"]


def bit(name: str, num_classes: int | None = None, pretrained: bool = False):
    """Return the BiT network for a published name, ``R<layers>x<width>``, or a file of weights.

    ``num_classes`` None keeps the published head (an architecture has none), a number gives a new
    head of zeros, 0 gives features. Images are [N, 3, H, W], RGB in [-1, 1].
    ``python -m bit_paddle.catalog`` lists the published names, and those in other libraries.
    """
    if num_classes is None and _Architecture.parse(name) is not None:
        num_classes = 0
    return _create_model(name, num_classes, pretrained)


def R50x1(num_classes: int | None = None, pretrained: bool = False):
    """Return BiT-M R50x1 (23.5 million parameters without the head); see ``bit``."""
    return bit("BiT-M-R50x1", num_classes, pretrained)


def R50x3(num_classes: int | None = None, pretrained: bool = False):
    """Return BiT-M R50x3 (211.2 million parameters without the head); see ``bit``."""
    return bit("BiT-M-R50x3", num_classes, pretrained)


def R101x1(num_classes: int | None = None, pretrained: bool = False):
    """Return BiT-M R101x1 (42.5 million parameters without the head); see ``bit``."""
    return bit("BiT-M-R101x1", num_classes, pretrained)


def R101x3(num_classes: int | None = None, pretrained: bool = False):
    """Return BiT-M R101x3 (381.8 million parameters without the head); see ``bit``."""
    return bit("BiT-M-R101x3", num_classes, pretrained)


def R152x2(num_classes: int | None = None, pretrained: bool = False):
    """Return BiT-M R152x2 (232.2 million parameters without the head); see ``bit``."""
    return bit("BiT-M-R152x2", num_classes, pretrained)


def R152x4(num_classes: int | None = None, pretrained: bool = False):
    """Return BiT-M R152x4 (928.3 million parameters without the head); see ``bit``."""
    return bit("BiT-M-R152x4", num_classes, pretrained)
