"""The Python interface: ``import bit_paddle as bit``.

    run = bit.fine_tune("BiT-Mini", "my_images/", name="pets")  run.metrics, run.best, run.report()
    model = bit.load("bit_logs/pets")  a run, a name, a file, a folder, "hf:OWNER/NAME"
    model("cat.jpg")                   [("cat", 0.97), …]
    bit.evaluate(model, "my_images/", split="all").top1
    bit.list_models("BiT-M*")

The commands use the same functions. All errors are `bit_paddle.errors.BitPaddleError`. The page
docs/python.md shows all functions with examples.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from bit_paddle import errors, report, train
from bit_paddle.config import parsing
from bit_paddle.config.settings import FIELDS, Settings
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.data.readers import registry
from bit_paddle.errors import ConfigError
from bit_paddle.inference import calibration, comparison, evaluation, exporting, trained
from bit_paddle.inference import strangers as strangers_of
from bit_paddle.inference import views as views_of
from bit_paddle.inference.arguments import address, data_set
from bit_paddle.inference.comparison import AnyComparison, Comparison, LabelComparison
from bit_paddle.inference.evaluation import Evaluation
from bit_paddle.inference.exporting import Exported
from bit_paddle.inference.label_evaluation import LabelEvaluation
from bit_paddle.inference.model import BATCH, TrainedModel
from bit_paddle.models.published import list_models
from bit_paddle.runs import checkpoints, history
from bit_paddle.runs.steps import Steps
from bit_paddle.system import environment
from bit_paddle.system.runtimes import AUTO
from bit_paddle.training import embedded

__all__ = [
    "Comparison",
    "Evaluation",
    "Exported",
    "LabelComparison",
    "LabelEvaluation",
    "Run",
    "TrainedModel",
    "compare",
    "evaluate",
    "export",
    "fine_tune",
    "list_models",
    "load",
]

_Run = TypeVar("_Run", bound="RunFolder")


def fine_tune(
    model: str | os.PathLike,
    data: str | os.PathLike,
    *,
    datadir: str | os.PathLike | None = None,
    force: bool = False,
    **settings: Any,
) -> Run:
    """Fine-tune a model on images, as ``bit_paddle train`` does; return the run.

    ``model`` is as for `load`, without the exported folders, or, with ``from_scratch=True``, an
    architecture such as "R50x1". ``data`` is a folder of images with train/<class>/* and
    val/<class>/*, or only <class>/*. It may also be the name or YAML file of a data set, or
    "hf:OWNER/NAME", as for ``--dataset``; ``datadir`` is then its folder. ``settings`` are the
    flags of the command by name: ``steps=100, batch=64, flip=False``. ``force`` resumes a run
    although settings or data have changed.

    The same call resumes a run that was stopped. On Ctrl-C the run finishes its micro-batch and
    saves a checkpoint, and the call returns; a second Ctrl-C raises KeyboardInterrupt. On other
    signals the run also saves, and then the signal has its usual effect. Signals are handled only
    in the main thread.

    Errors: those of `bit_paddle.errors`; one `ConfigError` lists all wrong settings.

        run = bit_paddle.fine_tune("BiT-Mini", "my_images/", name="pets", steps=20, batch=8)
        run.best("cat.jpg")
    """
    dataset, folder = data_set(data, datadir)
    values = {"model": address(model), "dataset": dataset, "datadir": folder}
    words = embedded.words_of("fine_tune", values, settings, FIELDS, force)
    parsed, _ = parsing.parse(words, Settings.prog, registry.find)
    ended = embedded.carry_out(lambda: train.train(parsed, words, force, embedded=True))
    return Run(ended.folder, ended.result)


class RunFolder:
    """What the runs of every task have: a ``folder``, a ``result``, their steps and a report."""

    def __init__(self, folder: str | os.PathLike, result: dict[str, Any] | None = None):
        self.folder, self.result = Path(folder).absolute(), result

    @property
    def complete(self) -> bool:
        """Whether the run has made all of its steps; if not, the same call resumes it."""
        return self.result is not None

    @property
    def runs(self: _Run) -> list[_Run]:
        """The runs of ``repeats`` or ``folds``; for a single run, a list of itself."""
        folders = [run.folder for run in history.read(self.folder)]
        return [self] if folders == [self.folder] else [type(self)(folder) for folder in folders]

    @property
    def metrics(self) -> Steps:
        """A table of the steps so far: loss, learning rate, speed, validation and test results."""
        return Steps(self._single("metrics"))

    def report(self, output: str | os.PathLike | None = None) -> Path:
        """Write the run's report (default: report.html in its folder); return the page's path."""
        return report.write_report([self.folder], output)

    def _best_path(self) -> Path:
        folder = self._single("best").folder
        best = folder / checkpoints.CHECKPOINTS / checkpoints.BEST
        return best if best.is_file() else folder

    def _newest_path(self) -> Path:
        path = self._single("model").model
        if path is None:
            raise errors.MissingFileError(f"{self.folder}: has no model and no checkpoint yet")
        return path

    def _single(self, name: str) -> history.RunHistory:
        runs = history.read(self.folder)
        if len(runs) > 1:
            raise errors.ConfigError(
                f"{name}: {self.folder} contains {len(runs)} runs; use one of run.runs"
            )
        return runs[0]

    def __repr__(self) -> str:
        state = "complete" if self.complete else "not complete"
        result = self.result or {}
        test = result.get("test", {})
        test = test.get("best", test.get("last", {}))
        for name, title in (("top1", "top-1"), ("ap", "AP"), ("mean_average_precision", "mAP")):
            for part, values in (("", result.get("pooled", result)), ("test ", test)):
                value = values.get(name)
                if isinstance(value, dict):  # of repeats
                    state += f", median {part}{title} {value['median']:.2%}"
                elif value is not None:
                    state += f", {part}{title} {value:.2%}"
        return f"{type(self).__name__}({str(self.folder)!r}, {state})"


class Run(RunFolder):
    """A run of `fine_tune`: its ``folder`` and its ``result``.

    ``result`` is a dictionary of steps, loss, top1, top5, balanced_accuracy and images, after the
    last step; with several labels per image of mean_average_precision, macro_f1 and micro_f1
    instead of the accuracies. If the data have test images, ``result["test"]`` has the same of
    "best" and "last", the models with which they were measured. With ``repeats`` or ``folds`` it
    holds the lowest, median and highest of these; with ``folds`` also "pooled", over all images. It
    is None if the run is not complete.
    """

    @cached_property
    def best(self) -> TrainedModel:
        """The model with the highest validation accuracy so far."""
        return load(self._best_path())

    @cached_property
    def model(self) -> TrainedModel:
        """The model after the last step; for a stopped run, the newest checkpoint."""
        return load(self._newest_path())


def load(
    model: str | os.PathLike,
    *,
    device: str = "auto",
    amp: str = "off",
    runtime: str = AUTO,
    crop: int | None = None,
    directory: str | os.PathLike | None = None,
) -> TrainedModel:
    """Load a trained model; return it ready for use.

    ``model`` is a run's folder, a published name (`list_models`), a file or folder of weights
    (``.npz``, ``.safetensors``, ``.pth``, ``.pdparams``, ``.h5``), a folder of ``export --format
    paddle``, a file of ``export --format onnx``, or ``hf:OWNER/NAME``, a repository of the Hugging
    Face hub. A missing file of a published name is downloaded into ``directory`` (default: the
    cache). ``device`` is "auto" (a GPU if there is one), "cpu" or "gpu". ``amp`` is "off"
    (float32), "bf16", "fp16", or "auto" (the best for the device). ``runtime`` is "paddle",
    "paddle-inference", "onnxruntime" or "openvino", as the flag ``--runtime`` explains. ``crop``
    squashes images to that side in pixels and replaces the model's own preprocessing.

    Errors: `ConfigError` (an unknown name, an unsupported device or precision, or a runtime that
    is not installed), `MissingFileError`, `CheckpointError`, `DownloadError`.

        model = bit_paddle.load("BiT-M-R50x1-ILSVRC2012")
        model("cat.jpg", top=1)  # [("tabby, tabby cat", 0.93)]
    """
    if crop is not None and (not isinstance(crop, int) or crop < 32):
        raise ConfigError(f"crop: is {crop!r}, expected a whole number of pixels, 32 or more")
    file = trained.find_trained(address(model), directory, crop)
    result = TrainedModel(file, device, amp, runtime=runtime)
    result.function(head=file.outputs > 0)  # loads the weights now
    return result


def evaluate(
    model: TrainedModel | str | os.PathLike,
    data: str | os.PathLike,
    split: str = "val",
    *,
    datadir: str | os.PathLike | None = None,
    val_fraction: float | None = None,
    separator: str | None = None,
    group: str | None = None,
    exclude: str | os.PathLike | None = None,
    on_bad_image: str = "error",
    batch: int = BATCH,
    workers: int | None = None,
    views: str | None = None,
    calibrate: bool = False,
    strangers: str | os.PathLike | None = None,
    device: str = "auto",
    amp: str = "off",
    runtime: str = AUTO,
    crop: int | Preprocessing | None = None,
    directory: str | os.PathLike | None = None,
) -> Evaluation | LabelEvaluation:
    """Measure a model on a data set; return all scores, see `Evaluation`.

    If an image may have several labels, the result is a `LabelEvaluation`; ``separator`` is the
    text between the labels in a list.

    ``model`` is a result of `load` or an argument of it (with ``device``, ``amp``, ``runtime``,
    ``crop`` and ``directory``). ``data`` is a folder with train/<class>/* and val/<class>/*, or
    only <class>/*. It may also be the name or YAML file of a data set, as for ``--dataset``;
    ``datadir`` is then its folder. If a folder has the name of a data set, write "./name".
    ``split`` "val" measures the validation images, "train" the training images, "test" the test
    images, "all" all of these. ``val_fraction`` and ``group`` choose the images to hold out if
    there are no validation images. ``exclude`` is a file with the paths of images to leave out.
    ``on_bad_image`` "skip" skips images that cannot be read. ``batch`` images are computed at once;
    ``workers`` threads decode them (None: one per processor, at most 8). ``views`` such as
    "flip,five" averages the probabilities over several views of each image, as the flag ``--views``
    explains. ``calibrate`` fits a temperature on these images and keeps it in the model's file.
    ``strangers`` is a folder of other images. Both are explained in docs/confidence.md. ``crop`` is
    as for `load`, or a `Preprocessing` (of `bit_paddle.data.preprocessing`).

    Errors: `ConfigError` (an unknown name, or classes that do not match the model's),
    `MissingFileError`, `DataError`, `CheckpointError`, `DownloadError`.

        result = bit_paddle.evaluate("bit_logs/pets", "my_images/", split="all")
        result.top1, result.intervals["top1"], result.macro_f1, result.ece, result.scores.auc
    """
    if not isinstance(model, TrainedModel):
        trained.resolve_trained(address(model))  # report a wrong name before reading data
    for name, value, least in (("batch", batch, 1), ("workers", workers, 0)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise ConfigError(f"{name}: is {value!r}, expected a whole number of {least} or more")
    workers = min(8, environment.cpu_count()) if workers is None else workers
    dataset, folder = data_set(data, datadir)
    options: dict[str, Any] = {"val_fraction": val_fraction, "separator": separator}
    options.update(group=group, exclude=exclude, measured=True)
    words = views_of.parse(views)
    flip = not words or registry.find(dataset, datadir=folder).flip
    classes, parts = evaluation.open_split(dataset, folder, split, options, on_bad_image, workers)
    others = strangers_of.open_images(strangers, words, workers, on_bad_image)
    if not isinstance(model, TrainedModel):
        file = trained.find_trained(address(model), directory, crop)
        model = TrainedModel(file, device, amp, runtime=runtime)
    if calibrate:
        calibration.check(model.file, split, words)
    result = evaluation.measure(model, classes, parts, batch, workers, words, flip)
    if calibrate:
        result = calibration.calibrate(model, result, dataset, folder, split)
    if strangers is not None and others is not None:
        result = strangers_of.measure(model, result, strangers, others, batch, workers)
    return result


def compare(
    a: TrainedModel | str | os.PathLike,
    b: TrainedModel | str | os.PathLike,
    data: str | os.PathLike,
    **options: Any,
) -> AnyComparison:
    """Compare two models on the same images; see `Comparison` and `LabelComparison`.

    ``a``, ``b`` and ``options`` are as for `evaluate`. Errors: its own, and `ConfigError` if the
    class names differ; their order may. ``calibrate`` takes one model, so it is an error here.

        bit_paddle.compare("bit_logs/one", "bit_logs/two", "my_images/").p_value
    """
    for model in (model for model in (a, b) if not isinstance(model, TrainedModel)):
        trained.resolve_trained(address(model))
    return comparison.compare(*(evaluate(m, data, **comparison.checked(options)) for m in (a, b)))


def export(
    model: TrainedModel | str | os.PathLike,
    format: str,
    output: str | os.PathLike,
    *,
    push: str | None = None,
    private: bool = False,
    quantize: str | os.PathLike | None = None,
    datadir: str | os.PathLike | None = None,
    crop: int | None = None,
    directory: str | os.PathLike | None = None,
) -> Exported:
    """Write a model in another format, load it back and compare it; return what was found.

    ``model`` is a result of `load` or an argument of it (with ``crop`` and ``directory``).
    ``format`` is one of those that ``bit_paddle export --help`` lists. ``output`` is the file or
    folder to write; it must not exist. It gets its name only after the comparison. ``push`` uploads
    the folder of the format "huggingface" to the repository OWNER/NAME, which is visible to
    everyone unless it is ``private``. ``quantize``, a data set as ``data`` of `evaluate` (with
    ``datadir``), makes an ONNX file of int8: its training images calibrate, and its validation
    images measure what that costs.

    Errors: `ConfigError` (one for all wrong arguments), `MissingFileError`, `CheckpointError`,
    `DownloadError`, `DifferenceError`, `WriteError`.

        done = bit_paddle.export("bit_logs/pets", "onnx", "pets.onnx")
        done.verified.difference  # the largest relative one from the model in float64
        bit_paddle.export("bit_logs/pets", "onnx", "small.onnx", quantize="my_images/").int8
    """
    file = model.file if isinstance(model, TrainedModel) else None
    given = model.file.path if isinstance(model, TrainedModel) else address(model)
    name = os.fspath(given)
    exporting.check(name, format, output, push, private, quantize is not None)
    data, folder = (None, None) if quantize is None else data_set(quantize, datadir)
    if file is None:
        file = trained.find_trained(name, directory, crop, names=format == "huggingface")
    return exporting.export(file, format, output, push, private, data, folder)
