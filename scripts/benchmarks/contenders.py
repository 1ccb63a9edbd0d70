"""Time contenders against each other, for the benches of speed: `step`, `inference`, `scaling`.

Each contender is a process, as two OpenMP runtimes in one process slow each other down. They take
turns, so that a busy moment of the machine affects all. A training step takes a batch of uint8
images: x / 127.5 - 1, forward pass, mean cross-entropy, backward pass, SGD with momentum. Inference
is the forward pass to logits.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

OURS, PURE, IN_PARTS = "bit_paddle", "bit_paddle, pure Paddle", ", 4 micro-batches"
EXPORTED = "bit_paddle, exported"
OBVIOUS, OBVIOUS_SET = "paddle, obvious", "paddle, obvious, MKL set"
HUGGING_FACE, TIMM = "transformers", "timm"
PADDLE_AS_IT_COMES = {"OMP_NUM_THREADS": "1", "MKL_DEBUG_CPU_TYPE": "0"}
CLASSES, PAUSE = (
    10,
    0.4,
)  # seconds between turns: OpenMP's threads spin on after their work
LEGEND = """\
contenders (... bf16: with --amp bf16, under torch.autocast; fp16 on GPUs before Ampere):
  bit_paddle              this package by default, and with BIT_PADDLE_NATIVE=0 (pure Paddle)
  ..., exported           a folder of `export --format paddle`, run by Paddle Inference with oneDNN
  paddle, obvious         standardization by mean, variance and square root in every pass, Paddle's
                          own momentum, its MKL by default (one thread; SSE on AMD)
  ..., MKL set            the same with `bit_paddle.system.environment`'s threads and instructions
  transformers            Hugging Face's BitForImageClassification; NHWC: channels-last; folded: the
                          kernels standardized beforehand by hand
  timm                    resnetv2_50x1_bit, where it is installed
"""


# --- Contenders: each returns the function to time ----------------------------------------------


def ours(flags: argparse.Namespace, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    from bit_paddle.data.loader import MicroBatch
    from bit_paddle.inference import predictor
    from bit_paddle.models import weights
    from bit_paddle.models.native import build
    from bit_paddle.system.device import amp_for, select_device
    from bit_paddle.training import distributed
    from bit_paddle.training.classification.task import loss_of
    from bit_paddle.training.optimizer import Momentum
    from bit_paddle.training.step import update

    device = select_device(flags.device)
    model = weights.create_model(flags.model, CLASSES)
    amp = "off"
    if "bf16" in flags.worker:
        amp = "bf16" if device == "cpu" else amp_for(device)
    operators, description = build.choose(device, amp, lambda text: None)
    print(description, flush=True)
    model.compute_with(operators)
    model.amp = amp
    part = MicroBatch(images, labels, labels)
    if flags.inference:
        model.eval()
        if EXPORTED in flags.worker:
            return _exported(model, images, "bf16" in flags.worker)
        return lambda: predictor.infer(model, images)
    optimizer = Momentum(0.003, 0.9, model.parameters(), operators=operators)
    sums = distributed.GradientSums(model.parameters())
    parts = [part] * (4 if IN_PARTS in flags.worker else 1)
    loss = partial(loss_of, images=len(parts) * len(labels))
    scale = 2.0**10 if amp == "fp16" else 1.0

    def step() -> None:
        update(model, optimizer, sums, parts, loss, 1e-4, scale)
        synchronize(device)

    return step


def synchronize(device: str) -> None:
    """Wait for Paddle's ``device``."""
    import paddle

    if device == "gpu":
        paddle.device.synchronize()


def _exported(model: object, images: np.ndarray, bf16: bool) -> Callable[[], object]:
    from bit_paddle.inference import formats, paddle_inference

    with tempfile.TemporaryDirectory() as folder:
        paddle_inference.write(formats.folded(model), Path(folder))
        run = paddle_inference.open_folder(Path(folder), bf16)
    return lambda: run(images.astype(np.float32) / np.float32(127.5) - np.float32(1))


def obvious(
    flags: argparse.Namespace, images: np.ndarray, labels: np.ndarray
) -> Callable[[], object]:
    from bit_paddle.models import weights
    from bit_paddle.models.native import plain
    from bit_paddle.system.device import select_device, to_device  # sets the environment of Paddle

    import paddle  # isort: skip

    def standardize(weight: paddle.Tensor) -> paddle.Tensor:
        mean = weight.mean(axis=[1, 2, 3], keepdim=True)
        variance = weight.var(axis=[1, 2, 3], unbiased=False, keepdim=True)
        return (weight - mean) / paddle.sqrt(variance + plain.STANDARDIZATION_EPSILON)

    def pool(x: paddle.Tensor) -> paddle.Tensor:
        x = paddle.nn.functional.pad(x, [1, 1, 1, 1])
        return paddle.nn.functional.max_pool2d(x, kernel_size=3, stride=2)

    plain.standardize, plain.pool = standardize, pool
    device = select_device(flags.device)
    model = weights.create_model(flags.model, CLASSES)
    optimizer = paddle.optimizer.Momentum(1e-4, 0.9, model.parameters())
    targets = paddle.to_tensor(labels)

    def infer() -> np.ndarray:
        with paddle.no_grad():
            return model(to_device(images)).numpy()

    def step() -> None:
        logits = model(to_device(images))
        paddle.nn.functional.cross_entropy(logits, targets).backward()
        optimizer.step()
        optimizer.clear_grad()
        synchronize(device)

    return infer if flags.inference else step


def pytorch(
    flags: argparse.Namespace, images: np.ndarray, labels: np.ndarray
) -> Callable[[], object]:
    import torch

    from bit_paddle.system.environment import machine_cpu_count

    torch.set_num_threads(machine_cpu_count())
    layout = torch.channels_last if "NHWC" in flags.worker else torch.contiguous_format
    model = (_timm if flags.worker.startswith(TIMM) else _hugging_face)(flags)
    device = "cuda" if flags.device == "gpu" else "cpu"
    model = model.to(device, memory_format=layout).train(not flags.inference)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    targets, half = torch.from_numpy(labels).to(device), "bf16" in flags.worker
    half_type = torch.bfloat16
    if device == "cuda" and torch.cuda.get_device_capability()[0] < 8:
        half_type = torch.float16
    scaler = torch.amp.GradScaler(device, enabled=half and half_type == torch.float16)

    def logits() -> torch.Tensor:
        pixels = torch.from_numpy(images).to(device).float().div_(127.5).sub_(1)
        with torch.autocast(device, half_type, enabled=half):
            output = model(pixels.contiguous(memory_format=layout))
        return getattr(output, "logits", output).float()

    def infer() -> np.ndarray:
        with torch.inference_mode():
            return logits().cpu().numpy()

    def step() -> None:
        scaler.scale(torch.nn.functional.cross_entropy(logits(), targets)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return infer if flags.inference else step


def _hugging_face(flags: argparse.Namespace) -> object:
    import torch
    from transformers import BitConfig, BitForImageClassification
    from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

    from bit_paddle.models.architecture import Architecture

    shape = Architecture.parse(flags.model)
    config = BitConfig(
        depths=list(shape.units),
        hidden_sizes=[int(256 * shape.width * 2**block) for block in range(4)],
        embedding_size=shape.root_channels,
        num_labels=CLASSES,
    )
    model = BitForImageClassification(config)
    if "folded" in flags.worker:
        for layer in model.modules():
            if isinstance(layer, WeightStandardizedConv2d):
                with torch.no_grad():
                    flat = layer.weight.flatten(1)
                    deviation = (flat.var(1, unbiased=False, keepdim=True) + layer.eps).sqrt()
                    flat = (flat - flat.mean(1, keepdim=True)) / deviation
                    layer.weight.copy_(flat.view_as(layer.weight))
                layer.forward = _plain_forward(layer)
    return model


def _plain_forward(layer: object) -> Callable[[object], object]:
    import torch

    return lambda x: torch.nn.functional.conv2d(
        x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )


def _timm(flags: argparse.Namespace) -> object:
    import timm

    depth, width = flags.model[1:].split("x")
    return timm.create_model(f"resnetv2_{depth}x{width}_bit", num_classes=CLASSES)


def work(flags: argparse.Namespace) -> None:
    """Run as a contender: for each line of input, time one run; print [seconds, peak MB]."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (flags.batch, 3, flags.side, flags.side)).astype(np.uint8)
    labels = random.integers(0, CLASSES, flags.batch)
    maker = ours if flags.worker.startswith(OURS) else pytorch
    run = (obvious if flags.worker.startswith(OBVIOUS) else maker)(flags, images, labels)
    for _ in range(2):
        run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        seconds = (time.perf_counter() - start) / (4 if IN_PARTS in flags.worker else 1)
        print(json.dumps([seconds, peak_memory(flags)]), flush=True)


def peak_memory(flags: argparse.Namespace) -> float:
    """Return this process's peak memory in MB: of the GPU if it uses one."""
    if flags.device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    library = sys.modules.get("torch") or sys.modules["paddle"].device
    return library.cuda.max_memory_reserved() / 1e6


# --- The race -----------------------------------------------------------------------------------


def race(contenders: Sequence[str], rounds: int, words: Sequence[str]) -> dict[str, dict]:
    """Run the contenders in turns; return {name: {"seconds": per round, "memory": peak in MB}}."""
    children = {}
    for name in contenders:
        environment = dict(os.environ)
        if name.startswith(PURE):
            environment["BIT_PADDLE_NATIVE"] = "0"
        if name == OBVIOUS:
            environment.update(PADDLE_AS_IT_COMES)
        children[name] = subprocess.Popen(
            [sys.executable, "-W", "ignore", sys.argv[0], "--worker", name, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        # Wait before the next one starts: starting takes processor time.
        lines = iter(children[name].stdout.readline, "")
        if not any(line == "ready\n" for line in lines):
            print(f"{name}: skipped, it does not run here")
            del children[name]
    results: dict[str, dict] = {name: {"seconds": [], "memory": 0.0} for name in children}
    for _ in range(rounds):
        for name, child in children.items():
            time.sleep(PAUSE)
            child.stdin.write("\n")
            child.stdin.flush()
            seconds, results[name]["memory"] = json.loads(child.stdout.readline())
            results[name]["seconds"].append(seconds)
    for child in children.values():
        child.stdin.close()
        child.wait()
    return results


def medians(results: dict[str, dict]) -> dict[str, float]:
    """Return {name: median seconds}."""
    return {name: statistics.median(result["seconds"]) for name, result in results.items()}


def fastest_peer(results: dict[str, dict], half: bool, folded: bool = False) -> float:
    """Return the median seconds of the fastest PyTorch contender in that precision."""
    return min(
        (
            median
            for name, median in medians(results).items()
            if name.startswith((HUGGING_FACE, TIMM))
            and name.endswith("bf16") == half
            and ("folded" in name) == folded
        ),
        default=float("nan"),
    )


def report(results: dict[str, dict]) -> None:
    """Print median, spread, ratio to the fastest unmodified PyTorch, and peak memory of each."""
    print(f"{'':30}{'median s':>8}  {'fastest':>8} {'slowest':>8}   ratio       MB")
    for name, result in results.items():
        seconds = result["seconds"]
        median = statistics.median(seconds)
        ratio = median / fastest_peer(results, name.endswith("bf16"))
        print(
            f"{name:30}{median:8.3f}  {min(seconds):8.3f} {max(seconds):8.3f}  "
            f"{ratio:6.2f}  {result['memory']:7,.0f}",
            flush=True,
        )


def draw(panels: dict[str, dict[str, list[float]]], path: Path, quantity: str) -> None:
    """Draw {title: {name: values}} as bars of medians with their range, one panel per title."""
    from matplotlib.figure import Figure

    rows = max(len(bars) for bars in panels.values())
    figure = Figure(figsize=(4.6 * len(panels), 1 + 0.34 * rows), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, bars) in zip(all_axes, panels.items()):
        names = list(bars)[::-1]
        middle = [statistics.median(bars[name]) for name in names]
        low = [m - min(bars[name]) for name, m in zip(names, middle)]
        high = [max(bars[name]) - m for name, m in zip(names, middle)]
        colors = ["tab:blue" if name.startswith(OURS) else "silver" for name in names]
        axes.barh(names, middle, xerr=[low, high], color=colors, error_kw={"linewidth": 1})
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"{quantity}: median, minimum and maximum", fontsize=8)
        axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=120)


def parser(description: str) -> argparse.ArgumentParser:
    """Return the parser with the flags that all these benches share."""
    result = argparse.ArgumentParser(
        description=description,
        epilog=LEGEND,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--model", default="R50x1", help="R<layers>x<width>")
    result.add_argument("--batches", type=int, nargs="+", default=[8, 32], help="batch sizes")
    result.add_argument("--side", type=int, default=128, help="side of the images")
    result.add_argument("--rounds", type=int, default=7)
    result.add_argument("--without", nargs="+", default=[], help="contenders to skip")
    result.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    result.add_argument("--json", type=Path, help="write all times to this file")
    result.add_argument("--plot", type=Path, help="write a figure to this file")
    result.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    result.add_argument("--worker", help=argparse.SUPPRESS)
    result.set_defaults(inference=False)
    return result


def words(flags: argparse.Namespace, batch: int, side: int) -> list[str]:
    """Return the command-line words of a contender, without its name."""
    sizes = ["--batch", str(batch), "--side", str(side)]
    return [*sizes, "--model", flags.model, "--device", flags.device]


def run(flags: argparse.Namespace, contenders: Sequence[str], task: str) -> dict[str, dict]:
    """Time the contenders for each batch size; print, write and return {title: results}."""
    contenders = [name for name in contenders if name not in flags.without]
    if flags.device == "gpu":  # these run on a CPU only
        contenders = [
            name for name in contenders if not name.startswith((PURE, EXPORTED, OBVIOUS_SET))
        ]
    races = {}
    for batch in flags.batches:
        title = f"{flags.model}, {flags.side} x {flags.side}, {task}, batch {batch}"
        print(title, flush=True)
        races[title] = race(contenders, flags.rounds, words(flags, batch, flags.side))
        report(races[title])
    if flags.json:
        flags.json.write_text(json.dumps(races, indent=1))
    if flags.plot:
        times = {
            title: {name: result["seconds"] for name, result in results.items()}
            for title, results in races.items()
        }
        draw(times, flags.plot, "seconds")
    return races


def main(description: str, contenders: Sequence[str], task: str, inference: bool = False) -> None:
    """Run the command of a bench, or one of its contenders."""
    flags = parser(description).parse_args()
    flags.inference = inference
    if flags.worker:
        work(flags)
    else:
        run(flags, contenders, task)
