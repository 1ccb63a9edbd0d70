"""Compare the speed of a training step with BiT in PyTorch: ``pip install '.[bench]'``, then
``python scripts/benchmarks/step.py``.

Prints for each contender the median, fastest and slowest round in seconds, the ratio of its median
to that of the fastest PyTorch in the same precision, and its peak memory. For "4 micro-batches",
the time is that of one of the four.
"""

from __future__ import annotations

import contenders

CONTENDERS = (
    contenders.OURS,
    contenders.PURE,
    contenders.OURS + contenders.IN_PARTS,
    contenders.PURE + contenders.IN_PARTS,
    contenders.OBVIOUS,
    contenders.OBVIOUS_SET,
    *(f"{contenders.HUGGING_FACE}{layout}" for layout in ("", ", NHWC")),
    contenders.TIMM,
    f"{contenders.OURS} bf16",
    *(f"{contenders.HUGGING_FACE}{layout} bf16" for layout in ("", ", NHWC")),
)


if __name__ == "__main__":
    contenders.main(__doc__, CONTENDERS, "training step")
