"""Checkpoints: every layout, every fault, and the way back to the reference code."""

import io
import os
import resource
import signal
import subprocess
import sys
import zipfile

import numpy as np
import paddle
import pytest
from conftest import ROOT, arrays_of
from helpers.commands import PEAK

import bit_paddle as bit
from bit_paddle import create_model, load_npz, save_npz
from bit_paddle.errors import CheckpointError, ConfigError, MissingFileError, WriteError
from bit_paddle.models import npz
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.names import parameter_name
from bit_paddle.models.resnetv2 import ResNetV2

R14 = Architecture((1, 1, 1, 1), 1)


@pytest.fixture(scope="module")
def arrays():
    return arrays_of(14, 1, 10, 0)


def numbered(arrays):
    """As some published files name their layers."""
    numbers = iter(range(1000))

    def key(name):
        for layer in ("standardized_conv2d", "group_norm", "conv2d"):
            name = name.replace(f"/{layer}/", f"/{layer}_{next(numbers)}/")
        return name

    return {key(name): value for name, value in arrays.items()}


def jax_tree(arrays, head="conv_head", prefix=""):
    """As the JAX code saves them: GroupNorm [1, 1, 1, C], a head of [C, K]."""
    result = {}
    for key, value in arrays.items():
        key = key[len("resnet/") :].replace("a/proj/standardized_conv2d", "conv_proj")
        key = key.replace("root_block/standardized_conv2d", "root_block/conv_root")
        for number, letter in enumerate("abc", 1):
            key = key.replace(f"/{letter}/standardized_conv2d", f"/conv{number}")
            key = key.replace(f"/{letter}/group_norm", f"/gn{number}")
        key = "norm-pre-head" + key[len("group_norm") :] if key.startswith("group_norm") else key
        key = key.replace("head/conv2d", head).replace("gamma", "scale").replace("beta", "bias")
        if "gn" in key or "norm-pre-head" in key:
            value = value[None, None, None]
        elif key == f"{head}/kernel":
            value = value[0, 0]
        result[prefix + key] = value
    return result


def trained(tree, weights, moments):
    """As big_vision saves its training: the optimizer's arrays have the names of the weights."""
    return {
        "chrono/accum_train_time": np.float64(3.0),
        **{f"{moments}/{name}": np.ones_like(value) for name, value in tree.items()},
        **{f"{weights}/{name}": value for name, value in tree.items()},
    }


LAYOUTS = {
    "published": lambda arrays: arrays,
    "numbered": numbered,
    "jax": jax_tree,
    "jax, head": lambda arrays: jax_tree(arrays, head="head"),
    "big_vision": lambda arrays: trained(jax_tree(arrays, head="head"), "params", "opt/0/mu"),
    "big_vision, old": lambda arrays: trained(
        jax_tree(arrays, head="head"), "opt/target", "opt/state/param_states"
    ),
    "float16": lambda arrays: {key: value.astype(np.float16) for key, value in arrays.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, arrays, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **LAYOUTS[layout](arrays))
    model = create_model(path)
    assert model.architecture == R14 and model.num_classes == 10
    parameters = dict(model.named_parameters())
    for key, value in arrays.items():
        if layout == "float16":
            value = value.astype(np.float16).astype(np.float32)
        found = parameters[parameter_name(key)].numpy()
        if found.ndim == 4:
            found = found.transpose(2, 3, 1, 0)
        assert np.array_equal(found.reshape(value.shape), value), key


def test_compressed_files_are_read(arrays, tmp_path):
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    assert create_model(tmp_path / "x.npz").num_classes == 10


@pytest.mark.parametrize("units, width", [((1, 2, 1, 1), 1.5), ((2, 1, 1, 1), 0.5)])
def test_architecture_is_read_off_the_shapes(units, width, tmp_path):
    model = ResNetV2(Architecture(units, width), 4)
    model.reset_parameters(3)
    save_npz(model, tmp_path / "x.npz")
    again = create_model(tmp_path / "x.npz")
    assert again.architecture == Architecture(units, width) and again.num_classes == 4


@pytest.mark.parametrize("classes, expected", [(None, 10), (7, 7), (0, 0)])
def test_create_model_head(classes, expected, arrays, small_checkpoint):
    model = create_model(small_checkpoint, num_classes=classes)
    assert model.num_classes == expected
    if classes is None:
        assert np.array_equal(model.head.bias.numpy(), arrays[npz.HEAD_BIAS])
    elif classes:
        assert not model.head.weight.numpy().any() and not model.head.bias.numpy().any()
    else:
        assert not hasattr(model, "head")


def test_head_is_never_zeroed_silently(small_checkpoint):
    model = create_model("R14x1", num_classes=7)
    before = model.block1.unit01.a.conv.weight.numpy()
    with pytest.raises(
        CheckpointError, match=r"(?s)head/conv2d/bias: found \[10\], expected \[7\].*head='zero'"
    ):
        load_npz(model, small_checkpoint)
    assert np.array_equal(
        before, model.block1.unit01.a.conv.weight.numpy()
    )  # checked before filling
    load_npz(model, small_checkpoint, head="zero")
    assert not np.array_equal(before, model.block1.unit01.a.conv.weight.numpy())


def test_a_head_of_the_right_size_is_zeroed_on_demand(small_checkpoint):
    model = create_model("R14x1", num_classes=10)
    load_npz(model, small_checkpoint)
    assert model.head.weight.numpy().any()
    load_npz(model, small_checkpoint, head="zero")
    assert not model.head.weight.numpy().any()


def test_one_error_lists_missing_unexpected_and_misshapen(arrays, tmp_path):
    wrong = dict(arrays)
    wrong["resnet/block2/unit01/b/renamed/kernel"] = wrong.pop(
        "resnet/block2/unit01/b/standardized_conv2d/kernel"
    )
    wrong["resnet/group_norm/gamma"] = np.zeros(5, np.float32)
    wrong["resnet/group_norm/beta"] = np.zeros(2048, np.int64)
    np.savez(tmp_path / "x.npz", **wrong)
    with pytest.raises(CheckpointError) as caught:
        create_model(tmp_path / "x.npz")
    for words in (
        "x.npz",
        "missing (1)",
        "block2/unit01/b/standardized_conv2d/kernel [3, 3, 128, 128]",
        "unexpected (1)",
        "block2/unit01/b/renamed/kernel",
        "wrong shape (1)",
        "group_norm/gamma: found [5], expected [2048]",
        "not numbers (1)",
        "int64",
    ):
        assert words in str(caught.value), words


def test_other_architecture_is_refused(small_checkpoint):
    with pytest.raises(CheckpointError, match=r"(?s)R26x1.*missing"):
        load_npz(create_model("R26x1", num_classes=10), small_checkpoint)


def broken_files(good: bytes):
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    pickled = io.BytesIO()
    np.savez(pickled, **{"resnet/x": np.array([{"a": 1}], dtype=object)})
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    text = io.BytesIO()
    with zipfile.ZipFile(text, "w") as archive:
        archive.writestr("readme.txt", "hello")
    other = io.BytesIO()
    np.savez(other, weight=np.zeros(3), bias=np.zeros(1))
    header = good.replace(b"'descr': '<f4'", b"'descr': '<!!'", 1)
    return {
        "empty": b"",
        "text": b"not a zip",
        "cut short": good[: len(good) // 3],
        "one bit": bytes(flipped),
        "pickled": pickled.getvalue(),
        ".npy": single.getvalue(),
        "zip of text": text.getvalue(),
        "another model": other.getvalue(),
        "header": header,
    }


@pytest.mark.parametrize("fault", broken_files(b"'descr': '<f4'"))
def test_broken_files(fault, small_checkpoint, tmp_path):
    path = tmp_path / "broken.npz"
    path.write_bytes(broken_files(small_checkpoint.read_bytes())[fault])
    with pytest.raises(CheckpointError, match="broken.npz"):
        create_model(path)


def test_missing_file(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere.npz"):
        create_model(tmp_path / "nowhere.npz")
    with pytest.raises(FileNotFoundError):  # for those who do not know our errors
        load_npz(create_model("R14x0.5", 0), tmp_path / "nowhere.npz")


def test_save_writes_what_the_reference_reads(arrays, small_checkpoint, tmp_path):
    """Same keys, order aside, same layout, same bits; notes do not disturb."""
    path = tmp_path / "out.npz"
    save_npz(create_model(small_checkpoint), path, notes={"classes": ["a", "ü"]})
    with np.load(path) as written:
        assert set(written.files) == set(arrays) | {npz.NOTES}
        for key, value in arrays.items():
            assert written[key].dtype == np.float32 and np.array_equal(written[key], value), key
    with CheckpointFile(path) as file:
        assert file.notes() == {"classes": ["a", "ü"]}
        assert file.classes == 10
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.npz"]


def test_save_without_a_head(small_checkpoint, tmp_path):
    save_npz(create_model(small_checkpoint, 0), tmp_path / "x.npz")
    assert create_model(tmp_path / "x.npz").num_classes == 0


def test_failed_save_keeps_the_old_file(small_checkpoint, tmp_path):
    model = create_model(small_checkpoint)
    path = tmp_path / "x.npz"
    save_npz(model, path)
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with an OSError
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        with pytest.raises(WriteError, match="x.npz"):
            save_npz(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.npz"]


def test_float64_round_trip(tmp_path):
    before = paddle.get_default_dtype()
    paddle.set_default_dtype("float64")
    try:
        model = create_model("R14x0.5", num_classes=2)
        model.norm.bias.set_value(np.full(1024, 1 / 3))
        save_npz(model, tmp_path / "x.npz")
        assert (create_model(tmp_path / "x.npz").norm.bias.numpy() == 1 / 3).all()
    finally:
        paddle.set_default_dtype(before)


@pytest.mark.slow
def test_loading_streams(tmp_path):
    """Peak memory over the model's own: the largest array a few times, not the file again."""
    random = np.random.default_rng(0)
    path = tmp_path / "r50x1.npz"
    npz.write(
        path,
        (
            (key, random.standard_normal(shape, np.float32))
            for key, shape in npz.shapes(Architecture.parse("R50x1"), 21843)
        ),
    )
    size = path.stat().st_size
    code = f"""
import bit_paddle
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.models.architecture import Architecture
model = ResNetV2(Architecture.parse("R50x1"), 21843)
{PEAK}
before = peak()
bit_paddle.load_npz(model, {str(path)!r})
print(peak() - before, peak())
"""
    *_, grown, peak = map(
        int,
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()[-2:],
    )
    largest = 2048 * 21843 * 4
    assert size > 250e6
    assert peak > largest and grown <= 2.5 * largest + 40e6


# --- Paths that are no files ---------------------------------------------------------------------


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "fifo.npz")  # reading it would wait for ever
    for path in (tmp_path / "fifo.npz", "/dev/zero"):
        with pytest.raises(MissingFileError, match="not a regular file"):
            bit.load(path)


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + ".npz", "./" + "a" * 5000 + ".pth", "a\0"])
def test_names_that_no_file_can_have(name):
    with pytest.raises((ConfigError, MissingFileError)):
        bit.load(name)
    with pytest.raises(MissingFileError):
        CheckpointFile(name)


def test_a_file_that_cannot_be_read():
    with pytest.raises(CheckpointError, match=r"/proc/self/mem: cannot be read \(.*error\)"):
        CheckpointFile("/proc/self/mem")  # nothing is mapped at its start
