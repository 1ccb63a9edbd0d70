"""The pixels of an exported processor are those of `evaluation_view`."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from bit_paddle.data import transforms
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.inference import formats

SIZES = [(400, 711), (711, 400), (333, 500), (97, 130), (64, 64), (2000, 65), (65, 2000)]
VIEWS = [(224, 256), (64, 64), (160, 183), (128, None)]
FOREIGN = [  # of other models: bicubic, with ImageNet's mean and deviation
    (224, 256, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    (96, None, "lanczos"),
]

# (width, height), (crop, resize): red at twelve places of the diagonal, as BitImageProcessorPil of
# transformers 5.24.0 made them of `picture`
RECORDED = {
    ((400, 711), (224, 256)): [134, 97, 61, 23, 53, 88, 125, 162, 199, 191, 154, 118],
    ((711, 400), (224, 256)): [28, 37, 76, 115, 155, 194, 207, 168, 133, 99, 60, 22],
    ((333, 500), (224, 256)): [159, 132, 105, 66, 40, 27, 68, 87, 125, 152, 191, 207],
    ((97, 130), (224, 256)): [198, 198, 195, 174, 171, 171, 145, 143, 125, 122, 118, 116],
    ((64, 64), (224, 256)): [217, 209, 205, 207, 185, 172, 178, 165, 168, 155, 154, 150],
    ((2000, 65), (224, 256)): [52, 38, 28, 31, 10, 29, 17, 44, 32, 55, 48, 57],
    ((65, 2000), (224, 256)): [138, 160, 149, 172, 164, 173, 181, 195, 199, 197, 215, 203],
    ((400, 711), (64, 64)): [164, 123, 81, 40, 38, 81, 121, 164, 206, 189, 147, 105],
    ((711, 400), (64, 64)): [64, 21, 56, 98, 140, 181, 213, 171, 129, 88, 44, 33],
    ((333, 500), (64, 64)): [187, 154, 118, 84, 49, 22, 57, 91, 125, 161, 195, 206],
    ((97, 130), (64, 64)): [207, 200, 186, 177, 174, 169, 150, 138, 133, 128, 116, 104],
    ((64, 64), (64, 64)): [200, 201, 207, 213, 183, 189, 189, 159, 165, 171, 141, 147],
    ((2000, 65), (64, 64)): [38, 41, 40, 45, 17, 18, 25, 35, 31, 51, 51, 46],
    ((65, 2000), (64, 64)): [130, 147, 165, 162, 163, 178, 187, 188, 195, 207, 214, 210],
    ((400, 711), (160, 183)): [133, 96, 59, 21, 52, 92, 130, 169, 206, 191, 155, 116],
    ((711, 400), (160, 183)): [32, 41, 80, 119, 158, 197, 200, 163, 126, 89, 53, 21],
    ((333, 500), (160, 183)): [161, 131, 100, 67, 36, 31, 62, 92, 125, 157, 186, 216],
    ((97, 130), (160, 183)): [199, 198, 198, 174, 167, 171, 152, 138, 134, 128, 108, 111],
    ((64, 64), (160, 183)): [216, 210, 204, 205, 184, 178, 175, 174, 167, 153, 158, 150],
    ((2000, 65), (160, 183)): [50, 36, 30, 28, 8, 24, 13, 39, 31, 53, 40, 66],
    ((65, 2000), (160, 183)): [139, 160, 149, 173, 164, 179, 175, 197, 191, 209, 206, 209],
    ((400, 711), (128, None)): [214, 167, 117, 67, 19, 69, 119, 167, 217, 168, 119, 69],
    ((711, 400), (128, None)): [214, 149, 84, 20, 83, 151, 216, 154, 88, 22, 81, 146],
    ((333, 500), (128, None)): [214, 178, 139, 101, 60, 24, 54, 92, 131, 171, 210, 186],
    ((97, 130), (128, None)): [201, 205, 205, 180, 172, 165, 141, 143, 130, 113, 114, 89],
    ((64, 64), (128, None)): [200, 208, 211, 202, 188, 191, 180, 166, 169, 160, 146, 152],
    ((2000, 65), (128, None)): [206, 55, 140, 136, 58, 211, 65, 131, 147, 47, 205, 74],
    ((65, 2000), (128, None)): [214, 159, 102, 46, 48, 104, 163, 216, 160, 101, 45, 48],
}


def diagonal(pixels):
    return pixels[0].diagonal()[:: len(pixels[0]) // 12][:12].astype(int)


def picture(width, height):
    """Smooth waves with a little noise; the same bytes everywhere, as only integers are used."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    noise = (x * 2654435761 + y * 40503) % 65521 % 37
    bands = [abs((x * a + y * b) // 3 % 400 - 200) + noise for a, b in ((3, 1), (1, 4), (5, -2))]
    return Image.fromarray(np.stack(bands, axis=-1).clip(0, 255).astype(np.uint8))


def photos():
    """Real photos, cut and scaled to `SIZES`."""
    images = pytest.importorskip("sklearn.datasets").load_sample_images().images
    for photo in map(Image.fromarray, images):
        yield from (photo.resize(size, Image.Resampling.LANCZOS) for size in SIZES)


@pytest.mark.parametrize("size, view", RECORDED)
def test_the_pixels_are_those_that_transformers_made(size, view):
    """Pillow 11 and 13 round some pixels of the same image to neighbouring numbers."""
    pixels = transforms.evaluation_view(picture(*size), Preprocessing(*view))
    assert pixels.shape == (3, view[0], view[0]) and pixels.dtype == np.uint8
    assert np.abs(diagonal(pixels) - RECORDED[size, view]).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("view", [*VIEWS, *FOREIGN])
def test_the_real_processor_makes_our_pixels(view, tmp_path):
    """Pillow's processor makes the same pixels; torchvision's differ by 2 of 255 or less."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    view = Preprocessing(*view)
    config = formats.huggingface_preprocessing(view)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "bit"}')

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
        default = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    for image in [*photos(), *(picture(*size) for size in SIZES)]:
        ours = transforms.evaluation_view(image, view)
        expected = (ours / 255 - np.reshape(view.mean, (3, 1, 1))) / np.reshape(view.std, (3, 1, 1))
        found = exact(image, return_tensors="np")["pixel_values"][0]
        assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-6
        found = default(image, return_tensors="np")["pixel_values"][0]
        if view.filter == "lanczos":  # which torchvision has not always
            continue
        assert np.abs(found - expected).max() * min(view.std) < 2.01 / 255


def test_half_a_pixel():
    """transformers rounds it down, torchvision to an even number: 1.5 and 2.5 to 2."""
    for rest, down, even in ((0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 1, 2), (5, 2, 2), (7, 3, 4)):
        columns = np.arange(64 + rest, dtype=np.uint8)
        image = Image.fromarray(np.broadcast_to(columns[None, :, None], (64, 64 + rest, 3)).copy())
        for centre, left in (("down", down), ("even", even)):
            view = Preprocessing(64, resize=64, centre=centre)
            assert transforms.evaluation_view(image, view)[0, 0, 0] == left


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
def test_timm_makes_our_pixels(view):
    timm_data = pytest.importorskip("timm.data")
    crop, resize = view
    mode = {"crop_mode": "squash"} if resize is None else {}
    share = crop / (resize or crop)
    half = (0.5,) * 3
    transform = timm_data.create_transform(
        (3, crop, crop), interpolation="bilinear", mean=half, std=half, crop_pct=share, **mode
    )
    view = Preprocessing(*view, centre="even")
    for image in [*photos(), *(picture(*size) for size in SIZES)]:
        expected = transforms.evaluation_view(image, view) / 127.5 - 1
        assert np.abs(transform(image).numpy() - expected).max() < 1e-6
