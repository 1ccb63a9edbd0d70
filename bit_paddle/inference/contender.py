"""One process of `bench`: it holds one model in one runtime, and answers its requests.

A request and its answer are a line of JSON each. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle.errors import BitPaddleError
from bit_paddle.inference import int8
from bit_paddle.inference.evaluation import measure, open_split
from bit_paddle.inference.label_evaluation import LabelEvaluation
from bit_paddle.inference.model import BATCH, TrainedModel
from bit_paddle.inference.trained import TrainedFile, find_trained, required_preprocessing
from bit_paddle.models import published
from bit_paddle.models.architecture import Architecture
from bit_paddle.system import environment

OUTPUTS, CROP = 1000, 224  # of an architecture with random weights

NOISE = 32  # random images: for the differences, and to calibrate on without data

WARM, SETTLED = 12, 1.3  # see `_warm_up`


def main() -> None:
    """Carry out the requests on the standard input; the first names the model or the work."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    contender = None
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            if name == "prepare":
                answer: Any = prepare(**arguments)
            elif name == "load":
                contender, answer = Contender(**arguments), "loaded"
            else:
                answer = getattr(contender, name)(**arguments)
            print(json.dumps({"answer": answer}), file=answers, flush=True)
        except BitPaddleError as error:
            print(json.dumps({"fault": str(error)}), file=answers, flush=True)


class Contender:
    """A model in one runtime; its methods are the requests."""

    def __init__(self, path: str, runtime: str, amp: str, batches: list[int]):
        self._file = find_trained(path)
        self._model = TrainedModel(self._file, "cpu", amp, runtime=runtime)
        self._compute = self._model.function()
        self._pixels = {count: noise(self._file, count) for count in batches}
        for pixels in self._pixels.values():
            _warm_up(lambda pixels=pixels: self._compute(pixels))

    def time(self, batch: int, runs: int) -> list[float]:
        """Return the seconds of each of ``runs`` computations of a batch."""
        pixels = self._pixels[batch]
        return [_seconds_of(lambda: self._compute(pixels)) for _ in range(runs)]

    def memory(self) -> int:
        """Return the peak of this process's memory in bytes."""
        return environment.peak_bytes()

    def logits(self, into: str) -> None:
        """Write the logits of `NOISE` random images into the file ``into``."""
        np.save(into, self._compute(noise(self._file, NOISE)))

    def accuracy(self, dataset: str, datadir: str | None, into: str) -> dict[str, Any]:
        """Measure the validation images, and write their logits into the file ``into``."""
        workers = environment.threads()
        classes, parts = open_split(dataset, datadir, "val", {}, "error", workers, notes=False)
        found = measure(self._model, classes, parts, BATCH, workers)
        np.save(into, found.outputs.logits)
        name = "mean_average_precision" if isinstance(found, LabelEvaluation) else "top1"
        return {"images": found.images, name: getattr(found, name)}


def noise(file: TrainedFile, count: int) -> np.ndarray:
    """Return ``count`` random images, uint8 [N, 3, S, S] with the side S of the model's images."""
    side = required_preprocessing(file).crop
    return np.random.default_rng(0).integers(0, 256, (count, 3, side, side), np.uint8)


def _seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _warm_up(run: Callable[[], object]) -> None:
    """Run until two runs in a row take at most `SETTLED` times as long as the fastest.

    Then nothing is compiled any more. On a machine that is too busy it ends after `WARM` runs.
    """
    seconds = [_seconds_of(run) for _ in range(3)]
    while max(seconds[-2:]) > SETTLED * min(seconds) and len(seconds) < WARM:
        seconds.append(_seconds_of(run))


# --- What the contenders load -------------------------------------------------------------------


def prepare(
    model: str,
    directory: str | None,
    crop: int | None,
    dataset: str | None,
    datadir: str | None,
    into: str,
    kinds: list[str],
) -> dict[str, Any]:
    """Write the model into the folder ``into``, as each of ``kinds`` of contenders loads it.

    ``kinds`` are "weights", "paddle", "onnx" and "int8". The result has the "paths" of these, and
    the facts of the model. ``dataset`` gives the images that int8 is calibrated on; without it they
    are random. Errors: those of `find_trained` and `open_split`.
    """
    from bit_paddle.inference import formats
    from bit_paddle.models.weights import create_model, save_npz

    folder, source = Path(into), published.resolve(model, pretrained=False)
    if isinstance(source, Architecture):
        network = _random_network(source.name)
        save_npz(network, folder / "random.npz", {"crop": crop or CROP})
        file = find_trained(str(folder / "random.npz"))
    else:
        file = find_trained(model, directory, crop)
        network = create_model(file.path)
    network.eval()
    paths = {"weights": folder / "weights.npz", "paddle": folder / "served"}
    paths.update({kind: folder / f"{kind}.onnx" for kind in ("onnx", "int8")})
    for kind, name in (("weights", "npz"), ("paddle", "paddle"), ("onnx", "onnx")):
        if kind in kinds or (kind == "onnx" and "int8" in kinds):
            formats.FORMATS[name].write(network, file, paths[kind])
    calibration = 0
    if "int8" in kinds:
        batches = [noise(file, NOISE)]
        if dataset is not None:
            workers = environment.threads()
            _, (train,) = open_split(dataset, datadir, "train", {}, "error", workers)
            batches = list(int8.calibration_batches(file, train, workers))
        calibration = sum(map(len, batches))
        int8.quantize(paths["onnx"], paths["int8"], batches)
    return {
        "network": file.architecture,
        "outputs": file.outputs,
        "crop": required_preprocessing(file).crop,
        "random": isinstance(source, Architecture),
        "calibration": calibration,
        "paths": {kind: str(paths[kind]) for kind in kinds},
    }


def _random_network(name: str) -> Any:
    """Return a network with random weights, also in the head, which training begins with zeros."""
    from bit_paddle.inference import activations
    from bit_paddle.models.weights import create_model

    network = create_model(name, OUTPUTS)
    head = activations.random_head(network)
    if head is not None:
        network.last_linear.weight.set_value(head[0])
        network.last_linear.bias.set_value(head[1])
    return network
