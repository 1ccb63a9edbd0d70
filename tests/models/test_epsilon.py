"""timm and transformers standardize kernels with an epsilon of 1e-8, the authors with 1e-10.

A kernel of variance v is scaled by sqrt((v + 1e-10) / (v + 1e-8)), which is 1 - 5e-9 / v, so only
small kernels matter. GroupNorm removes what the kernels of a layer have in common. Computed in
float64, where rounding is 1e-13 of the outputs.
"""

import numpy as np
import paddle
import pytest
from helpers.foreign import make_foreign_models

from bit_paddle import create_model
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.data.transforms import evaluation_view
from bit_paddle.models import npz, published
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.native import plain

THEIRS = 1e-8


def difference(path, crop, monkeypatch):
    """Return how far logits move with their epsilon, relative to the largest logit, in float64."""
    model = create_model(path).to(dtype="float64")
    views = [evaluation_view(image, Preprocessing(crop)) for image in pictures()]
    images = paddle.to_tensor(np.stack(views) / 127.5 - 1)
    outputs = {}
    for epsilon in (plain.STANDARDIZATION_EPSILON, THEIRS):
        monkeypatch.setattr(plain, "STANDARDIZATION_EPSILON", epsilon)
        model.eval()  # standardizes the kernels
        with paddle.no_grad():
            outputs[epsilon] = model(images).numpy()
    ours, theirs = outputs.values()
    assert ours.dtype == np.float64 and not np.array_equal(ours, theirs)
    return np.abs(theirs - ours).max() / np.abs(ours).max()


def pictures():
    return make_foreign_models.pictures().values()


def smallest_variance(path):
    """Return the smallest variance of a standardized kernel in a file."""
    with CheckpointFile(path) as file:
        return min(
            file.array(key).astype(np.float64).var(axis=(0, 1, 2)).min()
            for key in file.shapes
            if "standardized" in key
        )


def test_a_trained_network(monkeypatch):
    """BiT-Mini: its smallest kernel has a variance of 5.5e-4. Logits move by 8e-7 on photos."""
    path = published.locate(published.find("BiT-Mini"))
    assert smallest_variance(path) > 5e-4
    assert difference(path, 64, monkeypatch) < 1e-6


@pytest.mark.parametrize(
    "net, crop, bar",
    [("R14x0.5", 128, 1e-6), pytest.param("R50x1", 224, 2e-6, marks=pytest.mark.slow)],
)
def test_random_networks(net, crop, bar, tmp_path, monkeypatch):
    """The smallest variance is 4e-4. R50x1's logits move by 8e-7, and by 1.4e-6 on photos.

    Rounding to float32 moves them by 1e-5.
    """
    npz.write(tmp_path / "net.npz", make_foreign_models.arrays(net, "random"))
    assert smallest_variance(tmp_path / "net.npz") > 4e-4
    assert difference(tmp_path / "net.npz", crop, monkeypatch) < bar


def test_tiny_kernels_are_where_it_matters(tmp_path, monkeypatch):
    """Half of the kernels of a layer with a variance of 1e-8: their factor is 0.71."""
    arrays = dict(make_foreign_models.arrays("R14x0.5", "random"))
    kernel = arrays["resnet/block2/unit01/c/standardized_conv2d/kernel"]
    kernel[..., ::2] *= 1e-4 / kernel.std()
    npz.write(tmp_path / "net.npz", arrays.items())
    assert smallest_variance(tmp_path / "net.npz") < 2e-8
    assert difference(tmp_path / "net.npz", 64, monkeypatch) > 1e-3
