"""BiT for `paddle.hub`: ``paddle.hub.load("<this folder>", "R50x1", source="local")``.

Weights are random unless ``pretrained``; a checkpoint that is missing is then downloaded.
"""

from __future__ import annotations

from bit_paddle import create_model as _create_model
from bit_paddle.models.architecture import Architecture as _Architecture

dependencies = ["paddle"]


def bit(name: str, num_classes: int | None = None, pretrained: bool = False):
    """Return any BiT network: by published name, by ``R<layers>x<width>``, or an ``.npz`` file.

    ``num_classes`` None keeps the published head (of an architecture's name: no head), a number
    gives a new head of zeros, 0 gives features. Images are [N, 3, H, W], RGB in [-1, 1].
    ``python -m bit_paddle.catalog`` lists the published names.
    """
    if num_classes is None and _Architecture.parse(name) is not None:
        num_classes = 0
    return _create_model(name, num_classes, pretrained)


def R50x1(num_classes: int | None = None, pretrained: bool = False):
    """Return BiT-M R50x1 (23.5 M parameters and its head): see ``bit``."""
    return bit("BiT-M-R50x1", num_classes, pretrained)


def R50x3(num_classes: int | None = None, pretrained: bool = False):
    """Return BiT-M R50x3 (211.2 M parameters and its head): see ``bit``."""
    return bit("BiT-M-R50x3", num_classes, pretrained)


def R101x1(num_classes: int | None = None, pretrained: bool = False):
    """Return BiT-M R101x1 (42.5 M parameters and its head): see ``bit``."""
    return bit("BiT-M-R101x1", num_classes, pretrained)


def R101x3(num_classes: int | None = None, pretrained: bool = False):
    """Return BiT-M R101x3 (381.8 M parameters and its head): see ``bit``."""
    return bit("BiT-M-R101x3", num_classes, pretrained)


def R152x2(num_classes: int | None = None, pretrained: bool = False):
    """Return BiT-M R152x2 (232.2 M parameters and its head): see ``bit``."""
    return bit("BiT-M-R152x2", num_classes, pretrained)


def R152x4(num_classes: int | None = None, pretrained: bool = False):
    """Return BiT-M R152x4 (928.3 M parameters and its head): see ``bit``."""
    return bit("BiT-M-R152x4", num_classes, pretrained)
