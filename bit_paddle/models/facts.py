"""What lies beside a model's weights in a folder of transformers or timm: classes, preprocessing.

A network that computes something else than BiT's is an error, even if its arrays have BiT's shapes.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from bit_paddle.data.preprocessing import FILTERS, Preprocessing
from bit_paddle.errors import CheckpointError
from bit_paddle.models.architecture import GROUPS
from bit_paddle.models.containers import folder

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"

CALIBRATION = "bit_paddle_calibration"  # a key of `CONFIG`, which transformers ignores


class Facts(NamedTuple):
    """The facts of a folder, each None if it is unknown.

    ``origin`` is timm's name of the published weights that the model started from or is.
    ``calibration`` is that note of this package, as it was exported.
    """

    classes: list[str] | None = None
    preprocessing: Preprocessing | None = None
    loss: str | None = None
    origin: str | None = None
    calibration: Any = None


def beside(path: Path) -> Facts:
    """Return the facts in the folder ``path``, or beside the file ``path`` in such a folder.

    Raises `CheckpointError` if they describe another network, or cannot be read.
    """
    if not os.path.isdir(path):
        if path.name not in folder.WEIGHTS:
            return Facts()
        path = path.parent
    config_path, processor = path / CONFIG, path / PROCESSOR
    config = folder.read_json(config_path) if os.path.isfile(config_path) else {}
    try:
        if "architecture" in config:
            return _of_timm(config)
        if config:
            _require_bit(config)
        view = _of_processor(folder.read_json(processor)) if os.path.isfile(processor) else None
        sigmoid = config.get("problem_type") == "multi_label_classification"
        loss = "sigmoid" if sigmoid else None
        return Facts(_labels(config), view, loss, calibration=config.get(CALIBRATION))
    except _Unlike as error:
        raise CheckpointError(f"{config_path}: {error}") from None
    except _MALFORMED as error:
        raise CheckpointError(f"{path}: {CONFIG} or {PROCESSOR} is malformed ({error})") from error


_MALFORMED = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


class _Unlike(Exception):
    """The network is not BiT's."""


# --- transformers --------------------------------------------------------------------------------

_AS_BIT = {  # what transformers' BiT must be told to compute BiT; its own defaults are the same
    "num_channels": 3,
    "layer_type": "preactivation",
    "hidden_act": "relu",
    "global_padding": None,
    "num_groups": GROUPS,
    "embedding_dynamic_padding": False,
    "output_stride": 32,
}


def _require_bit(config: dict[str, Any]) -> None:
    kind = config.get("model_type")
    if kind != "bit":
        raise _Unlike(f"describes a model of the kind {kind!r}; expected 'bit'")
    for name, expected in _AS_BIT.items():
        if config.get(name, expected) != expected:
            raise _Unlike(
                f"{name} is {config[name]!r}, but BiT's network has {expected!r}: its outputs "
                "would differ"
            )


def _labels(config: dict[str, Any]) -> list[str] | None:
    labels = config.get("id2label")
    if not labels:
        return None
    names = [str(labels[str(index)]) for index in range(len(labels))]
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def _of_processor(config: dict[str, Any]) -> Preprocessing | None:
    """Return the preprocessing of a ``preprocessor_config.json``; None if ours has no such one."""
    kind = config.get("image_processor_type") or config.get("feature_extractor_type")
    if kind and not re.match(r"Bit(ImageProcessor|FeatureExtractor)", kind):
        return None  # such as LeViT's, which resizes by another rule
    size, crop = config.get("size"), config.get("crop_size")
    square = _square(size)
    shorter = size if isinstance(size, int) else (size or {}).get("shortest_edge")
    if not config.get("do_resize", True):
        return None
    if not config.get("do_center_crop", True) or (square is not None and square == _square(crop)):
        crop, resize = square, None
    else:
        crop, resize = crop if isinstance(crop, int) else _square(crop), shorter
        if resize is None:
            return None
    rescaled = config.get("do_rescale", True)
    if not crop or (resize or crop) < crop or not rescaled:
        return None
    if not math.isclose(config.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        return None
    scaling: dict[str, tuple[float, ...]] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if config.get("do_normalize", True):
        scaling = {name: _three(config[f"image_{name}"]) for name in scaling}
    return Preprocessing(int(crop), resize, _FILTERS[config.get("resample", 3)], **scaling)


_FILTERS = dict(enumerate(FILTERS))  # by number, and none for negative numbers


def _square(size: Any) -> int | None:
    """Return the side of ``{"height": S, "width": S}``; None for anything else."""
    if not isinstance(size, dict) or "height" not in size:
        return None
    return int(size["height"]) if size["height"] == size.get("width") else None


def _three(values: Any) -> tuple[float, ...]:
    red, green, blue = [values] * 3 if isinstance(values, (int, float)) else values
    return float(red), float(green), float(blue)


# --- timm ----------------------------------------------------------------------------------------


def _of_timm(config: dict[str, Any]) -> Facts:
    name, about = config["architecture"], config.get("pretrained_cfg") or {}
    if not re.match(r"resnetv2_\d+x\d+_bit", name):
        raise _Unlike(f"describes the network {name!r}; expected timm's resnetv2_*_bit")
    labels = config.get("label_names") or about.get("label_names")
    texts = config.get("label_descriptions") or about.get("label_descriptions") or {}
    classes = [str(texts.get(label, label)) for label in labels] if labels else None
    origin = f"{name}.{about['tag']}" if about.get("tag") else None
    return Facts(classes, _of_pretrained_cfg(about), None, origin)


_TIMM_SCALING = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # its defaults


def _of_pretrained_cfg(about: dict[str, Any]) -> Preprocessing | None:
    """Return the preprocessing that timm makes of a ``pretrained_cfg`` to evaluate a model."""
    if "input_size" not in about:
        return None
    _, height, width = about["input_size"]
    resize = math.floor(height / about.get("crop_pct", 0.875))
    mode, kind = about.get("crop_mode") or "center", about.get("interpolation") or "bicubic"
    squash = mode == "squash" and resize == height
    if height != width or kind not in FILTERS or not (squash or mode == "center"):
        return None
    mean, std = (_three(about.get(name) or default) for name, default in _TIMM_SCALING.items())
    return Preprocessing(height, None if squash else resize, kind, mean, std, centre="even")
