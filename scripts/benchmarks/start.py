"""Measure the seconds until a run on many image files has its plan, the first time and later.

    python scripts/benchmarks/start.py 100000

Writes that many small JPEG files into 200 class folders (a tenth for validation) in a temporary
folder, and times ``python -m bit_paddle.train --dry-run`` on it three times: it lists the files,
checks every file, and applies the rule.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=int, help="number of image files")
    count = parser.parse_args().files
    with tempfile.TemporaryDirectory() as root:
        content = io.BytesIO()
        Image.effect_noise((160, 120), 60).convert("RGB").save(content, "JPEG")
        for number in range(count):
            part = "val" if number % 10 == 0 else "train"
            path = Path(root, "data", part, f"class{number // 10 % 200:03}", f"{number:07}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.getvalue())
        command = [sys.executable, "-m", "bit_paddle.train", "--model", "R50x1", "--from_scratch"]
        command += ["--dataset", "folder", "--datadir", str(Path(root, "data")), "--dry-run"]
        for name in ("first", "second", "third"):
            start = time.perf_counter()
            environment = {**os.environ, "BIT_PADDLE_HOME": str(Path(root, "cache"))}
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
            print(f"{name} start: {time.perf_counter() - start:.2f} s for {count:,} files")


if __name__ == "__main__":
    main()
