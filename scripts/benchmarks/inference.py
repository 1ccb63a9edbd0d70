"""Inference beside BiT in PyTorch: ``pip install '.[native,bench]'``, then
``python scripts/benchmarks/inference.py``.

Printed: the median, the fastest and the slowest round, the median's ratio to the faster PyTorch of
the same precision as it comes, and the memory of the process at its peak.
"""

from __future__ import annotations

import contenders

LAYOUTS = ("", ", NHWC", ", folded", ", NHWC, folded")
CONTENDERS = (
    contenders.OURS,
    contenders.PURE,
    contenders.EXPORTED,
    contenders.OBVIOUS,
    contenders.OBVIOUS_SET,
    *(f"{contenders.HUGGING_FACE}{layout}" for layout in LAYOUTS),
    contenders.TIMM,
    f"{contenders.OURS} bf16",
    f"{contenders.EXPORTED} bf16",
    *(f"{contenders.HUGGING_FACE}{layout} bf16" for layout in LAYOUTS),
)


if __name__ == "__main__":
    contenders.main(__doc__, CONTENDERS, "inference", inference=True)
