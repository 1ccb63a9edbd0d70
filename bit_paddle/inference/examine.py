"""Analyze a trained model on its validation images: confusion matrix, class activation maps.

The maps are those of `predictor.class_maps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bit_paddle.data import check, loader
from bit_paddle.data.images import Images
from bit_paddle.data.labels import LabelSets
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.data.readers import registry
from bit_paddle.data.transforms import evaluation_view
from bit_paddle.errors import CheckpointError
from bit_paddle.inference import label_scores, predictor
from bit_paddle.inference.evaluation import match_classes
from bit_paddle.inference.label_scores import LabelAnalysis
from bit_paddle.inference.trained import find_trained, required_preprocessing
from bit_paddle.models import weights
from bit_paddle.models.native import build
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.runs.history import RunHistory
from bit_paddle.system import progress
from bit_paddle.system.device import select_device


class JudgedImage(NamedTuple):
    """One image, its label and the model's prediction.

    ``pixels`` uint8 [crop, crop, 3] are the network's input. ``map`` float32 [h, w] is the class
    activation map: the contribution of each position to the logit of ``prediction``. Or it is the
    ``attention`` of a local head.
    """

    name: str
    label: int
    prediction: int
    probability: float
    pixels: np.ndarray
    map: np.ndarray
    attention: bool = False


class Analysis(NamedTuple):
    """A model's confusion matrix, int64 ``confusion`` [class, prediction], and single images.

    ``wrong`` and ``right`` hold wrong and right predictions, the most confident first; ``right``
    holds at most one per class.
    """

    classes: Sequence[str]
    confusion: np.ndarray
    wrong: list[JudgedImage]
    right: list[JudgedImage]


def analyze(run: RunHistory, model: Path, count: int, batch: int = 64) -> Analysis | LabelAnalysis:
    """Evaluate ``model`` on the validation images of ``run``; return its analysis.

    ``count`` limits the wrong and the right images. Errors: those of the reader, of `find_trained`
    and of `match_classes`; `DataError` for unreadable images; `CheckpointError` for outputs that
    are not finite.
    """
    settings = run.settings
    data = registry.open_dataset(settings.dataset, **settings.data_options)
    images = data.val
    if settings.on_bad_image == "skip":
        images, _ = check.usable(images, settings.workers, every_class=False)
    trained = find_trained(str(model))
    view = required_preprocessing(trained)
    device = select_device(settings.device)
    network = weights.create_model(model)
    network.compute_with(build.choose(device, "off", lambda text: None)[0])
    network.eval()
    names, outputs = trained.classes or images.classes, match_classes(trained, images.classes)
    if isinstance(images.labels, LabelSets):
        found = [
            predictor.infer(network, part.images)
            for part in loader.evaluation_batches(images, view, batch, settings.workers)
        ]
        logits, labels = np.concatenate(found), images.labels.renumbered(outputs)
        if not np.isfinite(logits).all():
            raise CheckpointError(f"{model}: its outputs are not finite: training diverged")
        return LabelAnalysis(names, label_scores.measure(logits, labels, trained.loss))
    confusion = np.zeros((len(names), len(names)), np.int64)
    predictions: list[tuple[float, int, int, int]] = []  # probability, image, label, prediction
    batches = loader.evaluation_batches(images, view, batch, settings.workers)
    with progress.progress_bar(desc=run.name, unit="img", total=len(images)) as bar:
        for part in batches:
            logits = predictor.infer(network, part.images)
            if not np.isfinite(logits).all():
                raise CheckpointError(f"{model}: its outputs are not finite: training diverged")
            probabilities, best = trained.probabilities(logits), logits.argmax(axis=1)
            labels = outputs[part.labels]
            np.add.at(confusion, (labels, best), 1)
            top = probabilities[np.arange(len(best)), best].tolist()
            predictions += zip(top, part.indices.tolist(), labels.tolist(), best.tolist())
            bar.update(len(best))
    predictions.sort(key=_confident_first)
    wrong = [item for item in predictions if item[2] != item[3]][:count]
    # Reversed, so that the most confident prediction of a class is the one that stays.
    right_of_class = {item[2]: item for item in reversed(predictions) if item[2] == item[3]}
    right = sorted(right_of_class.values(), key=_confident_first)[:count]
    judged = [_judged(network, images, view, item) for item in (*wrong, *right)]
    return Analysis(names, confusion, judged[: len(wrong)], judged[len(wrong) :])


def _confident_first(item: tuple[float, int, int, int]) -> tuple[float, int]:
    """Return the sort key of a prediction: falling probability, then the order of the images."""
    return -item[0], item[1]


def _judged(
    network: ResNetV2,
    images: Images,
    view: Preprocessing,
    item: tuple[float, int, int, int],
) -> JudgedImage:
    probability, index, label, prediction = item
    pixels = evaluation_view(images.image(index), view)
    maps = predictor.class_maps(network, pixels[None], np.array([prediction])).maps
    name = Path(str(images.name(index))).name
    shown = (pixels.transpose(1, 2, 0), maps[0], network.reads_two_stages)
    return JudgedImage(name, label, prediction, probability, *shown)
