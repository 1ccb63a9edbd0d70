"""Judge the features of a model on a data set, and put the found head onto its network."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from bit_paddle.data.images import Images
from bit_paddle.data.labels import LabelSets
from bit_paddle.errors import ConfigError
from bit_paddle.inference import probing
from bit_paddle.inference.features import features
from bit_paddle.inference.model import TrainedModel
from bit_paddle.inference.probing import SHOTS, Fit, Row
from bit_paddle.inference.trained import TrainedFile
from bit_paddle.models import losses, npz
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.system import progress


@dataclass(frozen=True)
class Probe:
    """The scores of classifiers on the features of a model, on ``images`` images.

    ``score`` names them: "top-1", or "mean average precision" if an image may have several labels.
    ``seconds`` are those of the features (few if they were cached) and of the classifiers.
    """

    model: Path
    images: int
    train_images: int
    rows: list[Row]
    seconds: tuple[float, float]
    strength: float | None = None  # of the written head's ridge regression
    score: str = "top-1"

    def __str__(self) -> str:
        made, fitted = self.seconds
        methods = list(dict.fromkeys(row.method for row in self.rows))
        lines = [
            f"{self.model}: {self.score} in % on {self.images:,} images, "
            f"{self.train_images:,} to train on; features {made:.1f} s, classifiers {fitted:.1f} s",
            f"{'layer':10}{'per class':>10}" + "".join(f"{method:>19}" for method in methods),
        ]
        cells = {(row.layer, row.shots, row.method): row for row in self.rows}
        for layer in dict.fromkeys(row.layer for row in self.rows):
            for shots in SHOTS:
                if (layer, shots, methods[0]) in cells:
                    words = (_cell(cells[layer, shots, method]) for method in methods)
                    text = "".join(f"{word:>19}" for word in words)
                    lines.append(f"{layer:10}{shots or 'all':>10}{text}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Probe {self.model}, {len(self.rows)} rows>"


def summary(found: Sequence[Probe]) -> str:
    """Return a table of several models: the median of ridge regression on their features."""
    names = [str(one.model) for one in found]
    width = max(map(len, (*names, "ridge, median")))
    columns: dict[int | None, list[str]] = {}
    for one in found:
        for row in one.rows:
            if (row.layer, row.method) == ("features", "ridge"):
                columns.setdefault(row.shots, []).append(f"{100 * row.spread[1]:.1f}")
    lines = ["ridge, median".ljust(width), *(name.ljust(width) for name in names)]
    for shots, cells in columns.items():
        for place, cell in enumerate([str(shots or "all"), *cells]):
            lines[place] += f"{cell:>7}"
    return "\n".join(lines)


def _cell(row: Row) -> str:
    low, middle, high = (f"{100 * value:.1f}" for value in row.spread)
    return middle if len(row.scores) == 1 else f"{low}-{middle}-{high}"


def probe(
    model: TrainedModel,
    train: Images | None,
    val: Images | None,
    seeds: int,
    layers: bool,
    batch: int,
    workers: int,
    output: str | os.PathLike | None = None,
) -> Probe:
    """Return the scores on ``val`` of classifiers that ``train`` trains.

    ``output`` is the file to write, the model with a head of ridge regression. Errors: those of
    `features` and `probing.check`; `WriteError`.
    """
    classes = train.classes if train is not None else []
    labels = train.labels if train is not None else np.zeros(0, np.int64)
    probing.check(labels, classes, len(val) if val is not None else 0)
    assert train is not None
    assert val is not None
    several = isinstance(labels, LabelSets)
    model.function(head=False)  # loads the weights, which is not part of the time
    started = time.perf_counter()
    values = [features(model, images, batch, workers, layers) for images in (train, val)]
    between = time.perf_counter()
    rows, strength = [], None
    fits = sum(seeds if shots else 1 for shots in SHOTS)
    splits = _layers(model, values[0].shape[1])
    # The cores share the fits; one alone has matrices too small for several cores.
    with (
        threadpool_limits(1, "blas"),
        progress.progress_bar(desc="classifiers", unit="fit", total=fits * len(splits)) as bar,
    ):
        for layer, part in splits.items():
            given = [(each[:, part], images.labels) for each, images in zip(values, (train, val))]
            rows += probing.table(layer, *given, len(classes), seeds, bar.update)
        seconds = between - started, time.perf_counter() - between
        if output is not None:
            fit = Fit(values[0][:, splits["features"]], labels, len(classes))
            strength = fit.strength
            loss = "sigmoid" if several else losses.DEFAULT
            write_head(model.file, fit.ridge(strength), classes, output, loss)
    score = "mean average precision" if several else "top-1"
    return Probe(model.file.path, len(val), len(train), rows, seconds, strength, score)


def _layers(model: TrainedModel, width: int) -> dict[str, slice]:
    """Return {layer: its columns} of the result of `features`."""
    last = model.file.features
    if width == last:
        return {"features": slice(0, last)}
    sizes = [last // 8, last // 4, last // 2, last, last]  # each block has twice the channels
    ends = np.cumsum(sizes).tolist()
    names = ("block1", "block2", "block3", "block4", "features")
    return {name: slice(end - size, end) for name, size, end in zip(names, sizes, ends)}


def check_output(path: Path) -> None:
    """Raise `ConfigError` before the features are computed if ``path`` cannot be written."""
    if path.suffix != ".npz":
        raise ConfigError(f"--output {path}: the name must end in .npz")
    if os.path.lexists(path):
        raise ConfigError(f"--output: {path} exists; remove it, or choose another name")
    if not path.parent.is_dir():
        raise ConfigError(f"--output: {path.parent} is not a folder; create it first")


def write_head(
    model: TrainedFile,
    classifier: tuple[np.ndarray, np.ndarray],
    classes: Sequence[str],
    output: str | os.PathLike,
    loss: str = losses.DEFAULT,
) -> None:
    """Write the network of ``model`` with the head ``classifier``, in the published layout.

    ``classifier`` is (weights [C, K], bias [K]). The file has the names of the classes and the
    preprocessing. ``loss`` makes probabilities of its scores. Errors: `WriteError`, and those of
    `CheckpointFile`.
    """
    view = model.preprocessing
    facts = {
        "classes": list(classes),
        "preprocessing": None if view is None else vars(view),
        "loss": loss,
    }
    weights, bias = (values.astype(np.float32) for values in classifier)
    with CheckpointFile(model.path) as file:
        architecture: Architecture = file.architecture()
        body = ((key, file.array(key)) for key, _ in npz.shapes(architecture, 0))
        head = ((npz.HEAD_KERNEL, weights[None, None]), (npz.HEAD_BIAS, bias))
        npz.write(output, (pair for pairs in (body, head) for pair in pairs), {npz.FACTS: facts})
