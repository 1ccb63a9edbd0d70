"""What a run takes: exact counts against the real network, the estimate against Paddle's own."""

import gc
import itertools
import math
import os
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT, update
from paddle.hapi.dynamic_flops import count_convNd, count_linear

from bit_paddle import create_model, errors, plan
from bit_paddle.config import parsing
from bit_paddle.data.loader import MicroBatch
from bit_paddle.data.readers import registry
from bit_paddle.models import cost, npz, published
from bit_paddle.models.architecture import UNITS, Architecture
from bit_paddle.models.layers import LinearHead, StdConv2D
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.training.classification.plan import make_plan
from bit_paddle.training.classification.task import loss_of
from bit_paddle.training.estimate import RECOMPUTE, format_duration
from bit_paddle.training.optimizer import Momentum

GIB = 2**30
NAMES = sorted({*published.NETWORKS, *(f"R{layers}x0.5" for layers in UNITS)})
IMAGENET = ["--model", "BiT-M-R152x4", "--dataset", "imagenet2012"]


def run(*arguments, **options):
    """Run the command as a user would; Paddle must not be loaded, whatever it answers."""
    code = (
        "import sys; from bit_paddle import errors, plan\n"
        "try: status = errors.run_command(plan.main, sys.argv[1:])\n"
        "except SystemExit as done: status = done.code\n"
        "assert 'paddle' not in sys.modules; sys.exit(status)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


def printed(*arguments):
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 104
    return done.stdout


def table(text):
    """{(--amp, --recompute): (MiB per image, images that fit, per micro-batch, micro-batches)}."""
    rows = (line.replace("fp16, bf16", "half").replace(",", "").split()
            for line in text.splitlines())  # fmt: skip
    return {
        (row[0], row[1]): (float(row[2]), *map(int, row[3:6]))
        for row in rows
        if len(row) > 5 and row[1] in RECOMPUTE
    }


# --- What the architecture says of itself -------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [0, 1, 21843])
def test_parameters_are_those_of_a_checkpoint(name, classes):
    architecture = Architecture.parse(name)
    arrays = dict(npz.shapes(architecture, classes))
    assert architecture.parameters(classes) == sum(map(math.prod, arrays.values()))
    kernels = [shape for key, shape in arrays.items() if "standardized_conv2d" in key]
    assert architecture.kernels == sum(map(math.prod, kernels))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, crop, classes",
    [
        ("R50x1", 128, 1000),
        ("R50x1", 224, 1000),
        ("R50x1", 353, 7),
        ("R14x0.5", 33, 0),
        ("R14x0.5", 97, 10),
        ("R101x3", 128, 1000),
    ],
)
def test_multiply_adds_and_parameters_are_those_that_paddle_counts(
    name, crop, classes, monkeypatch, capsys
):
    """By `paddle.flops`, of the real network, with convolutions that count as those it knows."""

    class Convolution(paddle.nn.Conv2D):
        def forward(self, x, residual=None):
            y = super().forward(x)
            return y if residual is None else y + residual

    architecture = Architecture.parse(name)
    model = ResNetV2(architecture, classes)
    for parent in model.sublayers():
        ours = getattr(parent, "conv", None)
        if isinstance(ours, StdConv2D):
            out, channels, size, _ = ours.weight.shape
            parent.conv = Convolution(
                *(channels, out, size, ours.stride, size // 2),
                weight_attr=paddle.nn.initializer.Constant(),  # random numbers would take seconds
                bias_attr=False,
            )
    # Paddle takes int() of tensors of shape [1], and NumPy refuses that from 2.4 on.
    monkeypatch.setattr(paddle.Tensor, "__int__", paddle.Tensor.item)
    # It counts multiply-adds of convolutions and of the head (not its bias), as we do. GroupNorm
    # is unknown to it, hence zero; ReLU, padding, pooling, sum and mean are no layers here, so that
    # it never sees them. Nothing is left to subtract. Paddle 2.6 rounds a layer's count to float32,
    # which changes none at these crops; at 701 it does.
    known = {Convolution: count_convNd, LinearHead: count_linear}
    counted = paddle.flops(model, [1, 3, crop, crop], custom_ops=known)
    del model.forward  # set by it: a cycle, which would keep the memory that later tests measure
    assert counted == cost.multiply_adds(architecture, crop, classes)
    assert counted == by_shapes(architecture, crop, classes)
    end = f"Total Flops: {counted}     Total Params: {architecture.parameters(classes)}\n"
    assert capsys.readouterr().out.endswith(end)


def by_shapes(architecture, crop, classes):
    """From a checkpoint's kernels, and the sides that these find by their paddings."""
    side, total = crop, 0
    for key, shape in npz.shapes(architecture, classes):
        if not key.endswith("kernel"):
            continue
        if "root" in key:
            side = (side + 6 - 7) // 2 + 1
            total += math.prod(shape) * side**2
            side = (side + 2 - 3) // 2 + 1  # padded by 1, pooled 3 x 3
            continue
        if "head" in key:
            total += math.prod(shape)
            continue
        strided = "unit01" in key and "block1" not in key
        if strided and "/b/" in key:
            side = (side + 2 - 3) // 2 + 1
        at = (side - 1) // 2 + 1 if strided and "/proj/" in key else side
        total += math.prod(shape) * at**2
    return total


@pytest.mark.parametrize("name", ["R50x1", "R152x4"])
@pytest.mark.parametrize("crop", [128, 384, 480, 131])
def test_multiply_adds_of_networks_too_large_to_run(name, crop):
    architecture = Architecture.parse(name)
    assert cost.multiply_adds(architecture, crop, 1000) == by_shapes(architecture, crop, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("units, crop", [((3, 1, 1, 1), 64), ((1, 2, 1, 1), 97)])
def test_activations_are_what_paddle_asks_for(units, crop, recompute):
    """By Paddle's own count of a CPU's memory, between two sizes of micro-batch.

    Small ones peak where gradients of kernels are made, not at the end of the forward pass.
    """
    core = paddle.base.core
    if not hasattr(core, "host_memory_stat_reset_peak_value"):
        pytest.skip("this Paddle cannot count anew")
    architecture, few, many = Architecture(units, 0.5), 8, 24
    model = ResNetV2(architecture, 2)
    model.reset_parameters()
    model.recompute = recompute
    peaks = []
    for images in (few, many):
        pixels = np.zeros((images, 3, crop, crop), np.uint8)
        part = MicroBatch(pixels, np.zeros(images, np.int64), np.arange(images))
        model.clear_gradients()
        with model.standardized_once():
            for _ in range(2):  # gradients of kernels are there in the second
                before = core.host_memory_stat_current_value("Allocated", 0)
                core.host_memory_stat_reset_peak_value("Allocated", 0)
                loss_of(model, part, images).backward()
        peaks.append(core.host_memory_stat_peak_value("Allocated", 0) - before)
    measured = (peaks[1] - peaks[0]) / (many - few)
    assert cost.activations(architecture, crop, recompute) == pytest.approx(measured, rel=0.015)


def test_recomputing_takes_less_memory():
    for name in NAMES:
        off, unit, block = (
            cost.activations(Architecture.parse(name), 480, recompute) for recompute in RECOMPUTE
        )
        assert unit <= block < off
    assert cost.activations(Architecture.parse("R50x1"), 224) == pytest.approx(112e6, rel=0.02)


def test_what_is_left_for_activations():
    architecture = Architecture.parse("R152x4")
    parts = cost.training_memory(architecture, 1000)
    assert parts["weights"] == parts["gradients"] == parts["momentum"] == 4 * 936_533_224
    room = cost.room_beside(parts, 32 * GIB)
    assert room == int(0.7 * (32 * GIB - sum(parts.values())))
    assert cost.room_beside(parts, 13 * GIB) == 0 < cost.room_beside(parts, 14 * GIB)
    sizes = [cost.activations(architecture, 480, recompute) for recompute in ("off", "unit")]
    assert [cost.parts_of(128, room // size) for size in sizes] == [64, 11]
    assert cost.parts_of(128, 0) == 128 and cost.parts_of(3, 10**15) == 1


def test_a_run_splits_by_its_recompute():
    pytest.importorskip("sklearn")
    words = ["--model", "R50x1", "--from_scratch", "--dataset", "digits", "--recompute"]
    found = {}
    for recompute in RECOMPUTE:
        settings = parsing.parse([*words, recompute], "train", registry.find)[0]
        found[recompute] = make_plan(settings).batch_split(2 * GIB)
    assert found == {"off": 9, "unit": 3, "block": 5}


# --- The command --------------------------------------------------------------------------------


def test_the_largest_model_on_four_gpus():
    text = printed(*IMAGENET, "--gpu_memory", 32, "--gpus", 4, "--amp", "off")
    assert "936,533,224 parameters" in text and "1,281,167 training images" in text
    assert "20,000 steps of 512 images, by the rule: 10,240,000 images, 8.0 epochs" in text
    assert "32 GiB on each of 4 GPUs" in text and "512 -> 480" in text
    found = table(text)
    assert list(found) == list(itertools.product(("off", "half"), RECOMPUTE))
    for _, fits, images, parts in found.values():
        assert 1 < images <= fits and images * parts >= 128 > images * (parts - 1)
    for amp in ("off", "half"):
        assert found[amp, "unit"][1] > found[amp, "block"][1] > found[amp, "off"][1]
    assert all(found["half", kind][1] > found["off", kind][1] for kind in RECOMPUTE)
    assert "128 per GPU: 2 per micro-batch, 64 micro-batches" in text
    assert "--images_per_second X" in text and "divided by 4" in text
    text = printed(*IMAGENET, "--gpus", 4, "--recompute", "unit", "--images_per_second", 12)
    assert "128 per GPU: 16 per micro-batch, 8 micro-batches" in text
    assert "2 days 11 h of training, at 12 images/s on each of 4 GPUs" in text  # 2.56 M / 12 / s


def test_what_does_not_fit_says_so():
    text = printed(*IMAGENET, "--gpu_memory", 13)
    assert "does not fit, even without an image" in text and text.count("too much") == 6
    assert "; no image fits" in text
    text = printed(*IMAGENET, "--batch", 8, "--batch_split", 2, "--amp", "off")
    assert "4 per micro-batch, 2 micro-batches; only 2 images fit" in text
    assert text.count("too much") == 1  # in float32 and without recomputation


def test_shared_momentum_leaves_room_for_images():
    alone, shared = (printed(*IMAGENET, "--gpus", 4, *more) for more in ([], ["--shard"]))
    assert "--shard: GPUs share the momentum, which leaves 2.62 GiB more" in alone
    assert "--shard" not in shared and "momentum                  0.87 GiB    0.87 GiB" in shared
    assert table(shared)["half", "unit"][1] > table(alone)["half", "unit"][1]


@pytest.mark.parametrize("passes", [1, 2])
def test_what_a_step_holds_beside_activations(passes):
    """By Paddle's own count, of a network whose weights outweigh what it makes of small images.

    The sums of several micro-batches' gradients become those of the kernels one by one.
    """
    core = paddle.base.core
    if not hasattr(core, "host_memory_stat_reset_peak_value"):
        pytest.skip("this Paddle cannot count anew")
    gc.collect()  # other tests' networks are in cycles
    before = core.host_memory_stat_current_value("Allocated", 0)
    model = create_model("R50x1", 10)
    optimizer = Momentum(0.003, 0.9, model.parameters())
    labels = np.zeros(1, np.int64)
    part = MicroBatch(np.zeros((1, 3, 32, 32), np.uint8), labels, labels)
    for _ in range(2):  # momentum is there from the second on
        core.host_memory_stat_reset_peak_value("Allocated", 0)
        update(model, optimizer, [part] * passes, 1e-9)
    measured = core.host_memory_stat_peak_value("Allocated", 0) - before
    estimate = sum(cost.training_memory(model.architecture, 10).values())
    estimate += cost.activations(model.architecture, 32)
    assert measured == pytest.approx(estimate, rel=0.15)


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--dataset cifar10", "160 -> 128; 50,000; 10,000 steps"),
        ("--dataset cifar100 --examples_per_class 5", "100 classes; 500 training; 500 steps"),
        ("--dataset oxford_iiit_pet --rule paper", "448 -> 384; 3,680; 37 classes"),
        ("--dataset oxford_flowers102 --steps 50", "1,020; 102 classes; 50 steps of 512 images:"),
        ("--dataset vtab/dsprites-xpos", "1,000 training; 128 -> 128; 16 classes"),
        ("--dataset vtab/dtd --no-crop --datadir /nowhere", "480 -> 480; 47 classes"),
        ("--dataset imagenet2012 --crop 224 --precrop 256", "256 -> 224, by --precrop and --crop"),
        ("--dataset folder --images 30000 --classes 7", "512 -> 480; 7 classes; 10,000 steps"),
        ("--dataset list --images 9 --classes 2 --batch 4", "by the rule: 2,000 images"),
    ],
)
def test_data_that_are_not_there(words, expected, capsys):
    assert plan.main(["--model", "BiT-M-R50x1", *words.split()]) == 0
    text = capsys.readouterr().out
    assert all(part in text for part in expected.split("; ")), text
    assert "not opened" in text


@pytest.mark.parametrize("task", published.VTAB_TASKS, ids=lambda task: task.name)
def test_vtab_is_as_the_published_heads_have_it(task):
    words = ["--model", "BiT-M-R50x1", "--dataset", f"vtab/{task.name}"]
    _, known = plan._settings(words, None, None)
    assert known == (1000, task.classes, "small" if task.small else "large")


@pytest.mark.parametrize("more", [[], ["--examples_per_class", "3"], ["--crop=64", "--precrop=80"]])
def test_data_that_are_opened_give_what_train_would_do(more, image_folder):
    words = ["--model=R14x0.5", "--from_scratch", "--dataset=folder", f"--datadir={image_folder}"]
    settings, known = plan._settings([*words, *more], None, None)
    found, expected = plan._opened_sizes(settings), make_plan(settings)
    assert known is None
    assert found[:2] == (len(expected.subset), 3)
    assert (found.resolution, found.schedule) == (expected.resolution, expected.schedule)
    given = plan.Known(36, 3, "small")
    again = plan._known_sizes(settings, given, Architecture.parse("R14x0.5"))
    assert again[:2] == found[:2] and again[3] == found[3] and again[5] == found[5]


def test_settings_of_a_file_and_a_checkpoint(tmp_path, small_checkpoint):
    file = tmp_path / "run.yaml"
    file.write_text("model: BiT-M-R50x1\ndataset: imagenet2012\ndatadir: /nowhere\nbatch: 64\n")
    assert "steps of 64 images" in printed("--config", file)
    text = printed("--config", file, "--model", small_checkpoint, "--gpus", 2)
    assert "R14x1: " in text and "64 images per step, 32 per GPU" in text


@pytest.mark.parametrize(
    "words, expected",
    [
        ("", "--model: is required"),
        ("--model BiT-M-R50x1 --dataset imagnet2012", "did you mean imagenet2012"),
        ("--model BiT-M-R50x1 --dataset folder", "--datadir: is required"),
        ("--model BiT-M-R50x1 --dataset folder", "give --images N and --classes N"),
        ("--model BiT-M-R50x1 --dataset folder --imges 9", "did you mean --images"),
        ("--model BiT-M-R50x1 --dataset folder --images 9", "--classes: is required with --images"),
        (
            "--model BiT-M-R50x1 --dataset folder --classes 9",
            "--images: is required with --classes",
        ),
        ("--model BiT-M-R50x1 --dataset folder --datadir /nowhere", "no such folder"),
        ("--model BiT-M-R50x2 --dataset cifar10", "did you mean"),
        ("--model nowhere/x.npz --dataset cifar10", "no such checkpoint file"),
        ("--model R50x1 --dataset cifar10", "--from_scratch"),
        ("--model BiT-M-R50x1 --dataset cifar10 --gpu_memory 32GB", "--gpu_memory: is '32GB'"),
        ("--model BiT-M-R50x1 --dataset cifar10 --gpu_memory inf", "a positive number"),
        ("--model BiT-M-R50x1 --dataset cifar10 --gpus 0", "--gpus: is 0"),
        ("--model BiT-M-R50x1 --dataset cifar10 --images_per_second -1", "--images_per_second"),
        ("--model BiT-M-R50x1 --dataset cifar10 --recompute layer", "choose from off, unit, block"),
        ("--model BiT-M-R50x1 --dataset cifar10 --val_fraction 0.2", "--val_fraction"),
        ("--model BiT-M-R50x1 --dataset cifar10 --examples_per_class 5001", "5,000 each"),
        ("--config /nowhere.yaml", "/nowhere.yaml"),
        ("--dataset cifar10 --model BiT-M-R50x1 --gpumemory 3", "--gpumemory: no such flag"),
    ],
)
def test_mistakes(words, expected, capsys):
    assert errors.run_command(plan.main, words.split()) == 2
    shown = capsys.readouterr()
    assert expected in shown.err and "Traceback" not in shown.err and not shown.out


def test_mistakes_and_help_need_no_paddle():
    done = run("--model", "BiT-M-R50x1", "--dataset", "cifar01")
    assert done.returncode == 2 and "did you mean cifar10" in done.stderr
    done = run("--help")
    assert done.returncode == 0 and "--gpu_memory" in done.stdout and "--recompute" in done.stdout


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.2, "1 s"),
        (59.5, "60 s"),
        (600, "10 min"),
        (3599, "1 h 00 min"),
        (17067, "4 h 44 min"),
        (172_800, "2 days 0 h"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
