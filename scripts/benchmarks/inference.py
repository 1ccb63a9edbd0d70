"""Compare the speed of inference with BiT in PyTorch: ``pip install '.[bench]'``, then
``python scripts/benchmarks/inference.py``.

Prints for each contender the median, fastest and slowest round in seconds, the ratio of its median
to that of the fastest unmodified PyTorch in the same precision, and its peak memory.
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
