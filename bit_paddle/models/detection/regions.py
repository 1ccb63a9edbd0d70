"""The content of boxes in a feature map, as maps of one size: RoI align and RoI pooling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor
from paddle.vision import ops

SIDE = 7  # of the result

SAMPLES = 2  # per side of a bin of RoI align, as in Detectron's Faster R-CNN on a pyramid

METHODS = ("align", "pool")


def regions(
    x: Tensor, boxes: Sequence[np.ndarray], stride: int, method: str = "align", side: int = SIDE
) -> Tensor:
    """Return the content of ``boxes`` in the map ``x`` as [R, C, side, side], with gradients.

    ``x`` is [N, C, H, W]; ``boxes`` are [R_n, 4] of each of its N images, in pixels of the image,
    which is ``stride`` times as large. "align" (arXiv 1703.06870) samples four points per bin;
    "pool" (arXiv 1504.08083) takes maxima over whole pixels of the map. The parts of a box outside
    the map count as its edge or as 0.
    """
    numbers = paddle.to_tensor([len(one) for one in boxes], "int32")
    every = paddle.to_tensor(np.concatenate(boxes), x.dtype)  # Paddle 2 cannot join empty ones
    if method == "align":
        return ops.roi_align(x, every, numbers, side, 1 / stride, SAMPLES, aligned=True)
    return ops.roi_pool(x, every, numbers, side, 1 / stride)
