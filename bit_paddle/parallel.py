"""Devices, and what processes tell each other: the only module that knows where tensors live."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr

import numpy as np
import paddle
import paddle.distributed
from paddle import Tensor

from bit_paddle import environment, processes
from bit_paddle.architecture import Architecture
from bit_paddle.errors import ConfigError, PeerError


def select_device(name: str = "auto", deterministic: bool = False) -> str:
    """Make ``name`` Paddle's device and return it; "auto" takes a GPU where there is one.

    ``deterministic`` has cuDNN use only kernels that give the same bits each time; those of a CPU
    all do. Raises `ConfigError` where there is no GPU, or one that the installed build has no code
    for.
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


# --- Between processes --------------------------------------------------------------------------


def join() -> None:
    """Meet the other processes of this run, of which `processes` knows; one alone meets nobody."""
    paddle.disable_signal_handler()  # Paddle's answer to SIGTERM is a stack trace
    if processes.world_size() > 1:
        with redirect_stderr(io.StringIO()):  # a list of Paddle's own flags
            paddle.distributed.init_parallel_env()


def total(values: Sequence[float]) -> np.ndarray:
    """Return the sums of ``values`` over all processes, in float64."""
    tensor = paddle.to_tensor(np.asarray(values, np.float64))
    _each([tensor], paddle.distributed.all_reduce)
    return tensor.numpy()


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its sum over all processes; a process without images has zeros."""
    if processes.world_size() == 1:
        return
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = paddle.zeros_like(parameter)
    _each([parameter.grad for parameter in parameters], paddle.distributed.all_reduce)


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the values that the first one has."""
    _each(tensors, lambda tensor: paddle.distributed.broadcast(tensor, 0))


def from_first(values: Sequence[float]) -> np.ndarray:
    """Return the ``values`` that the first process has, in float64."""
    tensor = paddle.to_tensor(np.asarray(values, np.float64))
    broadcast([tensor])
    return tensor.numpy()


def _each(tensors: Iterable[Tensor], exchange: Callable[[Tensor], object]) -> None:
    if processes.world_size() == 1:
        return
    try:
        for tensor in tensors:
            exchange(tensor)
    except (RuntimeError, OSError) as error:  # a connection has broken
        raise PeerError("another process of the run has gone") from error


# --- Memory -------------------------------------------------------------------------------------


def activation_memory(device: str, architecture: Architecture, classes: int) -> int:
    """Return the bytes to plan with for activations: a share of the GPU's or machine's memory.

    The rest is for weights, gradients, momentum, workspaces and, on a CPU, for other programs.
    """
    if device == "gpu":
        memory = paddle.device.cuda.get_device_properties().total_memory
        return architecture.room(memory, classes)
    return int(0.3 * environment.memory_bytes())


def to_device(images: np.ndarray) -> Tensor:
    """Return ``images`` [N, C, H, W] on the device, uint8 scaled to x / 127.5 - 1.

    The result has Paddle's default type; floating-point images are taken as they are. Divided by a
    tensor, because Paddle 2 multiplies by the reciprocal of a number, which rounds twice.
    """
    dtype = paddle.get_default_dtype()
    if paddle.get_device().startswith("gpu"):  # from pinned memory the copy does not hold us up
        tensor = paddle.to_tensor(images, place=paddle.CUDAPinnedPlace()).cuda(blocking=False)
    else:
        tensor = paddle.to_tensor(images)
    tensor = tensor.astype(dtype)
    return tensor / paddle.full([], 127.5, dtype) - 1 if images.dtype == np.uint8 else tensor
