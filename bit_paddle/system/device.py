"""The device: its choice, half precision, memory errors, and images on it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import paddle
import paddle.distributed
from paddle import Tensor

from bit_paddle.errors import ConfigError
from bit_paddle.system import processes


def select_device(name: str = "auto", deterministic: bool = False) -> str:
    """Set Paddle's device and return its name; "auto" is a GPU if there is one, else the CPU.

    ``deterministic`` lets cuDNN use only kernels that always give the same bits; the kernels of a
    CPU always do. Raises `ConfigError` if there is no GPU, or if Paddle has no code for it.
    """
    count = paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0
    if name == "auto":
        name = "gpu" if count or processes.has_gpu() else "cpu"
    if name == "gpu":
        if not count:
            build = "sees no GPU" if paddle.device.is_compiled_with_cuda() else "is the CPU build"
            raise ConfigError(
                f"--device gpu: Paddle {paddle.__version__} {build}; install "
                "paddlepaddle-gpu and its driver, or use --device cpu"
            )
        major, minor = paddle.device.cuda.get_device_capability()
        if major >= 9 and paddle.__version__.startswith("2."):
            raise ConfigError(
                f"--device gpu: this GPU has compute capability {major}.{minor}, and "
                f"paddlepaddle-gpu {paddle.__version__} has no code beyond 8.9; install "
                "a Paddle 3 GPU build from Paddle's own package index"
            )
        if deterministic:
            paddle.set_flags({"FLAGS_cudnn_deterministic": True})
    paddle.device.set_device(name)
    return name


def amp_for(device: str, amp: str = "auto") -> str:
    """Return the half precision, "fp16", "bf16" or "off"; "auto" is the best for ``device``.

    Tensor cores compute fp16 from compute capability 7.0 on (V100), and bf16 from 8.0 on (A100).
    bf16 needs no loss scaling. Raises `ConfigError` for bf16 on a GPU that does not support it.
    """
    if device != "gpu":
        return "off" if amp == "auto" else amp
    major, minor = paddle.device.cuda.get_device_capability()
    if amp == "auto":
        return "bf16" if major >= 8 else "fp16" if major == 7 else "off"
    if amp == "bf16" and major < 8:
        raise ConfigError(
            f"--amp bf16: this GPU has compute capability {major}.{minor}, and bf16 needs 8.0 "
            "(Ampere); use --amp fp16"
        )
    return amp


# --- Memory -------------------------------------------------------------------------------------


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise every out-of-memory error of Paddle in the context as a MemoryError.

    Paddle raises an OSError in a recomputation, in a hook and in CUDA's libraries.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if any(words in str(error) for words in _EXHAUSTED):
            raise MemoryError(str(error)) from None
        raise


_EXHAUSTED = ("MemoryError", "ResourceExhausted", "out of memory", "ALLOC_FAILED")


def free_memory() -> None:
    """Free what nothing uses any more: garbage, and Paddle's cache on a GPU."""
    gc.collect()
    if paddle.get_device().startswith("gpu"):
        paddle.device.cuda.empty_cache()


def peak_memory() -> int | None:
    """Return the most bytes that this process has allocated on its GPU; None on a CPU."""
    if not paddle.get_device().startswith("gpu"):
        return None
    return paddle.device.cuda.max_memory_allocated()


def to_device(images: np.ndarray) -> Tensor:
    """Return ``images`` [N, C, H, W] as a tensor on the device; uint8 becomes x / 127.5 - 1.

    The result has Paddle's default data type; floating-point images are not scaled. The divisor is
    a tensor, because Paddle 2 replaces a division by a number by a multiplication, which rounds
    twice.
    """
    dtype = paddle.get_default_dtype()
    if paddle.get_device().startswith("gpu"):  # a copy from pinned memory does not block
        tensor = paddle.to_tensor(images, place=paddle.CUDAPinnedPlace()).cuda(blocking=False)
    else:
        tensor = paddle.to_tensor(images)
    tensor = tensor.astype(dtype)
    return tensor / paddle.full([], 127.5, dtype) - 1 if images.dtype == np.uint8 else tensor
