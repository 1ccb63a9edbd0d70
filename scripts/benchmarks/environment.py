#!/usr/bin/env python3
"""Time Paddle's matrix product with and without the settings of `system.environment`.

    python scripts/benchmarks/environment.py

Each speed is the median of seven float32 products of 2048 x 2048 matrices, in a new process.
"""

import argparse
import os
import subprocess
import sys

NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_DEBUG_CPU_TYPE")
PRODUCT = """
import statistics, sys, time
if sys.argv[1] == "with":
    import bit_paddle
import paddle
a = paddle.randn([2048, 2048])
def seconds():
    start = time.perf_counter()
    paddle.matmul(a, a)
    return time.perf_counter() - start
seconds()
print(2 * 2048 ** 3 / statistics.median(seconds() for _ in range(7)) / 1e9)
"""


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    speed = {}
    for mode in ("without", "with"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PRODUCT, mode],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        speed[mode] = float(done.stdout.split()[-1])
        print(f"{mode:8} the settings: {speed[mode]:6.0f} GFLOP/s")
    print(f"ratio {speed['with'] / speed['without']:.1f}")


if __name__ == "__main__":
    main()
