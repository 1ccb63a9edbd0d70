"""The formats of exported models; each can be written and loaded back.

A loaded export computes `activations`, so that `verify` can compare them with the model's.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bit_paddle.data.preprocessing import FILTERS, Preprocessing
from bit_paddle.errors import DifferenceError
from bit_paddle.inference import activations, calibration, onnx_files, paddle_inference
from bit_paddle.inference.activations import Head, Inspect
from bit_paddle.inference.onnx_data import Store
from bit_paddle.inference.trained import (
    TrainedFile,
    facts_of,
    notes_of,
    required_preprocessing,
    write_notes,
)
from bit_paddle.models import npz
from bit_paddle.models.architecture import GROUPS
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.facts import CALIBRATION
from bit_paddle.models.names import huggingface_name, parameter_name, timm_name

if TYPE_CHECKING:
    from bit_paddle.models.resnetv2 import ResNetV2


# --- The formats ---------------------------------------------------------------------------------


def write_paddle(model: ResNetV2, trained: TrainedFile, path: Path) -> None:
    """Write ``path/inference.*``, for `paddle.jit.load` and Paddle Inference."""
    paddle_inference.write(folded(model), path)
    write_notes(trained, path)


def read_paddle(path: Path, model: ResNetV2, head: Head | None) -> Inspect:
    return paddle_inference.inspect(path, model, head)


def write_pdparams(model: ResNetV2, trained: TrainedFile, path: Path) -> None:
    """Write the parameters for ``model.set_state_dict(paddle.load(path))``."""
    import paddle

    paddle.save(model.state_dict(), str(path))


def read_pdparams(path: Path, model: ResNetV2, head: Head | None) -> Inspect:
    """Return the model as Paddle itself loads it."""
    import paddle

    from bit_paddle.models.resnetv2 import ResNetV2

    fresh = ResNetV2(model.architecture, model.num_classes)
    fresh.set_state_dict(paddle.load(str(path)))
    return _inspect(fresh, model, head)


def write_npz(model: ResNetV2, trained: TrainedFile, path: Path) -> None:
    """Write the published layout, which the reference code reads, with the checkpoint's notes."""
    from bit_paddle.models.weights import save_npz

    with CheckpointFile(trained.path) as file:
        notes = file.notes()
    notes.update({calibration.NOTE: asdict(trained.calibration)} if trained.calibration else {})
    save_npz(model, path, {**notes, npz.FACTS: facts_of(trained)})


def read_weights(path: Path, model: ResNetV2, head: Head | None) -> Inspect:
    """Return the model as this package loads it from a file or folder of weights."""
    from bit_paddle.models.weights import create_model

    return _inspect(create_model(path), model, head)


def write_onnx(model: ResNetV2, trained: TrainedFile, path: Path) -> None:
    """Write ONNX of opset 17 with standardized kernels, and the facts in its metadata.

    The numbers of a large model go into a data file, see `onnx_files.write`.
    """
    import onnx

    from bit_paddle.inference.onnx import onnx_model

    def build(store: Store) -> Any:
        proto = onnx_model(model, store)
        onnx_files.add(proto, onnx_files.FACTS, notes_of(trained))
        return proto

    onnx_files.write(path, 4 * sum(one.size for one in model.parameters()), build)
    onnx.checker.check_model(str(path), full_check=True)


def read_onnx(path: Path, model: ResNetV2, head: Head | None) -> Inspect | None:
    """Return the model, or None without onnxruntime: then only onnx has checked the file."""
    from bit_paddle.inference import onnx

    return onnx.inspect(path, model, head) if installed("onnxruntime") else None


def write_timm(model: ResNetV2, trained: TrainedFile, path: Path) -> None:
    """Write ``.safetensors`` for timm's ``resnetv2_*_bit``."""
    _save_safetensors(model, timm_name, path)


def write_huggingface(model: ResNetV2, trained: TrainedFile, path: Path) -> None:
    """Write a folder for ``BitForImageClassification`` and ``BitImageProcessor.from_pretrained``.

    Raises `ConfigError` if the preprocessing is unknown.
    """
    preprocessing = required_preprocessing(trained)
    path.mkdir()
    for name, content in (
        ("config.json", huggingface_config(model, trained)),
        ("preprocessor_config.json", huggingface_preprocessing(preprocessing)),
    ):
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (path / name).write_text(text + "\n", encoding="utf-8")
    _save_safetensors(model, huggingface_name, path / "model.safetensors")


class Format(NamedTuple):
    """A format: description, writer, reader, required packages and the extra that has them.

    A ``graph`` has standardized kernels; other formats have the parameters as they are.
    ``has_facts``: class names and preprocessing are part of the export. ``every_head``: the format
    holds every kind of head, not the linear one alone.
    """

    about: str
    write: Callable[[ResNetV2, TrainedFile, Path], None]
    read: Callable[[Path, ResNetV2, Head | None], Inspect | None]
    packages: tuple[str, ...] = ()
    extra: str = ""
    graph: bool = False
    has_facts: bool = False
    every_head: bool = False


FORMATS = {
    "paddle": Format(
        "a folder with Paddle's inference model; its kernels are already standardized",
        write_paddle,
        read_paddle,
        graph=True,
        has_facts=True,
        every_head=True,
    ),
    "pdparams": Format(
        "the parameters as Paddle saves them, not standardized",
        write_pdparams,
        read_pdparams,
        every_head=True,
    ),
    "npz": Format(
        "the layout of the published checkpoints",
        write_npz,
        read_weights,
        has_facts=True,
        every_head=True,
    ),
    "onnx": Format(
        "an ONNX file, above 2 GB with a data file beside it; its kernels are already standardized",
        write_onnx,
        read_onnx,
        ("onnx",),
        "onnx",
        graph=True,
        has_facts=True,
        every_head=True,
    ),
    "safetensors-timm": Format("a .safetensors file with timm's names", write_timm, read_weights),
    "huggingface": Format(
        "a folder that transformers' BitForImageClassification reads",
        write_huggingface,
        read_weights,
        has_facts=True,
    ),
}


def folded(model: ResNetV2) -> ResNetV2:
    """Return a copy of ``model`` that uses only Paddle's own layers, with standardized kernels."""
    from bit_paddle.models.layers import StdConv2D
    from bit_paddle.models.native.plain import standardize
    from bit_paddle.models.resnetv2 import ResNetV2

    result = ResNetV2(model.architecture, model.num_classes)
    result.set_state_dict(model.state_dict())
    for layer in result.sublayers():
        if isinstance(layer, StdConv2D):
            layer.weight.set_value(standardize(layer.weight))
            layer.standardized = layer.weight
    result.eval()
    return result


# --- Other libraries' files ---------------------------------------------------------------------


def huggingface_config(model: ResNetV2, trained: TrainedFile) -> dict[str, Any]:
    """Return the ``config.json`` of transformers' BiT for the architecture of ``model``."""
    architecture = model.architecture
    more: dict[str, Any] = {}
    if trained.loss == "sigmoid":
        more["problem_type"] = "multi_label_classification"
    if trained.calibration:
        more[CALIBRATION] = asdict(trained.calibration)
    names = trained.classes or [f"LABEL_{index}" for index in range(model.num_classes)]
    return {
        "model_type": "bit",
        "architectures": ["BitForImageClassification"],
        "num_channels": 3,
        "embedding_size": architecture.root_channels,
        "hidden_sizes": [4 * architecture.root_channels * 2**block for block in range(4)],
        "depths": list(architecture.units),
        "layer_type": "preactivation",
        "hidden_act": "relu",
        "global_padding": None,  # only None pads the root with zeros before an unpadded pool
        "num_groups": GROUPS,
        "drop_path_rate": 0.0,
        "embedding_dynamic_padding": False,
        "output_stride": 32,
        "width_factor": 1,  # must be an integer, so the sizes above contain the width
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        **more,
    }


def huggingface_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the ``preprocessor_config.json`` of ``BitImageProcessor``."""
    square = {"height": preprocessing.crop, "width": preprocessing.crop}
    squash = preprocessing.resize is None
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if squash else {"shortest_edge": preprocessing.resize},
        "resample": FILTERS.index(preprocessing.filter),
        "do_center_crop": not squash,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _save_safetensors(model: ResNetV2, name_of: Callable[[str], str], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    parameters = dict(model.named_parameters())
    arrays = {}
    for key, _ in npz.shapes(model.architecture, model.num_classes):
        array = parameters[parameter_name(key)].numpy()
        if key == npz.HEAD_KERNEL:  # [C, K] -> [K, C]; in timm a 1x1 convolution
            array = np.ascontiguousarray(array.T)
            array = array[:, :, None, None] if name_of is timm_name else array
        arrays[name_of(key)] = array
    path.touch()
    mode = path.stat().st_mode  # safetensors would make it readable only for its owner
    try:
        save_file(arrays, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)


# --- Reading back -------------------------------------------------------------------------------


def _inspect(fresh: ResNetV2, model: ResNetV2, head: Head | None) -> Inspect:
    """Return the activations of ``fresh``, loaded from an export, if it has the model's parameters.

    Raises `DifferenceError` if a bit differs.
    """
    for (name, loaded), expected in zip(fresh.named_parameters(), model.parameters()):
        if not np.array_equal(loaded.numpy(), expected.numpy()):
            raise DifferenceError(f"exported {name} differs from the model's; nothing was written")
    return activations.of_model(fresh, head)


def installed(package: str) -> bool:
    """Return whether ``package`` can be imported, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # the environment forbids it
        return False
