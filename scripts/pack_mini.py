"""Put the model of a run into the package, in float16: ``python scripts/pack_mini.py RUN``.

Prints the size of the file, and the largest rounding error relative to the largest of its array.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from bit_paddle.models import npz, published
from bit_paddle.models.checkpoint import CheckpointFile

KEPT = ("bit_paddle", "versions", "classes", "crop", "resize", "steps", "amp")  # of the notes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run, below bit_logs")
    flags = parser.parse_args()
    entry = published.find(published.MINI)
    target = published.locate(entry)
    target.parent.mkdir(exist_ok=True)
    with CheckpointFile(flags.run / "model.npz") as file:
        file.check(entry.architecture, entry.classes)
        arrays = {key: file.array(key) for key, _ in npz.shapes(entry.architecture, entry.classes)}
        notes = {key: value for key, value in file.notes().items() if key in KEPT}
    halves = {key: array.astype(np.float16) for key, array in arrays.items()}
    npz.write(target, halves.items(), notes)
    off = max(
        float(np.abs(halves[key] - array).max() / np.abs(array).max())
        for key, array in arrays.items()
    )
    print(
        f"{target}: {target.stat().st_size / 1e6:.1f} MB, within {off:.1e} of each array's largest"
    )


if __name__ == "__main__":
    main()
