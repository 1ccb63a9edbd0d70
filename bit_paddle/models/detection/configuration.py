"""What a detector is, for the file of its model: classes, anchors, heads. Loads no Paddle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from bit_paddle.errors import CheckpointError
from bit_paddle.models.architecture import GROUPS, Architecture
from bit_paddle.models.detection import cost
from bit_paddle.models.detection.anchors import (
    MATCHINGS,
    PROPOSAL_MATCHING,
    SHAPES,
    AnchorShapes,
    Matching,
    for_proposals,
)
from bit_paddle.models.detection.cost import CHANNELS, DEPTH, METHODS

if TYPE_CHECKING:
    from bit_paddle.models.detection.faster_rcnn import FasterRCNN
    from bit_paddle.models.detection.retinanet import RetinaNet
    from bit_paddle.models.resnetv2 import ResNetV2

KINDS = ("retinanet", "faster_rcnn")


BOX_LOSSES = ("huber", "giou")  # the keys of `losses.BOX_LOSSES`, which needs Paddle

#: The largest channels, depth and side, and the largest base of the anchors; more is a mistake
LARGEST, LARGEST_BASE = 1 << 16, 1e4


@dataclass(frozen=True)
class Detector:
    """A detector without its backbone; ``kind`` is one of `KINDS`.

    ``recipe`` is a key of `SHAPES` and `MATCHINGS`; ``base`` is the side of the smallest square
    anchor in 8 pixels. ``box_loss``, ``p6_from_c5`` and ``depth`` are RetinaNet's alone;
    ``regions``, one of `METHODS`, is Faster R-CNN's. ``side`` is the longer side in pixels of the
    images that it was trained on.
    """

    classes: tuple[str, ...]
    recipe: str = "tpu"
    base: float = 4.0
    box_loss: str = "huber"
    p6_from_c5: bool = False
    channels: int = CHANNELS
    depth: int = DEPTH
    side: int = 1024
    kind: str = "retinanet"
    regions: str = "align"

    @property
    def shapes(self) -> AnchorShapes:
        """The shapes of the anchors."""
        shapes = replace(SHAPES[self.recipe], base=self.base)
        return for_proposals(shapes) if self.kind == "faster_rcnn" else shapes

    @property
    def matching(self) -> Matching:
        """The overlaps at which an anchor must find a box."""
        return PROPOSAL_MATCHING if self.kind == "faster_rcnn" else MATCHINGS[self.recipe]

    def multiply_adds(self, architecture: Architecture, side: int) -> int:
        """Return those of a forward pass for one image of ``side`` x ``side`` pixels."""
        if self.kind == "faster_rcnn":
            return cost.two_stage_multiply_adds(
                architecture, side, len(self.classes), self.channels
            )
        return cost.multiply_adds(architecture, side, *self._heads())

    def parameters(self, architecture: Architecture) -> int:
        """Return the number of parameters, with those of the backbone."""
        if self.kind == "faster_rcnn":
            return cost.two_stage_parameters(architecture, len(self.classes), self.channels)
        return cost.parameters(architecture, *self._heads())

    def activations(
        self,
        architecture: Architecture,
        sides: tuple[int, int],
        recompute: str = "off",
        half: bool = False,
        learn: str = "all",
    ) -> int:
        """Return an estimate of the bytes of activations per image of ``sides`` (height, width)."""
        size, options = (len(self.classes), self.channels), (recompute, half, learn)
        if self.kind == "faster_rcnn":
            return cost.two_stage_activations(architecture, sides, *size, *options)
        return cost.activations(architecture, sides, *size, self.depth, *options)

    def _heads(self) -> tuple[int, int, int, bool]:
        return len(self.classes), self.channels, self.depth, self.p6_from_c5

    def notes(self) -> dict[str, Any]:
        """Return the detector as plain values, for `from_notes`."""
        values = asdict(self)
        return {key: list(one) if isinstance(one, tuple) else one for key, one in values.items()}

    @classmethod
    def from_notes(cls, notes: Any) -> Detector:
        """Return the detector that `notes` describes; raise `CheckpointError` if it is none."""
        if not isinstance(notes, Mapping) or set(notes) != set(_CHECKS):
            raise CheckpointError(f"is not a detector's description: {notes!r:.100}")
        for key, fits in _CHECKS.items():
            if not fits(notes[key]):
                raise CheckpointError(f"{key} of the detector is {notes[key]!r:.60}")
        values = {key: tuple(one) if isinstance(one, list) else one for key, one in notes.items()}
        return cls(**values)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and 0 < value <= LARGEST_BASE
    )


def _has_classes(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(one, str) for one in value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "classes": _has_classes,
    "recipe": lambda value: isinstance(value, str) and value in SHAPES,
    "base": _is_number,
    "box_loss": lambda value: isinstance(value, str) and value in BOX_LOSSES,
    "p6_from_c5": lambda value: isinstance(value, bool),
    "channels": lambda value: _whole(value, GROUPS) and value % GROUPS == 0,
    "depth": lambda value: _whole(value, 0),
    "side": lambda value: _whole(value, 1),
    "kind": lambda value: isinstance(value, str) and value in KINDS,
    "regions": lambda value: isinstance(value, str) and value in METHODS,
}


def network(detector: Detector, backbone: ResNetV2, seed: int = 0) -> RetinaNet | FasterRCNN:
    """Return the network of ``detector`` on ``backbone``; its heads are random, by ``seed``."""
    options = {"channels": detector.channels, "shapes": detector.shapes, "seed": seed}
    if detector.kind == "faster_rcnn":
        from bit_paddle.models.detection.faster_rcnn import FasterRCNN

        return FasterRCNN(backbone, len(detector.classes), regions=detector.regions, **options)
    from bit_paddle.models.detection.retinanet import RetinaNet

    return RetinaNet(
        backbone,
        len(detector.classes),
        depth=detector.depth,
        p6_from_c5=detector.p6_from_c5,
        **options,
    )
