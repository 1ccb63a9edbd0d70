"""More than one look at an image: ``--views`` names views whose probabilities are averaged.

The first look is the model's own, as without ``--views``. The words multiply: ``flip,five`` makes
ten looks, each of the five crops and its mirror image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from bit_paddle.data import loader
from bit_paddle.data.images import Images
from bit_paddle.data.preprocessing import Look, Preprocessing
from bit_paddle.errors import ConfigError, did_you_mean
from bit_paddle.inference.trained import TrainedFile, required_preprocessing
from bit_paddle.models.losses import LOSSES

FLIP, FIVE, SCALES = "flip", "five", "scales"

WORDS = (FLIP, FIVE, SCALES)

FACTORS = (1.0, 0.75, 1.25)  # of SCALES; the network is fully convolutional

_CORNERS = tuple(itertools.product((0, 1), (0, 1)))

_LEAST = 32  # pixels of a side that the network needs

HELP = (
    "more than one look at each image: the probabilities of all views are averaged. Words, "
    "separated by commas: flip (the image and its mirror image: twice the work), five (the centre "
    "and the four corners: 5 times), scales (at 1, 0.75 and 1.25 times the crop: 3.1 times). Words "
    "multiply: flip,five is 10 times the work (default: one view)"
)


def parse(text: str | None) -> tuple[str, ...]:
    """Return the words of ``--views``, in the order of `WORDS`; () for None.

    Raises `ConfigError` for other words, and for a list of words.
    """
    if not isinstance(text, (str, type(None))):
        raise ConfigError(f"--views: is {text!r}, expected words in one text, such as 'flip,five'")
    words = [] if text is None else [word.strip() for word in text.split(",")]
    for word in words:
        if word not in WORDS:
            raise ConfigError(
                f"--views: is {text!r}: {did_you_mean(word, WORDS)}; expected one or more of "
                f"{', '.join(WORDS)}, separated by commas"
            )
    return tuple(word for word in WORDS if word in words)


def cost(words: Sequence[str]) -> tuple[int, float]:
    """Return the number of views, and their work in times that of one view."""
    count = (1 + (FLIP in words)) * (1 + 4 * (FIVE in words))
    if SCALES not in words:
        return count, float(count)
    return count * len(FACTORS), count * sum(factor**2 for factor in FACTORS)


def note(words: Sequence[str]) -> str:
    """Return the cost of the views in words."""
    count, work = cost(words)
    return f"note: --views {','.join(words)}: {count} views, about {work:.3g} times the work of one"


def looks(words: Sequence[str], file: TrainedFile, flip: bool = True) -> list[Look]:
    """Return the looks of ``words``; the first one is the own preprocessing of the model ``file``.

    ``flip`` False forbids mirrored views: the data's description says that they have other labels.
    Raises `ConfigError` for these, for a model that was trained without mirrored images, and for
    views that are too small for the network.
    """
    view = required_preprocessing(file)
    if FLIP in words and not (flip and file.flip):
        reason = "the model was trained with --no-flip" if flip else "the data say flip: false"
        raise ConfigError(
            f"--views flip: {reason}: a mirrored image may have another label; omit flip"
        )
    factors = FACTORS if SCALES in words else FACTORS[:1]
    least = min(round(factor * view.crop) for factor in factors)
    if least < _LEAST <= view.crop:
        raise ConfigError(
            f"--views scales: {min(FACTORS):g} of the crop, {view.crop} pixels, is {least}, and "
            f"the network needs {_LEAST}; omit scales, or give a larger --crop"
        )
    return [
        Look(_scaled(view, factor), corner, mirrored)
        for factor in factors
        for corner in (None, *(_CORNERS if FIVE in words else ()))
        for mirrored in (False, *((True,) if FLIP in words else ()))
    ]


def _scaled(view: Preprocessing, factor: float) -> Preprocessing:
    """Return ``view`` of the same part of an image, in ``factor`` times the pixels per side."""
    resize = view.resize and round(factor * view.resize)
    return replace(view, crop=round(factor * view.crop), resize=resize)


def infer(
    compute: Callable[[np.ndarray], np.ndarray],
    images: Images,
    looks: Sequence[Look],
    batch: int,
    workers: int,
    loss: str,
) -> Iterator[tuple[np.ndarray, loader.MicroBatch]]:
    """Yield the outputs [N, K] of each batch of ``images``, and the batch.

    ``compute`` returns the outputs of pixels. One look gives just these outputs. Several looks give
    logits float64 whose probabilities, by the ``loss``, are the mean of those of the looks.
    """
    found: list[np.ndarray] = []
    for part in loader.batches_of_looks(images, looks, batch, workers):
        found.append(compute(part.images))
        if len(found) == len(looks):
            yield joined(found, loss), part
            found = []


def joined(logits: list[np.ndarray], loss: str) -> np.ndarray:
    """Return the outputs of one look, or the logits whose probabilities are the mean of several.

    ``logits`` has an array [N, K] per look. See `infer`.
    """
    if len(logits) == 1:
        return logits[0]
    with np.errstate(invalid="ignore"):  # of a model that diverged
        return LOSSES[loss].mean_logits(np.stack(logits).astype(np.float64))
