"""A trained model, made ready for `evaluate` and `predict`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import numpy as np

from bit_paddle import checkpoint, exported, metrics, parallel
from bit_paddle.errors import ConfigError
from bit_paddle.native import build
from bit_paddle.source import Source


def load(
    flags: argparse.Namespace, trained: Source, head: bool = True
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the model of ``trained``, as `source.add_flags` asks for it.

    That is a function of uint8 images [N, 3, H, W] to logits [N, K], or to pre-logits [N, C]
    without its ``head``.
    """
    if exported.is_exported(trained.path):
        return _load_exported(flags, trained, head)
    device = parallel.select_device(flags.device)
    amp = parallel.amp_for(device, flags.amp)
    model = checkpoint.create_model(trained.path, num_classes=None if head else 0)
    model.compute_with(build.choose(device, amp, partial(print, file=sys.stderr))[0])
    model.amp = amp
    model.eval()
    return partial(metrics.infer, model)


def _load_exported(
    flags: argparse.Namespace, trained: Source, head: bool
) -> Callable[[np.ndarray], np.ndarray]:
    if flags.device == "gpu":
        raise ConfigError("--device gpu: a folder of `export` runs on the processor; leave it out")
    if flags.amp == "fp16":
        raise ConfigError("--amp fp16: a folder of `export` is run in float32 or --amp bf16")
    if trained.outputs and not head:
        raise ConfigError(
            f"--features: {trained.path} was exported with its head; take the checkpoint itself"
        )
    run = exported.open_folder(trained.path, flags.amp == "bf16")
    return lambda images: run(images.astype(np.float32) / np.float32(127.5) - np.float32(1))
