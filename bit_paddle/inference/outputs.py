"""Write the outputs of a trained model: ranked classes as text, features as files."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bit_paddle.errors import printable
from bit_paddle.inference.calibration import AUTO
from bit_paddle.inference.trained import TrainedFile, are_unknown, thresholds_of
from bit_paddle.system import files
from bit_paddle.system.files import csv_line


def best_classes(
    file: TrainedFile,
    logits: np.ndarray,
    top: int,
    calibrated: bool = False,
    threshold: float | str | None = None,
) -> list[list[tuple[str, float]]]:
    """Return the ``top`` classes of each row of ``logits`` [N, K] as (name, probability).

    The class with the highest logit comes first; equal logits keep the order of the outputs.
    ``calibrated`` is that of `TrainedFile.probabilities`. With a ``threshold`` they are all classes
    whose probability reaches it, or that of each class if it is "auto", at the temperature of the
    calibration.
    """
    least = None if threshold is None else thresholds_of(file, threshold)
    ranks = np.argsort(-logits, axis=1, kind="stable")
    shares = file.probabilities(logits, calibrated or threshold == AUTO)
    return [
        [
            (file.class_name(k), float(row[k]))
            for k in (best[:top] if least is None else best[row[best] >= least[best]])
        ]
        for best, row in zip(ranks, shares)
    ]


def classify(
    outputs: Iterable[tuple[np.ndarray, np.ndarray]],
    file: TrainedFile,
    names: Sequence[str],
    top: int,
    calibrated: bool = False,
    unknown: float | None = None,
    threshold: float | str | None = None,
) -> Iterator[dict]:
    """Yield {"image", "classes": [{"class", "probability"}, …]} per image, best class first.

    ``outputs`` yields (logits [N, K], indices [N] into ``names``). ``calibrated`` and ``threshold``
    are those of `best_classes`. With ``unknown``, the share of `trained.are_unknown`, a result also
    has "unknown": true or false.
    """
    for logits, indices in outputs:
        flags = itertools.repeat({})
        if unknown is not None:
            flags = ({"unknown": flag} for flag in are_unknown(file, logits, unknown).tolist())
        rows = best_classes(file, logits, top, calibrated, threshold)
        for best, index, flag in zip(rows, indices, flags):
            classes = [{"class": name, "probability": value} for name, value in best]
            yield {"image": names[index], **flag, "classes": classes}


def _as_table(results: Iterable[dict], names: Sequence[str]) -> Iterator[str]:
    width = max(map(len, names), default=0)
    for result in results:
        width = max(width, len(result["image"]))  # the frames of a video come one by one
        lines = [f"{item['probability']:7.2%}  {item['class']}" for item in result["classes"]]
        lines = lines or ["no label reaches the threshold"]
        if result.get("unknown"):
            lines = ["unknown  nearest:", *lines]
        for name, line in zip([result["image"], *[""] * len(lines)], lines):
            yield printable(f"{name:{width}}  {line}") + "\n"


def _as_json(results: Iterable[dict], names: Sequence[str]) -> Iterator[str]:
    separator = "[\n"
    for result in results:
        yield separator + json.dumps(result, ensure_ascii=False)
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def _as_csv(results: Iterable[dict], names: Sequence[str]) -> Iterator[str]:
    results = iter(results)
    first = next(results, {"classes": []})
    more = ("unknown",) if "unknown" in first else ()
    yield csv_line(("image", "rank", "class", "probability", *more))
    for result in itertools.chain([first], results):
        flags = [str(result[name]).lower() for name in more]
        for rank, item in enumerate(result["classes"], 1):
            share = f"{item['probability']:.6f}"
            yield csv_line((result["image"], rank, item["class"], share, *flags))


FORMATS = {"table": _as_table, "json": _as_json, "csv": _as_csv}  # results, names -> pieces of text


def write_text(path: str, pieces: Iterable[str]) -> None:
    """Write ``pieces`` to the file ``path``, completely or not at all. Raises `WriteError`."""

    def fill(stream: BinaryIO) -> None:
        for piece in pieces:
            stream.write(piece.encode(errors="surrogateescape"))

    files.write(path, fill)


def write_features(
    path: str,
    outputs: Iterable[tuple[np.ndarray, np.ndarray]],
    channels: int,
    names: Sequence[str],
) -> int:
    """Write "features" float32 [N, channels] and "names" [N] to an ``.npz`` file; return N.

    ``outputs`` yields (features, indices into ``names``). The batches are first written to a
    temporary file, because N is known only at the end. Raises `WriteError`.
    """
    written: list[int] = []
    with tempfile.TemporaryFile(dir=Path(path).parent) as rows:
        for features, indices in outputs:
            rows.write(np.ascontiguousarray(features, dtype="<f4").tobytes())
            written += indices.tolist()
        rows.seek(0)

        def fill(stream: BinaryIO) -> None:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(written), channels)}
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
                with archive.open("features.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(rows, member, 1 << 20)
                with archive.open("names.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.array([names[k] for k in written], str))

        files.write(path, fill)
    return len(written)
