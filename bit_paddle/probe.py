"""Judge models' features by simple classifiers: ``python -m bit_paddle.probe --help``.

The network is not trained: its features are computed once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bit_paddle import _make_callable, errors
from bit_paddle.config import parsing, settings
from bit_paddle.config import types as argtypes
from bit_paddle.data import check
from bit_paddle.data import spec as specs
from bit_paddle.inference import probing_models
from bit_paddle.inference.arguments import address, data_set
from bit_paddle.inference.evaluation import open_split
from bit_paddle.inference.model import BATCH, TrainedModel
from bit_paddle.inference.probing_models import Probe
from bit_paddle.inference.trained import find_trained, resolve_trained
from bit_paddle.runs import folder as runs_folder
from bit_paddle.system import environment, files
from bit_paddle.visual import figures

PROG = "python -m bit_paddle.probe"

_EPILOG = f"""\
prints top-1 on the validation images, minimum-median-maximum over the seeds, for 1, 5, 10, 25 and
all training images per class, by three classifiers on the features of the frozen network:
  ridge     ridge regression in closed form, as in big_vision's few-shot evaluator
  k-NN      the votes of the k nearest images by cosine; k is 1, 5, 10 or 20
  logistic  logistic regression with an L2 penalty
The training images choose the strength of ridge regression and k (leave-one-out); the validation
images choose nothing. A class with fewer images gives all it has. If an image may have several
labels, the score is the mean average precision, and ridge regression is the only classifier.

writes into --results: probe.json, probe.txt, and probe.png, a chart of the table

examples:
  {PROG} --model BiT-Mini --dataset folder --datadir pets
      judges the features of BiT-Mini on pets/val, with classifiers trained on pets/train
  {PROG} --model BiT-M-R50x1 BiT-S-R50x1 --dataset folder --datadir pets
      shows which of two models suits the images better
  {PROG} --model BiT-Mini --dataset folder --datadir pets --output pets.npz
      also writes BiT-Mini with the head of ridge regression on all training images, for
      bit_paddle predict, export, and as a start of train
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Errors: `bit_paddle.errors`."""
    flags = parser().parse_args(arguments)
    if flags.results:
        files.make_folder(Path(flags.results), "--results")
    found = probe(
        flags.model,
        flags.dataset,
        datadir=flags.datadir,
        seeds=flags.seeds,
        layers=flags.layers,
        output=flags.output,
        val_fraction=flags.val_fraction,
        separator=flags.separator,
        group=flags.group,
        exclude=flags.exclude,
        on_bad_image=flags.on_bad_image,
        batch=flags.batch,
        workers=flags.workers,
        device=flags.device,
        amp=flags.amp,
        crop=flags.crop,
        directory=flags.bit_pretrained_dir,
    )
    data_name = specs.short_name(flags.dataset, flags.datadir)
    name = f"probe-{runs_folder.model_name(found[0].model)}-{data_name}"
    folder = Path(flags.results or files.create_folder("bit_logs", name, "probe.json"))
    tables = [*map(str, found), *([probing_models.summary(found)] if len(found) > 1 else [])]
    text = "\n".join(tables)
    files.write_text(folder / "probe.txt", f"{text}\n")
    content = [{**asdict(one), "model": str(one.model)} for one in found]
    files.write_text(folder / "probe.json", files.to_json(content))
    files.write(folder / "probe.png", lambda stream: figures.draw_probes(found, stream))
    print(f"{text}\nresults are in {folder}")
    if flags.output:
        print(f"{flags.output}: the model with the head of ridge regression")
    return 0


def probe(
    model: TrainedModel | str | os.PathLike | Sequence[TrainedModel | str | os.PathLike],
    data: str | os.PathLike,
    *,
    datadir: str | os.PathLike | None = None,
    seeds: int = 5,
    layers: bool = False,
    output: str | os.PathLike | None = None,
    val_fraction: float | None = None,
    separator: str | None = None,
    group: str | None = None,
    exclude: str | os.PathLike | None = None,
    on_bad_image: str = "error",
    batch: int = BATCH,
    workers: int | None = None,
    device: str = "auto",
    amp: str = "off",
    crop: int | None = None,
    directory: str | os.PathLike | None = None,
) -> list[Probe]:
    """Judge the features of one or several models on a data set; return one result per model.

    ``model`` is a result of `load`, an argument of it, or a list of these. ``data``, ``datadir``
    and the arguments from ``val_fraction`` on are those of `bit_paddle.evaluate`. ``seeds`` is the
    number of selections of 1, 5, 10 and 25 images per class. ``layers`` also judges the outputs of
    the four blocks. ``output`` is an ``.npz`` file to write: the model with the head of ridge
    regression on all training images. Features are cached.

    Errors: `ConfigError`, `MissingFileError`, `DataError` (a class without training images),
    `CheckpointError`, `DownloadError`, `WriteError`.

        found = bit_paddle.probe("BiT-Mini", "my_images/", output="pets.npz")
        print(found[0])
    """
    models = list(model) if isinstance(model, (list, tuple)) else [model]
    for one in models:
        if not isinstance(one, TrainedModel):
            resolve_trained(address(one))  # report a wrong name before reading data
    for name, value in (("seeds", seeds), ("batch", batch)):
        if not isinstance(value, int) or value < 1:
            raise errors.ConfigError(f"{name}: is {value!r}, expected a whole number of 1 or more")
    if not models:
        raise errors.ConfigError("model: is an empty list, expected one model or more")
    if output is not None and len(models) > 1:
        raise errors.ConfigError(f"model: {len(models)} models; --output takes exactly one")
    if output is not None:
        probing_models.check_output(Path(output))
    workers = min(8, environment.cpu_count()) if workers is None else workers
    dataset, folder = data_set(data, datadir)
    options = {"val_fraction": val_fraction, "separator": separator}
    options |= {"group": group, "exclude": exclude}
    parts = [
        open_split(dataset, folder, split, options, on_bad_image, workers, split == "train")[1]
        for split in ("train", "val")
    ]
    train, val = (part[0] if part else None for part in parts)
    results = []
    for one in models:
        if not isinstance(one, TrainedModel):
            file = find_trained(address(one), directory, crop, names=False)
            one = TrainedModel(file, device, amp, head=False)
        results.append(probing_models.probe(one, train, val, seeds, layers, batch, workers, output))
    return results


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = parsing.Parser(prog=PROG, description=__doc__.split(":")[0] + ".", epilog=_EPILOG)
    parsing.add_flags(parser)
    for action in parser._actions:
        if action.dest == "model":
            action.nargs = "+"
            action.help = f"models to judge, one or several: {argtypes.MODELS}"
    parser.add_argument(
        "--dataset", type=argtypes.file_path, required=True, help=settings.help_of("dataset")
    )
    for name, metavar, kind in (
        ("datadir", None, argtypes.file_path),
        ("val_fraction", "X", argtypes.fraction),
        ("separator", "WORD", str),
        ("group", "WORD", str),
        ("exclude", "FILE", argtypes.file_path),
    ):
        help = settings.help_of(name)
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=help)
    parser.add_argument(
        "--on_bad_image",
        choices=check.CHOICES,
        default="error",
        help=settings.help_of("on_bad_image"),
    )
    parser.add_argument(
        "--seeds",
        type=argtypes.whole(1),
        default=5,
        metavar="N",
        help="selections of the images, one per seed from 0 on (default: 5)",
    )
    parser.add_argument(
        "--layers",
        action="store_true",
        help="also judge the outputs of the four blocks, averaged over the image",
    )
    parser.add_argument(
        "--output",
        type=argtypes.file_path,
        metavar="FILE.npz",
        help="write the model with the head of ridge regression on all training images",
    )
    parser.add_argument(
        "--results",
        type=argtypes.file_path,
        metavar="DIR",
        help="folder for the results (default: a new folder in bit_logs)",
    )
    return parser


_make_callable(__name__, probe)

if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
