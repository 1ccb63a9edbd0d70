"""Quantize an exported ONNX file to int8, and measure what that costs.

ONNX Runtime's own quantizer does the work. The convolutions get int8 weights, with a scale per
output channel, and uint8 activations, whose ranges are those of given images. All else stays
float32: GroupNorm, the sums of the residual branches and the head.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle.data import loader
from bit_paddle.data import spec as specs
from bit_paddle.data.images import Images
from bit_paddle.inference import functions, onnx_data, onnx_files
from bit_paddle.inference.evaluation import Evaluation, measure, open_split
from bit_paddle.inference.label_evaluation import LabelEvaluation
from bit_paddle.inference.metrics import interval
from bit_paddle.inference.model import BATCH, TrainedModel
from bit_paddle.inference.trained import TrainedFile, find_trained, required_preprocessing
from bit_paddle.system import environment
from bit_paddle.system.runtimes import ONNXRUNTIME

CALIBRATION = 256  # images that the ranges of the activations come from


@dataclass(frozen=True)
class Quantized:
    """What int8 costs: a score (0 to 1) of ``float32`` and of ``int8`` on ``images`` of ``data``.

    Both are computed by ONNX Runtime, ``computed_by``. ``score`` is "top-1", or "mean average
    precision" if an image may have several labels; ``interval`` is its 95% interval in int8.
    ``same`` is the share of the images that have the same prediction, or of all pairs of image and
    label. ``calibration`` is the number of images that the ranges come from; the measured images
    are others.
    """

    data: str
    calibration: int
    images: int
    float32: float
    int8: float
    same: float
    computed_by: str
    score: str
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"int8: {self.score} {self.int8:.2%} (95% interval {low:.2%} to {high:.2%}), float32: "
            f"{self.float32:.2%}, loss {100 * (self.float32 - self.int8):+.2f} points; "
            f"{self.same:.2%} of the predictions are the same; measured on {self.images:,} images "
            f"of {self.data} val, calibrated on {self.calibration:,} of train"
        )


def quantize(source: Path, target: Path, batches: Iterable[np.ndarray]) -> None:
    """Write the ONNX file ``source`` as ``target``, with its convolutions in int8.

    ``batches`` of pixels uint8 or float32 in [-1, 1], [N, 3, H, W], give the ranges of activations.
    Both files may have a data file.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    arrays = iter(batches)
    as_floats = functions.of_pixels(lambda images: {onnx_files.IMAGES: images})

    class Reader:  # what the quantizer asks of an object
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(arrays, None)
            return None if batch is None else as_floats(batch)

    with _quiet(), tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        raw = Path(temporary, "raw.onnx")
        quantize_static(
            source,
            raw,
            Reader(),
            op_types_to_quantize=["Conv"],
            per_channel=True,
            use_external_data_format=bool(onnx_data.referring(onnx_files.read(source))),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        onnx_files.rewrite(onnx.load(raw), target)


def convert(path: Path, file: TrainedFile, dataset: str, datadir: str | None) -> Quantized:
    """Quantize the exported ONNX file ``path`` in place; return what that costs.

    ``file`` are the model's facts. The ranges come from `CALIBRATION` training images of
    ``dataset``, and the scores from its validation images. The result is kept in the file's
    metadata.
    Errors: those of `evaluation.open_split` and of `evaluation.measure`.
    """
    workers = min(8, environment.cpu_count())
    classes, (held_out,) = open_split(dataset, datadir, "val", {}, "error", workers)
    _, (train,) = open_split(dataset, datadir, "train", {}, "error", workers, notes=False)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        before, after = (Path(temporary, f"{name}.onnx") for name in ("float32", "int8"))
        onnx_files.move(onnx_files.read(path), path, before)
        results = []
        for one in (before, after):
            if one is after:
                quantize(before, after, calibration_batches(file, train, workers))
            model = TrainedModel(find_trained(str(one)), runtime=ONNXRUNTIME)
            results.append(measure(model, classes, [held_out], BATCH, workers))
        whole, small = results
        found = Quantized(
            data=specs.short_name(dataset, datadir),
            calibration=min(CALIBRATION, len(train)),
            images=small.images,
            computed_by=model.computed_by,
            **_compared(whole, small),
        )
        proto = onnx_files.read(after)
        onnx_files.add(proto, onnx_files.INT8, asdict(found))
        onnx_files.move(proto, after, path)
    return found


def _compared(
    whole: Evaluation | LabelEvaluation, small: Evaluation | LabelEvaluation
) -> dict[str, Any]:
    """Return the score of the float32 and of the int8 model, as `Quantized` has them."""
    if isinstance(whole, LabelEvaluation) and isinstance(small, LabelEvaluation):
        name, decided = (
            "mean_average_precision",
            [one.outputs.logits >= 0 for one in (whole, small)],
        )
        ends = small.intervals[name]
    else:
        assert isinstance(whole, Evaluation)
        assert isinstance(small, Evaluation)
        name, decided = "top1", [one.per_image.predictions for one in (whole, small)]
        ends = interval(small.top1, small.images)
    return {
        "score": "top-1" if name == "top1" else name.replace("_", " "),
        "float32": getattr(whole, name),
        "int8": getattr(small, name),
        "same": float(np.mean(decided[0] == decided[1])),
        "interval": ends,
    }


def calibration_batches(
    file: TrainedFile, images: Images, workers: int, most: int = CALIBRATION
) -> Iterator[np.ndarray]:
    """Yield the pixels uint8 [N, 3, S, S] of ``most`` images, evenly spread over all of them."""
    subset = np.unique(np.linspace(0, len(images) - 1, most).round().astype(np.int64))
    view = required_preprocessing(file)
    for part in loader.evaluation_batches(images, view, BATCH, workers, subset=subset):
        yield part.images


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the advice of the quantizer, which logs it as a warning."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
