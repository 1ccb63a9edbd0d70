"""Write and run the folders of ``export --format paddle``.

They contain only Paddle's own operators, for machines without this package. This package runs them
as such a machine does: with Paddle Inference and oneDNN, on all cores, in float32 or bfloat16.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bit_paddle.errors import CheckpointError
from bit_paddle.inference import activations
from bit_paddle.inference.activations import Activations, Head, Inspect
from bit_paddle.system import environment

if TYPE_CHECKING:
    from bit_paddle.models.resnetv2 import ResNetV2


Run = Callable[[np.ndarray], np.ndarray]  # images [N, 3, H, W] -> logits, or features [N, C]


NOTES = "bit_paddle.json"  # the fields of a `TrainedFile`

_NAME, _WEIGHTS = "inference", "inference.pdiparams"

_PROGRAMS = ("inference.json", "inference.pdmodel")  # written by Paddle 3, by Paddle 2


def is_exported(path: str | os.PathLike) -> bool:
    """Return whether ``path`` is a folder of ``export --format paddle``."""
    return os.path.isfile(os.path.join(path, NOTES))


def hush() -> None:
    """Silence the log messages of Paddle's executors; call it before Paddle is imported."""
    os.environ.setdefault("GLOG_minloglevel", "2")


def write(model: ResNetV2, path: Path) -> None:
    """Write the program and weights of ``model`` into ``path``, for any batch and image size."""
    import paddle

    images = paddle.static.InputSpec([None, 3, None, None], "float32", "images")
    paddle.jit.save(model, str(path / _NAME), input_spec=[images])


def open_folder(path: Path, bf16: bool = False) -> Run:
    """Return the model in ``path`` as a function of float32 images in [-1, 1].

    Raises `CheckpointError` if files are missing.
    """
    from paddle import inference

    programs = [path / name for name in _PROGRAMS if (path / name).is_file()]
    if not programs or not (path / _WEIGHTS).is_file():
        raise CheckpointError(
            f"{path}: a file is missing: expected {' or '.join(_PROGRAMS)}, and {_WEIGHTS}; export "
            "the model again"
        )
    config = inference.Config(str(programs[0]), str(path / _WEIGHTS))
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(environment.threads())
    config.enable_mkldnn()
    if bf16:
        config.enable_mkldnn_bfloat16()
    predictor = inference.create_predictor(config)
    inputs = predictor.get_input_handle(predictor.get_input_names()[0])
    outputs = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(images: np.ndarray) -> np.ndarray:
        inputs.copy_from_cpu(np.ascontiguousarray(images))
        with _stdout_on_stderr():  # one of Paddle 3.3's kernels prints its name among the results
            predictor.run()
        return outputs.copy_to_cpu()

    return run


def inspect(path: Path, model: ResNetV2, head: Head | None) -> Inspect:
    """Return the function that computes the activations of the export in ``path``.

    Paddle Inference computes the output, as it does for users. It gives no intermediate results, so
    Paddle's executor runs the same program and weights for these. Raises `DifferenceError` if the
    head in the folder is not the model's.
    """
    import paddle

    run = open_folder(path)
    scope = paddle.static.Scope()
    with _static_mode(scope):
        executor = paddle.static.Executor(paddle.CPUPlace())
        program, _, _ = paddle.static.load_inference_model(str(path / _NAME), executor)
        sums, features, names = _nodes(program)
        if model.num_classes:
            tensors = [scope.find_var(name).get_tensor() for name in names]
            activations.require_same_head(tuple(map(np.array, tensors)), model)
            for tensor, array in zip(tensors, head or ()):
                tensor.set(array, paddle.CPUPlace())
    ends = [sums[last - 1] for last in accumulate(model.architecture.units)]
    keys = [*activations.STAGES, activations.FEATURES, *([activations.RANDOM] if head else [])]
    wanted = [*ends, features, *(sums[-1:] if head else [])]

    def inspect_batches(batches: Sequence[np.ndarray]) -> list[Activations]:
        result = []
        for batch in batches:
            with _static_mode(scope):
                found = executor.run(program, feed={"images": batch}, fetch_list=wanted)
            result.append({**dict(zip(keys, found)), activations.OUTPUT: run(batch)})
        return result

    return inspect_batches


def _nodes(program: Any) -> tuple[list[Any], Any, list[str]]:
    """Return the sums and the features in a program, and the names of its last layer's parameters.

    Sums and features are what the executor can fetch. The sums are those of the units, then those
    of the head. The last layer takes the features; without a head they are the mean.
    """
    block = program.global_block()
    operators = list(block.ops)
    if hasattr(operators[0], "type"):  # Paddle 2
        sums, means, products = (
            [operator for operator in operators if operator.type == kind]
            for kind in ("elementwise_add", "reduce_mean", "matmul_v2")
        )
        last = [*products[-1:], *(sums[-1:] if products else [])]
        features = products[-1].input_arg_names[0] if products else means[0].output_arg_names[0]
        names = [op.input_arg_names[1] for op in last]
        return [op.output_arg_names[0] for op in sums], features, names
    sums, means, products = (
        [operator for operator in operators if operator.name() == f"pd_op.{kind}"]
        for kind in ("add", "mean", "matmul")
    )
    last = [*products[-1:], *(sums[-1:] if products else [])]
    features = products[-1].operand_source(0) if products else means[0].result(0)
    names = [op.operand_source(1).name for op in last]
    block.remove_op(operators[-1])  # it fetches the output, and would be fetched twice
    return [op.result(0) for op in sums], features, names


@contextmanager
def _static_mode(scope: Any) -> Iterator[None]:
    import paddle

    paddle.enable_static()
    try:
        with paddle.static.scope_guard(scope):
            yield
    finally:
        paddle.disable_static()


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Redirect the standard output of this process, also of C++ code, to standard error."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
