"""ONNX models above 2 GB: two files that belong together, and nothing else is read.

A lowered limit makes every model large.
"""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.commands import run_here

import bit_paddle as bit
from bit_paddle import save_npz
from bit_paddle.errors import CheckpointError, ConfigError, WriteError
from bit_paddle.inference import onnx_data, runtimes, verify
from bit_paddle.inference.verify import relative_difference
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.resnetv2 import ResNetV2

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

CLASSES = ["amber", "blue", "coral"]


@pytest.fixture(scope="module", autouse=True)
def low_limit():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_data, "MOST_INLINE", 100_000)
        yield


def random_model(path, seed):
    model = ResNetV2(Architecture((1, 1, 1, 1), 0.5), 3)
    random = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        values = 0.3 * random.standard_normal(parameter.shape) + name.endswith("norm.weight")
        parameter.set_value(values.astype(np.float32))
    save_npz(model, path, {"crop": 48, "classes": CLASSES})
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("large") / "model.npz", 3)


@pytest.fixture(scope="module")
def exported(weights):
    path = weights.with_name("x.onnx")
    done = run_here("export", "--model", weights, "--format", "onnx", "--output", path)
    assert done.returncode == 0, done.stderr
    assert "  x.onnx\n  x.onnx.data\nboth files belong together" in done.stdout
    assert "differ from the model in float64 by at most" in done.stdout
    return path


@pytest.fixture
def pair(exported, tmp_path):
    """A copy of the export that a test may damage."""
    for file in (exported, onnx_data.path_of(exported)):
        shutil.copy(file, tmp_path)
    return tmp_path / "x.onnx"


def pixels():
    return np.random.default_rng(5).integers(0, 256, (2, 3, 64, 64)).astype(np.uint8)


def expected(weights):
    return bit.load(weights, device="cpu").logits(pixels())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_large_model_is_two_files(runtime, weights, pair):
    pytest.importorskip(runtime)
    data = onnx_data.path_of(pair)
    assert pair.stat().st_size < 50_000 < 4_000_000 < data.stat().st_size
    assert sorted(os.listdir(pair.parent)) == ["x.onnx", "x.onnx.data"]
    model = bit.load(pair, runtime=runtime)
    assert model.classes == CLASSES and model.file.preprocessing.crop == 48
    assert relative_difference(model.logits(pixels()), expected(weights)) < 2e-5
    theirs = bit.load(weights, device="cpu").features(pixels())
    assert relative_difference(model.features(pixels()), theirs) < 2e-5
    pair = pair.rename(pair.with_name("renamed.onnx"))
    assert relative_difference(bit.load(pair).logits(pixels()), expected(weights)) < 2e-5


def test_other_programs_open_it(weights, pair):
    images = (pixels() / np.float32(127.5) - 1).astype(np.float32)
    session = onnxruntime.InferenceSession(str(pair), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images})
    assert relative_difference(found, expected(weights)) < 2e-5
    pytest.importorskip("openvino")
    core = runtimes._openvino_core()
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    found = core.compile_model(core.read_model(str(pair)), "CPU", hint)({"images": images})[0]
    assert relative_difference(found, expected(weights)) < 2e-5


# --- The second file ----------------------------------------------------------------------------


def test_the_wrong_second_file_is_refused(pair, tmp_path, exported, weights):
    data, whole = onnx_data.path_of(pair), onnx_data.path_of(exported).read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    bit.export(random_model(other / "model.npz", 4), "onnx", other / "x.onnx")
    foreign = (other / "x.onnx.data").read_bytes()
    assert len(foreign) == len(whole)
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for content, fault in (
        (whole[:-1], r"x\.onnx\.data: has [\d,]+ bytes, but x\.onnx states [\d,]+: it is incompl"),
        (whole + b"\0", "bytes, but"),
        (b"", "has 0 bytes"),
        (bytes(changed), r"x\.onnx\.data: its checksum .* is damaged, or belongs to another"),
        (foreign, "belongs to another export"),
    ):
        data.write_bytes(content)
        with pytest.raises(CheckpointError, match=fault):
            bit.load(pair).logits(pixels())


def test_a_second_file_in_another_place_is_refused(pair, image_folder, tmp_path):
    data = onnx_data.path_of(pair)
    elsewhere = tmp_path / "elsewhere"
    data.rename(elsewhere)
    for command in (
        ("predict", image_folder / "val", "--model", pair, "--runtime", "onnxruntime"),
        ("evaluate", "--model", pair, "--dataset", "digits"),
        ("serve", pair, "--port", 0),
    ):
        done = run_here(*command)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert "numbers are in x.onnx.data, which is missing beside it; the two" in done.stderr
    for make, fault in (
        (lambda: data.symlink_to(elsewhere), "it is a symbolic link, which is not followed"),
        (lambda: data.mkdir(), "has .* bytes"),
        (lambda: os.mkfifo(data), "has 0 bytes"),  # must not wait for a writer
    ):
        make()
        with pytest.raises(CheckpointError, match=fault):
            bit.load(pair)
        data.rmdir() if data.is_dir() else data.unlink()


# --- Graphs from outside ------------------------------------------------------------------------


def place(tensor, **values):
    for entry in tensor.external_data:
        entry.value = values.get(entry.key, entry.value)


def everywhere(name):
    return lambda proto: onnx_data.relocate(proto, name)


def first(**values):
    return lambda proto: place(onnx_data.referring(proto)[0], **values)


def constant_elsewhere(proto):
    """A constant of a node, at any depth, may name a file, too."""
    tensor = onnx.TensorProto(name="c", data_type=1, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value="x.onnx.data")
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Constant", [], ["c"], value=tensor)], "body", [], []
    )
    proto.graph.node.append(onnx.helper.make_node("If", ["d"], ["c"], then_branch=body))


def sparse_elsewhere(proto):
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(onnx_data.referring(proto)[0])


@pytest.mark.parametrize(
    "change, fault",
    [
        (everywhere("../secret"), r"names the file '\.\./secret' .* only a file in the same fold"),
        (everywhere(".."), "names the file"),
        (everywhere(""), "names the file"),
        (everywhere("."), "names the file"),
        (everywhere("ABSOLUTE"), "names the file"),
        (everywhere("sub/x.onnx.data"), "names the file"),
        (everywhere("..\\secret"), "names the file"),
        (everywhere("*/_ORT_MEM_ADDR_/*"), "names the file"),
        (everywhere("a\0b"), "names the file"),
        (everywhere("other"), "numbers are in other, which is missing"),
        (first(location="other"), "numbers are in other files, and not as this version"),
        (constant_elsewhere, "numbers are in other files, and not as this version"),
        (sparse_elsewhere, "numbers are in other files, and not as this version"),
        (first(offset="4096000000"), "place of .* is malformed .*not in the file"),
        (first(offset="-4096"), "is malformed"),
        (first(offset="1"), "is malformed"),
        (first(offset="many"), "is malformed"),
        (first(length="8"), "8 bytes do not fit the shape"),
        (lambda proto: proto.metadata_props.pop(), "was not written by this version's"),
    ],
)
def test_a_hostile_graph_reads_no_other_file(change, fault, pair, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    data = onnx_data.path_of(pair)
    for name in (tmp_path / "secret", folder / "x.onnx.data"):
        shutil.copy(data, name)
    proto = onnx.load(pair, load_external_data=False)
    facts = {entry.key: entry for entry in proto.metadata_props}
    if change(proto) is not None:  # the facts of the data file are gone
        del proto.metadata_props[:]
        proto.metadata_props.append(facts["bit_paddle"])
    for tensor in onnx_data.referring(proto):
        for entry in tensor.external_data:
            entry.value = entry.value.replace("ABSOLUTE", str(tmp_path / "secret"))
    (folder / "x.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(CheckpointError, match=fault):
        bit.load(folder / "x.onnx").logits(pixels())


# --- int8 ---------------------------------------------------------------------------------------


def test_int8_of_a_large_model(weights, image_folder, tmp_path):
    small = tmp_path / "small.onnx"
    done = bit.export(weights, "onnx", small, quantize=image_folder)
    assert sorted(os.listdir(tmp_path)) == ["small.onnx", "small.onnx.data"]
    data = onnx_data.path_of(small)
    assert 100_000 < data.stat().st_size < 2_500_000
    kept = {entry.key: json.loads(entry.value) for entry in
            onnx.load(small, load_external_data=False).metadata_props
            if entry.key.startswith("bit_paddle")}  # fmt: skip
    assert kept["bit_paddle.int8"]["int8"] == done.int8.int8
    assert kept["bit_paddle.data"]["sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    for runtime in ("onnxruntime", "openvino"):
        pytest.importorskip(runtime)
        found = bit.evaluate(small, image_folder, runtime=runtime)
        assert found.top1 == pytest.approx(done.int8.int8, abs=1.5 / found.images)


# --- Never half a pair --------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing(weights, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(WriteError, match=r"x\.onnx: cannot be written.*check the free"):
            bit.export(weights, "onnx", tmp_path / "x.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


DIES = """
import os, sys
from pathlib import Path
from bit_paddle.inference import verify
rename = os.rename
def dies(*names):
    rename(*names)
    os._exit(9)
os.rename = dies
verify._publish(*map(Path, sys.argv[1:]))
"""


def test_a_process_that_dies_between_the_names_leaves_no_model(pair, weights, tmp_path):
    output = tmp_path / "out" / "x.onnx"
    output.parent.mkdir()
    done = subprocess.run([sys.executable, "-c", DIES, pair, output], check=False)
    assert done.returncode == 9
    assert os.listdir(output.parent) == ["x.onnx.data"]
    with pytest.raises(ConfigError, match=r"--output: .*x\.onnx\.data exists; remove it"):
        bit.export(weights, "onnx", output)


def test_an_interrupted_naming_takes_back_the_first_name(pair, tmp_path):
    output = tmp_path / "out" / "x.onnx"
    output.mkdir(parents=True)
    (output / "file").write_text("")
    with pytest.raises(OSError):
        verify._publish(pair, output)
    assert os.listdir(output.parent) == ["x.onnx"]
