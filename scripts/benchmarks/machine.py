"""Name this machine, and measure its limit: ``python scripts/benchmarks/machine.py``.

The limit in a precision is the fastest product of two square matrices (1,024, 2,048 and 4,096 rows)
on all cores, by whichever library here is fastest: Paddle (MKL), PyTorch (MKL, oneDNN) or OpenVINO
(oneDNN). The benches of speed print each figure also as a share of it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import bit_paddle
from bit_paddle.system import environment

SIDES, PRODUCTS = (1024, 2048, 4096), 10  # rows of the matrices; timed products of each size
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
PACKAGES = (
    "paddlepaddle",
    "paddlepaddle-gpu",
    "torch",
    "transformers",
    "timm",
    "openvino",
    "onnxruntime",
)


def describe() -> dict[str, str]:
    """Return the names of processor, system and versions, and the load before any measurement."""
    versions = [f"bit_paddle {bit_paddle.__version__}"]
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return {
        "processor": f"{environment.machine_cpu_count()} x {_processor()}",
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "versions": ", ".join(versions),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def _processor() -> str:
    """Return the processor's name, family, model and instructions."""
    facts: dict[str, str] = {}
    with suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    if "model name" not in facts:
        return platform.machine()
    flags = facts.get("flags", "").split()
    words = [f"family {facts.get('cpu family')}", f"model {facts.get('model')}"]
    return f"{facts['model name']} ({', '.join(words + [x for x in INSTRUCTIONS if x in flags])})"


def limits() -> dict[str, dict]:
    """Return {precision: {"gflops": of the fastest product, "by": library and rows}}."""
    found: dict[str, dict] = {}
    for library in PRODUCT:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--library", library],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )  # what is not installed, or lacks a precision, prints nothing of it
        for line in filter(lambda text: text.startswith("{"), done.stdout.splitlines()):
            product = json.loads(line)
            best = found.setdefault(product.pop("precision"), product)
            if product["gflops"] > best["gflops"]:
                best.update(product)
    return found


# --- The products -------------------------------------------------------------------------------


def measure(library: str) -> None:
    """Print a line of JSON per precision and size: the fastest product of ``library``."""
    for precision in ("float32", "bf16"):
        for side in SIDES:
            run = PRODUCT[library](side, precision)
            run()
            seconds = min(_seconds(run) for _ in range(PRODUCTS))
            speed = {"gflops": round(2e-9 * side**3 / seconds), "by": f"{library}, {side:,} rows"}
            print(json.dumps({"precision": precision, **speed}), flush=True)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def of_paddle(side: int, precision: str) -> Callable[[], object]:
    import paddle

    matrix = paddle.randn([side, side])
    matrix = matrix.astype("bfloat16") if precision == "bf16" else matrix
    return lambda: paddle.matmul(matrix, matrix)


def of_torch(side: int, precision: str) -> Callable[[], object]:
    import torch

    torch.set_num_threads(environment.machine_cpu_count())
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.randn(side, side, dtype=kind)
    return lambda: torch.mm(matrix, matrix)


def of_openvino(side: int, precision: str) -> Callable[[], object]:
    import numpy as np
    import openvino
    from openvino import opset13

    matrix = np.random.default_rng(0).standard_normal((side, side), np.float32)
    first = opset13.parameter([side, side], np.float32)
    product = opset13.matmul(first, opset13.constant(matrix), False, False)
    model = openvino.compile_model(
        openvino.Model([product], [first]),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": environment.machine_cpu_count(),
        },
    )
    request = model.create_infer_request()
    request.set_input_tensor(openvino.Tensor(matrix, shared_memory=True))
    return request.infer


PRODUCT = {"paddle": of_paddle, "torch": of_torch, "openvino": of_openvino}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", choices=PRODUCT, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.library:
        measure(flags.library)
    else:
        print("\n".join(lines({**describe(), "limits": limits()})))


def lines(facts: dict) -> list[str]:
    """Return what `describe` and `limits` found, as lines for people."""
    text = [facts["processor"], f"{facts['system']}; {facts['versions']}"]
    text.append(f"load before the measurement: {facts['load']}")
    for precision, limit in facts["limits"].items():
        text.append(f"limit in {precision}: {limit['gflops']} GFLOP/s ({limit['by']})")
    return text


if __name__ == "__main__":
    main()
