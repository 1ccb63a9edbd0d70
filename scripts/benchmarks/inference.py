"""Compare the speed of inference with BiT in PyTorch, OpenVINO and ONNX Runtime:
``pip install '.[bench]'``, then ``python scripts/benchmarks/inference.py``.

Prints the machine and its limit (`machine`). For each contender it prints:

- the median, fastest and slowest round in seconds;
- the ratio of its median to that of the fastest unmodified PyTorch in the same precision;
- the same ratio to the faster of OpenVINO and ONNX Runtime ("engines");
- its share of the limit, and its peak memory.
"""

from __future__ import annotations

import contenders
import standings
from networks import (
    COMPILED,
    EXPORTED,
    FOLDED,
    FROZEN,
    HUGGING_FACE,
    LAYOUTS,
    OBVIOUS,
    OBVIOUS_SET,
    ONNX_RUNTIME,
    OPENVINO,
    OURS,
    PURE,
    TIMM,
)

WAYS = ("", COMPILED, COMPILED + FROZEN, FOLDED)
TRANSFORMERS = [f"{HUGGING_FACE}{layout}{way}" for way in WAYS for layout in LAYOUTS]
CONTENDERS = (
    OURS,
    PURE,
    EXPORTED,
    OBVIOUS,
    OBVIOUS_SET,
    *TRANSFORMERS,
    TIMM,
    OPENVINO,
    ONNX_RUNTIME,
    f"{OURS} bf16",
    f"{EXPORTED} bf16",
    *(f"{name} bf16" for name in TRANSFORMERS),
    f"{OPENVINO} bf16",
)


if __name__ == "__main__":
    contenders.main(__doc__, CONTENDERS, standings.INFERENCE, batches=[1, 8, 32])
