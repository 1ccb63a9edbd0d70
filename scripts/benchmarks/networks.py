"""The contenders of the benches of speed: each function here returns the function to time.

A training step takes a batch of uint8 images: x / 127.5 - 1, forward pass, mean cross-entropy,
backward pass, SGD with momentum. Inference is the forward pass to logits, from the same images.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from bit_paddle.system import environment

OURS, PURE, IN_PARTS = "bit_paddle", "bit_paddle, pure Paddle", ", 4 micro-batches"
EXPORTED = "bit_paddle, exported"
OBVIOUS, OBVIOUS_SET = "paddle, obvious", "paddle, obvious, MKL set"
HUGGING_FACE, TIMM = "transformers", "timm"
OPENVINO, ONNX_RUNTIME = "OpenVINO", "ONNX Runtime"
PYTORCH, ENGINES = (HUGGING_FACE, TIMM), (OPENVINO, ONNX_RUNTIME)
CPU_ONLY = (PURE, EXPORTED, OBVIOUS_SET, *ENGINES)
LAYOUTS = ("", ", NHWC")
COMPILED, FROZEN, FOLDED = ", compiled", ", frozen", ", folded"
CLASSES = 10
LEGEND = """\
contenders (... bf16: with --amp bf16, under torch.autocast; fp16 on GPUs before Ampere):
  bit_paddle              this package by default, and with BIT_PADDLE_NATIVE=0 (pure Paddle)
  ..., exported           a folder of `export --format paddle`, run by Paddle Inference with oneDNN
  paddle, obvious         standardization by mean, variance and square root in every pass, Paddle's
                          own momentum, its MKL by default (one thread; SSE on AMD)
  ..., MKL set            the same with `bit_paddle.system.environment`'s threads and instructions
  transformers            Hugging Face's BitForImageClassification; NHWC: channels-last; compiled:
                          by torch.compile; frozen: with Inductor's `freezing`, which computes
                          beforehand what depends on the weights alone; folded: the kernels
                          standardized beforehand by hand
  timm                    resnetv2_50x1_bit
  OpenVINO, ONNX Runtime  inference of the file of `export --format onnx`, loaded for this batch
                          size; bf16: by INFERENCE_PRECISION_HINT, of OpenVINO alone
what is not installed is skipped
"""


def maker(name: str) -> Callable[..., Callable[[], object]]:
    """Return the function of this module that makes the contender ``name``."""
    for start, found in MAKERS.items():
        if name.startswith(start):
            return found
    raise ValueError(name)


# --- Paddle -------------------------------------------------------------------------------------


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
    return lambda: run(_pixels(images))


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


# --- PyTorch ------------------------------------------------------------------------------------


def pytorch(
    flags: argparse.Namespace, images: np.ndarray, labels: np.ndarray
) -> Callable[[], object]:
    import torch

    torch.set_num_threads(environment.machine_cpu_count())
    layout = torch.channels_last if "NHWC" in flags.worker else torch.contiguous_format
    model = (_timm if flags.worker.startswith(TIMM) else _hugging_face)(flags)
    device = "cuda" if flags.device == "gpu" else "cpu"
    model = model.to(device, memory_format=layout).train(not flags.inference)
    if COMPILED in flags.worker:
        if FROZEN in flags.worker:
            import torch._inductor.config

            torch._inductor.config.freezing = True
        model = torch.compile(model)
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
    if FOLDED in flags.worker:
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


# --- Other engines ------------------------------------------------------------------------------

EXPORT = """
import sys
import onnx
from bit_paddle.inference.onnx import onnx_model
from bit_paddle.models import weights
name, classes, path = sys.argv[1:]
onnx.save(onnx_model(weights.create_model(name, int(classes))), path)
"""  # in a process of its own: Paddle's threads would stay in this one


def write_onnx(model: str, path: Path) -> None:
    """Write ``model`` with random weights as ``export --format onnx`` does."""
    words = [sys.executable, "-W", "ignore", "-c", EXPORT, model, str(CLASSES), str(path)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def openvino(
    flags: argparse.Namespace, images: np.ndarray, labels: np.ndarray
) -> Callable[[], object]:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        write_onnx(flags.model, Path(folder, "model.onnx"))
        model = openvino.Core().read_model(Path(folder, "model.onnx"))
        model.reshape({"images": list(images.shape)})
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if "bf16" in flags.worker else "f32",
            "INFERENCE_NUM_THREADS": environment.machine_cpu_count(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        request = openvino.compile_model(model, "CPU", settings).create_infer_request()

    def infer() -> np.ndarray:
        request.infer([_pixels(images)], share_inputs=True)
        return request.get_output_tensor().data.copy()

    return infer


def onnx_runtime(
    flags: argparse.Namespace, images: np.ndarray, labels: np.ndarray
) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = environment.machine_cpu_count()
    for name, size in zip(("batch", "height", "width"), np.delete(images.shape, 1)):
        options.add_free_dimension_override_by_name(name, int(size))
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(flags.model, Path(folder, "model.onnx"))
        session = onnxruntime.InferenceSession(
            str(Path(folder, "model.onnx")), options, providers=["CPUExecutionProvider"]
        )
    return lambda: session.run(None, {"images": _pixels(images)})[0]


MAKERS = {
    OURS: ours,
    OBVIOUS: obvious,
    HUGGING_FACE: pytorch,
    TIMM: pytorch,
    OPENVINO: openvino,
    ONNX_RUNTIME: onnx_runtime,
}
