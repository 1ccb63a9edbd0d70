"""Load a trained model into one of the runtimes: Paddle, or another library's on the CPU.

ONNX Runtime and OpenVINO get the graph of `inference.onnx`, in memory, or that of an ONNX file. The
arrays of weights and of a data file are given beside the graph, which has a largest size.
Paddle Inference gets what `export --format paddle` writes. Paddle is imported only where it
computes or reads weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle.errors import CheckpointError, ConfigError
from bit_paddle.inference import formats, functions, onnx_data, onnx_files, paddle_inference
from bit_paddle.inference.functions import Function, Functions
from bit_paddle.inference.onnx_files import IMAGES, LOGITS
from bit_paddle.inference.trained import TrainedFile, is_exported
from bit_paddle.system import environment
from bit_paddle.system.runtimes import (
    AUTO,
    ONNXRUNTIME,
    OPENVINO,
    PADDLE,
    PADDLE_INFERENCE,
    RUNTIMES,
    check_precision,
    require,
)

Run = Callable[[np.ndarray, str], np.ndarray]  # images float32, name of an output -> its values


def choose(path: Path, runtime: str = AUTO) -> str:
    """Return the name of the runtime for the model at ``path``; ``auto`` is the model's own.

    Raises `ConfigError` if the runtime cannot run an export of that kind.
    """
    able = tuple(RUNTIMES)
    if paddle_inference.is_exported(path):
        able = (PADDLE_INFERENCE,)
    elif onnx_files.is_onnx(path):
        able = (ONNXRUNTIME, OPENVINO)
    if runtime == AUTO:
        return able[0]
    if runtime not in able:
        kind = "an ONNX file" if onnx_files.is_onnx(path) else "an exported folder"
        raise ConfigError(
            f"--runtime {runtime}: {path} is {kind}, which {' or '.join(able)} can run; give the "
            "checkpoint that it came from"
        )
    return runtime


def load(
    file: TrainedFile,
    runtime: str = AUTO,
    device: str = "auto",
    amp: str = "off",
    head: bool = True,
) -> Functions:
    """Return the functions of the model in ``file`` by ``runtime``, in the precision ``amp``.

    Without ``head`` there are features only, and the head takes no memory. Images uint8 are scaled
    as the model's preprocessing wants it; others are scaled already. Errors: `ConfigError` if the
    runtime is not installed, or if it or this machine does not support what is asked for.
    """
    name = choose(file.path, runtime)
    check_precision(name, device, amp)
    require(name)
    if name == PADDLE:
        paddle_inference.hush()
        from bit_paddle.inference import predictor

        found = predictor.load(file, device, amp, head)
    elif name == PADDLE_INFERENCE:
        found = _paddle_inference(file, amp, head)
    else:
        found = _onnx(file, name, amp, head)
    return functions.of_view(found, file.preprocessing)


# --- Paddle Inference ---------------------------------------------------------------------------


def _paddle_inference(file: TrainedFile, amp: str, head: bool) -> Functions:
    """Return the functions of an exported folder, or of weights, which are exported first."""
    paddle_inference.hush()
    import paddle

    def opened(path: Path) -> Function:
        return functions.of_pixels(paddle_inference.open_folder(path, amp == "bf16"))

    def exported(classes: int | None) -> Function:
        from bit_paddle.models.weights import create_model
        from bit_paddle.system.device import on_cpu

        with on_cpu(), tempfile.TemporaryDirectory() as folder:
            formats.write_paddle(create_model(file.path, classes), file, Path(folder))
            return opened(Path(folder))

    kind = f"{RUNTIMES[PADDLE_INFERENCE].title} {paddle.__version__}, cpu, amp {amp}"
    if is_exported(file.path):
        both = (opened(file.path), None) if file.outputs else (None, opened(file.path))
        return Functions(*both, computed_by=kind)
    if not (head and file.outputs):
        return Functions(None, exported(0), computed_by=kind)
    second = lru_cache(maxsize=1)(lambda: exported(0))  # a second program, when it is asked for
    return Functions(exported(None), lambda images: second()(images), computed_by=kind)


# --- ONNX ---------------------------------------------------------------------------------------


def _onnx(file: TrainedFile, name: str, amp: str, head: bool) -> Functions:
    proto, arrays = _graph(file, head)
    features = onnx_files.with_features(proto)
    open_graph, version = _OPENERS[name]
    try:
        run = open_graph(proto, arrays, amp)
    except ConfigError:
        raise
    except Exception as error:  # each library has its own
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{file.path}: {RUNTIMES[name].title} cannot run it ({reason}); export it again"
        ) from error

    def of(output: str) -> Function:
        return functions.of_pixels(lambda images: run(images, output))

    kind = f"{RUNTIMES[name].title} {version()}, cpu, amp {amp}"
    logits = of(LOGITS) if proto.graph.output[0].name == LOGITS else None
    return Functions(logits, of(features), computed_by=kind)


def _graph(file: TrainedFile, head: bool) -> tuple[Any, dict[str, np.ndarray]]:
    """Return the ``onnx.ModelProto`` of a file of ONNX or of weights, and arrays that it lacks."""
    if onnx_files.is_onnx(file.path):
        proto = onnx_files.read(file.path)
        return proto, onnx_data.arrays(proto, file.path)
    paddle_inference.hush()
    from bit_paddle.inference.onnx import onnx_model
    from bit_paddle.models.weights import create_model
    from bit_paddle.system.device import on_cpu

    arrays: dict[str, np.ndarray] = {}
    with on_cpu():
        model = create_model(file.path, None if head else 0)
        return onnx_model(model, onnx_data.in_memory(arrays)), arrays


def _open_onnxruntime(proto: Any, arrays: dict[str, np.ndarray], amp: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = environment.threads()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    options.add_external_initializers(list(arrays), values)
    graph = proto.SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda images, output: session.run([output], {IMAGES: images})[0]


def _onnxruntime_version() -> str:
    import onnxruntime

    return onnxruntime.__version__


@lru_cache(maxsize=1)
def _openvino_core() -> Any:
    """Return the only ``Core`` of this process, which is never deleted.

    One that is deleted takes the stack for signals away from the thread, even if another one has
    put its own there; the next signal would then end the process by SIGSEGV.
    """
    import openvino

    return openvino.Core()


def _open_openvino(proto: Any, arrays: dict[str, np.ndarray], amp: str) -> Run:
    import io

    import openvino

    core = _openvino_core()
    if amp == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ConfigError("--amp bf16: OpenVINO has no bf16 on this processor; omit the flag")
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if amp == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": environment.threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    constants = {name: openvino.op.Constant(array, True) for name, array in arrays.items()}
    onnx_files.arrays_as_inputs(proto)
    model = core.read_model(io.BytesIO(proto.SerializeToString()))
    for parameter in model.get_parameters():
        constant = constants.get(parameter.get_friendly_name())
        if constant is not None:
            parameter.output(0).replace(constant.output(0))
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()

    def run(images: np.ndarray, output: str) -> np.ndarray:
        request.infer({IMAGES: images})
        return request.get_tensor(output).data.copy()

    return run


def _openvino_version() -> str:
    import openvino

    return openvino.__version__.split("-")[0]


_OPENERS = {
    ONNXRUNTIME: (_open_onnxruntime, _onnxruntime_version),
    OPENVINO: (_open_openvino, _openvino_version),
}
