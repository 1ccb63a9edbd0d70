"""Runtimes: each computes what Paddle computes, says what it lacks, and is measured by `bench`."""

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from helpers.commands import environment_with, run_here, run_outside

import bit_paddle as bit
from bit_paddle import save_npz
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.errors import CheckpointError, ConfigError
from bit_paddle.inference import features, runtimes
from bit_paddle.inference.model import TrainedModel
from bit_paddle.inference.trained import find_trained
from bit_paddle.inference.verify import relative_difference
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.system.runtimes import RUNTIMES

OTHERS = [name for name in RUNTIMES if name != "paddle"]
CLASSES = ["amber", "blue", "coral"]


def need(runtime):
    for package in RUNTIMES[runtime].packages:
        pytest.importorskip(package)


def random_model(path, head="linear", outputs=3):
    model = ResNetV2(Architecture((1, 1, 1, 1), 0.5, head), outputs)
    random = np.random.default_rng(3)
    for name, parameter in model.named_parameters():
        values = 0.3 * random.standard_normal(parameter.shape) + name.endswith("norm.weight")
        parameter.set_value(values.astype(np.float32))
    save_npz(model, path, {"crop": 48, "classes": CLASSES} if outputs else {"crop": 48})
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("runtimes") / "model.npz")


@pytest.fixture(scope="module")
def colours(tmp_path_factory, image_folder):
    """BiT-Mini with a head that tells the colours of `image_folder`."""
    path = tmp_path_factory.mktemp("colours") / "colours.npz"
    bit.probe("BiT-Mini", image_folder, output=path)
    return path


@pytest.fixture(scope="module")
def graph(colours):
    """``colours`` as an ONNX file."""
    need("onnxruntime")
    path = colours.with_suffix(".onnx")
    bit.export(colours, "onnx", path)
    return path


def pixels(*shape):
    return np.random.default_rng(5).integers(0, 256, shape).astype(np.uint8)


def both(model, images):
    """The logits (None without a head) and the features of a model."""
    logits = model.logits(images) if model.file.outputs else None
    return logits, model.features(images)


# --- What they compute --------------------------------------------------------------------------


HEADS = [("linear", 3), ("local", 3), ("conv:64", 3), ("linear", 0)]


@pytest.mark.parametrize(
    "runtime, head, outputs",
    [  # the export of every head for Paddle Inference is tested as an export
        (runtime, *head)
        for runtime in OTHERS
        for head in (HEADS[:1] if runtime == "paddle-inference" else HEADS)
    ],
)
def test_a_runtime_computes_what_paddle_computes(runtime, head, outputs, tmp_path):
    need(runtime)
    path = random_model(tmp_path / "model.npz", head, outputs)
    paddle, model = bit.load(path, device="cpu"), bit.load(path, runtime=runtime)
    for crop in (64, 97):  # any batch, any size
        images = pixels(2, 3, crop, crop)
        expected = both(paddle, images)
        for found, value in zip(both(model, images), expected):
            assert value is None or np.abs(value).max() > 0.1
            assert value is None or relative_difference(found, value) < 2e-5
    alone = TrainedModel(find_trained(str(path)), head=False, runtime=runtime)
    assert relative_difference(alone.features(images), expected[1]) < 2e-5


@pytest.mark.parametrize("runtime", OTHERS)
def test_pixels_are_scaled_as_the_model_wants(runtime, weights):
    need(runtime)
    view = Preprocessing(48, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    file, images = replace(find_trained(str(weights)), preprocessing=view), pixels(2, 3, 48, 48)
    plain = TrainedModel(find_trained(str(weights)), "cpu").logits(images)
    expected = TrainedModel(file, "cpu").logits(images)
    assert relative_difference(plain, expected) > 1e-2
    assert relative_difference(TrainedModel(file, runtime=runtime).logits(images), expected) < 2e-5


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_onnx_file_is_a_model(runtime, colours, graph):
    need(runtime)
    one, other = bit.load(colours, device="cpu"), bit.load(graph, runtime=runtime)
    assert other.file == replace(one.file, path=graph) and other.classes == CLASSES
    images = pixels(3, 3, 64, 64)
    for found, value in zip(both(other, images), both(one, images)):
        assert relative_difference(found, value) < 2e-5
    assert bit.load(graph, crop=32).file.preprocessing == Preprocessing(32)


@pytest.mark.parametrize("runtime", ["paddle-inference", "openvino"])
def test_bf16_rounds_and_no_more(runtime, weights):
    need(runtime)
    images = pixels(2, 3, 64, 64)
    try:
        found = bit.load(weights, runtime=runtime, amp="bf16").logits(images)
    except ConfigError as fault:
        if "no bf16 on this processor" not in str(fault):
            raise
        pytest.skip(str(fault))
    difference = relative_difference(found, bit.load(weights, device="cpu").logits(images))
    assert 1e-4 < difference < 8 * 2**-8


def test_the_cache_of_features_knows_the_runtimes(weights, image_folder):
    from bit_paddle.inference.evaluation import open_split

    _, (images,) = open_split("folder", str(image_folder), "val", {}, "error", 0)
    models = [bit.load(weights, device="cpu")]
    for runtime in OTHERS:
        if all(map(runtimes.formats.installed, RUNTIMES[runtime].packages)):
            models.append(bit.load(weights, runtime=runtime))
            assert RUNTIMES[runtime].title in models[-1].computed_by
    view = models[0].file.preprocessing
    keys = {features._key(model, view, images, False) for model in models}
    assert len(keys) == len(models) > 1


# --- The commands -------------------------------------------------------------------------------


def rows_of(text):
    return [(row["image"], row["class"], float(row["probability"])) for row in
            csv.DictReader(text.splitlines())]  # fmt: skip


@pytest.mark.parametrize("runtime", OTHERS)
def test_the_commands_take_a_runtime(runtime, colours, image_folder, tmp_path):
    need(runtime)
    flags = ("--model", colours, "--runtime", runtime)
    predict = ("predict", image_folder / "val", "--format", "csv")
    done, expected = run_here(*predict, *flags), run_here(*predict, *flags[:2])
    assert done.returncode == expected.returncode == 0, done.stderr
    found = rows_of(done.stdout)
    assert len(found) == 45
    for (*words, share), (*others, value) in zip(found, rows_of(expected.stdout)):
        assert words == others and share == pytest.approx(value, abs=1e-4)

    done = run_here("predict", image_folder / "val", *flags, "--features", tmp_path / "f.npz")
    assert done.returncode == 0, done.stderr
    names = np.load(tmp_path / "f.npz")["names"]
    expected = bit.load(colours, device="cpu").features(list(names))
    assert relative_difference(np.load(tmp_path / "f.npz")["features"], expected) < 2e-5

    done = run_here("evaluate", *flags, "--dataset", image_folder, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    top1 = json.loads((tmp_path / "out/metrics.json").read_text())["top1"]
    assert top1 == bit.evaluate(colours, image_folder, device="cpu").top1 > 0.9


@pytest.mark.parametrize(
    "words, fault",
    [
        (["--runtime", "onnxruntime", "--amp", "bf16"], "--amp bf16: ONNX Runtime has no bf16"),
        (["--runtime", "paddle-inference", "--amp", "fp16"], "--amp fp16: Paddle Inference has no"),
        (["--runtime", "openvino", "--device", "gpu"], "OpenVINO runs only on the CPU here"),
        (["--runtime", "tensorrt"], "--runtime: invalid choice: 'tensorrt'"),
        (
            ["--runtime", "paddle-inference", "--maps", "maps"],
            "only --runtime paddle has the layers",
        ),
    ],
)
def test_what_a_runtime_lacks_is_said(words, fault, colours, image_folder, tmp_path):
    words = [str(tmp_path / word) if word == "maps" else word for word in words]
    done = run_here("predict", image_folder / "val", "--model", colours, *words)
    assert done.returncode == 2 and fault in done.stderr


def test_an_export_runs_where_it_was_made_for(graph, colours, image_folder, tmp_path):
    bit.export(colours, "paddle", tmp_path / "served")
    for model, runtime in ((graph, "paddle"), (tmp_path / "served", "onnxruntime")):
        with pytest.raises(ConfigError, match=f"--runtime {runtime}: .* can run; give the checkp"):
            bit.load(model, runtime=runtime)
    assert "exported" not in bit.load(graph).computed_by
    for command in ("export --format npz --output x.npz", "bench"):
        name, *words = command.split()
        given = [graph] if name == "bench" else ["--model", graph]
        done = run_here(name, *given, *words)
        assert done.returncode == 2 and "the checkpoint that it came from" in done.stderr
    done = run_here("evaluate", "--model", graph, "--dataset", image_folder, "--calibrate")
    assert done.returncode == 2 and "is an export; calibrate the checkpoint" in done.stderr
    with pytest.raises(ConfigError, match="is an export, not the checkpoint .* no maps"):
        bit.load(graph).explain(pixels(40, 40, 3))


BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def without(folder, *names):
    """The environment of a process that cannot import the packages ``names``."""
    (folder / "sitecustomize.py").write_text(BLOCK.format(names=set(names)))
    return environment_with(PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]))


@pytest.mark.parametrize(
    "runtime, package, extra",
    [("onnxruntime", "onnxruntime", "onnx"), ("openvino", "openvino", "openvino"),
     ("openvino", "onnx", "openvino")],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(runtime, package, extra, colours, tmp_path):
    need(runtime)
    (tmp_path / "cat.png").write_bytes(b"")
    done = run_outside(
        *("predict", tmp_path / "cat.png", "--model", colours, "--runtime", runtime),
        env=without(tmp_path, package),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"--runtime {runtime}: the package {package} cannot be imported" in done.stderr
    assert f"'.[{extra}]'" in done.stderr


def test_an_onnx_file_runs_without_paddle(graph, image_folder, tmp_path):
    """A server of such a file needs no Paddle."""
    alone = without(tmp_path, "paddle")
    words = ("--model", graph, "--dataset", image_folder, "--output", tmp_path / "out")
    done = run_outside("evaluate", *words, env=alone)
    assert done.returncode == 0, done.stderr
    done = run_outside(
        *("predict", image_folder / "val", "--model", graph, "--top", 1, "--format", "csv"),
        env=alone,
    )
    assert done.returncode == 0, done.stderr
    assert all(f"/{name}/" in image for image, name, _ in rows_of(done.stdout))
    assert done.stdout.count("\n") == 16


SIGNAL = """
import os, signal
import bit_paddle as bit
signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
one, other = (bit.load({path!r}, runtime={runtime!r}) for _ in range(2))
del one
del other
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_models_that_are_gone_leave_signals_alone(runtime, graph):
    """OpenVINO gives a thread another stack for signals, and takes it away."""
    need(runtime)
    code = SIGNAL.format(path=str(graph), runtime=runtime)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\nalive\n"), done.stderr


# --- Files that are no models -------------------------------------------------------------------


def test_hostile_onnx_files(graph, tmp_path):
    onnx, bad = pytest.importorskip("onnx"), tmp_path / "bad.onnx"

    def refused(words):
        with pytest.raises(CheckpointError, match=words):
            bit.load(bad)

    for content in (b"", b"{}", graph.read_bytes()[:-1000], os.urandom(1000)):
        bad.write_bytes(content)
        refused(r"bad\.onnx: (cannot be read as ONNX|was not written by this version)")
    proto = onnx.load(graph)
    proto.graph.initializer[-1].data_location = onnx.TensorProto.EXTERNAL
    bad.write_bytes(proto.SerializeToString())
    refused("its numbers are in other files")
    for change, fault in (
        (lambda facts: facts.pop("outputs"), "was not written by `export`"),
        (lambda facts: facts.update(classes=["one"]), "does not name 3 classes"),
        (lambda facts: facts.update(colour=1), "colour"),
    ):
        proto = onnx.load(graph)
        facts = json.loads(proto.metadata_props[0].value)
        change(facts)
        proto.metadata_props[0].value = json.dumps(facts)
        onnx.save(proto, bad)
        refused(fault)
    proto = onnx.load(graph)
    proto.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(proto, bad)
    refused("ONNX Runtime cannot run it")
    del proto.metadata_props[:]
    onnx.save(proto, bad)
    refused("its classes and preprocessing are unknown; export the checkpoint again")
    with pytest.raises(FileNotFoundError, match="no such checkpoint file"):
        bit.load("nowhere.onnx")


# --- int8 ---------------------------------------------------------------------------------------


def test_int8_costs_what_export_prints(colours, graph, image_folder, tmp_path):
    onnx = pytest.importorskip("onnx")
    need("onnxruntime")
    small = tmp_path / "small.onnx"
    done = run_here(
        *("export", "--model", colours, "--format", "onnx", "--output", small),
        *("--quantize", image_folder),
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("int8: "))
    patterns = (
        r"top-1 ([\d.]+)%",
        r"float32: ([\d.]+)%",
        r"loss (\S+) points",
        r"([\d.]+)% of the predictions",
    )
    top1, whole, loss, same = (float(re.search(pattern, line)[1]) for pattern in patterns)
    before = bit.evaluate(colours, image_folder, runtime="onnxruntime")
    after = bit.evaluate(small, image_folder)
    assert (f"{before.top1:.2%}", f"{after.top1:.2%}") == (f"{whole:.2f}%", f"{top1:.2f}%")
    assert loss == pytest.approx(100 * (before.top1 - after.top1), abs=0.01)
    agree = np.mean(before.per_image.predictions == after.per_image.predictions)
    assert same == pytest.approx(100 * agree, abs=0.01)
    assert f"measured on {before.images} images of {image_folder.name} val" in line
    assert 1e-4 < relative_difference(after.outputs.logits, before.outputs.logits) < 0.5

    proto = onnx.load(small)
    kept = {entry.key: json.loads(entry.value) for entry in proto.metadata_props
            if entry.key.startswith("bit_paddle")}  # fmt: skip
    assert kept["bit_paddle.int8"]["int8"] == after.top1
    assert kept["bit_paddle"]["classes"] == CLASSES
    made = {output: node for node in proto.graph.node for output in node.output}
    stored = {one.name: one for one in proto.graph.initializer}
    kinds = {"Conv": set(), "InstanceNormalization": set()}
    for node in proto.graph.node:
        if node.op_type in kinds:
            kinds[node.op_type].add(made[node.input[0]].op_type)
        if node.op_type == "Conv":
            weight, scale, _ = made[node.input[1]].input
            assert stored[weight].data_type == onnx.TensorProto.INT8
            assert list(stored[scale].dims) == [stored[weight].dims[0]]  # per channel
    assert kinds == {"Conv": {"DequantizeLinear"}, "InstanceNormalization": {"Reshape"}}
    assert small.stat().st_size < 0.3 * graph.stat().st_size


def test_openvino_runs_int8_too(colours, image_folder, tmp_path):
    need("openvino")
    need("onnxruntime")
    small = tmp_path / "small.onnx"
    done = bit.export(colours, "onnx", small, quantize=image_folder)
    found = bit.evaluate(small, image_folder, runtime="openvino")
    assert found.top1 == pytest.approx(done.int8.int8, abs=1.5 / found.images)
    assert done.verified is not None and "onnxruntime" not in done.int8.computed_by


@pytest.mark.parametrize(
    "words, fault",
    [
        (["--format", "npz", "--quantize", "."], "--quantize: needs --format onnx, found npz"),
        (["--format", "onnx", "--quantize", "nowhere"], "nowhere"),
    ],
)
def test_int8_refuses_early_and_leaves_nothing(words, fault, colours, tmp_path):
    need("onnxruntime")
    done = run_here("export", "--model", colours, "--output", tmp_path / "x.onnx", *words)
    assert done.returncode == 2 and fault in done.stderr
    assert not list(tmp_path.iterdir())


# --- The table ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_bench_prints_a_table(colours, image_folder, tmp_path):
    need("onnxruntime")
    done = run_outside(
        *("bench", colours, "--dataset", image_folder, "--rounds", 1),
        *("--runtimes", "paddle", "onnxruntime", "--json", tmp_path / "bench.json"),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("runtime"))
    table = {tuple(line.split()[:2]): line.split()[2:] for line in lines[start + 1 : -1]}
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    keys = [("paddle", "float32"), ("onnxruntime", "float32"), ("paddle", "bf16"),
            ("onnxruntime", "int8")]  # fmt: skip
    assert list(table) == [(row["runtime"], row["precision"]) for row in rows] == keys
    for row, cells in zip(rows, table.values()):
        middle, high, highest = np.percentile(1000 * np.array(row["seconds"]["1"]), (50, 95, 99))
        assert len(row["seconds"]["1"]) == 40
        assert [float(cell) for cell in cells[:3]] == pytest.approx(
            [middle, high, highest], abs=0.01
        )
        for cell, batch in zip(cells[3:5], (8, 32)):
            expected = batch / np.median(row["seconds"][str(batch)])
            assert float(cell) == pytest.approx(expected, abs=0.06)
        assert 50 < float(cells[5]) < 10_000 and cells[6] == "MB"
        assert cells[7] == f"{row['top1']:.2%}"
    assert table[keys[0]][8] == "0.0e+00"
    assert 0 < float(table[keys[1]][8]) < 2e-5 < float(table[keys[3]][8]) < 0.5
    assert lines[-1].startswith("top-1 and logits: 15 validation images; int8 is calibrated on 36")


@pytest.mark.slow
def test_bench_of_random_weights_without_data():
    done = run_outside("bench", "R14x0.5", "--crop", 32, "--rounds", 1, "--runtimes", "paddle")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "R14x0.5 (random weights), 1,000 outputs, 32 x 32 pixels"
    assert (
        lines[-1] == "top-1 is left out: no --dataset was given; logits are those of random pixels"
    )
    full, half = (line.split() for line in lines if line.startswith("paddle "))
    assert full[-2:] == ["-", "0.0e+00"] and half[-2] == "-"
    assert 1e-4 < float(half[-1]) < 0.1  # the weights are not zeros


def test_bench_says_what_is_not_installed(colours, tmp_path):
    done = run_outside(
        *("bench", colours, "--runtimes", "openvino"), env=without(tmp_path, "openvino")
    )
    assert done.returncode == 2
    assert "--runtimes openvino: openvino is not installed: pip install" in done.stderr


def test_a_contender_that_dies_is_named(colours):
    from contextlib import ExitStack

    from bit_paddle.errors import PeerError
    from bit_paddle.inference.race import Process

    with ExitStack() as stack:
        process = Process("the test", stack)
        with pytest.raises(ConfigError, match="nowhere"):
            process.ask("load", path="./nowhere.npz", runtime="paddle", amp="off", batches=[1])
        with pytest.raises(PeerError, match="the process of the test ended with status 1"):
            process.ask("no such request")
