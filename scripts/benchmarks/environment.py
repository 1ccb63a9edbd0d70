#!/usr/bin/env python3
"""Time Paddle's matrix product with and without the settings of `system.environment`.

    python scripts/benchmarks/environment.py

Each figure is the median of seven products of 2048 x 2048 in float32, in a process of its own.
"""

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
    plain = {name: value for name, value in os.environ.items() if name not in NAMES}
    speed = {}
    for which in ("without", "with"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PRODUCT, which],
            env=plain,
            check=True,
            capture_output=True,
            text=True,
        )
        speed[which] = float(done.stdout.split()[-1])
        print(f"{which:8} the settings: {speed[which]:6.0f} GFLOP/s")
    print(f"ratio {speed['with'] / speed['without']:.1f}")


if __name__ == "__main__":
    main()
