"""A training step, or inference, beside BiT in PyTorch: ``pip install '.[bench]'``, then
``python scripts/bench_step.py``.

Each contender is a process of its own, as two OpenMP runtimes in one spoil each other; they take
turns, so that a busy moment of the machine hits all of them. A step is what training does with a
batch of uint8 images: x / 127.5 - 1, forward pass, mean cross-entropy, backward pass, SGD with
momentum. Contenders:

  bit_paddle             this package
  paddle, obvious        standardization by mean, variance and square root in every pass, Paddle's
                         own momentum, and Paddle's threads as they come
  transformers           `BitForImageClassification` of Hugging Face, eager
  transformers, NHWC     the same, channels-last
  ... bf16               under `torch.autocast`, with --amp bf16

Printed: the median, the fastest and the slowest round, the median's ratio to the faster PyTorch
contender of the same precision, and the memory of the process at its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

OURS, OBVIOUS = "bit_paddle", "paddle, obvious"
PEERS = ("transformers", "transformers, NHWC")
CLASSES = 10


# --- Contenders: each returns what does one step ------------------------------------------------


def ours(flags: argparse.Namespace, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    from bit_paddle import checkpoint, metrics, parallel, sgd, train
    from bit_paddle.data.loader import MicroBatch

    model = checkpoint.create_model(flags.model, CLASSES)
    part = MicroBatch(images, labels, labels)
    if flags.inference:
        return lambda: list(metrics.outputs(model, [part]))
    optimizer = sgd.Momentum(0.003, 0.9, model.parameters())
    sums = parallel.GradientSums(model.parameters())
    return lambda: train.update(model, optimizer, sums, [part], len(labels), 1e-4)


def obvious(
    flags: argparse.Namespace, images: np.ndarray, labels: np.ndarray
) -> Callable[[], object]:
    import paddle

    from bit_paddle import checkpoint, models, parallel

    def standardize(weight: paddle.Tensor) -> paddle.Tensor:
        mean = weight.mean(axis=[1, 2, 3], keepdim=True)
        variance = weight.var(axis=[1, 2, 3], unbiased=False, keepdim=True)
        return (weight - mean) / paddle.sqrt(variance + models.STANDARDIZATION_EPSILON)

    models.standardize = standardize
    model = checkpoint.create_model(flags.model, CLASSES)
    optimizer = paddle.optimizer.Momentum(1e-4, 0.9, model.parameters())
    targets = paddle.to_tensor(labels)

    def infer() -> np.ndarray:
        with paddle.no_grad():
            return model(parallel.to_device(images)).numpy()

    def step() -> None:
        logits = model(parallel.to_device(images))
        paddle.nn.functional.cross_entropy(logits, targets).backward()
        optimizer.step()
        optimizer.clear_grad()

    if flags.inference:
        model.eval()
    return infer if flags.inference else step


def pytorch(
    flags: argparse.Namespace, images: np.ndarray, labels: np.ndarray
) -> Callable[[], object]:
    import torch
    from transformers import BitConfig, BitForImageClassification

    from bit_paddle.architecture import Architecture
    from bit_paddle.environment import machine_cpu_count

    torch.set_num_threads(machine_cpu_count())
    shape = Architecture.parse(flags.model)
    widths = [int(256 * shape.width * 2**block) for block in range(4)]
    config = BitConfig(
        depths=list(shape.units),
        hidden_sizes=widths,
        embedding_size=shape.root_channels,
        num_labels=CLASSES,
    )
    layout = torch.channels_last if "NHWC" in flags.worker else torch.contiguous_format
    model = BitForImageClassification(config).to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    targets, half = torch.from_numpy(labels), "bf16" in flags.worker

    def logits() -> torch.Tensor:
        pixels = torch.from_numpy(images).float().div_(127.5).sub_(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return model(pixels.contiguous(memory_format=layout)).logits

    def infer() -> np.ndarray:
        with torch.inference_mode():
            return logits().float().numpy()

    def step() -> None:
        torch.nn.functional.cross_entropy(logits().float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model.train(not flags.inference)
    return infer if flags.inference else step


def work(flags: argparse.Namespace) -> None:
    """Be a contender: a step for each line of input, answered with its seconds and the memory."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (flags.batch, 3, flags.side, flags.side)).astype(np.uint8)
    labels = random.integers(0, CLASSES, flags.batch)
    contender = {OURS: ours, OBVIOUS: obvious}.get(flags.worker, pytorch)
    step = contender(flags, images, labels)
    for _ in range(2):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps([seconds, memory]), flush=True)


# --- The race -----------------------------------------------------------------------------------


def race(contenders: list[str], rounds: int, words: list[str]) -> dict[str, dict[str, object]]:
    """Return {contender: {"seconds": of each round, "memory": MB at the peak}}."""
    children = {}
    for name in contenders:
        environment = dict(os.environ)
        if name == OBVIOUS:
            environment["OMP_NUM_THREADS"] = "1"  # what Paddle gives MKL where nobody says
        children[name] = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--worker", name, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
    for name, child in list(children.items()):
        if not any(line == "ready\n" for line in iter(child.stdout.readline, "")):
            print(f"{name}: does not run here")
            del children[name]
    found = {name: {"seconds": [], "memory": 0.0} for name in children}
    for _ in range(rounds):
        for name, child in children.items():
            child.stdin.write("\n")
            child.stdin.flush()
            seconds, found[name]["memory"] = json.loads(child.stdout.readline())
            found[name]["seconds"].append(seconds)
    for child in children.values():
        child.stdin.close()
        child.wait()
    return found


def report(found: dict[str, dict[str, object]]) -> None:
    """Print the medians, and their ratios to the faster peer of the same precision, if there."""
    medians = {name: statistics.median(one["seconds"]) for name, one in found.items()}
    peers = {name: median for name, median in medians.items() if name.startswith(PEERS[0])}
    for name, one in found.items():
        same = [peers[peer] for peer in peers if peer.endswith("bf16") == name.endswith("bf16")]
        fastest = min(same or peers.values(), default=float("nan"))
        low, high = min(one["seconds"]), max(one["seconds"])
        print(
            f"{name:26}{medians[name]:8.3f}  {low:8.3f} {high:8.3f}  "
            f"{medians[name] / fastest:6.2f}  {one['memory']:7,.0f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="R50x1", help="R<layers>x<width>")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32], help="images a step")
    parser.add_argument("--side", type=int, default=128, help="of the images")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--inference", action="store_true", help="forward passes alone")
    parser.add_argument("--bf16", action="store_true", help="PyTorch's contenders in bf16 too")
    parser.add_argument("--without", nargs="+", default=[], help="contenders to leave out")
    parser.add_argument("--json", type=Path, help="file for every time")
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        work(flags)
        return
    contenders = [OURS, OBVIOUS, *PEERS, *(f"{peer} bf16" for peer in PEERS if flags.bf16)]
    contenders = [name for name in contenders if name not in flags.without]
    every = {}
    what = "inference" if flags.inference else "training step"
    for batch in flags.batches:
        print(f"{flags.model}, {flags.side} x {flags.side}, {what}, batch {batch}")
        print(f"{'':26}{'median s':>8}  {'fastest':>8} {'slowest':>8}   ratio       MB", flush=True)
        words = ["--model", flags.model, "--side", str(flags.side), "--batch", str(batch)]
        words += ["--inference"] * flags.inference
        every[batch] = race(contenders, flags.rounds, words)
        report(every[batch])
    if flags.json:
        flags.json.write_text(json.dumps(every, indent=1))


if __name__ == "__main__":
    main()
