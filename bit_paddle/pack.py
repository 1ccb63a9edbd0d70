"""Write a data set into shards, for many images: ``python -m bit_paddle.pack --help``.

The layout is that of WebDataset, with an index; the reader `shards` reads both.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bit_paddle import _make_callable, errors
from bit_paddle.config import parsing, settings
from bit_paddle.config import types as argtypes
from bit_paddle.data import check
from bit_paddle.data.images import Dataset, Images
from bit_paddle.data.labels import LabelSets
from bit_paddle.data.readers import registry
from bit_paddle.data.shards import pack as packing
from bit_paddle.inference.arguments import data_set
from bit_paddle.system import environment, files
from bit_paddle.system.text import plural

PROG = "python -m bit_paddle.pack"

DESCRIPTION = "data.yaml"

SPLITS = ("all", "train", "val", "test")

_EPILOG = f"""\
writes into --output:
  train/000000.tar …  shards in the layout of WebDataset: 000001.jpg, 000001.cls (the number of its
                      class) and 000001.json (its name and class); val/ and test/ are alike
  train/index.json    the classes and the shards; *.npy beside it have the place, the checksum, the
                      label and the name of each image
  {DESCRIPTION}           describes the data set for --dataset

The bytes of image files do not change; images without files (cifar10, digits) become PNG. Training
on the shards gives the same bits as on the images. Validation images are held out before they are
packed. If the command was stopped, or the disk was full, the same command continues.

examples:
  {PROG} --dataset folder --datadir pets --output pets-packed
      writes the shards; then train with --dataset pets-packed/{DESCRIPTION}
  {PROG} --dataset shards --datadir others-packed --output packed --shard_mb 500
      writes the shards of another program anew, with an index
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Errors: `bit_paddle.errors`."""
    flags = parser().parse_args(arguments)
    folder = Path(flags.output)
    pack(
        flags.dataset,
        folder,
        datadir=flags.datadir,
        split=flags.split,
        shard_mb=flags.shard_mb,
        val_fraction=flags.val_fraction,
        separator=flags.separator,
        group=flags.group,
        exclude=flags.exclude,
        on_bad_image=flags.on_bad_image,
        workers=flags.workers,
    )
    shards = len(list(folder.glob("*/*.tar")))
    print(f"{plural(shards, 'shard')} in {folder}; train with --dataset {folder / DESCRIPTION}")
    return 0


def pack(
    data: str | os.PathLike,
    output: str | os.PathLike,
    *,
    datadir: str | os.PathLike | None = None,
    split: str = "all",
    shard_mb: float = 1000.0,
    val_fraction: float | None = None,
    separator: str | None = None,
    group: str | None = None,
    exclude: str | os.PathLike | None = None,
    on_bad_image: str = "error",
    workers: int | None = None,
) -> Path:
    """Write a data set into shards in the folder ``output``; return its description for training.

    ``data``, ``datadir``, ``val_fraction``, ``separator``, ``group`` and ``exclude`` are those of
    `bit_paddle.evaluate`. ``split`` is all, train, val or test. A shard has ``shard_mb`` megabytes
    and up to one image more. ``on_bad_image`` skip leaves out images that cannot be decoded.
    ``workers`` threads read files (None: one per processor, at most 8).

    Errors: `ConfigError`, `MissingFileError`, `DataError`, `DownloadError`, `WriteError`.

        path = bit_paddle.pack("my_images/", "packed")
        bit_paddle.fine_tune("BiT-Mini", path)
    """
    dataset, home = data_set(data, datadir)
    options: dict[str, Any] = {"val_fraction": val_fraction, "separator": separator}
    options.update(group=group, exclude=exclude)
    opened = registry.open_dataset(dataset, home, **options)
    for note in opened.notes:
        print(f"note: {note}", file=sys.stderr)
    workers = min(8, environment.cpu_count()) if workers is None else workers
    parts = _checked(_parts(opened, split, dataset), on_bad_image, workers)
    folder = Path(output)
    packing.pack(parts, folder, int(shard_mb * 1e6), workers)
    described = {
        "reader": "shards",
        "datadir": ".",
        **{name: name for name in parts},
        **({"several": True} if isinstance(opened.train.labels, LabelSets) else {}),
        "flip": opened.flip,
        "random_crop": opened.random_crop,
        **({"resolution": opened.resolution} if opened.resolution else {}),
    }
    files.write_text(folder / DESCRIPTION, yaml.safe_dump(described, sort_keys=False))
    packing.finish(folder)
    return folder / DESCRIPTION


def _parts(data: Dataset, split: str, dataset: str) -> dict[str, Images]:
    """Return the parts of ``split`` by name. Raises `ConfigError` if there are none."""
    if split not in SPLITS:
        raise errors.ConfigError(f"split: is {split!r}: choose from {', '.join(SPLITS)}")
    names = SPLITS[1:] if split == "all" else (split,)
    parts = {name: getattr(data, name) for name in names if getattr(data, name)}
    if not parts:
        raise errors.ConfigError(f"split: is {split!r}, but {dataset} has no such images")
    return parts


def _checked(parts: dict[str, Images], on_bad_image: str, workers: int) -> dict[str, Images]:
    """Return the images that can be decoded. Raises `DataError` for others, unless skipped."""
    if on_bad_image not in check.CHOICES:
        raise errors.ConfigError(
            f"on_bad_image: is {on_bad_image!r}: choose from {', '.join(check.CHOICES)}"
        )
    if on_bad_image == "error":
        check.require_usable([(one, np.arange(len(one))) for one in parts.values()], workers)
        return parts
    checked = {}
    for name, images in parts.items():
        checked[name], skipped = check.usable(images, workers, every_class=name == "train")
        for fault in skipped:
            print(f"skipped: {fault}", file=sys.stderr)
    return checked


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = parsing.Parser(prog=PROG, description=f"{__doc__.split(':')[0]}.", epilog=_EPILOG)
    parser.add_argument(
        "--dataset", type=argtypes.file_path, required=True, help=settings.help_of("dataset")
    )
    parser.add_argument("--datadir", type=argtypes.file_path, help=settings.help_of("datadir"))
    parser.add_argument(
        "--output",
        type=argtypes.file_path,
        required=True,
        metavar="DIR",
        help="new folder for the shards; or that of a stopped command, which continues",
    )
    parser.add_argument("--split", choices=SPLITS, default="all", help="images to pack")
    parser.add_argument(
        "--shard_mb",
        type=argtypes.positive,
        default=1000.0,
        metavar="X",
        help="megabytes of a shard (default: 1000)",
    )
    for name, metavar, kind in (
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
        help="for images that cannot be decoded: end with an error, or skip them",
    )
    parser.add_argument(
        "--workers",
        type=argtypes.whole(1),
        default=min(8, environment.cpu_count()),
        metavar="N",
        help="threads that read files",
    )
    return parser


_make_callable(__name__, pack)

if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
