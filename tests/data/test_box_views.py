"""Views of images with boxes: pixels and boxes go the same way, and back."""

import numpy as np
import pytest
from PIL import Image

from bit_paddle.data.boxes import views


def picture(height, width, box):
    """A black image with a white box."""
    pixels = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    return Image.fromarray(pixels)


def extent(pixels):
    """The edges x1, y1, x2, y2 of the white region, in whole pixels."""
    bright = pixels.max(axis=0) > 127
    columns, rows = (np.flatnonzero(bright.any(axis=axis)) for axis in (0, 1))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("seed", range(12))
def test_pixels_and_boxes_go_the_same_way(seed):
    random = np.random.default_rng(seed)
    height, width = (int(n) for n in random.integers(60, 200, 2))
    x1, y1 = int(random.integers(0, width // 2)), int(random.integers(0, height // 2))
    x2, y2 = int(random.integers(x1 + 20, width + 1)), int(random.integers(y1 + 20, height + 1))
    view = views.jittered((height, width), (128, 160), (0.6, 1.8), True, random)
    boxes, shown = view.boxes(np.array([[x1, y1, x2, y2]], np.float32))
    pixels = view.pixels(picture(height, width, (x1, y1, x2, y2)))
    rows, columns = view.shown
    assert pixels.shape == (3, 128, 160) and pixels.dtype == np.uint8
    assert (pixels[:, rows:] == views.GREY).all() and (pixels[:, :, columns:] == views.GREY).all()
    if len(shown) and (boxes[0, 2:] - boxes[0, :2]).min() > 3:
        np.testing.assert_allclose(extent(pixels[:, :rows, :columns]), boxes[0], atol=1.1)
    original = view.restored(boxes)
    again, _ = view.boxes(original)
    np.testing.assert_allclose(again, boxes, atol=1e-3)
    assert (original >= -1e-3).all() and (original <= np.array([width, height] * 2) + 1e-3).all()


def test_a_whole_image_comes_back_exactly():
    boxes = np.array([[0, 0, 640, 480], [10, 20, 30, 40]], np.float32)
    for flip in (False, True):
        view = views.whole((480, 640), (256, 320), flip)
        assert view.scaled == view.shown == (240, 320)
        seen, shown = view.boxes(boxes)
        assert shown.tolist() == [0, 1] and seen[0].tolist() == [0, 0, 320, 240]
        np.testing.assert_allclose(view.restored(seen), boxes, atol=1e-4)
    assert seen[1].tolist() == [305, 10, 315, 20]


def test_the_range_of_the_jitter():
    """Sizes fill the range, crops all places; half are mirrored."""
    random = np.random.default_rng(0)
    drawn = [views.jittered((100, 200), (100, 200), (0.5, 2.0), True, random) for _ in range(400)]
    heights = np.array([view.scaled[0] for view in drawn])
    assert 50 <= heights.min() < 54 and 196 < heights.max() <= 200
    assert abs(np.mean(heights > 125) - 0.5) < 0.1
    large = [view for view in drawn if view.scaled[0] > 150]
    shares = np.array([view.top / (view.scaled[0] - 100) for view in large])
    assert shares.min() < 0.05 and shares.max() > 0.95 and shares.max() <= 1
    assert all(view.top == view.left == 0 for view in drawn if view.scaled[0] < 100)
    assert 0.4 < np.mean([view.flip for view in drawn]) < 0.6
    fixed = views.jittered((100, 200), (100, 200), (1, 1), False, np.random.default_rng(1))
    assert fixed == views.whole((100, 200), (100, 200))


def test_boxes_that_a_crop_leaves_out():
    view = views.View((100, 100), (200, 200), (100, 100), top=100, left=0)
    boxes = np.array([[0, 0, 40, 50], [10, 40, 60, 60], [60, 60, 90, 90]], np.float32)
    seen, shown = view.boxes(boxes)
    assert shown.tolist() == [1] and seen.tolist() == [[20, 0, 100, 20]]
    none, shown = view.boxes(np.zeros((0, 4), np.float32))
    assert none.shape == (0, 4) and not len(shown)


def test_sides_are_multiples():
    assert views.fitting_sides((480, 640), 640) == (512, 640)
    assert views.fitting_sides((640, 480), 320, 32) == (320, 256)
    assert views.fitting_sides((10, 2000), 512) == (128, 512)
