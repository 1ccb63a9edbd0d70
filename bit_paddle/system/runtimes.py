"""The runtimes that compute a trained model: their names, and the packages that they need."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from bit_paddle.errors import ConfigError, install_hint

AUTO = "auto"  # the model's own: Paddle for weights, the runtime of an export for an export

PADDLE, PADDLE_INFERENCE = "paddle", "paddle-inference"

ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"


class Runtime(NamedTuple):
    """A runtime: its title, its packages with the extra that installs them, its precisions.

    ``amp`` are the values of ``--amp`` that it computes in on a CPU. ``int8`` tells whether it
    computes the files of ``export --quantize``.
    """

    title: str
    packages: tuple[str, ...]
    extra: str
    amp: tuple[str, ...] = ("off", "bf16")
    int8: bool = False


RUNTIMES = {
    PADDLE: Runtime("Paddle", ("paddle",), "cpu", ("off", "bf16", "fp16")),
    PADDLE_INFERENCE: Runtime("Paddle Inference", ("paddle",), "cpu"),
    ONNXRUNTIME: Runtime("ONNX Runtime", ("onnx", "onnxruntime"), "onnx", ("off",), int8=True),
    OPENVINO: Runtime("OpenVINO", ("onnx", "openvino"), "openvino", int8=True),
}

CHOICES = (AUTO, *RUNTIMES)


HELP = (
    "library that computes the model: paddle (GPU or CPU, with its own operators), or on the CPU "
    "paddle-inference, onnxruntime (the extra onnx) or openvino (the extra openvino). auto: "
    "paddle, and for an export the library that it was made for (default: auto)"
)


def require(name: str) -> None:
    """Import the packages of a runtime. Raises `ConfigError` if one is missing."""
    for package in RUNTIMES[name].packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"--runtime {name}: the package {package} cannot be imported ({error}); "
                f"{install_hint(RUNTIMES[name].extra)}"
            ) from error


def check_precision(name: str, device: str, amp: str) -> None:
    """Raise `ConfigError` if the runtime ``name`` lacks the ``device`` or the precision ``amp``."""
    runtime = RUNTIMES[name]
    if name != PADDLE and device == "gpu":
        raise ConfigError(
            f"--device gpu: {runtime.title} runs only on the CPU here; omit the flag, or use "
            f"--runtime {PADDLE} with a checkpoint"
        )
    if amp not in (AUTO, *runtime.amp):
        able = [other for other, one in RUNTIMES.items() if amp in one.amp]
        raise ConfigError(
            f"--amp {amp}: {runtime.title} has no {amp} on the CPU; omit the flag, or use "
            f"--runtime {' or '.join(able)}"
        )
