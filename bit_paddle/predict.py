"""Classify images, or compute their features: ``python -m bit_paddle.predict --help``.

Images are files, folders (with all folders inside), patterns, web addresses or the standard input;
videos are files. The memory that is needed does not depend on their number or length.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.config.types import file_path, positive, whole
from bit_paddle.data import loader
from bit_paddle.inference import calibration, views
from bit_paddle.inference.explain import INDEX, write_maps
from bit_paddle.inference.given import Given
from bit_paddle.inference.inputs import find_images
from bit_paddle.inference.model import TrainedModel
from bit_paddle.inference.outputs import FORMATS, classify, write_features, write_text
from bit_paddle.inference.trained import check_confidence, find_trained, resolve_trained
from bit_paddle.system import files
from bit_paddle.visual.sheet import SHEET_MOST, draw_predictions

_EPILOG = """\
An image that cannot be read is skipped and reported at the end. The exit status is then 1. Of a
damaged video the frames before the damage are classified.

examples:
  python -m bit_paddle.predict cat.jpg photos/ --model BiT-M-R50x1-ILSVRC2012
  python -m bit_paddle.predict 'photos/**/*.jpg' --model bit_logs/pets/model.npz
      the pattern works in each shell, also on Windows
  curl -s https://example.org/a.jpg | python -m bit_paddle.predict - --model BiT-Mini
  python -m bit_paddle.predict https://example.org/a.jpg --model bit_logs/pets/model.npz --top 1
  python -m bit_paddle.predict clip.mp4 --every 0.5 --model bit_logs/pets
      a line per frame, two per second; needs the extra video
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
        given = Given(names, paths, flags.every)
        for flag in ("maps", "sheet"):
            if getattr(flags, flag):
                given.require_images(f"--{flag}")
        file = find_trained(
            flags.model, flags.bit_pretrained_dir, flags.crop, names=not flags.features
        )
        check_confidence(file, flags.views, flags.calibrated, flags.unknown, flags.threshold)
        if flags.calibrated or flags.unknown or flags.threshold == calibration.AUTO:
            print(f"note: calibration: {file.calibration}", file=sys.stderr)
        looks = views.looks(flags.views, file)
        model = TrainedModel(file, flags.device, flags.amp, not flags.features, flags.runtime)
        work = (looks, flags.batch, flags.workers)
        if flags.maps:
            compute, batches = model.map_function(), loader.batches_of_looks(given.images, *work)
            files.make_folder(Path(flags.maps), "--maps")
            drawn = write_maps(Path(flags.maps), file, compute, batches, given.images, given.names)
            outputs = given.readable(drawn)
        else:
            compute = model.function(head=not flags.features)
            outputs = given.outputs(compute, *work, file.loss)
        if flags.features:
            rows = write_features(flags.features, outputs, file.features, given.names)
            print(f"{rows:,} x {file.features} features are in {flags.features}")
        else:
            chosen = flags.top, flags.calibrated, flags.unknown, flags.threshold
            results = classify(outputs, file, given.names, *chosen)
            first: list[dict] = []  # for the contact sheet
            pieces = FORMATS[flags.format](_copy_first(results, first, SHEET_MOST), given.names)
            if flags.output:
                write_text(flags.output, pieces)
            else:
                for piece in pieces:
                    sys.stdout.write(piece)
            if flags.sheet:
                draw_predictions(flags.sheet, first, given.paths)
    faults = [*unreachable, *given.faults]
    for fault in faults:
        print(f"skipped: {fault}", file=sys.stderr)
    return 1 if faults else 0


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
        "stands for any folders), video files (mp4, mov, mkv, webm, avi), and - for an image on "
        "the standard input",
    )
    parsing.add_flags(parser)
    parsing.add_runtime_flag(parser)
    parser.add_argument(
        "--every",
        type=positive,
        default=1.0,
        metavar="SECONDS",
        help="of a video: classify one frame every so many seconds (default: 1)",
    )
    parser.add_argument(
        "--top", type=whole(1), default=5, metavar="N", help="classes per image (default: 5)"
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
