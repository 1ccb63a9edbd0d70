"""From the published layout to a format of another library and back: the same bits, every array."""

import numpy as np
import pytest
from helpers import pickles
from helpers.foreign import make_foreign_models
from safetensors.numpy import load_file

from bit_paddle import create_model
from bit_paddle.inference import formats, trained
from bit_paddle.models import npz, weights


def write_pth(model, file, path):
    """Write timm's names as PyTorch does, or as the tests do where PyTorch is not installed."""
    formats.write_timm(model, file, path.with_suffix(".safetensors"))
    arrays = load_file(path.with_suffix(".safetensors"))
    try:
        import torch
    except ImportError:
        pickles.write_zip(path, {name: pickles.tensor(array) for name, array in arrays.items()})
    else:
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


WRITERS = {
    "net.safetensors": formats.write_timm,
    "folder": formats.write_huggingface,
    "net.pth": write_pth,
    "net.pdparams": formats.write_pdparams,
    "net.npz": formats.write_npz,
}


@pytest.mark.parametrize("net", ["R14x0.5", pytest.param("R50x1", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", WRITERS)
def test_the_same_bits(name, net, tmp_path):
    given = dict(make_foreign_models.arrays(net, "random"))
    npz.write(tmp_path / "given.npz", given.items())
    (tmp_path / "out").mkdir()
    file = trained.find_trained(str(tmp_path / "given.npz"), crop=64)
    WRITERS[name](create_model(file.path), file, tmp_path / "out" / name)

    weights.save_npz(create_model(tmp_path / "out" / name), tmp_path / "back.npz")
    back = np.load(tmp_path / "back.npz")
    assert set(back) == set(given)
    for key, array in given.items():
        assert back[key].dtype == array.dtype and back[key].shape == array.shape
        assert back[key].tobytes() == array.tobytes(), key
