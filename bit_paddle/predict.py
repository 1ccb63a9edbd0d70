"""Classify images, or compute their features: ``python -m bit_paddle.predict --help``.

Images are files, folders, patterns, web addresses or the standard input, in any number.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.config.types import file_path, whole
from bit_paddle.data import loader
from bit_paddle.inference import calibration, views
from bit_paddle.inference.explain import INDEX, write_maps
from bit_paddle.inference.inputs import ReadableImages, find_images
from bit_paddle.inference.model import TrainedModel
from bit_paddle.inference.outputs import FORMATS, classify, write_features, write_text
from bit_paddle.inference.trained import check_confidence, find_trained, resolve_trained
from bit_paddle.system import files, progress
from bit_paddle.visual.sheet import SHEET_MOST, draw_predictions

_EPILOG = """\
An image that cannot be read is skipped and reported at the end. The exit status is then 1.

examples:
  python -m bit_paddle.predict cat.jpg photos/ --model BiT-M-R50x1-ILSVRC2012
  python -m bit_paddle.predict 'photos/**/*.jpg' --model bit_logs/pets/model.npz
      the pattern works in each shell, also on Windows
  curl -s https://example.org/a.jpg | python -m bit_paddle.predict - --model BiT-Mini
  python -m bit_paddle.predict https://example.org/a.jpg --model bit_logs/pets/model.npz --top 1
  python -m bit_paddle.predict photos/ --model bit_logs/pets --maps maps
  python -m bit_paddle.predict photos/ --model bit_logs/pets --calibrated --unknown 5%
      after: python -m bit_paddle.evaluate --model bit_logs/pets --dataset pets/ --calibrate
  python -m bit_paddle.predict photos/ --model BiT-M-R50x1 --features features.npz
      writes "features" float32 [N, C] (pooled pre-logits) and "names" [N]
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Raises `bit_paddle.errors`."""
    flags = _parse(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        names, paths, unreachable = find_images(flags.images, Path(temporary))
        images = ReadableImages(paths)
        file = find_trained(
            flags.model, flags.bit_pretrained_dir, flags.crop, names=not flags.features
        )
        check_confidence(file, flags.views, flags.calibrated, flags.unknown, flags.threshold)
        if flags.calibrated or flags.unknown or flags.threshold == calibration.AUTO:
            print(f"note: calibration: {file.calibration}", file=sys.stderr)
        looks = views.looks(flags.views, file)
        model = TrainedModel(file, flags.device, flags.amp, head=not flags.features)
        work = (images, looks, flags.batch, flags.workers)
        if flags.maps:
            compute, batches = model.map_function(), loader.batches_of_looks(*work)
            files.make_folder(Path(flags.maps), "--maps")
            stream = write_maps(Path(flags.maps), file, compute, batches, images, names)
        else:
            compute = model.function(head=not flags.features)
            stream = views.infer(compute, *work, file.loss)
        outputs = _readable(stream, images)
        if flags.features:
            rows = write_features(flags.features, outputs, file.features, names)
            print(f"{rows:,} x {file.features} features are in {flags.features}")
        else:
            chosen = flags.top, flags.calibrated, flags.unknown, flags.threshold
            results = classify(outputs, file, names, *chosen)
            first: list[dict] = []  # for the contact sheet
            pieces = FORMATS[flags.format](_copy_first(results, first, SHEET_MOST), names)
            if flags.output:
                write_text(flags.output, pieces)
            else:
                for piece in pieces:
                    sys.stdout.write(piece)
            if flags.sheet:
                draw_predictions(flags.sheet, first, dict(zip(names, paths)))
    faults = [*unreachable, *images.broken.values()]
    for fault in faults:
        print(f"skipped: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _readable(
    stream: Iterable[tuple[np.ndarray, loader.MicroBatch]], images: ReadableImages
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (outputs, indices) per batch, without the images that could not be read."""
    with progress.progress_bar(desc="images", unit="img", total=len(images)) as bar:
        for values, batch in stream:
            bar.update(len(values))
            good = np.array([index not in images.broken for index in batch.indices])
            yield values[good], batch.indices[good]


def _copy_first(results: Iterable[dict], first: list[dict], most: int) -> Iterator[dict]:
    """Yield ``results``, and append the first ``most`` of them to ``first``."""
    for result in results:
        if len(first) < most:
            first.append(result)
        yield result


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = parsing.Parser(
        prog="python -m bit_paddle.predict",
        description="Classify images with a trained model, or compute their features.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "images",
        type=file_path,
        nargs="+",
        help="image files, folders, web addresses, quoted patterns such as 'photos/**/*.jpg' (** "
        "stands for any folders), and - for an image on the standard input",
    )
    parsing.add_flags(parser)
    parser.add_argument(
        "--top",
        type=whole(1),
        default=5,
        metavar="N",
        help="classes per image (default: 5)",
    )
    parser.add_argument(
        "--threshold",
        metavar="X",
        help="print all classes with a probability of X or more. auto: the model's own threshold "
        "per label, which `bit_paddle evaluate --calibrate` chooses (default: the --top classes)",
    )
    parser.add_argument("--format", choices=sorted(FORMATS), default="table")
    parser.add_argument(
        "--output",
        type=file_path,
        metavar="FILE",
        help="write the classes to this file instead of printing them",
    )
    parser.add_argument(
        "--sheet",
        type=file_path,
        metavar="FILE.png",
        help=f"draw a contact sheet of the first {SHEET_MOST} images",
    )
    parser.add_argument(
        "--maps",
        type=file_path,
        metavar="DIR",
        help="draw where the network looks for the predicted class: two PNG files per image, "
        f"*-heat.png (grey) and *-overlay.png (colours over the image), and the table {INDEX}. "
        "The mean of a map plus a bias is exactly the logit of the class. Of a model with a local "
        "head (--head local of train) the maps show its attention",
    )
    parser.add_argument("--views", metavar="WORDS", help=views.HELP)
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="print calibrated probabilities: of the images with 80%%, about 80%% are right. The "
        "order of the classes stays. The model must have been calibrated by `bit_paddle evaluate "
        "--calibrate`",
    )
    parser.add_argument(
        "--unknown",
        metavar="SHARE",
        help="call an image unknown if it seems to show none of the classes. SHARE, such as 5%%, "
        "is the share of the images of the classes that is called unknown by mistake: a higher "
        "share finds more strangers. The model must have been calibrated, as for --calibrated",
    )
    parser.add_argument(
        "--features",
        type=file_path,
        metavar="FILE.npz",
        help="write features (pooled pre-logits) instead of classes",
    )
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    flags = parser().parse_args(arguments)
    if flags.features and (flags.output or flags.sheet or flags.maps):
        raise errors.ConfigError(
            "--features: cannot be combined with --output, --sheet or --maps, which need classes"
        )
    for flag in ("output", "sheet", "features"):
        path = getattr(flags, flag)
        if path and not Path(path).parent.is_dir():
            raise errors.ConfigError(f"--{flag} {path}: {Path(path).parent} is not a folder")
        if path and Path(path).is_dir():
            raise errors.ConfigError(f"--{flag} {path}: is a folder; give the name of a file")
    resolve_trained(flags.model)  # report a wrong name before reading or downloading anything
    flags.views = views.parse(flags.views)
    if flags.unknown is not None:
        flags.unknown = calibration.parse_share(flags.unknown)
    if flags.threshold is not None:
        flags.threshold = calibration.parse_threshold(flags.threshold)
    if flags.features and (flags.calibrated or flags.unknown or flags.threshold is not None):
        given = "--calibrated, --unknown or --threshold, which need classes"
        raise errors.ConfigError(f"--features: cannot be combined with {given}")
    if flags.maps and flags.calibrated:
        raise errors.ConfigError(
            f"--maps: cannot be combined with --calibrated: {INDEX} has the model's own numbers"
        )
    if flags.views and (flags.features or flags.maps):
        raise errors.ConfigError(
            "--views: cannot be combined with --features or --maps, which show one view"
        )
    if flags.views:
        print(views.note(flags.views), file=sys.stderr)
    return flags


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
