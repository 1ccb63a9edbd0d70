"""Classify images, or take their features: ``python -m bit_paddle.predict --help``.

Images are files, folders (searched with all that is below them) or addresses. Memory does not grow
with their number.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.config.types import whole
from bit_paddle.data import loader
from bit_paddle.data.images import SUFFIXES, FileImages
from bit_paddle.inference import paddle_inference
from bit_paddle.inference.trained import (
    TrainedFile,
    find_trained,
    required_preprocessing,
    resolve_trained,
)
from bit_paddle.system import fetch, files, progress
from bit_paddle.system.files import csv_line
from bit_paddle.visual.sheet import SHEET_MOST, draw_predictions

_EPILOG = """\
An image that cannot be read is named at the end, and the exit status is then 1; the rest is done.

examples:
  python -m bit_paddle.predict cat.jpg photos/ --model BiT-M-R50x1-ILSVRC2012
  python -m bit_paddle.predict https://example.org/a.jpg --model bit_logs/pets/model.npz --top 1
  python -m bit_paddle.predict photos/ --model BiT-M-R50x1 --features features.npz
      writes "features" float32 [N, C] (pooled pre-logits) and "names" [N]
"""


class ReadableImages(FileImages):
    """Files; those that cannot be read are noted in ``broken`` {index: fault}, and blank."""

    def __init__(self, paths: Sequence[str]):
        super().__init__(paths, np.zeros(len(paths), np.int64), ["?"])
        self.broken: dict[int, str] = {}

    def image(self, index: int) -> Image.Image:
        try:
            return super().image(index)
        except errors.BitPaddleError as error:
            self.broken[int(index)] = str(error)
            return Image.new("RGB", (1, 1))


def main(arguments: Sequence[str]) -> int:
    """Run the command ``arguments``; `bit_paddle.errors` says what it raises."""
    flags = _parse(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        names, paths, unreachable = find_images(flags.images, Path(temporary))
        images = ReadableImages(paths)
        wants_names = not flags.features
        trained = find_trained(flags.model, flags.bit_pretrained_dir, flags.crop, wants_names)
        view = required_preprocessing(trained)
        if wants_names and not trained.outputs:
            raise errors.ConfigError(
                f"{trained.path}: has no head; --features takes its pre-logits"
            )

        paddle_inference.hush()
        from bit_paddle.inference import predictor

        run = predictor.load(flags, trained, head=wants_names)
        batches = loader.evaluation_batches(
            images, view.crop, flags.batch, flags.workers, view.resize
        )

        def readable() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            """Yield (output, indices) of each batch, without the images that could not be read."""
            with progress.progress_bar(desc="images", unit="img", total=len(images)) as bar:
                for batch in batches:
                    values = run(batch.images)
                    bar.update(len(values))
                    good = np.array([index not in images.broken for index in batch.indices])
                    yield values[good], batch.indices[good]

        if flags.features:
            rows = write_features(flags.features, readable(), trained.features, names)
            print(f"{rows:,} x {trained.features} features are in {flags.features}")
        else:
            results = classify(readable(), trained, names, flags.top)
            first: list[dict] = []  # for the contact sheet
            pieces = FORMATS[flags.format](_keep(results, first, SHEET_MOST), names)
            if flags.output:
                files.write(flags.output, lambda stream: _write_pieces(stream, pieces))
            else:
                for piece in pieces:
                    sys.stdout.write(piece)
            if flags.sheet:
                draw_predictions(flags.sheet, first, dict(zip(names, paths)))
    faults = [*unreachable, *images.broken.values()]
    for fault in faults:
        print(f"not read: {fault}", file=sys.stderr)
    return 1 if faults else 0


def find_images(words: Sequence[str], temporary: Path) -> tuple[list[str], list[str], list[str]]:
    """Return (what to call them, paths, faults) of the images that ``words`` name.

    Addresses are fetched into ``temporary``; the faults are of those that could not be. Errors:
    `MissingFileError`; `ConfigError` where there is none at all.
    """
    names, paths, faults = [], [], []
    for word in words:
        if word.startswith(("http://", "https://")):
            try:
                place = temporary / str(len(paths))
                paths.append(str(fetch.fetch(word, place, temporary=True)))
                names.append(word)
            except errors.DownloadError as error:
                faults.append(str(error))
        elif Path(word).is_dir():
            others = 0
            for folder, inner, entries in os.walk(word):
                inner.sort()
                seen = [entry for entry in sorted(entries) if entry[0] != "."]
                found = [
                    os.path.join(folder, entry)
                    for entry in seen
                    if os.path.splitext(entry)[1].lower() in SUFFIXES
                ]
                others += len(seen) - len(found)
                names += found
                paths += found
            if others:
                print(
                    f"note: {others:,} files in {word} are no images by their endings, and are not "
                    "read",
                    file=sys.stderr,
                )
        elif Path(word).is_file():
            names.append(word)
            paths.append(word)
        else:
            raise errors.MissingFileError(f"{word}: no such image or folder")
    if not paths and not faults:
        raise errors.ConfigError(
            f"no images in {', '.join(words)}; they end in {' '.join(sorted(SUFFIXES))}"
        )
    return names, paths, faults


def classify(
    outputs: Iterator[tuple[np.ndarray, np.ndarray]],
    trained: TrainedFile,
    names: Sequence[str],
    top: int,
) -> Iterator[dict]:
    """Yield {"image", "classes": [{"class", "probability"}, …]} of each image, best class first."""
    for logits, indices in outputs:
        for row, index in zip(trained.probabilities(logits), indices):
            best = np.argsort(-row, kind="stable")[:top]
            yield {
                "image": names[index],
                "classes": [
                    {"class": trained.class_name(k), "probability": float(row[k])} for k in best
                ],
            }


def _as_table(results: Iterable[dict], names: Sequence[str]) -> Iterator[str]:
    width = max(map(len, names), default=0)
    for result in results:
        for rank, one in enumerate(result["classes"]):
            name = "" if rank else result["image"]
            yield f"{name:{width}}  {one['probability']:7.2%}  {one['class']}\n"


def _as_json(results: Iterable[dict], names: Sequence[str]) -> Iterator[str]:
    separator = "[\n"
    for result in results:
        yield separator + json.dumps(result, ensure_ascii=False)
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def _as_csv(results: Iterable[dict], names: Sequence[str]) -> Iterator[str]:
    yield csv_line(("image", "rank", "class", "probability"))
    for result in results:
        for rank, one in enumerate(result["classes"], 1):
            yield csv_line((result["image"], rank, one["class"], f"{one['probability']:.6f}"))


FORMATS = {"table": _as_table, "json": _as_json, "csv": _as_csv}


def _keep(results: Iterable[dict], kept: list[dict], most: int) -> Iterator[dict]:
    for result in results:
        if len(kept) < most:
            kept.append(result)
        yield result


def _write_pieces(stream: BinaryIO, pieces: Iterable[str]) -> None:
    for piece in pieces:
        stream.write(piece.encode(errors="surrogateescape"))


def write_features(
    path: str,
    outputs: Iterable[tuple[np.ndarray, np.ndarray]],
    channels: int,
    names: Sequence[str],
) -> int:
    """Write "features" [N, channels] and "names" [N] to the ``.npz`` ``path``; return N.

    Batch by batch, through a temporary file: N is known at the end alone.
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


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = parsing.Parser(
        prog="python -m bit_paddle.predict",
        description="Classify images with a trained model, or take their features.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("images", nargs="+", help="files, folders and addresses")
    parsing.add_flags(parser)
    parser.add_argument(
        "--top",
        type=whole(1),
        default=5,
        metavar="N",
        help="classes an image (default: 5)",
    )
    parser.add_argument("--format", choices=sorted(FORMATS), default="table")
    parser.add_argument("--output", metavar="FILE", help="write there instead of printing")
    parser.add_argument(
        "--sheet", metavar="FILE.png", help=f"draw a contact sheet of the first {SHEET_MOST} images"
    )
    parser.add_argument(
        "--features", metavar="FILE.npz", help="write pre-logits instead of classes"
    )
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    flags = parser().parse_args(arguments)
    if flags.features and (flags.output or flags.sheet):
        raise errors.ConfigError(
            "--features: goes without --output and --sheet, which are of classes"
        )
    for flag in ("output", "sheet", "features"):
        path = getattr(flags, flag)
        if path and not Path(path).parent.is_dir():
            raise errors.ConfigError(f"--{flag} {path}: {Path(path).parent} is not a folder")
    resolve_trained(flags.model)  # a wrong name is answered before anything is read or fetched
    return flags


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
