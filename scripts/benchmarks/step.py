"""Compare the speed of a training step with BiT in PyTorch: ``pip install '.[bench]'``, then
``python scripts/benchmarks/step.py``.

Prints the machine and its limit (`machine`), and for each contender the median, fastest and slowest
round in seconds, the ratio of its median to that of the fastest PyTorch in the same precision, its
share of the limit, and its peak memory. For "4 micro-batches", the time is that of one of the four.
"""

from __future__ import annotations

import contenders
import standings
from networks import (
    COMPILED,
    HUGGING_FACE,
    IN_PARTS,
    LAYOUTS,
    OBVIOUS,
    OBVIOUS_SET,
    OURS,
    PURE,
    TIMM,
)

TRANSFORMERS = [f"{HUGGING_FACE}{x}{how}" for x in LAYOUTS for how in ("", COMPILED)]
CONTENDERS = (
    OURS,
    PURE,
    OURS + IN_PARTS,
    PURE + IN_PARTS,
    OBVIOUS,
    OBVIOUS_SET,
    *TRANSFORMERS,
    TIMM,
    f"{OURS} bf16",
    *(f"{name} bf16" for name in TRANSFORMERS),
)


if __name__ == "__main__":
    contenders.main(__doc__, CONTENDERS, standings.STEP)
