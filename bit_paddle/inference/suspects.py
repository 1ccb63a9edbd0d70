"""Labels that the other images contradict: a class for each image, predicted from the others.

The features of a trained network are mapped to classes by ridge regression, leave-one-out: each
image is judged by all other images and never by its own label. On clothing10 with planted wrong
labels this names 19 of 30, where the votes of the nearest neighbours name 13 to 14.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from bit_paddle.data import loader
from bit_paddle.data.images import Images
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.inference.model import TrainedModel
from bit_paddle.inference.trained import required_preprocessing
from bit_paddle.system.progress import progress_bar

SCALES = (1.0, 0.5, 0.75, 1.25, 1.5, 1.75, 2.0)  # of the side that the model takes

PENALTIES = np.geomspace(1e-2, 1e3, 11)  # of ridge regression; features have length 1 per scale

TEMPERATURES = np.geomspace(0.02, 1, 18)


class Features(NamedTuple):
    """Features of N images, centred and of length 1 per scale.

    ``main`` float32 [N, C] are those of the model's own scale, mean of the image and its mirror
    image. ``all`` float32 [N, 7 * C] are those of all `SCALES`, divided by their deviations first.
    """

    main: np.ndarray
    all: np.ndarray


def features(model: TrainedModel, parts: list[Images], batch: int, workers: int) -> Features:
    """Return the features of the images of all ``parts`` together. Images are squashed to squares.

    Errors: `ConfigError` for a model without features or with an unknown resolution; `DataError`.
    """
    view, compute = required_preprocessing(model.file), model.function(head=False)
    sides = [max(32, round(scale * view.crop)) for scale in SCALES]
    widest = Preprocessing(max(sides), filter=view.filter)
    found: list[list[np.ndarray]] = [[] for _ in SCALES]
    with progress_bar(desc="features", unit="img", total=sum(map(len, parts))) as bar:
        for images in parts:
            for part in loader.evaluation_batches(images, widest, batch, workers):
                for side, results in zip(sides, found):
                    pixels = _resized(part.images, side)
                    mirrored = np.ascontiguousarray(pixels[..., ::-1])
                    few = max(1, int(batch * min(1, (view.crop / side) ** 2)))  # same memory
                    for top in range(0, len(pixels), few):
                        rows = slice(top, top + few)
                        results.append((compute(pixels[rows]) + compute(mirrored[rows])) / 2)
                bar.update(len(part.labels))
    scales = [np.concatenate(results) for results in found]
    return Features(_centred(scales[0]), np.concatenate(list(map(_scaled, scales)), axis=1))


def _resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return images uint8 [N, 3, S, S] resized to ``side``."""
    if pixels.shape[-1] == side:
        return pixels
    images = (Image.fromarray(one.transpose(1, 2, 0)) for one in pixels)
    resized = (image.resize((side, side), Image.Resampling.BILINEAR) for image in images)
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in resized])


def _centred(values: np.ndarray) -> np.ndarray:
    values = values - values.mean(axis=0)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.where(length, length, 1)).astype(np.float32)


def _scaled(values: np.ndarray) -> np.ndarray:
    return _centred(values / np.maximum(values.std(axis=0), 1e-6))


def probabilities(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the probability of each class for each image by the other images, [N, classes].

    ``features`` is [N, C], ``labels`` int64 [N]. The penalty of the regression is the one with the
    least error, and the temperature of the softmax the one with the highest likelihood, both
    leave-one-out.
    """
    targets = np.eye(classes)[labels]
    mean = targets.mean(axis=0)
    left, values = _basis(features)
    within = left.T @ (targets - mean)
    best, scores = np.inf, targets
    for penalty in PENALTIES:
        kept = values / (values + penalty)
        leverage = np.minimum((left**2) @ kept, 1 - 1e-6)[:, None]
        fitted = left @ (kept[:, None] * within)
        others = (fitted - leverage * (targets - mean)) / (1 - leverage) + mean
        error = ((others - targets) ** 2).mean()
        if error < best:
            best, scores = error, others
    rows = np.arange(len(labels))
    chances = [_softmax(scores / temperature) for temperature in TEMPERATURES]
    return max(chances, key=lambda each: np.log(each[rows, labels] + 1e-30).mean())


def _basis(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the left singular vectors [N, R] and the squares of the singular values [R]."""
    if len(features) <= features.shape[1]:
        values, left = np.linalg.eigh(features @ features.T)
        return left, np.maximum(values, 0)
    values, right = np.linalg.eigh(features.T @ features)
    kept = values > 1e-5 * values[-1]
    return features @ right[:, kept] / np.sqrt(values[kept]), values[kept]


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def nearest_of_class(features: np.ndarray, labels: np.ndarray, index: int, wanted: int) -> int:
    """Return the image of class ``wanted`` with the features nearest to those of ``index``."""
    chosen = np.flatnonzero(labels == wanted)
    return int(chosen[(features[chosen] @ features[index]).argmax()])
