"""A training step beside BiT in PyTorch: ``pip install '.[native,bench]'``, then
``python scripts/benchmarks/step.py``.

Printed: the median, the fastest and the slowest round, the median's ratio to the faster PyTorch of
the same precision, and the memory of the process at its peak. "4 micro-batches": the time of one.
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
