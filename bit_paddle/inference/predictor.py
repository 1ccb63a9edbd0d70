"""A trained model, made ready for `evaluate` and `predict`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import paddle

from bit_paddle.errors import ConfigError
from bit_paddle.inference import paddle_inference
from bit_paddle.inference.trained import TrainedFile
from bit_paddle.models import weights
from bit_paddle.models.native import build
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.system.device import amp_for, select_device, to_device


def load(
    flags: argparse.Namespace, trained: TrainedFile, head: bool = True
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the model of ``trained``, as `source.add_flags` asks for it.

    That is a function of uint8 images [N, 3, H, W] to logits [N, K], or to pre-logits [N, C]
    without its ``head``.
    """
    if paddle_inference.is_exported(trained.path):
        return _load_exported(flags, trained, head)
    device = select_device(flags.device)
    amp = amp_for(device, flags.amp)
    model = weights.create_model(trained.path, num_classes=None if head else 0)
    model.compute_with(build.choose(device, amp, partial(print, file=sys.stderr))[0])
    model.amp = amp
    model.eval()
    return partial(infer, model)


def _load_exported(
    flags: argparse.Namespace, trained: TrainedFile, head: bool
) -> Callable[[np.ndarray], np.ndarray]:
    if flags.device == "gpu":
        raise ConfigError("--device gpu: a folder of `export` runs on the processor; leave it out")
    if flags.amp == "fp16":
        raise ConfigError("--amp fp16: a folder of `export` is run in float32 or --amp bf16")
    if trained.outputs and not head:
        raise ConfigError(
            f"--features: {trained.path} was exported with its head; take the checkpoint itself"
        )
    run = paddle_inference.open_folder(trained.path, flags.amp == "bf16")
    return lambda images: run(images.astype(np.float32) / np.float32(127.5) - np.float32(1))


def infer(model: ResNetV2, images: np.ndarray) -> np.ndarray:
    """Return what ``model`` gives for ``images`` [N, 3, H, W], computed without gradients."""
    with paddle.no_grad():
        return model(to_device(images)).numpy()
