"""Load a detector from the file that training wrote. Imports Paddle."""

from __future__ import annotations

import math
import os

from bit_paddle.errors import CheckpointError
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.detection.configuration import Detector, network
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.models.stages import WithBackbone
from bit_paddle.models.weights import fill


def load_detector(path: str | os.PathLike) -> tuple[WithBackbone, Detector]:
    """Return the network and the description of the detector in an ``.npz`` file.

    Errors: `MissingFileError`; `CheckpointError` (also: a file without a detector).
    """
    with CheckpointFile(path) as file:
        described = file.notes().get("detector")
        if described is None:
            raise CheckpointError(
                f"{path}: has no detector, only a network; `bit_paddle detect train` makes one"
            )
        try:
            detector = Detector.from_notes(described)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        architecture = file.architecture()
        file.check(architecture, 0)  # before memory is taken for its shapes
        expected = detector.parameters(architecture) - architecture.parameters()
        found = sum(math.prod(one.shape) for one in file.detector_arrays.values())
        if found != expected:
            raise CheckpointError(
                f"{path}: has {found:,} weights beside its backbone's, but the detector that it "
                f"describes has {expected:,}"
            )
        model = network(detector, ResNetV2(architecture, 0))
        fill(model, file, "load")
    return model, detector
