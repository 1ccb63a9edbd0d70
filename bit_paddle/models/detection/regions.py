"""The content of boxes in a feature map, as maps of one size: RoI align and RoI pooling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor
from paddle.vision import ops

from bit_paddle.models.detection.cost import METHODS, REGION_SIDE

SAMPLES = 2  # per side of a bin of RoI align, as in Detectron's Faster R-CNN on a pyramid


def regions(
    x: Tensor,
    boxes: Sequence[np.ndarray],
    stride: int,
    method: str = "align",
    side: int = REGION_SIDE,
) -> Tensor:
    """Return the content of ``boxes`` in the map ``x`` as [R, C, side, side], with gradients.

    ``x`` is [N, C, H, W]; ``boxes`` are [R_n, 4] of each of its N images, in pixels of the image,
    which is ``stride`` times as large. "align" (arXiv 1703.06870) samples four points per bin;
    "pool" (arXiv 1504.08083) takes maxima over whole pixels of the map. The parts of a box outside
    the map count as its edge or as 0. A box smaller than a pixel of the map is widened to one.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {METHODS}")
    numbers = paddle.to_tensor([len(one) for one in boxes], "int32")
    every = np.concatenate(boxes)  # Paddle 2 cannot join empty ones
    if method == "align":
        every = paddle.to_tensor(_widened(every, stride), x.dtype)
        return ops.roi_align(x, every, numbers, side, 1 / stride, SAMPLES, aligned=True)
    return ops.roi_pool(x, paddle.to_tensor(every, x.dtype), numbers, side, 1 / stride)


def _widened(boxes: np.ndarray, least: float) -> np.ndarray:
    """Return ``boxes`` with sides of ``least`` or more, about the same centres.

    On a CPU, Paddle's gradient of RoI align takes smaller boxes for as large as a pixel, while the
    forward pass does not (2.6.2 and 3.3.1).
    """
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = (boxes[:, 2:] - boxes[:, :2]).clip(least) / 2
    large = np.tile(boxes[:, 2:] - boxes[:, :2] >= least, 2)  # they stay as they are, to the bit
    return np.where(large, boxes, np.concatenate([centres - halves, centres + halves], axis=1))
