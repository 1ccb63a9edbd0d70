"""Compute a trained model by Paddle, from its weights: logits, features and class maps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import paddle
from paddle import Tensor

from bit_paddle.inference.functions import ClassMaps, Functions
from bit_paddle.inference.trained import TrainedFile
from bit_paddle.models import weights
from bit_paddle.models.native import build
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.system.device import amp_for, select_device, to_device


def load(file: TrainedFile, device: str, amp: str, head: bool) -> Functions:
    """Return the functions of the weights in ``file`` on ``device``, in the precision ``amp``.

    Without ``head`` there are features only, and the head takes no memory. Raises `ConfigError` if
    this machine does not support them.
    """
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
