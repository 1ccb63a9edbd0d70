"""A training step beside BiT in PyTorch: ``pip install '.[native,bench]'``, then
``python scripts/bench_step.py``.

Printed: the median, the fastest and the slowest round, the median's ratio to the faster PyTorch of
the same precision, and the memory of the process at its peak. "4 micro-batches": the time of one.
"""

from __future__ import annotations

import race

CONTENDERS = (
    race.OURS,
    race.PURE,
    race.OURS + race.IN_PARTS,
    race.PURE + race.IN_PARTS,
    race.OBVIOUS,
    race.OBVIOUS_SET,
    *(f"{race.HUGGING_FACE}{layout}" for layout in ("", ", NHWC")),
    race.TIMM,
    f"{race.OURS} bf16",
    *(f"{race.HUGGING_FACE}{layout} bf16" for layout in ("", ", NHWC")),
)


if __name__ == "__main__":
    race.main(__doc__, CONTENDERS, "training step")
