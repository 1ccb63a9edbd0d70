"""Measure a trained model on the images of a data set."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle import errors
from bit_paddle.data import check, identity
from bit_paddle.data.images import Images
from bit_paddle.data.labels import Labels, LabelSets, joined
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.data.readers import registry
from bit_paddle.inference import metrics, scores, views
from bit_paddle.inference.calibration import Calibrated, Calibration
from bit_paddle.inference.label_evaluation import LabelEvaluation
from bit_paddle.inference.model import TrainedModel
from bit_paddle.inference.scores import PerClass, PerImage, Reliability
from bit_paddle.inference.strangers import Strangers
from bit_paddle.inference.trained import TrainedFile
from bit_paddle.system import progress
from bit_paddle.system.text import plural

SPLITS = ("val", "train", "test", "all")


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model for N images with a label."""

    logits: np.ndarray  # float32 [N, K]
    labels: Labels  # int64 [N], or `LabelSets`: numbers of outputs
    loss: str  # the name of the model's loss, which makes probabilities of the logits
    parts: tuple[Images, ...]  # where the images are, in this order

    @property
    def names(self) -> list[str]:
        """The paths of the images, or their numbers in a file that holds many."""
        return [part.name(index) for part in self.parts for index in range(len(part))]

    @property
    def digests(self) -> tuple[str, ...]:
        """A hash of the names and labels of each part."""
        return tuple(identity.digest((part, np.arange(len(part)))) for part in self.parts)


@dataclass(frozen=True)
class Evaluation:
    """The result of a model on ``images`` images: accuracies from 0 to 1, and the mean loss.

    ``balanced_accuracy`` is the mean of the top-1 accuracies per class, over the classes that have
    images. So a rare class counts as much as a frequent one.

    Probability is the softmax over the classes, or, for a model with the sigmoid loss, one sigmoid
    per class; these do not add up to 1. Scores that are undefined are NaN.
    """

    model: Path
    preprocessing: Preprocessing
    top1: float
    top5: float
    balanced_accuracy: float
    loss: float
    images: int
    classes: list[str]  # the model's class names, in the order of its outputs
    outputs: Outputs  # logits and labels of all images
    views: tuple[str, ...] = ()  # the words of --views; empty for one view
    calibration: Calibration | None = None  # the model's, if there is one for such views
    strangers: Strangers | None = None  # of --strangers

    @cached_property
    def confusion(self) -> np.ndarray:
        """The numbers of images, int64 [class, prediction]."""
        count = len(self.classes)
        pairs = self.outputs.labels * count + self.per_image.predictions
        return np.bincount(pairs, minlength=count**2).reshape(count, count)

    @cached_property
    def per_image(self) -> PerImage:
        """Prediction, confidence, Brier score and likelihood of each image, arrays [N]."""
        return scores.per_image(self.outputs.logits, self.outputs.labels, self.outputs.loss)

    @cached_property
    def scores(self) -> PerClass:
        """Precision, recall, F1, AUC (one against rest) and average precision, arrays [K]."""
        return scores.per_class(
            self.outputs.logits, self.per_image, self.outputs.loss, len(self.classes)
        )

    @cached_property
    def _summary(self) -> dict[str, float]:
        return scores.summary(self.per_image, len(self.classes))

    @property
    def macro_f1(self) -> float:
        """The mean of F1 over the classes that have images or predictions."""
        return self._summary["macro_f1"]

    @property
    def kappa(self) -> float:
        """Cohen's kappa: agreement of predictions and labels beyond chance; 1 is perfect."""
        return self._summary["kappa"]

    @property
    def ece(self) -> float:
        """The expected calibration error, 15 bins of equal width; see `scores.Reliability`."""
        return self._summary["ece"]

    @property
    def brier(self) -> float:
        """The Brier score: squared errors of the probabilities, summed over the classes.

        It is the mean over the images, from 0 (perfect) to 2 with softmax.
        """
        return self._summary["brier"]

    @property
    def nll(self) -> float:
        """The mean of -log(probability of the label); with softmax it is the loss."""
        return self._summary["nll"]

    @property
    def macro_auc(self) -> float:
        """The mean AUC over the classes where it is defined; it has no interval."""
        return scores.macro(self.scores.auc)

    @property
    def mean_average_precision(self) -> float:
        """The mean of the average precision over the classes with images; it has no interval."""
        return scores.macro(self.scores.average_precision)

    @cached_property
    def reliability(self) -> Reliability:
        """Images, confidence and right predictions in 15 bins of the highest probability."""
        found = self.per_image
        return scores.reliability(found.confidences, found.right)

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95% intervals, by the names of the attributes.

        Wilson's for ``top1``. Percentile bootstrap over images for ``balanced_accuracy``,
        ``macro_f1``, ``kappa``, ``ece``, ``brier`` and ``nll``: 1,000 resamples, seed 0.
        """
        found = scores.bootstrap(self.per_image, len(self.classes))
        return {"top1": metrics.interval(self.top1, self.images), **found}

    @cached_property
    def calibrated(self) -> Calibrated | None:
        """ECE, Brier score and likelihood with the model's temperature; None without one."""
        found, outputs = self.calibration, self.outputs
        if found is None:
            return None
        images = scores.per_image(outputs.logits, outputs.labels, outputs.loss, found.temperature)
        values = scores.summary(images, len(self.classes))
        again = not set(found.digests).isdisjoint(outputs.digests)
        return Calibrated(values["ece"], values["brier"], values["nll"], again)

    @property
    def per_class(self) -> dict[str, float | None]:
        """Return {class: accuracy}; None for a class without images."""
        recall = (None if np.isnan(share) else float(share) for share in self.scores.recall)
        return dict(zip(self.classes, recall))

    def prediction(self, image: int) -> str:
        """Return the predicted class of an image by its number."""
        return self.classes[self.per_image.predictions[image]]

    def __str__(self) -> str:
        return metrics.in_words(self)

    def __repr__(self) -> str:
        return f"<Evaluation {self}>"

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><td>{escape(name)}</td><td>{'' if share is None else f'{share:.1%}'}</td></tr>"
            for name, share in itertools.islice(self.per_class.items(), 20)
        )
        more = f"<p>and {len(self.classes) - 20:,} more</p>" if len(self.classes) > 20 else ""
        head = "<tr><th>class</th><th>accuracy</th></tr>"
        return f"<p>{escape(str(self))}</p><table>{head}{''.join(rows)}</table>{more}"


def open_split(
    dataset: str,
    datadir: str | None,
    split: str,
    options: Mapping[str, Any],
    on_bad_image: str,
    workers: int,
    notes: bool = True,
) -> tuple[Sequence[str], list[Images]]:
    """Return the classes and the parts of a ``split`` of a data set; "all" has every part.

    ``options`` are more arguments of `registry.open_dataset`. Skipped images are reported on
    standard error, and so are the data's notes with ``notes``. Errors: those of
    `registry.open_dataset`; `ConfigError` if the data have no test images; `DataError` for
    unreadable images, unless ``on_bad_image`` is "skip".
    """
    for name, value, choices in (
        ("split", split, SPLITS),
        ("on_bad_image", on_bad_image, check.CHOICES),
    ):
        if value not in choices:
            raise errors.ConfigError(f"{name}: is {value!r}: choose from {', '.join(choices)}")
    data = registry.open_dataset(dataset, datadir, **options)
    for note in data.notes if notes else ():
        print(f"note: {note}", file=sys.stderr)
    if split == "test" and not data.test:
        raise errors.ConfigError(
            f"split: is 'test', but {dataset} has no test images. Your own images have them in "
            "test/ or test.csv, beside train and val. With train and test alone, and in published "
            "data sets, they are the validation images: take 'val', or give val_fraction if the "
            "run had it"
        )
    names = ("train", "val", "test") if split == "all" else (split,)
    parts = [getattr(data, name) for name in names if getattr(data, name)]
    if not parts:
        raise errors.ConfigError(
            f"split: is {split!r}, but {dataset} has too few images to hold some out for "
            "validation; take 'all', which measures every image"
        )
    if on_bad_image == "skip":
        for number, images in enumerate(parts):
            parts[number], skipped = check.usable(images, workers, every_class=False)
            for fault in skipped:
                print(f"skipped: {fault}", file=sys.stderr)
    else:
        check.require_usable([(part, np.arange(len(part))) for part in parts], workers)
    return data.train.classes, parts


def measure(
    model: TrainedModel,
    classes: Sequence[str],
    parts: Sequence[Images],
    batch: int,
    workers: int,
    words: Sequence[str] = (),
    flip: bool = True,
) -> Evaluation | LabelEvaluation:
    """Evaluate ``model`` on all images of ``parts``; their labels are indices into ``classes``.

    The result is a `LabelEvaluation` if an image may have several labels. ``words`` name several
    views of each image, and ``flip`` False forbids mirrored ones: see `views.looks`. Errors:
    `ConfigError` if the classes do not match, if the resolution is unknown, or for views or labels
    that do not suit the model or the data.
    """
    looks = views.looks(words, model.file, flip)
    known = model.file.calibration
    fits = known is not None and not words and known.crop == looks[0].preprocessing.crop
    outputs = match_classes(model.file, classes)
    names = model.file.classes or list(classes)
    several = isinstance(parts[0].labels, LabelSets)
    if several and model.file.loss != "sigmoid":
        raise errors.ConfigError(
            f"{model.file.path}: was trained with the {model.file.loss} loss, for exactly one "
            "label per image, but an image of these data may have several; train a model on these"
        )
    compute = model.function()
    batches = itertools.chain.from_iterable(
        views.infer(compute, images, looks, batch, workers, model.file.loss) for images in parts
    )
    tally = metrics.Tally(len(names))
    total, done = sum(map(len, parts)), 0
    every, labels = np.empty((total, len(names)), np.float32), np.empty(total, np.int64)
    if several:
        labels = joined([images.labels for images in parts]).renumbered(outputs)
    with progress.progress_bar(desc="evaluation", unit="img", total=total) as bar:
        for logits, part in batches:
            rows = slice(done, done + len(part.labels))
            every[rows] = logits
            if not several:
                labels[rows] = outputs[part.labels]
                tally.add(logits, labels[rows], model.file.loss)
            done = rows.stop
            bar.update(len(part.labels))
    facts: dict[str, Any] = {
        "model": model.file.path,
        "preprocessing": looks[0].preprocessing,
        "classes": names,
        "outputs": Outputs(every, labels, model.file.loss, tuple(parts)),
        "views": tuple(words),
        "calibration": known if fits else None,
    }
    return LabelEvaluation(**facts) if several else Evaluation(**tally.summary(), **facts)


def match_classes(file: TrainedFile, classes: Sequence[str]) -> np.ndarray:
    """Return the index of the model's output for each of the data's ``classes``, int64 [K].

    The classes of a model of `bit_paddle.train` are matched by name, and those of other models too
    if they have all the names of the data. Otherwise their outputs must have the order of the
    data's classes. Raises `ConfigError` if the two do not match, or if a name of the data stands
    for several outputs: ImageNet has two classes "crane".
    """
    known = file.classes or []
    if list(classes) == known:
        return np.arange(len(classes))
    outputs = {name: output for output, name in enumerate(known)}
    unknown = [name for name in classes if name not in outputs]
    if file.trained_here or not unknown:
        if unknown:
            raise errors.ConfigError(
                f"{file.path}: was not trained on {len(unknown)} classes of the data, the "
                f"first is {unknown[0]!r}; {errors.did_you_mean(unknown[0], outputs)}"
            )
        twice = next((name for name in classes if known.count(name) > 1), None)
        if twice is not None:
            raise errors.ConfigError(
                f"{file.path}: {known.count(twice)} of its outputs are called {twice!r}; the "
                "data's class of that name could be each of them"
            )
        return np.array([outputs[name] for name in classes])
    if len(classes) != file.outputs:
        raise errors.ConfigError(
            f"{file.path}: its head has {file.outputs} outputs, but the data have "
            f"{plural(len(classes), 'class')} ({', '.join(classes[:4])}"
            f"{', …' * (len(classes) > 4)}). Classes are paired by name: give the "
            "folders the names of the model's classes"
        )
    for place, name in enumerate(classes):
        if name in outputs and known[place] != name:
            raise errors.ConfigError(
                f"{file.path}: its output {outputs[name]} is {name!r}, which is class {place} of "
                f"the data, and it has no class {unknown[0]!r}; expected the names or the order of "
                "the data's classes"
            )
    if known:
        pairs = [f"{name} = {other}" for name, other in zip(classes, known) if name != other]
        text = f"{', '.join(pairs[:3])}{', …' if len(pairs) > 3 else ''}"
        print(errors.printable(f"note: classes are paired by their order: {text}"), file=sys.stderr)
    return np.arange(len(classes))
