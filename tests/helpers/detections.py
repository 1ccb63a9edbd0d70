"""Images with boxes, and detections of them, that tests make up."""

from pathlib import Path

import numpy as np

from bit_paddle.data.boxes.annotations import BoxedImages
from bit_paddle.models.detection.detections import Detections


def images_of(boxes, labels, crowd=None, classes=3, ids=None, category_ids=None, root="."):
    """Images of 640 x 480 with such lists of boxes."""
    number = len(boxes)
    return BoxedImages(
        Path(root),
        [f"{k}.png" for k in range(number)],
        np.full((number, 2), (480, 640)),
        [np.array(each, np.float32).reshape(-1, 4) for each in boxes],
        [np.array(each, np.int64) for each in labels],
        [np.array(each, bool) for each in crowd or [[False] * len(each) for each in labels]],
        [f"class {k}" for k in range(classes)],
        ids or list(range(number)),
        category_ids or list(range(1, classes + 1)),
    )


def found_of(boxes, scores, classes):
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(classes, np.int64),
    )


NOTHING = found_of([], [], [])
