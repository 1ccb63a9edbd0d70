"""The pixels of an exported processor are those of `evaluation_view`."""

import hashlib
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

# (width, height), (crop, resize): sha256 of the pixels and the first pixels of their middle row, as
# BitImageProcessorPil of transformers 5.24.0 with Pillow 13.0.0 gave them for `picture`
RECORDED = {
    ((400, 711), (224, 256)): ("3f3df26c60847185", [75, 78, 74, 76, 68, 64]),
    ((711, 400), (224, 256)): ("4677b1b2a8ae52e1", [63, 67, 61, 71, 68, 75]),
    ((333, 500), (224, 256)): ("449d32606f2bfd16", [114, 123, 112, 107, 111, 101]),
    ((97, 130), (224, 256)): ("11b9bcf7048add9d", [195, 195, 189, 184, 184, 187]),
    ((64, 64), (224, 256)): ("aad25c6724467583", [208, 208, 206, 203, 199, 196]),
    ((2000, 65), (224, 256)): ("5f4a895b4cf5cf60", [40, 37, 32, 28, 26, 24]),
    ((65, 2000), (224, 256)): ("f799cb5b6c41355a", [162, 163, 161, 157, 154, 151]),
    ((400, 711), (64, 64)): ("02da40095be896e0", [96, 91, 84, 79, 73, 67]),
    ((711, 400), (64, 64)): ("ae98b668d00fb575", [39, 45, 51, 57, 63, 70]),
    ((333, 500), (64, 64)): ("1bb3634404e07670", [131, 126, 121, 116, 112, 107]),
    ((97, 130), (64, 64)): ("9af2092dacb460a6", [199, 195, 191, 188, 190, 188]),
    ((64, 64), (64, 64)): ("7c2510640ed999db", [216, 205, 194, 220, 203, 192]),
    ((2000, 65), (64, 64)): ("3bf2fe48728a2c9b", [51, 37, 27, 48, 37, 25]),
    ((65, 2000), (64, 64)): ("ed71e9c1da7b9df1", [151, 157, 148, 156, 163, 153]),
    ((400, 711), (160, 183)): ("fc4ea4697d4d3b2a", [77, 76, 74, 70, 66, 65]),
    ((711, 400), (160, 183)): ("d2519dfe1d4af0cc", [61, 65, 69, 71, 74, 79]),
    ((333, 500), (160, 183)): ("aee49a8c8697a46c", [117, 118, 110, 110, 103, 105]),
    ((97, 130), (160, 183)): ("089aa7fca8e023c2", [193, 195, 187, 184, 188, 191]),
    ((64, 64), (160, 183)): ("52bd742c919219ee", [207, 209, 206, 201, 196, 197]),
    ((2000, 65), (160, 183)): ("4621455bd63ddb73", [41, 35, 29, 24, 21, 18]),
    ((65, 2000), (160, 183)): ("43202660d422fb80", [162, 163, 159, 154, 150, 156]),
    ((400, 711), (128, None)): ("a1539af0d1024844", [98, 95, 92, 88, 85, 82]),
    ((711, 400), (128, None)): ("ea9e9ed0ec59eb08", [149, 144, 138, 133, 127, 120]),
    ((333, 500), (128, None)): ("b28d2e500f364445", [133, 131, 128, 126, 121, 119]),
    ((97, 130), (128, None)): ("7f63ab5fd8e49d3b", [194, 207, 210, 201, 193, 185]),
    ((64, 64), (128, None)): ("f83013ba5fc50654", [210, 209, 208, 204, 199, 200]),
    ((2000, 65), (128, None)): ("e04cd5e4b1e49cf3", [200, 185, 168, 152, 137, 122]),
    ((65, 2000), (128, None)): ("5d558fdbfda27935", [153, 153, 153, 154, 155, 156]),
}


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
    pixels = np.ascontiguousarray(transforms.evaluation_view(picture(*size), Preprocessing(*view)))
    digest, row = RECORDED[size, view]
    assert pixels.shape == (3, view[0], view[0]) and pixels.dtype == np.uint8
    assert pixels[0, view[0] // 2, : len(row)].tolist() == row
    assert hashlib.sha256(pixels).hexdigest()[:16] == digest


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
