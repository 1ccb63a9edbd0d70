"""The Python interface: ``import bit_paddle as bit``.

    model = bit.load("bit_logs/pets")                a trained model: a run, a name, a file
    model("cat.jpg")                                 [("siamese", 0.97), …]
    bit.evaluate(model, "photos/", split="all").top1
    bit.list_models("BiT-M-R50x1*")

The commands use the same functions. Errors are those of `bit_paddle.errors`, all of them
`BitPaddleError`.
"""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path

from bit_paddle.data import spec as specs
from bit_paddle.data.readers import registry
from bit_paddle.errors import BitPaddleError, ConfigError
from bit_paddle.inference import evaluation, trained
from bit_paddle.inference.evaluation import Evaluation
from bit_paddle.inference.model import BATCH, TrainedModel
from bit_paddle.models import published
from bit_paddle.system import environment

__all__ = ["Evaluation", "TrainedModel", "evaluate", "list_models", "load"]


def load(
    model: str | os.PathLike,
    *,
    device: str = "auto",
    amp: str = "off",
    crop: int | None = None,
    directory: str | os.PathLike | None = None,
) -> TrainedModel:
    """Load a trained model, ready to use.

    ``model`` is a run's folder, a published name (`list_models`), which is downloaded if it is
    missing, an ``.npz`` file, or a folder of ``export --format paddle``. ``device`` is "auto" (a
    GPU where there is one), "cpu" or "gpu"; ``amp`` "off" (float32), "bf16", "fp16", or "auto",
    what the device does best. ``crop`` squashes images to that side in pixels, instead of the
    model's own preprocessing. ``directory`` is where published files are, or are downloaded to.

    Errors: `ConfigError` (an unknown name, or what this machine cannot do), `MissingFileError`,
    `CheckpointError`, `DownloadError`.

        model = bit_paddle.load("BiT-M-R50x1-ILSVRC2012")
        model("cat.jpg", top=1)  # [("tabby, tabby cat", 0.93)]
    """
    if crop is not None and (not isinstance(crop, int) or crop < 32):
        raise ConfigError(f"crop: is {crop!r}, expected a whole number of pixels from 32 on")
    file = trained.find_trained(_address(model), directory, crop)
    found = TrainedModel(file, device, amp)
    found.function(head=file.outputs > 0)  # loads the weights now
    return found


def evaluate(
    model: TrainedModel | str | os.PathLike,
    data: str | os.PathLike,
    split: str = "val",
    *,
    datadir: str | os.PathLike | None = None,
    val_fraction: float | None = None,
    on_bad_image: str = "error",
    batch: int = BATCH,
    workers: int | None = None,
    device: str = "auto",
    amp: str = "off",
    crop: int | None = None,
    directory: str | os.PathLike | None = None,
) -> Evaluation:
    """Measure a model on a data set; return top-1, top-5, loss, per-class accuracy, confusion.

    ``model`` is what `load` returns, or what it takes (with ``device``, ``amp``, ``crop`` and
    ``directory``). ``data`` is a folder with train/<class>/* and val/<class>/*, or <class>/* alone;
    or a data set's name or YAML file, as of ``--dataset``, with its folder ``datadir``. A folder
    called like a data set is given as "./name". ``split`` "val" takes the validation images,
    "train" the training images, "all" both; ``val_fraction`` is the share to hold out where a
    folder has no validation images. ``on_bad_image`` "skip" leaves out images that cannot be read.
    ``batch`` images are computed at once, and ``workers`` threads decode them (None: one per
    processor, 8 at most).

    Errors: `ConfigError` (an unknown name, or classes that are not the model's),
    `MissingFileError`, `DataError`, `CheckpointError`, `DownloadError`.

        result = bit_paddle.evaluate("bit_logs/pets", "photos/", split="all")
        result.top1, result.per_class["siamese"], result.confusion.shape
    """
    if not isinstance(model, TrainedModel):
        trained.resolve_trained(_address(model))  # a wrong name is reported before data are read
    for name, value, least in (("batch", batch, 1), ("workers", workers, 0)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise ConfigError(f"{name}: is {value!r}, expected a whole number from {least} on")
    workers = min(8, environment.cpu_count()) if workers is None else workers
    dataset, folder = _data(data, datadir)
    classes, parts = evaluation.open_split(
        dataset, folder, split, val_fraction, on_bad_image, workers
    )
    if not isinstance(model, TrainedModel):
        file = trained.find_trained(_address(model), directory, crop)
        model = TrainedModel(file, device, amp)
    return evaluation.measure(model, classes, parts, batch, workers)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the published models that match a shell pattern, in the catalog's order.

    Case matters; no match gives an empty list.

        bit_paddle.list_models("BiT-M-R50x1*")  # ["BiT-M-R50x1", "BiT-M-R50x1-ILSVRC2012", …]
    """
    return [name for name in published.CATALOG if fnmatch.fnmatchcase(name, pattern)]


def _address(model: str | os.PathLike) -> str:
    """Return ``model`` as the commands take it: a path has a separator or ends in ``.npz``."""
    if not isinstance(model, (str, os.PathLike)):
        raise ConfigError(f"model: is a {type(model).__name__}, expected a name or a path")
    text = os.fspath(model)
    known = text in published.CATALOG or text in published.ALIASES
    is_path = isinstance(model, os.PathLike) or (Path(text).exists() and not known)
    return text if not is_path or published.is_path(text) else os.path.join(".", text)


def _data(data: str | os.PathLike, datadir: str | os.PathLike | None) -> tuple[str, str | None]:
    """Return the data set's name and its folder."""
    if not isinstance(data, (str, os.PathLike)):
        raise ConfigError(f"data: is a {type(data).__name__}, expected a folder or a name")
    text = os.fspath(data)
    if datadir is None and Path(text).is_dir():
        try:
            specs.find(text, registry.READERS)
        except BitPaddleError:
            return "folder", text
        if isinstance(data, os.PathLike):
            return "folder", text
    return text, None if datadir is None else os.fspath(datadir)
