"""A trained model as one object: it turns images into classes, logits or features."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from bit_paddle.data.transforms import evaluation_view
from bit_paddle.errors import ConfigError, DataError, did_you_mean
from bit_paddle.inference import calibration, explain, inputs, outputs, runtimes, trained
from bit_paddle.inference import views as views_of
from bit_paddle.inference.explain import Explanation
from bit_paddle.inference.trained import TrainedFile, required_preprocessing
from bit_paddle.models import heads
from bit_paddle.system import environment, progress
from bit_paddle.system.runtimes import AUTO, CHOICES

if TYPE_CHECKING:
    from bit_paddle.inference.functions import ClassMaps, Functions

DEVICES, AMP = ("auto", "cpu", "gpu"), ("auto", "off", "bf16", "fp16")

BATCH = 32  # images computed at once


class TrainedModel:
    """A trained model, its preprocessing and its classes; `bit_paddle.load` returns one.

    ``images`` below is one image or a list of them: a path, a web address (http, https), a PIL
    image, or an array uint8 [H, W, 3] in RGB. Errors of all methods: `MissingFileError`,
    `DataError` (not an image), `DownloadError`; `ConfigError` if the resolution is unknown or the
    model has no such output.

        model = bit_paddle.load("BiT-M-R50x1-ILSVRC2012")
        model("cat.jpg")                        [("tabby, tabby cat", 0.93), …]
        model.features(["cat.jpg", "dog.jpg"])  float32 [2, 2048]
    """

    def __init__(
        self,
        file: TrainedFile,
        device: str = "auto",
        amp: str = "off",
        head: bool = True,
        runtime: str = AUTO,
    ):
        for name, value, choices in (
            ("device", device, DEVICES),
            ("amp", amp, AMP),
            ("runtime", runtime, CHOICES),
        ):
            if value not in choices:
                raise ConfigError(f"{name}: is {value!r}: {did_you_mean(str(value), choices)}")
        self.file, self._head = file, head
        self._machine = {"runtime": runtime, "device": device, "amp": amp}

    # --- Facts ----------------------------------------------------------------------------------

    @property
    def classes(self) -> list[str]:
        """The class names in the order of the outputs; numbers if the names are unknown."""
        return [self.file.class_name(k) for k in range(self.file.outputs)]

    @property
    def architecture(self) -> str:
        """The network's name, such as ``R50x1``; empty for an exported folder without a name."""
        return self.file.architecture

    @property
    def preprocessing(self) -> str:
        """A description of the preprocessing, as text."""
        view = self.file.preprocessing
        if view is None:
            return "unknown: load the model with crop=, the side of the images in pixels"
        side, scaling = f"{view.crop} x {view.crop} pixels", view.filter
        if not view.is_scaled_as_bit:
            scaling += f", mean {view.mean}, std {view.std}"
        if view.resize is None:
            return f"RGB, resized to {side}, any shape is squashed ({scaling})"
        return f"RGB, shorter side resized to {view.resize} pixels ({scaling}), centre of {side}"

    # --- Predictions ----------------------------------------------------------------------------

    def __call__(
        self,
        images: Any,
        top: int = 5,
        views: str | None = None,
        calibrated: bool = False,
        unknown: float | str | None = None,
        threshold: float | str | None = None,
    ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """Return the ``top`` classes as (name, probability), the most probable first.

        The result for one image is a list; for a list of images it is a list of lists. The
        probabilities of a model with the sigmoid loss are independent, and do not add up to 1.
        ``views`` such as "flip,five" averages them over several views of each image, as the flag
        ``--views`` does; the work grows with their number. ``calibrated`` gives the probabilities
        at the model's temperature. ``unknown``, a share such as 0.05 or "5%", gives an empty list
        for an image that seems to show none of the classes. Both need a calibration of the model,
        and one view. With ``threshold`` the result has all classes whose probability reaches it, in
        place of the ``top`` ones; "auto" takes the threshold per label of the calibration.
        """
        if not isinstance(top, int) or top < 1:
            raise ConfigError(f"top: is {top!r}, expected a whole number of 1 or more")
        share = None if unknown is None else calibration.parse_share(unknown, "unknown")
        least = None if threshold is None else calibration.parse_threshold(threshold, "threshold")
        trained.check_confidence(self.file, views_of.parse(views), calibrated, share, least)
        logits = self.logits(images, views)
        predictions = outputs.best_classes(self.file, logits, top, calibrated, least)
        if share is not None:
            strange = trained.are_unknown(self.file, logits, share)
            predictions = [[] if flag else row for flag, row in zip(strange, predictions)]
        return predictions if _are_many(images) else predictions[0]

    def preprocess(self, image: Any) -> np.ndarray:
        """Return the pixels that the network gets for one image: uint8 [3, S, S], RGB.

        The commands compute the same pixels. `logits` and `features` scale them to [-1, 1], or by
        the mean and std of a model of another library.
        `numpy.stack` makes a batch of several images.
        """
        view = required_preprocessing(self.file)
        return evaluation_view(inputs.read_image(image), view)

    def logits(self, images: Any, views: str | None = None) -> np.ndarray:
        """Return the outputs of the head, float32 [N, K]; N is 1 for one image.

        With ``views`` they are float64, and their probabilities are the mean of those of the views.

        ``images`` may also be a preprocessed batch [N, 3, H, W], uint8 or float32 in [-1, 1]. Such
        a batch is computed at once. Raises `ConfigError` for a model without a head.
        """
        return self._compute(True, images, self.file.outputs, views)

    def explain(self, image: Any, label: str | int | None = None) -> Explanation:
        """Return where the network looks in one image: its class activation map for ``label``.

        ``label`` is a class name or the number of an output; None is the predicted class. The mean
        of the map plus a bias is the logit of the class: nothing else contributes to it. A model
        with a local head shows its attention instead, which has no ``label``. In a
        notebook the result shows itself as a picture. Raises `ConfigError` for an export and for
        a runtime other than Paddle, which have no maps, and for an unknown class.
        """
        compute = self.map_function()
        view = required_preprocessing(self.file)
        output = None if label is None else explain.output_of(self.file, label)
        picture = inputs.read_image(image)
        pixels = evaluation_view(picture, view)[None]
        found = compute(pixels, output if output is None else np.array([output]))
        return explain.explanation(self.file, picture, *(values[0] for values in found), output)

    def map_function(self) -> Callable[..., ClassMaps]:
        """Return the function `predictor.class_maps` of this model.

        Its argument is a preprocessed batch. Errors: as of `explain`.
        """
        self.function()  # reports a model without a head
        if self._functions.maps is None:
            raise ConfigError(f"{self._without_weights()}, and so there are no maps")
        return self._functions.maps

    def features(self, images: Any) -> np.ndarray:
        """Return the pooled features before the head, float32 [N, C]; N is 1 for one image.

        ``images`` may also be a preprocessed batch, as for `logits`. Raises `ConfigError` for a
        folder that was exported with its head.
        """
        return self._compute(False, images, self.file.features)

    def function(self, head: bool = True) -> Callable[[np.ndarray], np.ndarray]:
        """Return a function from preprocessed batches to logits, or to features if not ``head``.

        The first call loads Paddle and the weights. Raises `ConfigError` if the model does not
        compute them.
        """
        if head and not self.file.outputs:
            raise ConfigError(f"{self.file.path}: has no head; use --features or features()")
        found = self._functions.logits if head else self._functions.features
        if found is None:
            raise ConfigError(
                f"--features: {self.file.path} was exported with its head; use the checkpoint "
                "instead"
            )
        return found

    def pooled(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return a function from preprocessed batches to the pooled four stages and the features.

        Its result is float32 [N, C1 + C2 + C3 + C4 + C]. Raises `ConfigError` for an export, and
        for a runtime other than Paddle.
        """
        if self._functions.pooled is None:
            raise ConfigError(f"{self._without_weights()}, and so it has no layers")
        return self._functions.pooled

    def _without_weights(self) -> str:
        if trained.is_exported(self.file.path):
            return f"{self.file.path}: is an export, not the checkpoint that Paddle runs"
        return f"--runtime {self._machine['runtime']}: only --runtime paddle has the layers"

    @property
    def computed_by(self) -> str:
        """What computes the model: the runtime, its version, the device and the precision, as text.

        Of Paddle also the operators.
        """
        return self._functions.computed_by

    @cached_property
    def _functions(self) -> Functions:
        return runtimes.load(self.file, head=self._head, **self._machine)

    def _compute(self, head: bool, images: Any, width: int, words: str | None = None) -> np.ndarray:
        compute, chosen = self.function(head), views_of.parse(words)
        if isinstance(images, np.ndarray) and images.ndim == 4:
            if images.shape[1] != 3 or images.dtype not in (np.uint8, np.float32):
                raise DataError(
                    f"a batch of {images.dtype} {list(images.shape)}: expected [N, 3, H, W], uint8 "
                    "or float32 in [-1, 1]; give images as a list of arrays [H, W, 3]"
                )
            if chosen:
                raise ConfigError("views: a preprocessed batch is one view; give the images")
            return compute(images)
        looks = views_of.looks(chosen, self.file)
        source = inputs.GivenImages(images if _are_many(images) else [images])
        workers = min(8, environment.cpu_count()) if len(source) > 1 else 0
        results = [np.zeros((0, width), np.float32)]
        with progress.progress_bar(desc="images", unit="img", total=len(source), delay=1) as bar:
            for values, batch in views_of.infer(
                compute, source, looks, BATCH, workers, self.file.loss
            ):
                results.append(values)
                bar.update(len(batch.labels))
        return np.concatenate(results)

    # --- In a notebook --------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<TrainedModel {', '.join(f'{k}: {v}' for k, v in self._facts().items())}>"

    def _repr_html_(self) -> str:
        facts = self._facts().items()
        rows = (f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in facts)
        return f"<table>{''.join(rows)}</table>"

    def _facts(self) -> dict[str, str]:
        names = self.classes
        listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        facts = {"file": str(self.file.path), "network": self.architecture or "exported"}
        if self.file.head != heads.LINEAR:
            facts["head"] = self.file.head
        facts["classes"] = f"{len(names):,} ({listed})" if names else "none (features only)"
        return {**facts, "preprocessing": self.preprocessing}


def _are_many(images: Any) -> bool:
    """Return whether ``images`` is a list, a tuple or a preprocessed batch, not one image."""
    if isinstance(images, np.ndarray):
        return images.ndim == 4
    return isinstance(images, (list, tuple))
