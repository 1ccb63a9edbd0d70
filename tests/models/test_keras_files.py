"""Files of weights of Keras 2 (``.h5``), as the authors' TensorFlow code reads and writes them.

The files of tests/data were written by bit_tf2/models.py of github.com/google-research/big_transfer
with ``ResnetV2(num_units=(1, 2, 1, 1), num_outputs=5, filters_factor=2, name="resnet")`` and
``save_weights``: by TensorFlow 2.2.0 after ``build`` and after a call, which give other names, and
by 2.3.4. TensorFlow 2.5.0 and 2.15.1 load all three, and compute the same logits.
"""

import json
import lzma
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT

import bit_paddle as bit
from bit_paddle.errors import CheckpointError, ConfigError
from bit_paddle.models import npz
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.containers import keras

h5py = pytest.importorskip("h5py")

SMALL = Architecture((1, 2, 1, 1), 0.5)
FILES = ("keras-2.2-built", "keras-2.2-called", "keras-2.3")
LOGITS = [  # of TensorFlow 2.2.0
    -0.1109573170542717,
    -0.3321816921234131,
    -0.05828122794628143,
    -0.028665922582149506,
    -0.5966283082962036,
]


def unpack(name, folder):
    path = folder / "weights.h5"
    path.write_bytes(lzma.decompress((ROOT / "tests" / "data" / f"{name}.h5.xz").read_bytes()))
    return path


@pytest.fixture(params=FILES)
def reference(request, tmp_path):
    return unpack(request.param, tmp_path)


@pytest.fixture
def small(tmp_path):
    return unpack(FILES[0], tmp_path)


def written():
    """Yield the arrays that the reference's model had, in Keras' own order."""
    random = np.random.RandomState(0)

    shapes = dict(npz.shapes(SMALL, 5))
    keys = ["resnet/root_block/standardized_conv2d/kernel"]
    for block, count in enumerate(SMALL.units, 1):
        for unit in range(1, count + 1):
            prefix = f"resnet/block{block}/unit{unit:02d}"
            for letter in "abc":
                keys += [f"{prefix}/{letter}/group_norm/{part}" for part in ("gamma", "beta")]
                keys.append(f"{prefix}/{letter}/standardized_conv2d/kernel")
            keys += [f"{prefix}/a/proj/standardized_conv2d/kernel"] if unit == 1 else []
    keys += ["resnet/group_norm/gamma", "resnet/group_norm/beta", npz.HEAD_KERNEL, npz.HEAD_BIAS]
    for key in keys:
        values = np.resize(random.randint(-8, 9, 61) / 16, shapes[key]).astype(np.float32)
        if key.endswith("gamma"):
            values = 1 + values / 2
        elif key.endswith("beta"):
            values /= 4
        elif "head" in key:
            values /= 64
        yield key, values


def test_every_array_is_the_reference_models(reference):
    with CheckpointFile(reference) as file:
        assert (file.architecture(), file.classes) == (SMALL, 5)
        file.check(SMALL, 5)
        expected = dict(written())
        assert list(file.shapes) == list(expected)
        for key, values in expected.items():
            assert np.array_equal(file.array(key), values), key


def test_logits_are_those_of_tensorflow(reference):
    pixels = np.arange(64 * 64 * 3) * 7919 % 256 / 127.5 - 1
    image = pixels.reshape(1, 64, 64, 3).transpose(0, 3, 1, 2).astype(np.float32)
    model = bit.create_model(reference)
    model.eval()
    logits = model(paddle.to_tensor(image)).numpy()[0]
    assert np.abs(logits - LOGITS).max() < 1e-5


def test_a_whole_model_with_the_network_in_it(small, tmp_path):
    """``model.save`` puts the layers into a group of their own."""
    with h5py.File(small) as source, h5py.File(tmp_path / "model.h5", "w") as target:
        source.copy(source, target, "model_weights")
    with CheckpointFile(tmp_path / "model.h5") as file:
        file.check(SMALL, 5)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_other_numbers(dtype, tmp_path):
    values = np.arange(6).reshape(2, 3)
    path = keras_file(tmp_path, values.astype(dtype))
    with keras.KerasFile(path) as file:
        assert np.array_equal(file.read("dense/kernel"), values)
        assert file.read("dense/kernel").dtype.isnative
        assert file.arrays["dense/kernel"] == ((2, 3), np.dtype(dtype).name)


def test_names_without_a_number(tmp_path):
    """As Keras 3 writes them into whole models in the older format."""
    path = keras_file(tmp_path, np.zeros(3, np.float32), weight="kernel")
    with keras.KerasFile(path) as file:
        assert list(file.arrays) == ["dense/kernel"]


def keras_file(folder, values=None, weight="dense/kernel:0", **options):
    path = folder / "dense.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"dense"]
        group = file.create_group("dense")
        group.attrs["weight_names"] = [weight.encode()]
        if values is not None or options:
            group.create_dataset(weight, data=values, **options)
    return path


def refused(path):
    with pytest.raises(CheckpointError) as caught:
        keras.KerasFile(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_keras_3_numbers_its_arrays(tmp_path):
    path = tmp_path / "model.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/dense/vars/0"] = np.zeros((2, 3), np.float32)
    assert "Keras 3" in refused(path)


def test_a_part_of_another_file_is_not_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(24)))
    path = keras_file(tmp_path, None, shape=(6,), dtype="f4", external=str(secret))
    assert "lies in another file" in refused(path)


@pytest.mark.parametrize(
    "link", [h5py.ExternalLink("other.h5", "/x"), h5py.SoftLink("/elsewhere")], ids=["file", "soft"]
)
def test_links_are_not_followed(link, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.zeros(3, np.float32)
    path = keras_file(tmp_path)
    with h5py.File(path, "a") as file:
        file["elsewhere"] = np.zeros(3, np.float32)
        file["dense"].create_group("dense")["kernel:0"] = link
    assert "is a link" in refused(path)


def test_a_virtual_array_is_not_read(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.zeros(3, np.float32)
    path = keras_file(tmp_path)
    layout = h5py.VirtualLayout((3,), np.float32)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (3,))
    with h5py.File(path, "a") as file:
        file["dense"].create_group("dense").create_virtual_dataset("kernel:0", layout)
    assert "lies in another file" in refused(path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"data": np.zeros((64, 64), "f4"), "compression": "gzip"}, "stored in pieces"),
        ({"shape": (10**9, 10**3), "dtype": "f4"}, "needs 4000000000000 bytes"),
        ({"data": b"text"}, "expected numbers"),
        ({"data": np.zeros(3, [("a", "f4")])}, "expected numbers"),
        ({"data": h5py.Empty("f4")}, "is empty"),
        ({"data": np.zeros((0, 3), "f4")}, "is empty"),
    ],
)
def test_arrays_that_keras_does_not_write(options, message, tmp_path):
    values = options.pop("data", None)
    assert message in refused(keras_file(tmp_path, values, **options))


def test_a_name_without_an_array(tmp_path):
    assert "'dense/kernel:0'" in refused(keras_file(tmp_path))


def test_a_name_that_is_there_twice(tmp_path):
    path = keras_file(tmp_path, np.zeros(3, np.float32))
    with h5py.File(path, "a") as file:
        file["dense"].attrs["weight_names"] = [b"dense/kernel:0"] * 2
    assert "dense/kernel twice" in refused(path)


def test_another_network(tmp_path):
    path = keras_file(tmp_path, np.zeros(3, np.float32))
    with pytest.raises(CheckpointError, match="not a BiT checkpoint.*dense/kernel"):
        bit.create_model(path)


def test_cut_short(small):
    content = small.read_bytes()
    for length in (8, 100, 5000, len(content) - 1):
        small.write_bytes(content[:length])
        assert "download or copy it again" in refused(small)


def test_a_library_that_hangs_or_crashes(monkeypatch, small):
    monkeypatch.setattr(keras, "_SECONDS", 0.01)
    assert "HDF5's library stops at it" in refused(small)
    monkeypatch.setattr(keras, "_SECONDS", 60)
    monkeypatch.setattr(keras.sys, "executable", "/bin/false")
    assert "HDF5's library stops at it" in refused(small)


def test_without_h5py(monkeypatch, small):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r"needs h5py: pip install -e '\.\[keras\]'"):
        keras.KerasFile(small)


def test_modules_beside_the_file_are_not_run(monkeypatch, small, tmp_path):
    (tmp_path / "h5py.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with CheckpointFile(small) as file:
        assert file.classes == 5
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.weekly
def test_mutations(small):
    worker = ROOT / "tests" / "workers" / "keras_mutations.py"
    command = [sys.executable, worker, small, "500", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    result = json.loads(done.stdout)
    assert result["read"] + result["refused"] == 500
    assert result["megabytes"] < 1000
