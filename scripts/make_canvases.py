"""Make images with several labels: photographs side by side on one canvas, with their classes.

    python scripts/make_canvases.py canvases --photos clothing10

Writes canvases/labels.csv and canvases/train/, canvases/val/. --photos holds train/<class>/* and
val/<class>/*; the canvases of each part show the photographs of that part alone. A canvas shows
two photographs side by side, or four in a square, of random classes; its labels are the classes
that it shows. The same seed makes the same canvases.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.config.types import file_path, whole
from bit_paddle.data.images import Images
from bit_paddle.data.readers import registry
from bit_paddle.system import files
from bit_paddle.system.progress import progress_bar

SEPARATOR = ";"


def main(arguments: Sequence[str]) -> int:
    """Make the canvases of both parts, and the file of their labels."""
    parser = parsing.Parser("python scripts/make_canvases.py", description=__doc__)
    parser.add_argument("out", type=file_path, help="folder to write into")
    parser.add_argument("--photos", type=file_path, required=True, help="folder of photographs")
    parser.add_argument("--images", type=whole(2), default=2000, help="canvases (default: 2000)")
    parser.add_argument("--side", type=whole(32), default=160, help="in pixels (default: 160)")
    parser.add_argument("--seed", type=whole(0), default=0, help="(default: 0)")
    flags = parser.parse_args(list(arguments))
    photos = registry.open_dataset("folder", datadir=flags.photos)
    counts = {"train": flags.images * 4 // 5, "val": flags.images - flags.images * 4 // 5}
    rows = [("path", "labels")]
    for number, (part, count) in enumerate(counts.items()):
        random = np.random.default_rng([flags.seed, number])
        rows += make_part(Path(flags.out), part, count, getattr(photos, part), flags.side, random)
    path = Path(flags.out) / "labels.csv"
    files.write_text(path, "".join(map(files.csv_line, rows)))
    print(f"{path}: {flags.images:,} canvases with {len(photos.train.classes)} labels")
    return 0


def make_part(
    out: Path, part: str, count: int, photos: Images, side: int, random: np.random.Generator
) -> list[tuple[str, str]]:
    """Write ``count`` canvases of ``side`` x ``side`` pixels; return their rows of labels.csv."""
    files.make_folder(out / part, "out")
    by_class = [np.flatnonzero(photos.labels == label) for label in range(len(photos.classes))]
    rows = []
    for number in progress_bar(iterable=range(1, count + 1), desc=part, unit="img"):
        labels = random.integers(0, len(by_class), random.choice([2, 4]))
        chosen = [int(random.choice(by_class[label])) for label in labels]
        name = f"{part}/{number:05}.jpg"
        canvas([photos.image(index) for index in chosen], side).save(out / name, quality=95)
        rows.append((name, SEPARATOR.join(photos.classes[k] for k in sorted(set(labels.tolist())))))
    return rows


def canvas(photos: Sequence[Image.Image], side: int) -> Image.Image:
    """Return two photographs side by side, or four in a square, each squashed into its place."""
    rows = len(photos) // 2
    result, width, height = Image.new("RGB", (side, side)), side // 2, side // rows
    for number, photo in enumerate(photos):
        place = (number % 2 * width, number // 2 * height)
        result.paste(photo.resize((width, height), Image.Resampling.BILINEAR), place)
    return result


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
