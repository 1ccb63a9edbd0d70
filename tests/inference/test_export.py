"""Exports: every format computes what the model computes, or leaves nothing behind."""

import importlib.util
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace

import numpy as np
import paddle
import pytest
from conftest import ROOT

from bit_paddle import errors, export, save_npz
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.errors import ConfigError, DifferenceError, WriteError
from bit_paddle.inference import activations, formats, paddle_inference, verify
from bit_paddle.inference.trained import facts_of, find_trained
from bit_paddle.models import npz
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.resnetv2 import ResNetV2

NETWORKS = {
    "R14x0.5, 10 outputs": ((1, 1, 1, 1), 0.5, 10),
    "odd, 1 output": ((1, 2, 1, 1), 1.5, 1),
    "no head": ((2, 1, 1, 1), 0.5, 0),
}
SIZES = [(1, 3, 32, 32), (3, 3, 49, 86)]
CLASSES = [f"ü{k}" for k in range(10)]


def make(units, width, classes):
    """A network all of whose parameters are random, in eval mode."""
    model = ResNetV2(Architecture(units, width), classes)
    random = np.random.default_rng(7)
    for name, parameter in model.named_parameters():
        values = 0.3 * random.standard_normal(parameter.shape)
        if name.endswith("norm.weight"):
            values += 1
        parameter.set_value(values.astype(np.float32))
    model.eval()
    return model


def outputs(run, shape):
    images = np.random.default_rng(5).uniform(-1, 1, shape).astype(np.float32)
    with paddle.no_grad():
        return run(paddle.to_tensor(images)).numpy() if isinstance(run, ResNetV2) else run(images)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, tmp_path_factory):
    """(model, its source): a checkpoint as training writes it."""
    units, width, classes = NETWORKS[request.param]
    model = make(units, width, classes)
    path = tmp_path_factory.mktemp("export") / "model.npz"
    notes = {"crop": 160, "classes": CLASSES} if classes == 10 else {"crop": 160}
    save_npz(model, path, notes)
    return model, find_trained(str(path))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    model = make((1, 1, 1, 1), 0.5, 10)
    path = tmp_path_factory.mktemp("export") / "small.npz"
    save_npz(model, path, {"crop": 160, "classes": CLASSES})
    return model, find_trained(str(path))


def need(format):
    for package in (*formats.FORMATS[format].packages, *(["onnxruntime"] * (format == "onnx"))):
        pytest.importorskip(package)


@pytest.mark.slow
@pytest.mark.parametrize("format", formats.FORMATS)
def test_an_export_computes_the_same(format, network, tmp_path):
    need(format)
    model, trained = network
    verified = verify.export(model, trained, format, tmp_path / "out")
    assert (verified.difference or 0) < 1e-5
    inspect = formats.FORMATS[format].read(tmp_path / "out", model, None)
    for shape in SIZES:
        expected = outputs(model, shape)
        assert np.abs(expected).max() > 0.1
        found = outputs(lambda images: inspect([images])[0]["output"], shape)
        # the model itself rounds by up to 1.4e-5 of the largest, where its MKL has AVX-512
        assert verify.relative_difference(found, expected) < 2e-5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_paddle_loads_the_folder_by_itself(network, tmp_path):
    model, trained = network
    verify.export(model, trained, "paddle", tmp_path / "out")
    loaded = paddle.jit.load(str(tmp_path / "out" / "inference"))
    for shape in SIZES:
        found = outputs(lambda images: loaded(paddle.to_tensor(images)).numpy(), shape)
        assert verify.relative_difference(found, outputs(model, shape)) < 2e-5


def test_an_exported_folder_computes_in_bfloat16(small, tmp_path):
    """Rounding to 8 bits is seen, and no more than that."""
    model, trained = small
    verify.export(model, trained, "paddle", tmp_path / "out")
    run = paddle_inference.open_folder(tmp_path / "out", bf16=True)
    differences = [
        verify.relative_difference(outputs(run, shape), outputs(model, shape)) for shape in SIZES
    ]
    assert max(differences) > 1e-4  # oneDNN emulates it where the processor has none
    assert max(differences) < 8 * 2**-8


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"outputs": "3"}, "not whole numbers"),
        ({"classes": ["a", "b"]}, "name 3 classes"),
        ({"classes": "abc"}, "name 3 classes"),
        ({"loss": 3}, "its loss 3 is unknown"),
        ({"colour": 1}, "colour"),
        ({"preprocessing": {"crop": 32, "filter": 0.5}}, "was not written by"),
    ],
)
def test_notes_that_export_would_not_write(change, fault, tmp_path):
    notes = {"outputs": 3, "features": 64, "preprocessing": None, "classes": None}
    notes["trained_here"] = False
    (tmp_path / paddle_inference.NOTES).write_text(json.dumps(notes))
    assert find_trained(str(tmp_path)).outputs == 3
    for text in (json.dumps({**notes, **change}), "[" * 100_000):
        (tmp_path / paddle_inference.NOTES).write_text(text)
        with pytest.raises(errors.CheckpointError, match=fault if text[0] == "{" else "export"):
            find_trained(str(tmp_path))


def test_an_exported_folder_knows_its_source(network, tmp_path):
    model, trained = network
    verify.export(model, trained, "paddle", tmp_path / "out")
    found = find_trained(str(tmp_path / "out"))
    assert found == replace(trained, path=tmp_path / "out")
    assert found.features == model.architecture.features
    assert find_trained(str(tmp_path / "out"), crop=64).preprocessing == Preprocessing(64)


@pytest.mark.parametrize(
    "file, content",
    [("bit_paddle.json", "{"), ("bit_paddle.json", "[]"), ("bit_paddle.json", '{"outputs": 1}')],
)
def test_a_damaged_folder_is_named(file, content, small, tmp_path):
    verify.export(*small, "paddle", tmp_path / "out")
    (tmp_path / "out" / file).write_text(content)
    with pytest.raises(errors.CheckpointError, match="bit_paddle.json: was not written by `exp"):
        find_trained(str(tmp_path / "out"))


def test_a_folder_without_its_weights_is_named(small, tmp_path):
    verify.export(*small, "paddle", tmp_path / "out")
    (tmp_path / "out" / "inference.pdiparams").unlink()
    with pytest.raises(errors.CheckpointError, match="out: a file is missing: .* export the mod"):
        paddle_inference.open_folder(tmp_path / "out")


def test_paddle_export_has_plain_layers_alone(small, tmp_path):
    model, trained = small
    verify.export(model, trained, "paddle", tmp_path / "out")
    loaded = paddle.jit.load(str(tmp_path / "out" / "inference"))
    program = loaded.program()  # kept, as it owns the block
    operators = program.global_block().ops
    kinds = [op.type if hasattr(op, "type") else op.name()[len("pd_op.") :] for op in operators]
    assert kinds.count("conv2d") == 17 and kinds.count("group_norm") == 13
    assert not {"instance_norm", "sqrt", "rsqrt"} & set(kinds)


def test_folding_leaves_the_model_alone(small):
    model, _ = small
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    kernel = formats.folded(model).block1.unit01.b.conv.weight.numpy()
    assert np.allclose(kernel.mean(axis=(1, 2, 3)), 0, atol=1e-6)
    assert np.allclose(kernel.var(axis=(1, 2, 3)), 1, atol=1e-5)
    assert all(
        np.array_equal(value.numpy(), before[name]) for name, value in model.state_dict().items()
    )


def test_pdparams_are_the_raw_parameters(small, tmp_path):
    model, trained = small
    verify.export(model, trained, "pdparams", tmp_path / "x.pdparams")
    loaded = paddle.load(str(tmp_path / "x.pdparams"))
    assert set(loaded) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert np.array_equal(loaded[name].numpy(), value.numpy())


def test_npz_is_the_published_layout_with_its_notes(small, tmp_path):
    model, trained = small
    verify.export(model, trained, "npz", tmp_path / "x.npz")
    with CheckpointFile(tmp_path / "x.npz") as file:
        notes = file.notes()
        assert notes.pop("facts") == json.loads(json.dumps(facts_of(trained)))
        assert notes == {"crop": 160, "classes": CLASSES}
    with np.load(tmp_path / "x.npz") as found, np.load(trained.path) as expected:
        assert set(found.files) == set(expected.files)
        keys = set(found.files) - {npz.NOTES}
        assert all(np.array_equal(found[key], expected[key]) for key in keys)


# --- ONNX ---


def test_onnx_takes_any_size_and_survives_optimizers(small, tmp_path):
    """onnxruntime merges a zero padding with the max-pool behind it, which is wrong."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model, trained = small
    verify.export(model, trained, "onnx", tmp_path / "x.onnx")
    (images,) = onnx.load(tmp_path / "x.onnx").graph.input
    dimensions = images.type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dimensions] == ["batch", 3, "height", "width"]
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
        options = runtime.SessionOptions()
        options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
        session = runtime.InferenceSession(
            str(tmp_path / "x.onnx"), options, providers=["CPUExecutionProvider"]
        )
        for shape in SIZES:
            found = outputs(lambda images: session.run(None, {"images": images})[0], shape)  # noqa: B023
            assert verify.relative_difference(found, outputs(model, shape)) < 1e-5


def test_onnx_without_onnxruntime_is_checked_alone(small, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setattr(formats, "installed", lambda package: package != "onnxruntime")
    assert verify.export(*small, "onnx", tmp_path / "x.onnx") is None
    assert (tmp_path / "x.onnx").is_file()


# --- Other libraries' names ---

UNIT = "resnet/block3/unit02/"
NAMES = {  # published: (timm's, transformers')
    "resnet/root_block/standardized_conv2d/kernel": (
        "stem.conv.weight",
        "bit.embedder.convolution.weight",
    ),
    "resnet/block1/unit01/a/proj/standardized_conv2d/kernel": (
        "stages.0.blocks.0.downsample.conv.weight",
        "bit.encoder.stages.0.layers.0.downsample.conv.weight",
    ),
    f"{UNIT}a/standardized_conv2d/kernel": (
        "stages.2.blocks.1.conv1.weight",
        "bit.encoder.stages.2.layers.1.conv1.weight",
    ),
    f"{UNIT}b/standardized_conv2d/kernel": (
        "stages.2.blocks.1.conv2.weight",
        "bit.encoder.stages.2.layers.1.conv2.weight",
    ),
    f"{UNIT}c/standardized_conv2d/kernel": (
        "stages.2.blocks.1.conv3.weight",
        "bit.encoder.stages.2.layers.1.conv3.weight",
    ),
    f"{UNIT}a/group_norm/gamma": (
        "stages.2.blocks.1.norm1.weight",
        "bit.encoder.stages.2.layers.1.norm1.weight",
    ),
    f"{UNIT}c/group_norm/beta": (
        "stages.2.blocks.1.norm3.bias",
        "bit.encoder.stages.2.layers.1.norm3.bias",
    ),
    "resnet/block3/unit23/b/group_norm/beta": (
        "stages.2.blocks.22.norm2.bias",
        "bit.encoder.stages.2.layers.22.norm2.bias",
    ),
    "resnet/group_norm/gamma": ("norm.weight", "bit.norm.weight"),
    "resnet/group_norm/beta": ("norm.bias", "bit.norm.bias"),
    npz.HEAD_KERNEL: ("head.fc.weight", "classifier.1.weight"),
    npz.HEAD_BIAS: ("head.fc.bias", "classifier.1.bias"),
}


@pytest.mark.parametrize("key", NAMES)
def test_names(key):
    assert (formats.timm_name(key), formats.huggingface_name(key)) == NAMES[key]


def test_timm_file_holds_raw_kernels_of_torch_shape(small, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    model, trained = small
    verify.export(model, trained, "safetensors-timm", tmp_path / "x.safetensors")
    arrays = numpy.load_file(tmp_path / "x.safetensors")
    assert len(arrays) == len(model.state_dict())
    assert arrays["stem.conv.weight"].shape == (32, 3, 7, 7)
    assert arrays["head.fc.weight"].shape == (10, 1024, 1, 1)
    assert np.array_equal(arrays["head.fc.weight"][:, :, 0, 0], model.head.weight.numpy().T)
    kernel = model.block2.unit01.b.conv.weight.numpy()
    assert np.array_equal(arrays["stages.1.blocks.0.conv2.weight"], kernel)


def test_huggingface_configuration(network, tmp_path):
    need("huggingface")
    model, trained = network
    verify.export(model, trained, "huggingface", tmp_path / "out")
    read = {path.name: path for path in (tmp_path / "out").iterdir()}
    files = {"README.md", "config.json", "preprocessor_config.json", "model.safetensors"}
    assert set(read) == files
    config = json.loads(read["config.json"].read_text(encoding="utf-8"))
    root = model.architecture.root_channels
    assert config["embedding_size"] == root and config["depths"] == list(model.architecture.units)
    assert config["hidden_sizes"] == [4 * root, 8 * root, 16 * root, 32 * root]
    assert config["global_padding"] is None and config["layer_type"] == "preactivation"
    expected = {10: CLASSES, 1: ["LABEL_0"], 0: []}[model.num_classes]
    assert config["id2label"] == {str(index): name for index, name in enumerate(expected)}
    assert config["label2id"] == {name: index for index, name in enumerate(expected)}
    view = json.loads(read["preprocessor_config.json"].read_text())
    assert view["size"] == {"height": 160, "width": 160} and view["resample"] == 2
    assert not view["do_center_crop"] and view["image_mean"] == view["image_std"] == [0.5] * 3


def test_huggingface_crops_where_the_checkpoint_was_measured_so():
    view = formats.huggingface_preprocessing(Preprocessing(224, resize=256))
    assert view["size"] == {"shortest_edge": 256} and view["do_center_crop"]
    assert view["crop_size"] == {"height": 224, "width": 224}


def test_transformers_reads_it(network, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, trained = network
    verify.export(model, trained, "huggingface", tmp_path / "out")
    theirs, report = transformers.BitForImageClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report

    def run(images):
        with torch.no_grad():
            return theirs.eval()(torch.from_numpy(images)).logits.numpy()

    for shape in SIZES:
        assert verify.relative_difference(outputs(run, shape), outputs(model, shape)) < 1e-5


# --- What must not happen ---


def damaged(format):
    """``format``, whose file is written from a model with one number changed."""
    entry = formats.FORMATS[format]

    def write(model, trained, path):
        other = make(model.architecture.units, model.architecture.width, model.num_classes)
        other.norm.bias.set_value(other.norm.bias.numpy() + np.eye(1, 1024, dtype=np.float32)[0])
        entry.write(other, trained, path)

    return entry._replace(write=write)


@pytest.mark.parametrize("format", formats.FORMATS)
def test_a_wrong_export_is_removed(format, small, tmp_path, monkeypatch):
    need(format)
    monkeypatch.setitem(formats.FORMATS, format, damaged(format))
    with pytest.raises(DifferenceError, match="nothing was written") as caught:
        verify.export(*small, format, tmp_path / "out")
    assert caught.value.exit_status == 1
    assert not list(tmp_path.iterdir())


def spoiled(inspect, name, spoil):
    """``inspect`` whose activation ``name`` is changed by ``spoil``."""
    return lambda batches: [
        {key: spoil(array) if key == name else array for key, array in found.items()}
        for found in inspect(batches)
    ]


@pytest.mark.parametrize("name", [*activations.STAGES, "features", "output"])
@pytest.mark.parametrize(
    "spoil",
    [lambda y: y * np.nan, lambda y: y[:, :1], lambda y: y + 2e-5 * np.abs(y).max()],
    ids=["NaN", "shape", "2e-5"],
)
def test_verify_refuses(spoil, name, small):
    model, _ = small
    inspect = activations.of_model(model)
    assert verify.verify(inspect, model, None) == verify.Verified()
    with pytest.raises(DifferenceError, match=f"^{name}: the export differs .* by"):
        verify.verify(spoiled(inspect, name, spoil), model, None)


def farther(model, factor):
    """``model`` in float32, but ``factor`` times as far from float64."""
    with verify.in_float64(model):
        inspect = activations.of_model(model)
        exact = inspect([batch.astype(np.float64) for batch in batches_of_verify()])

    def inspect_batches(batches):
        found = activations.of_model(model)(batches)
        return [
            {name: value + factor * (mine[name] - value) for name, value in theirs.items()}
            for mine, theirs in zip(found, exact)
        ]

    return inspect_batches


def batches_of_verify():
    random = np.random.default_rng(0)
    return [random.uniform(-1, 1, shape).astype(np.float32) for shape in verify.IMAGES]


def test_an_export_is_as_near_to_float64_as_the_model(small, monkeypatch):
    model, _ = small
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    verified = verify.verify(farther(model, 0), model, None)
    assert verified.difference == 0 and 1e-8 < verified.rounding < 1e-5
    verified = verify.verify(farther(model, 1.4), model, None)
    assert verified.difference == pytest.approx(1.4 * verified.rounding)
    for number in (verified.difference, verified.rounding):
        assert f"{number:.1e}" in str(verified)
    with pytest.raises(DifferenceError, match="from the model in float64 by .* 1.5 times"):
        verify.verify(farther(model, 1.6), model, None)
    monkeypatch.setattr(verify, "LIMIT", 1.2 * verified.rounding)
    with pytest.raises(DifferenceError, match="1.5 times as much, and at most"):
        verify.verify(farther(model, 1.4), model, None)
    monkeypatch.setattr(verify, "LIMIT", 0)
    assert verify.verify(activations.of_model(model), model, None) == verify.Verified()
    for name, value in model.state_dict().items():  # after float64, it is what it was
        assert np.array_equal(value.numpy(), before[name]) and value.dtype == paddle.float32
    assert not model.training


def test_outputs_that_happen_to_be_near_zero_are_judged_by_their_layer():
    """One output: its rounding, compared with numbers near zero, would say nothing."""
    model = make((1, 1, 1, 1), 0.5, 1)
    run = activations.of_model(model)
    features = np.concatenate([found["features"] for found in run(batches_of_verify())])
    weight = model.head.weight.numpy()
    weight -= np.linalg.pinv(features) @ (features @ weight)  # no image of these has an output
    model.head.weight.set_value(weight)
    model.head.bias.set_value(np.zeros(1, np.float32))
    typical = np.linalg.norm(features, axis=1).max() * np.linalg.norm(weight) / np.sqrt(1024)
    largest = max(abs(found["output"]).max() for found in run(batches_of_verify()))
    error = 1e-6 * typical
    assert error / largest > 0.01
    inspect = spoiled(run, "output", lambda y: y + np.float32(error))
    assert verify.verify(inspect, model, None).difference < 1e-5
    inspect = spoiled(run, "output", lambda y: y + np.float32(20 * error))
    with pytest.raises(DifferenceError, match="^output: "):
        verify.verify(inspect, model, None)


# --- An export of a head of zeros is compared, too ---


def zero_head(model):
    model.head.weight.set_value(np.zeros(model.head.weight.shape, np.float32))
    return model


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """(model, its source) before its first step: a head of zeros, the bias of pre-training."""
    model = zero_head(make((1, 2, 1, 1), 0.5, 3))
    model.head.bias.set_value(np.full(3, -10, np.float32))
    path = tmp_path_factory.mktemp("export") / "fresh.npz"
    save_npz(model, path, {"crop": 64})
    return model, find_trained(str(path))


def changed(format, change):
    """``format``, whose file is written from a copy of the model after ``change``."""
    entry = formats.FORMATS[format]

    def write(model, trained, path):
        other = ResNetV2(model.architecture, model.num_classes)
        other.set_state_dict(model.state_dict())
        change(other)
        other.eval()
        entry.write(other, trained, path)

    return entry._replace(write=write)


def change_weight(name):
    def change(model):
        parameter = dict(model.named_parameters())[name]
        values = parameter.numpy().copy()
        values.flat[values.size // 2] += 0.1
        parameter.set_value(values)

    return change


@pytest.mark.parametrize("format", formats.FORMATS)
def test_a_head_of_zeros_stays_zero_and_is_compared(format, fresh, tmp_path):
    need(format)
    model, trained = fresh
    verified = verify.export(model, trained, format, tmp_path / "out")
    assert verified.random_head and "random numbers in the head" in str(verified)
    inspect = formats.FORMATS[format].read(tmp_path / "out", model, None)
    (found,) = inspect([np.ones((1, 3, 64, 64), np.float32)])
    assert (found["output"] == -10).all() and activations.RANDOM not in found
    head = activations.random_head(model)
    (found,) = formats.FORMATS[format].read(tmp_path / "out", model, head)(
        [np.ones((1, 3, 64, 64), np.float32)]
    )
    expected = found["features"] @ head[0] + head[1]
    assert np.abs(expected).max() > 0.1
    assert verify.relative_difference(found[activations.RANDOM], expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "weight, first",
    [
        ("root_block.conv.weight", "stage 1"),
        *((f"block{k}.unit01.b.conv.weight", f"stage {k}") for k in range(1, 5)),
        ("block2.unit02.c.norm.bias", "stage 2"),
        ("norm.weight", "features"),
        ("head.weight", "head.weight"),
        ("head.bias", "head.bias"),
    ],
)
@pytest.mark.parametrize("format", formats.FORMATS)
def test_one_wrong_weight_is_refused(format, weight, first, fresh, tmp_path, monkeypatch):
    need(format)
    monkeypatch.setitem(formats.FORMATS, format, changed(format, change_weight(weight)))
    with pytest.raises(DifferenceError) as caught:
        verify.export(*fresh, format, tmp_path / "out")
    assert (first if formats.FORMATS[format].graph else weight) in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", formats.FORMATS)
def test_a_scaled_head_is_refused(format, small, tmp_path, monkeypatch):
    need(format)

    def scale(model):
        model.head.weight.set_value(model.head.weight * 1.0001)

    monkeypatch.setitem(formats.FORMATS, format, changed(format, scale))
    with pytest.raises(DifferenceError, match="head.weight differs"):
        verify.export(*small, format, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_wrong_operator_behind_the_features_is_refused(fresh, tmp_path):
    """The graph of the head, not its numbers: only random numbers there can tell."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model, trained = fresh
    head = activations.random_head(model)
    verify.export(model, trained, "onnx", tmp_path / "x.onnx")
    proto = onnx.load(tmp_path / "x.onnx")
    (gemm,) = (node for node in proto.graph.node if node.op_type == "Gemm")
    gemm.attribute.append(onnx.helper.make_attribute("alpha", 2.0))
    onnx.save(proto, tmp_path / "x.onnx")
    inspect = formats.FORMATS["onnx"].read(tmp_path / "x.onnx", model, head)
    with pytest.raises(DifferenceError, match="^output of a random head: "):
        verify.verify(inspect, model, head)


def test_an_interrupted_export_leaves_nothing(small, tmp_path, monkeypatch):
    def write(model, trained, path):
        path.mkdir()
        (path / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setitem(formats.FORMATS, "paddle", formats.FORMATS["paddle"]._replace(write=write))
    with pytest.raises(KeyboardInterrupt):
        verify.export(*small, "paddle", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_unwritable_output(small, tmp_path):
    with pytest.raises(WriteError, match="nowhere"):
        verify.export(*small, "npz", tmp_path / "nowhere" / "x")


@pytest.mark.parametrize("format", formats.FORMATS)
def test_a_full_disk_is_named_and_leaves_nothing(format, small, tmp_path):
    """By a limit on the size of files, which is as good."""
    need(format)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(WriteError, match=r"/out: cannot be written.*check the free") as caught:
            verify.export(*small, format, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ".part" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", formats.FORMATS)
def test_others_may_read_what_the_umask_lets_them(format, small, tmp_path):
    need(format)
    before = os.umask(0o027)
    try:
        verify.export(*small, format, tmp_path / "out")
    finally:
        os.umask(before)
    written = [path for path in (tmp_path / "out", *tmp_path.rglob("*")) if path.is_file()]
    assert written and {oct(path.stat().st_mode & 0o777) for path in written} == {"0o640"}


# --- The command ---


@pytest.mark.parametrize("format", ["npz", "huggingface"])
def test_the_command(format, small, tmp_path, capsys):
    need(format)
    words = ["--model", str(small[1].path), "--format", format, "--output", str(tmp_path / "out")]
    assert errors.run_command(export.main, words) == 0
    printed = capsys.readouterr().out
    assert f"R14x0.5 as {format}" in printed and " MB" in printed
    assert "loaded back: every parameter has the same bits" in printed
    assert "the 4 stages, the features and the outputs equal the model's" in printed
    assert (tmp_path / "out").exists()


def test_the_command_fails_loudly(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(formats.FORMATS, "npz", damaged("npz"))
    words = ["--model", str(small[1].path), "--format", "npz", "--output", str(tmp_path / "out")]
    assert errors.run_command(export.main, words) == 1
    assert "norm.bias differs from the model's" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_the_extra(small, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "installed", lambda package: False)
    words = ["--model", str(small[1].path), "--output", str(tmp_path / "out"), "--format"]
    with pytest.raises(ConfigError, match=r"pip install -e '.\[onnx\]'"):
        export.main([*words, "onnx"])


def test_huggingface_needs_a_resolution(tmp_path):
    need("huggingface")
    save_npz(make((1, 1, 1, 1), 0.5, 2), tmp_path / "x.npz")
    words = ["--model", str(tmp_path / "x.npz"), "--format", "huggingface"]
    with pytest.raises(ConfigError, match="--crop"):
        export.main([*words, "--output", str(tmp_path / "out")])
    assert export.main([*words, "--output", str(tmp_path / "out"), "--crop", "96"]) == 0
    view = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert view["size"] == {"height": 96, "width": 96}


def test_an_existing_output_stays(small, tmp_path):
    (tmp_path / "out").write_text("mine")
    words = ["--model", str(small[1].path), "--format", "npz", "--output", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match="exists"):
        export.main(words)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (["--help"], 0, ["safetensors-timm", "examples:"]),
        (["--model", "x.npz", "--format", "npz"], 2, ["--output", "--help"]),
        (["--modle", "x.npz", "--format", "npz", "--output", "y"], 2, ["--model"]),
        (
            ["--model", "gone.npz", "--format", "hugingface", "--output", "no/y"],
            2,
            ["3 faults", "did you mean huggingface", "no is not a folder", "gone.npz: no such"],
        ),
        (["--model", "BiT-M-R50x", "--format", "npz", "--output", "y"], 2, ["BiT-M-R50x1"]),
    ],
)
def test_answers_without_paddle(arguments, status, words, tmp_path):
    """In under a second of the processor too: the quickest of three, as the machine may be busy."""
    code = (
        "import sys; from bit_paddle import errors, export\n"
        "try: status = errors.run_command(export.main, sys.argv[1:])\n"
        "except SystemExit as done: status = done.code\n"
        "assert 'paddle' not in sys.modules; sys.exit(status)"
    )
    seconds = []
    for _ in range(3):
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            text=True,
            capture_output=True,
            env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)},
        )
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(end.ru_utime - start.ru_utime + end.ru_stime - start.ru_stime)
    assert done.returncode == status, done.stderr
    assert all(word in done.stdout + done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert min(seconds) < 1


# --- paddle.hub ---


def test_hub_lists_networks_alone():
    names = paddle.hub.list(str(ROOT), source="local")
    assert set(names) == {"bit", "R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4"}
    assert "num_classes" in paddle.hub.help(str(ROOT), "bit", source="local")


def test_hub_loads(small):
    model = paddle.hub.load(str(ROOT), "bit", source="local", name=str(small[1].path))
    assert np.array_equal(outputs(model, SIZES[0]), outputs(small[0], SIZES[0]))
    features = paddle.hub.load(str(ROOT), "bit", source="local", name="R14x0.5")
    assert outputs(features, SIZES[1]).shape == (3, 1024)
    with pytest.raises(ConfigError, match="BiT-M-R50x1"):
        paddle.hub.load(str(ROOT), "bit", source="local", name="BiT-M-R50x")


@pytest.mark.parametrize("name", ["R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4"])
def test_hub_names_are_the_published_ones(name, monkeypatch):
    """Without building networks of gigabytes."""
    spec = importlib.util.spec_from_file_location("hubconf_of_test", ROOT / "hubconf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "_create_model", lambda *arguments: arguments)
    assert getattr(module, name)(num_classes=3, pretrained=True) == (f"BiT-M-{name}", 3, True)
    assert getattr(module, name)() == (f"BiT-M-{name}", None, False)
