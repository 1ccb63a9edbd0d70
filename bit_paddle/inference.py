"""A trained model, made ready for `evaluate` and `predict`."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from bit_paddle import checkpoint, models, parallel
from bit_paddle.native import build


def load(
    flags: argparse.Namespace, path: Path, num_classes: int | None = None
) -> tuple[models.ResNetV2, str]:
    """Return the model of ``path`` as `source.add_flags` asks for it, and its precision."""
    device = parallel.select_device(flags.device)
    amp = parallel.amp_for(device, flags.amp)
    model = checkpoint.create_model(path, num_classes=num_classes)
    model.compute_with(build.choose(device, amp, partial(print, file=sys.stderr))[0])
    return model, amp
