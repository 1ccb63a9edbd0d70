"""Measure the seconds until a run on many image files has its plan, the first time and later.

    python scripts/benchmarks/start.py 100000 --other ../an_older_checkout
    python scripts/benchmarks/start.py 10000 --size 500 375 --check full

Writes that many small JPEG files into 200 class folders (a tenth for validation) in a temporary
folder, and times ``python -m bit_paddle.train --dry-run`` on it: it lists the files, checks every
file, looks for copies across the parts, and applies the rule. All files have one size and different
contents, so that every file must be read to know that it is no copy. --other compares with another
checkout of the package; the trials of both are interleaved. --check full decodes every file.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=int, help="number of image files")
    parser.add_argument("--other", type=Path, metavar="DIR", help="another checkout to compare")
    parser.add_argument("--trials", type=int, default=5, help="number of trials (default: 5)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(160, 120), metavar=("W", "H"), help="of the images"
    )
    parser.add_argument("--check", choices=("quick", "full"), default="quick")
    flags = parser.parse_args()
    more = ["--check", flags.check] if flags.check == "full" else []
    checkouts = [HERE, *([flags.other.resolve()] if flags.other else [])]
    seconds: dict[tuple[Path, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as root:
        write_files(Path(root, "data"), flags.files, flags.size)
        time.sleep(3)  # dates of the last two seconds are not cached
        start(HERE, Path(root), more)  # the system caches the files
        for _ in range(flags.trials):
            for checkout in checkouts:
                shutil.rmtree(Path(root, "cache"))
                for name in ("first", "second"):
                    seconds.setdefault((checkout, name), []).append(
                        start(checkout, Path(root), more)
                    )
    size = " x ".join(map(str, flags.size))
    print(f"{flags.files:,} files of {size} pixels, median of {flags.trials} trials")
    for name in ("first", "second"):
        medians = [statistics.median(seconds[checkout, name]) for checkout in checkouts]
        line = f"{name:6} start: {medians[0]:.2f} s, {flags.files / medians[0]:,.0f} images/s"
        if flags.other:
            line += f", the other checkout {medians[1]:.2f} s, ratio {medians[0] / medians[1]:.2f}"
        print(line)


def write_files(root: Path, count: int, size: Sequence[int]) -> None:
    """Write ``count`` JPEG files of one size; a comment makes each file different."""
    stream = io.BytesIO()
    Image.effect_noise(tuple(size), 60).convert("RGB").save(stream, "JPEG")
    start, rest = stream.getvalue()[:2], stream.getvalue()[2:]
    for number in range(count):
        part = "val" if number % 10 == 0 else "train"
        path = Path(root, part, f"class{number // 10 % 200:03}", f"{number:07}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(start + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big") + rest)


def start(checkout: Path, root: Path, more: Sequence[str]) -> float:
    """Return the seconds of a dry run by the package in ``checkout``."""
    command = [sys.executable, "-m", "bit_paddle.train", "--model", "R50x1", "--from_scratch"]
    command += ["--dataset", "folder", "--datadir", str(root / "data"), "--dry-run", *more]
    paths = {"BIT_PADDLE_HOME": str(root / "cache"), "PYTHONPATH": str(checkout)}
    begun = time.perf_counter()
    subprocess.run(
        command, env={**os.environ, **paths}, cwd=root, stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
