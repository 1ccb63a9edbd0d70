"""Load a trained model's network as functions that compute logits and features."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor

from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.errors import ConfigError
from bit_paddle.inference import paddle_inference
from bit_paddle.inference.trained import TrainedFile
from bit_paddle.models import weights
from bit_paddle.models.native import build
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.system.device import amp_for, select_device, to_device

Function = Callable[[np.ndarray], np.ndarray]  # of images [N, 3, H, W], as for `to_device`


class Functions(NamedTuple):
    """The functions of a model: images to logits [N, K], and images to features [N, C].

    ``maps`` are `class_maps` of the model, and ``pooled`` is `ResNetV2.forward_pooled`, which
    exported folders lack. ``logits`` is None for a model without a head,
    ``features`` for a folder that was exported with its head, and ``maps`` for both and for every
    exported folder. ``computed_by`` names what may change their last digits: Paddle, the device,
    the precision and the operators.
    """

    logits: Function | None
    features: Function | None
    maps: Callable[..., ClassMaps] | None = None
    pooled: Function | None = None
    computed_by: str = ""


class ClassMaps(NamedTuple):
    """Logits [N, K], and of one output per image its map [N, h, w] and the head's bias [N]."""

    logits: np.ndarray
    maps: np.ndarray
    biases: np.ndarray


def load(file: TrainedFile, device: str = "auto", amp: str = "off", head: bool = True) -> Functions:
    """Return the functions of the model in ``file`` on ``device``, in the precision ``amp``.

    Without ``head`` there are features only, and the head takes no memory. Images uint8 are scaled
    as the model's preprocessing wants it; others are scaled already.
    Errors: `ConfigError` if this machine or an exported folder does not support them.
    """
    if paddle_inference.is_exported(file.path):
        functions = _load_exported(file, device, amp)
    else:
        functions = _load_weights(file, device, amp, head)
    view = file.preprocessing
    if view is None or view.is_scaled_as_bit:
        return functions
    scaled = {
        name: _scaled(value, view) for name, value in functions._asdict().items() if callable(value)
    }
    return functions._replace(**scaled)


def _scaled(function: Callable, view: Preprocessing) -> Callable:
    """Return ``function`` of images uint8, which are scaled by the mean and std of ``view``."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (view.mean, view.std))

    def scaled(images: np.ndarray, *arguments: Any) -> Any:
        if images.dtype == np.uint8:
            images = (images.astype(np.float32) / np.float32(255) - mean) / std
        return function(images, *arguments)

    return scaled


def _load_weights(file: TrainedFile, device: str, amp: str, head: bool) -> Functions:
    device = select_device(device)
    amp = amp_for(device, amp)
    model = weights.create_model(file.path, None if head else 0)
    operators, about = build.choose(device, amp, partial(print, file=sys.stderr))
    model.compute_with(operators)
    model.amp = amp
    model.eval()
    features = partial(_compute, model.forward_features)
    pooled = partial(_compute, model.forward_pooled)
    kind = f"Paddle {paddle.__version__}, {device}, amp {amp}, operators: {about}"
    if not model.num_classes:
        return Functions(None, features, None, pooled, kind)
    return Functions(partial(infer, model), features, partial(class_maps, model), pooled, kind)


def _load_exported(file: TrainedFile, device: str, amp: str) -> Functions:
    if device == "gpu":
        raise ConfigError("--device gpu: an exported folder runs only on the CPU; omit the flag")
    if amp == "fp16":
        raise ConfigError("--amp fp16: an exported folder runs only in float32 or bf16")
    run = paddle_inference.open_folder(file.path, amp == "bf16")

    def scaled(images: np.ndarray) -> np.ndarray:
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / np.float32(127.5) - np.float32(1)
        return run(images)

    kind = f"Paddle {paddle.__version__}, exported, amp {amp}"
    both = (scaled, None) if file.outputs else (None, scaled)
    return Functions(*both, computed_by=kind)


def infer(model: ResNetV2, images: np.ndarray) -> np.ndarray:
    """Return the output of ``model`` for ``images`` [N, 3, H, W], computed without gradients."""
    return _compute(model, images)


def _compute(function: Callable[[Tensor], Tensor], images: np.ndarray) -> np.ndarray:
    with paddle.no_grad():
        return function(to_device(images)).numpy()


def class_maps(model: ResNetV2, images: np.ndarray, outputs: np.ndarray | None = None) -> ClassMaps:
    """Return the logits of ``images``, and one class activation map per image.

    The map of an output (arXiv 1512.04150) is the contribution of each place to its logit: the mean
    of the map plus the bias is the logit. This is exact here, because a logit is the mean over the
    image of the last activations, weighted by the head. A maximum counts where it is. ``outputs``
    int64 [N] chooses the outputs; the default is the one with the highest logit.

    A local head has no such map. The maps are those of its attention, which sum to 1.
    """
    with paddle.no_grad():
        logits, last = model.forward_maps(to_device(images))
        logits, last = logits.numpy(), last.astype(logits.dtype).numpy()  # from half precision
    chosen = logits.argmax(axis=1) if outputs is None else outputs
    biases = model.last_linear.bias.numpy()[chosen]
    if model.reads_two_stages:
        return ClassMaps(logits, last[:, 0], biases)
    weights = model.last_linear.weight.numpy().T[chosen]  # [N, C]
    maps = np.matmul(weights[:, None], last.reshape(*last.shape[:2], -1))  # [N, 1, h w]
    return ClassMaps(logits, maps.reshape(len(last), *last.shape[2:]), biases)
