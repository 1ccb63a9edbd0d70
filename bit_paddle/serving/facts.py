"""What `GET /model` tells about a model and about the limits of its server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bit_paddle import __version__
from bit_paddle.errors import BitPaddleError
from bit_paddle.inference import card
from bit_paddle.inference.model import TrainedModel
from bit_paddle.inference.trained import (
    TrainedFile,
    required_calibration,
    required_preprocessing,
)
from bit_paddle.runs import folder
from bit_paddle.serving.settings import ServerSettings


def describe(model: TrainedModel, settings: ServerSettings) -> dict[str, Any]:
    """Return the facts as JSON; the model must be loaded. An unknown recipe or accuracy is None."""
    file = model.file
    recipe, accuracy = _of_run(file)
    calibrated = _works(required_calibration, file, "calibrated")
    return {
        "name": folder.model_name(file.path),
        "network": file.architecture,
        "head": file.head if file.outputs else None,
        "classes": file.classes or [],
        "outputs": file.outputs,
        "features": file.features,
        "preprocessing": model.preprocessing,
        "crop": required_preprocessing(file).crop,
        "loss": file.loss,
        "recipe": recipe,
        "accuracy": accuracy,
        "calibrated": calibrated,
        "maps": _works(model.map_function),
        "unknown": calibrated,
        "limits": {
            "body_mb": settings.body_mb,
            "image_mb": settings.image_mb,
            "megapixels": settings.megapixels,
            "images": settings.images,
        },
        "version": __version__,
    }


def _works(call: Callable[..., object], *arguments: object) -> bool:
    try:
        call(*arguments)
    except BitPaddleError:
        return False
    return True


def _of_run(file: TrainedFile) -> tuple[dict[str, str] | None, dict[str, Any] | None]:
    """Return the recipe of a model and its accuracy, as far as its file and its run tell them."""
    try:
        facts = card.facts_of(file)
    except (BitPaddleError, OSError):  # an export has no notes
        return None, None
    known = {"start": facts.start, "data": facts.data, **dict(facts.recipe)}
    recipe = {title: text for title, text in known.items() if text}
    accuracy = None
    if facts.top1 is not None:
        accuracy = {"top1": facts.top1, "images": facts.measured, "how": facts.how}
    return recipe or None, accuracy
