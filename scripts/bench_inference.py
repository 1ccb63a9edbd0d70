"""Inference beside BiT in PyTorch: ``pip install '.[native,bench]'``, then
``python scripts/bench_inference.py``.

Printed: the median, the fastest and the slowest round, the median's ratio to the faster PyTorch of
the same precision as it comes, and the memory of the process at its peak.
"""

from __future__ import annotations

import race

LAYOUTS = ("", ", NHWC", ", folded", ", NHWC, folded")
CONTENDERS = (
    race.OURS,
    race.PURE,
    race.EXPORTED,
    race.OBVIOUS,
    race.OBVIOUS_SET,
    *(f"{race.HUGGING_FACE}{layout}" for layout in LAYOUTS),
    race.TIMM,
    f"{race.OURS} bf16",
    f"{race.EXPORTED} bf16",
    *(f"{race.HUGGING_FACE}{layout} bf16" for layout in LAYOUTS),
)


if __name__ == "__main__":
    race.main(__doc__, CONTENDERS, "inference", inference=True)
