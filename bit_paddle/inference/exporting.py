"""The work of ``bit_paddle export`` and `bit_paddle.export`: check, write, verify, upload."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from bit_paddle.errors import BitPaddleError, ConfigError, did_you_mean, install_hint
from bit_paddle.inference import formats, int8, onnx_data, paddle_inference, verify
from bit_paddle.inference.formats import FORMATS
from bit_paddle.inference.int8 import Quantized
from bit_paddle.inference.trained import (
    TrainedFile,
    is_exported,
    required_preprocessing,
    resolve_trained,
)
from bit_paddle.inference.verify import Verified
from bit_paddle.models import heads
from bit_paddle.models.hub import upload
from bit_paddle.system import hub


class Exported(NamedTuple):
    """A finished export.

    ``verified`` is None if it could not be run, because onnxruntime is missing. ``address`` is that
    on the hub, or None if the export was not uploaded. ``int8`` is what quantization costs, or None
    without it; then ``verified`` is of the file before it was quantized.
    """

    path: Path
    architecture: str  # R50x1, for example
    verified: Verified | None
    address: str | None = None
    int8: Quantized | None = None


def check(
    model: str,
    format: str,
    output: str | os.PathLike,
    push: str | None = None,
    private: bool = False,
    quantizes: bool = False,
) -> None:
    """Raise one `ConfigError` that lists every fault of an export's flags, before any work."""
    faults = _faults(format, output, push, private)
    if quantizes and format != "onnx":
        faults.append(f"--quantize: needs --format onnx, found {format}")
    elif quantizes and not formats.installed("onnxruntime"):
        faults.append(f"--quantize: needs onnxruntime: {install_hint('onnx')}")
    if is_exported(model):
        faults.append(
            f"--model: {model} holds an inference model, whose kernels are standardized; export "
            "the checkpoint that it came from"
        )
    try:
        resolve_trained(model)
    except BitPaddleError as fault:
        faults.append(f"--model: {fault}")
    if faults:
        raise ConfigError(
            faults[0] if len(faults) == 1 else f"{len(faults)} faults\n  " + "\n  ".join(faults)
        )


def _faults(format: str, output: str | os.PathLike, push: str | None, private: bool) -> list[str]:
    faults = []
    if format not in FORMATS:
        faults.append(f"--format: is {format!r}: {did_you_mean(format, FORMATS)}")
    else:
        chosen = FORMATS[format]
        faults += [
            f"--format {format}: needs {package}: {install_hint(chosen.extra)}"
            for package in chosen.packages
            if not formats.installed(package)
        ]
    path = Path(output)
    for one in (path, *([onnx_data.path_of(path)] if format == "onnx" else [])):
        if os.path.lexists(one):
            faults.append(f"--output: {one} exists; remove it, or choose another name")
    if not path.parent.is_dir():
        faults.append(f"--output: {path.parent} is not a folder")
    if push is None:
        return [*faults, "--private: needs --push"] if private else faults
    if format != "huggingface":
        faults.append(f"--push: needs --format huggingface, found {format}")
    try:
        hub.Repository.parse(push)
    except ConfigError as fault:
        faults.append(f"--push: {fault}")
    return faults if hub.is_installed() else [*faults, f"--push: {hub.HINT}"]


def export(
    file: TrainedFile,
    format: str,
    output: str | os.PathLike,
    push: str | None = None,
    private: bool = False,
    data: str | None = None,
    datadir: str | None = None,
) -> Exported:
    """Write and verify a model's export, after `check`, and upload it to the repository ``push``.

    With ``data``, a data set for `int8.convert`, the convolutions are quantized to int8.

    Errors: those of `verify.export`, `int8.convert` and `hub.upload`; `ConfigError` if a folder for
    Hugging Face or int8 needs a preprocessing that is unknown, or the format cannot hold the head.
    """
    if file.head != heads.LINEAR and not FORMATS[format].every_head:
        able = ", ".join(name for name, one in FORMATS.items() if one.every_head)
        raise ConfigError(
            f"--format {format}: {file.path} has a {heads.noun(file.head)}, and the format holds "
            f"linear heads only; use one of {able}"
        )
    if format == "huggingface" or data is not None:
        required_preprocessing(file)
    view = file.preprocessing
    if view is not None and not view.is_scaled_as_bit:
        text = f"note: the model's pixels are scaled by mean {view.mean} and std {view.std}"
        print(f"{text}, not to [-1, 1]", file=sys.stderr)
    paddle_inference.hush()
    from bit_paddle.models.weights import create_model
    from bit_paddle.system.device import on_cpu

    repository = None if push is None else hub.Repository.parse(push)
    costs: list[Quantized] = []

    def quantize(path: Path) -> None:
        if data is not None:
            costs.append(int8.convert(path, file, data, datadir))

    with on_cpu():
        model = create_model(file.path)
        model.eval()
        called = repository and repository.id
        verified = verify.export(model, file, format, output, called, quantize)
    address = repository and _upload(Path(output), repository, private)
    return Exported(Path(output), model.architecture.name, verified, address, *costs)


def _upload(folder: Path, repository: hub.Repository, private: bool = False) -> str:
    """Upload a verified folder; return its address. The error says how to try it again."""
    try:
        return upload(folder, str(repository), private)
    except BitPaddleError as error:
        words = ["hf", "upload", repository.id, str(folder), *(["--private"] if private else [])]
        words += ["--revision", repository.revision] * (repository.revision != "main")
        raise type(error)(
            f"{error}\n{folder} is complete and stays. To upload it again: {shlex.join(words)}"
        ) from error
