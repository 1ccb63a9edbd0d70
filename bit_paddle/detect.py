"""Find objects with boxes: ``python -m bit_paddle.detect train|plan|evaluate|predict``.

`train` trains a detector on a BiT backbone, as section 3.7 of the paper does. `training.run` holds
the loop, as for `bit_paddle.train`: folders, logs, checkpoints, resumption, processes are the same.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from bit_paddle import errors
from bit_paddle import train as training
from bit_paddle.config import contradictions, detection_cli, parsing
from bit_paddle.config.detection_cli import COMMANDS, PROG
from bit_paddle.config.detection_settings import DetectionSettings
from bit_paddle.data.boxes.looks import Looks
from bit_paddle.data.boxes.parts import require_usable, usable
from bit_paddle.data.boxes.reading import read_boxes
from bit_paddle.inference import detecting, objects
from bit_paddle.inference.inputs import ReadableImages, find_images
from bit_paddle.inference.outputs import write_text
from bit_paddle.runs import folder as runs_folder
from bit_paddle.system import files, progress
from bit_paddle.system.signals import heed_notice
from bit_paddle.training.detection import estimate
from bit_paddle.training.detection.plan import make_plan
from bit_paddle.training.estimate import GIB
from bit_paddle.visual import box_results
from bit_paddle.visual import boxes as pictures


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Raises `bit_paddle.errors`."""
    name, *rest = arguments or ["--help"]
    if name in COMMANDS:
        return _COMMANDS[name](rest)
    if not name.startswith("-"):
        raise errors.ConfigError(f"{name}: no such command; {errors.did_you_mean(name, COMMANDS)}")
    parser().parse_args([name, *rest])
    raise errors.ConfigError(f"{PROG}: choose from {', '.join(COMMANDS)}")


def _train(arguments: Sequence[str]) -> int:
    heed_notice()
    settings, request = parsing.parse_as(
        DetectionSettings, detection_cli.train_parser(), arguments, contradictions.of_detection
    )
    if request.dry_run:
        print(training.described(settings, request.force, make_plan))
        return 0
    return training.train(settings, arguments, request.force, make_plan=make_plan).status


def _plan(arguments: Sequence[str]) -> int:
    command = detection_cli.plan_parser()
    flags, rest = command.parse_known_args(list(arguments))
    images, classes = flags.training_images, flags.classes
    if (images is None) != (classes is None):
        raise errors.ConfigError("--training_images and --classes: only one is given; give both")
    check = contradictions.of_detection
    if images is not None:
        rest = ["--boxes", "none", *rest]  # a flag or a file that follows may name some
        check = partial(check, opened=False)
    settings, _ = parsing.parse_as(
        DetectionSettings, detection_cli.train_parser(), rest, check, detection_cli.PLAN_FLAGS
    )
    if images is None:
        sizes = estimate.opened_sizes(settings)
    else:
        sizes = estimate.known_sizes(settings, images, classes)
    memory, speed = int(flags.gpu_memory * GIB), flags.images_per_second
    print(estimate.describe(settings, sizes, memory, flags.gpus, speed))
    return 0


def _evaluate(arguments: Sequence[str]) -> int:
    flags = detection_cli.evaluate_parser().parse_args(arguments)
    detecting.average_precision.check_installed()
    if flags.output:
        files.make_folder(Path(flags.output), "--output")
    model = detecting.open_detector(flags.model, flags.device, flags.amp)
    images = read_boxes(flags.boxes, flags.images, model.classes, flags.on_bad_box)
    for note in images.notes:
        print(f"note: {note}", file=sys.stderr)
    if flags.on_bad_image == "error":
        require_usable([images], flags.workers)
    else:
        images, skipped = usable(images, flags.workers)
        for fault in skipped:
            print(f"skipped: {fault}", file=sys.stderr)
    how = {name: getattr(flags, name) for name in ("side", "scales", "flip", "suppression")}
    how["side"] = how["side"] or model.detector.side
    measured = model.measure(images, **how, batch=flags.batch, workers=flags.workers)
    print(f"{flags.model} on {flags.boxes}: {measured.scores}", flush=True)
    name = f"{runs_folder.model_name(Path(flags.model))}-{Path(flags.boxes).stem}"
    default = f"evaluate-{name}"
    folder = Path(flags.output or files.create_folder("bit_logs", default, "metrics.json"))
    facts = {"model": flags.model, "boxes": flags.boxes, **how}
    box_results.write_results(measured, folder, facts)
    print(f"results are in {folder}")
    return 0


def _predict(arguments: Sequence[str]) -> int:
    flags = detection_cli.predict_parser().parse_args(arguments)
    if flags.output and not Path(flags.output).parent.is_dir():
        raise errors.ConfigError(f"--output: {Path(flags.output).parent} is not a folder")
    if flags.output and Path(flags.output).is_dir():
        raise errors.ConfigError(f"--output: {flags.output} is a folder; give the name of a file")
    if flags.pictures:
        files.make_folder(Path(flags.pictures), "--pictures")
    with tempfile.TemporaryDirectory() as temporary:
        names, paths, unreachable = find_images(flags.images, Path(temporary))
        images = ReadableImages(paths)
        results = _results(flags, images, names)
        pieces = objects.FORMATS[flags.format](results, names)
        if flags.output:
            write_text(flags.output, pieces)
        else:
            for piece in pieces:
                sys.stdout.write(piece)
    faults = [*unreachable, *images.broken.values()]
    for fault in faults:
        print(f"skipped: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _results(
    flags: argparse.Namespace, images: ReadableImages, names: Sequence[str]
) -> Iterator[dict]:
    """Yield the objects in each readable image in order, and draw them into --pictures."""
    model = detecting.open_detector(flags.model, flags.device, flags.amp)
    looks = Looks(flags.side or model.detector.side, flags.scales, flags.flip)
    stream = detecting.detections_of(
        model.network,
        images,
        range(len(images)),
        looks,
        suppression=flags.suppression,
        least_score=flags.least_score,
        batch=flags.batch,
        workers=flags.workers,
    )
    with progress.progress_bar(desc="images", unit="img", total=len(images)) as bar:
        for index, found in objects.in_order(stream):
            bar.update()
            if index in images.broken:
                continue
            if flags.pictures:
                marks = pictures.found_marks(found, model.classes, None, flags.least_score)
                drawn = pictures.marked(images.image(index), marks)
                place = Path(flags.pictures, f"{index + 1:04}-{Path(names[index]).stem}.png")
                files.write(place, partial(drawn.save, format="PNG"))
            yield objects.result_of(names[index], found, model.classes)


_COMMANDS = {"train": _train, "plan": _plan, "evaluate": _evaluate, "predict": _predict}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command, with one of each of its own commands."""
    return detection_cli.parser()


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
