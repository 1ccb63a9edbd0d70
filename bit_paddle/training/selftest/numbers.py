"""Checks that compute in this process: outputs and gradients, pinned copies, the exchange."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from bit_paddle.models.weights import create_model
from bit_paddle.system import device, processes
from bit_paddle.training import distributed, step
from bit_paddle.training.optimizer import Momentum
from bit_paddle.training.selftest.runs import CheckFailed, Runs

BAR = 1e-3  # relative; TF32 has 10 bits, and errs by more after the layers of a network

_WORK = "import sys; from bit_paddle.training.selftest import numbers; numbers.work(*sys.argv[1:])"


def goldens(runs: Runs) -> str:
    """Compare BiT-Mini in float32 on the device with float64 on the CPU: outputs and gradients.

    The CPU's float64 equals the authors' code within 1e-10 (tests/models/test_golden.py).
    """
    with device.on_cpu():
        logits, gradients = _passes("float64")
    device.select_device("gpu" if runs.gpus else "cpu")
    found, found_gradients = _passes("float32")
    errors = [_error(found, logits)]
    errors += [_error(found_gradients[name], one) for name, one in gradients.items()]
    text = (
        f"BiT-Mini: outputs differ by {errors[0]:.1e}, {len(gradients)} gradients by "
        f"{max(errors[1:]):.1e} at most, of the norm of the float64 value"
    )
    if not max(errors) < BAR:
        raise CheckFailed(f"{text}; expected less than {BAR:g}")
    return text


def _passes(dtype: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the logits of BiT-Mini, and the gradients of the mean of their squares."""
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        model = create_model("BiT-Mini", pretrained=True)
        images = np.random.default_rng(0).uniform(-1, 1, (4, 3, 64, 64)).astype(np.float32)
        logits = model(paddle.to_tensor(images.astype(dtype)))
        (logits**2).mean().backward()
        gradients = {name: one.grad.numpy() for name, one in model.named_parameters()}
        return logits.numpy(), gradients
    finally:
        paddle.set_default_dtype(before)


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    difference = np.linalg.norm(found.astype(np.float64) - expected)
    return float(difference / np.linalg.norm(expected))


def pinned(runs: Runs) -> str:
    """Copy images from pinned memory to the GPU; compare them with the CPU's, and time it."""
    images = np.random.default_rng(0).integers(0, 256, (128, 3, 224, 224)).astype(np.uint8)
    device.select_device("gpu")
    seconds = []
    for _ in range(8):
        begun = time.perf_counter()
        copied = device.to_device(images)
        paddle.device.synchronize()
        seconds.append(time.perf_counter() - begun)
    found = copied.numpy()
    with device.on_cpu():
        expected = device.to_device(images).numpy()
    if not np.array_equal(found, expected):
        raise CheckFailed("the images on the GPU differ from those on the CPU")
    return f"same values as on the CPU; {images.nbytes / statistics.median(seconds) / 1e9:.1f} GB/s"


# --- The exchange beside the backward pass ------------------------------------------------------


class LateSums(distributed.GradientSums):
    """Exchanges all gradients after the backward pass, to measure what the overlap is worth."""

    def _on_gradient(self, index: int, *_: object) -> None:
        pass


def overlap(runs: Runs) -> str:
    """Make steps with the exchange beside the backward pass and after it: the same bits; times."""
    words = [*runs.all, *(("R50x1", "32", "224") if runs.gpus else ("R14x0.5", "4", "32"))]
    network, batch, side = words[-3:]
    path, count = runs.folder / "overlap.json", len(runs.gpus) or 2
    command = [sys.executable, "-W", "ignore", "-c", _WORK, network, batch, side, str(path)]
    if processes.launch(command, count, runs.gpus):
        raise CheckFailed("a process has failed; its message is above")
    found = json.loads(path.read_text(encoding="utf-8"))
    text = (
        f"{count} processes, {network}: {1000 * found['beside']:.1f} ms per step beside the "
        f"backward pass, {1000 * found['late']:.1f} ms after it"
    )
    if not found["same"]:
        raise CheckFailed(f"{text}; the weights differ")
    return f"{text}; same bits"


def work(network: str, batch: str, side: str, path: str) -> None:
    """Measure both ways in one of the processes; rank 0 writes the medians to ``path``."""
    processes.end_with_parent()
    device.select_device("gpu" if processes.has_gpu() else "cpu", deterministic=True)
    distributed.join()
    paddle.seed(processes.rank())
    images = paddle.randn([int(batch), 3, int(side), int(side)])
    found: dict[str, Any] = {}
    weights = []
    for name, sums_of in (("beside", distributed.GradientSums), ("late", LateSums)):
        model = create_model(network, 10, seed=0)
        one = stepper(model, sums_of(model.parameters()), images)
        found[name] = statistics.median([seconds_of(one) for _ in range(6)][1:])
        weights.append([parameter.numpy() for parameter in model.parameters()])
    found["same"] = all(np.array_equal(a, b) for a, b in zip(*weights))
    if processes.rank() == 0:
        Path(path).write_text(json.dumps(found), encoding="utf-8")


def stepper(model: Any, sums: distributed.GradientSums, images: Any) -> Callable[[], float]:
    """Return a function that makes one step on ``images``."""
    optimizer = Momentum(0.01, 0.9, model.parameters())

    def loss_of(model: Any, images: Any) -> Any:
        return (model(images) ** 2).mean()

    return partial(step.update, model, optimizer, sums, [images], loss_of, 1e-3)


def seconds_of(one: Callable[[], object]) -> float:
    """Return the seconds of one step, which all ranks begin together."""
    distributed.largest(0)
    begun = time.perf_counter()
    one()
    return time.perf_counter() - begun
