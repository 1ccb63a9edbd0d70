"""The compiled operators beside the plain ones in float64, and commands that cannot have them.

Bars are of the largest number of what is compared. float32 rounds to 6e-8; sums of up to 2,000
products, in an order of oneDNN's, have a few times that.
"""

import copy
import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import ROOT, Golden, run_train, start_train, update, wait_until

from bit_paddle import create_model, load_npz, save_npz
from bit_paddle.data.loader import MicroBatch
from bit_paddle.models.architecture import GROUPS
from bit_paddle.models.layers import GroupNormReLU, StdConv2D
from bit_paddle.models.native import build, library, plain
from bit_paddle.models.native import compiler as compiler_of_operators
from bit_paddle.models.network import convolutions
from bit_paddle.system import environment
from bit_paddle.training.optimizer import Momentum

OWN = (build.SWITCH, "CXX", "CC", "OMP_NUM_THREADS", "MKL_NUM_THREADS")  # Paddle sets one of them
EXACT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**16)}
TINY = ["--model", "R14x0.5", "--from_scratch", "--precrop", 36, "--crop", 32, "--dataset",
        "digits", "--batch", 4, "--steps", 2, "--base_lr", 0.0005, "--device", "cpu"]  # fmt: skip


def environment_with(**variables):
    plain = {key: value for key, value in os.environ.items() if key not in OWN}
    return {**plain, **{key: str(value) for key, value in variables.items()}}


def run(*arguments, **variables):
    """Run Python in an environment with ``variables``, and none of a user's for the compiler."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env=environment_with(**variables),
    )


@pytest.fixture(scope="module")
def loaded():
    """Return the operators and what is known of them; a failure to compile them is one here."""
    try:
        return build.load()
    except build.Unavailable as reason:
        if not reason.expected:
            raise
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def compiled(loaded):
    return loaded[0]


@contextmanager
def default_type(dtype):
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        yield
    finally:
        paddle.set_default_dtype(before)


def float32(values):
    """Return ``values`` so rounded that both precisions begin with the same numbers."""
    return np.asarray(values, np.float32)


def error(found, expected):
    """Return the largest difference as a part of the largest number."""
    assert found.shape == expected.shape and expected.any()
    return np.abs(found - expected).max() / np.abs(expected).max()


# --- Each operator ------------------------------------------------------------------------------

KERNELS = ("kernel", "weight")  # are [O, I, H, W] for either
OF_NORM = ("scale", "bias")


def outcomes(operators, function, upstream, **arrays):
    """Return {name: array} of what ``function(operators, **arrays)`` gives, and of the gradients.

    In float64 if ``operators`` are `plain`. ``upstream`` is what comes from above, for each output;
    a scale and a bias are given as ``norm``. Images here are [N, C, H, W] for either.
    """
    dtype = "float64" if operators is plain else "float32"
    with default_type(dtype):
        leaves = {
            name: paddle.to_tensor(array.astype(dtype), stop_gradient=False)
            for name, array in arrays.items()
            if name not in OF_NORM
        }
        given = {
            name: one if name in KERNELS else operators.enter(one) for name, one in leaves.items()
        }
        if "scale" in arrays:
            norm = given["norm"] = GroupNormReLU(len(arrays["scale"]))
            norm.weight.set_value(arrays["scale"].astype(dtype))
            norm.bias.set_value(arrays["bias"].astype(dtype))
            leaves |= {"scale": norm.weight, "bias": norm.bias}
        outputs = function(operators, **given)
        products = [one * paddle.to_tensor(up.astype(dtype)) for one, up in zip(outputs, upstream)]
        sum(one.sum() for one in products).backward()
    found = {f"output {place}": one.numpy() for place, one in enumerate(outputs)}
    return found | {f"gradient of {name}": one.grad.numpy() for name, one in leaves.items()}


def assert_same(operators, bar, function, upstream, **arrays):
    """Compare them with `plain`, whose outcomes are returned."""
    expected = outcomes(plain, function, upstream, **arrays)
    found = outcomes(operators, function, upstream, **arrays)
    errors = {name: error(found[name], one) for name, one in expected.items()}
    assert max(errors.values()) < bar, errors
    return expected


def test_enter_and_leave(compiled):
    images = float32(np.random.default_rng(0).normal(size=(2, 3, 5, 7)))
    x = compiled.enter(paddle.to_tensor(images))
    assert np.array_equal(x.numpy(), images.transpose(0, 2, 3, 1))
    assert np.array_equal(compiled.leave(x).numpy(), images)


SHAPES = [  # channels, outputs, size of the kernel, stride
    (64, 64, 3, 1),
    (64, 64, 3, 2),
    (64, 256, 1, 1),
    (256, 128, 1, 2),
    (32, 96, 3, 2),
    (96, 160, 1, 1),
    (160, 32, 3, 1),
    (96, 48, 3, 1),
]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("channels, outputs, size, stride", SHAPES)
def test_convolve(channels, outputs, size, stride, batch, residual, compiled):
    """Sums of up to 1,440 products, and for a kernel's gradient of up to 585."""
    random = np.random.default_rng(0)
    arrays = {
        "x": float32(random.normal(size=(batch, channels, 13, 9))),
        "kernel": float32(random.normal(size=(outputs, channels, size, size))),
    }
    shape = (batch, outputs, 12 // stride + 1, 8 // stride + 1)
    if residual:
        arrays["residual"] = float32(random.normal(size=shape))

    def convolve(operators, x, kernel, residual=None):
        return [operators.leave(operators.convolve(x, kernel, stride, residual))]

    assert_same(compiled, 2e-6, convolve, [float32(random.normal(size=shape))], **arrays)


@pytest.mark.parametrize("batch, sides", [(1, (33, 31)), (5, (32, 45))])
@pytest.mark.parametrize("outputs", [32, 64, 96])
def test_convolve_images(outputs, batch, sides, compiled):
    """Which have no gradient of their own; a kernel's is a sum of 1,840 products."""
    random = np.random.default_rng(0)
    images = float32(random.uniform(-1, 1, (batch, 3, *sides)))
    shape = (batch, outputs, (sides[0] + 1) // 2, (sides[1] + 1) // 2)

    def convolve(operators, kernel):
        x = operators.enter(paddle.to_tensor(images).astype(kernel.dtype))
        return [operators.leave(operators.convolve(x, kernel, 2))]

    kernel, upstream = float32(random.normal(size=(outputs, 3, 7, 7))), random.normal(size=shape)
    assert_same(compiled, 5e-6, convolve, [float32(upstream)], kernel=kernel)


def test_gradients_of_a_residual_that_others_use_too(compiled):
    """They are added up, and what came from above stays as it was."""
    random = np.random.default_rng(0)
    x, residual, *upstream = (float32(random.normal(size=(2, 64, 6, 6))) for _ in range(4))
    kernel = float32(random.normal(size=(64, 64, 1, 1)))

    def convolve(operators, x, kernel, residual):
        y = operators.convolve(x, kernel, 1, residual)
        z = operators.convolve(residual, kernel, 1, y)
        return [operators.leave(one) for one in (y + residual, z)]

    assert_same(compiled, 2e-6, convolve, upstream, x=x, kernel=kernel, residual=residual)
    x, residual, above = (paddle.to_tensor(one) for one in (x, residual, upstream[0]))
    residual.stop_gradient = False
    y = compiled.convolve(x, paddle.to_tensor(kernel[:6, :6]), 1, residual)
    paddle.autograd.backward([y, residual * 2], [above, above])
    assert np.array_equal(above.numpy(), upstream[0])
    assert np.array_equal(residual.grad.numpy(), 3 * upstream[0])


def once(operators, x, norm):
    return [operators.leave(operators.norm_relu(x, norm))]


def twice(operators, x, norm):
    return [operators.leave(one) for one in operators.norm_relu_twice(x, norm)]


def beside(operators, x, norm):
    return [operators.leave(one) for one in operators.norm_relu_beside(x, norm)]


def norm_inputs(batch, channels, sides, mean=0.0):
    """Return x, scale and bias, and two gradients from above that are zero around ReLU's edge.

    A number there may be on one side of it in float32, and on the other in float64. Every third
    scale is zero, half of these with a bias of zero.
    """
    random = np.random.default_rng(0)
    deviations = 1.0 + np.arange(channels) % 3
    x = random.normal(mean, deviations[:, None, None], (batch, channels, *sides)).astype(np.float32)
    scale, bias = float32(random.normal(1, 0.5, channels)), float32(random.normal(size=channels))
    scale[::3], bias[::6], bias[3::6] = 0, 0, 1
    grouped = x.astype(np.float64).reshape(batch, GROUPS, -1)
    centred = grouped - grouped.mean(2, keepdims=True)
    normalized = centred / np.sqrt(grouped.var(2, keepdims=True) + plain.NORM_EPSILON)
    z = normalized.reshape(x.shape) * scale[:, None, None] + bias[:, None, None]
    far = np.abs(z) > 1e-3
    assert far.mean() > 0.8
    upstream = [float32(random.normal(size=x.shape) * far) for _ in range(2)]
    return upstream, {"x": x, "scale": scale, "bias": bias}


@pytest.mark.parametrize("kind", [once, twice, beside])
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(
    "channels, sides", [(32, (4, 5)), (64, (7, 9)), (96, (20, 17)), (512, (1, 1)), (512, (3, 5))]
)
def test_norm_relu(channels, sides, batch, kind, compiled):
    """Of few images the channels are cut in pieces; of many pixels the sums are."""
    upstream, arrays = norm_inputs(batch, channels, sides)
    expected = assert_same(compiled, 2e-6, kind, upstream, **arrays)
    assert expected["gradient of scale"][3::6].any()


@pytest.mark.parametrize("kind", [once, twice, beside])
@pytest.mark.parametrize("batch", [1, 5])
def test_norm_relu_of_a_large_mean(batch, kind, compiled):
    """float32 numbers around 1000 are 6e-5 apart, which is what is left of them beside 1."""
    upstream, arrays = norm_inputs(batch, 64, (16, 20), mean=1000.0)
    assert_same(compiled, 2e-4, kind, upstream, **arrays)


@pytest.mark.parametrize("sides", [(8, 8), (9, 9), (8, 11), (17, 6), (1, 2)])
@pytest.mark.parametrize("numbers", ["negative", "any", "equal"])
def test_pool(numbers, sides, compiled):
    """Zeros compete at edges; of equal numbers the first has the gradient, a sum of four."""
    random = np.random.default_rng(0)
    x = random.normal(size=(3, 32, *sides))
    x = {"negative": -np.abs(x), "any": x, "equal": random.integers(1, 4, x.shape)}[numbers]
    upstream = [random.normal(size=(3, 32, (sides[0] + 1) // 2, (sides[1] + 1) // 2))]

    def pool(operators, x):
        return [operators.leave(operators.pool(x))]

    expected = outcomes(plain, pool, upstream, x=float32(x))
    found = outcomes(compiled, pool, upstream, x=float32(x))
    assert np.array_equal(found["output 0"], expected["output 0"])
    assert np.abs(found["gradient of x"] - expected["gradient of x"]).max() < 1e-6
    if numbers == "negative" and min(sides) > 3:
        inside = np.zeros(expected["output 0"].shape[2:], bool)
        inside[1 : sides[0] // 2, 1 : sides[1] // 2] = True
        assert np.array_equal(expected["output 0"].all(axis=(0, 1)), inside)


def standardized_convolution(operators, x, weight):
    return [operators.leave(operators.convolve(x, operators.standardize(weight), 1))]


def convolution_inputs(shape, scale=1.0):
    """Return the gradient from above, and images and a kernel [O, I, k, k] of a convolution."""
    random = np.random.default_rng(0)
    weight, sides = float32(random.normal(0.3, 1, shape) * scale), (6, 9)
    x = float32(random.normal(size=(2, shape[1], *sides)))
    return float32(random.normal(size=(2, shape[0], *sides))), {"x": x, "weight": weight}


@pytest.mark.parametrize("shape", [(64, 3, 7, 7), (96, 64, 3, 3), (48, 256, 1, 1), (33, 16, 3, 3)])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-5])
def test_a_convolution_standardizes(shape, scale, compiled):
    """Also where 1e-10 matters: a variance of 1e-10 makes it half of the divisor."""
    upstream, arrays = convolution_inputs(shape, scale)
    assert_same(compiled, 2e-6, standardized_convolution, [upstream], **arrays)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_a_momentum_step_has_the_same_bits(decay, compiled):
    random = np.random.default_rng(0)
    arrays = [float32(random.normal(size=(70, 50, 3, 3))) for _ in range(3)]
    found = []
    for operators in (plain, compiled):
        parameter, velocity, gradient = map(paddle.to_tensor, arrays)
        parameter.stop_gradient = False
        with paddle.no_grad():
            operators.momentum_step(parameter, velocity, gradient, 0.003, 0.9, decay)
            operators.momentum_step(parameter, velocity, gradient, 0.03, 0.9, decay)
        found.append([one.numpy() for one in (parameter, velocity, gradient)])
    assert all(map(np.array_equal, *found))
    assert not np.array_equal(found[0][0], arrays[0])
    assert np.array_equal(found[0][2], arrays[2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_sums_tell_a_number_that_is_not_finite(bad, compiled):
    random = np.random.default_rng(0)
    arrays = [float32(random.normal(size=size)) for size in (3, 70_001, 200_000)]
    for place in (None, 0, 70_000, 65_536):
        if place is not None:
            arrays[1][place] = bad
        found = compiled.sums([paddle.to_tensor(one) for one in arrays]).numpy()
        assert found.shape == (3,)
        assert np.isfinite(found).tolist() == [True, place is None, True]
        expected = np.array([one.astype(np.float64).sum() for one in arrays])
        assert np.allclose(found[[0, 2]], expected[[0, 2]], rtol=0, atol=1e-2)
        if place is not None:
            arrays[1][place] = 1


def test_average(compiled):
    random = np.random.default_rng(0)
    x, upstream = float32(random.normal(1, 1, (3, 64, 5, 7))), float32(random.normal(size=(3, 64)))
    assert_same(compiled, 1e-6, lambda operators, x: [operators.average(x)], [upstream], x=x)
    half = compiled.average(compiled.enter(paddle.to_tensor(x)).astype("bfloat16"))
    assert half.dtype == paddle.float32


# --- Threads ------------------------------------------------------------------------------------


@pytest.fixture
def openmp():
    """Return Paddle's OpenMP; at the end it has its threads again."""
    library = ctypes.CDLL(str(Path(paddle.__file__).parent / "libs" / "libiomp5.so"))
    before = library.omp_get_max_threads()
    yield library
    library.omp_set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 3])
def test_threads_do_not_change_a_bit(batch, compiled, openmp):
    """But for oneDNN's convolutions, which may cut their sums by threads."""
    upstream, arrays = norm_inputs(batch, 96, (19, 16))
    pooled = [one[:, :, ::2, ::2] for one in upstream]

    def pool(operators, x):
        return [operators.leave(operators.pool(x))]

    def found(threads):
        openmp.omp_set_num_threads(threads)
        assert openmp.omp_get_max_threads() == threads
        yield from (outcomes(compiled, kind, upstream, **arrays) for kind in (once, twice, beside))
        yield outcomes(compiled, pool, pooled, x=arrays["x"])

    for one, *others in zip(found(1), found(2), found(5)):
        for other in others:
            assert all(np.array_equal(other[name], value) for name, value in one.items())


SHOW_THREADS = """
import ctypes, sys
from pathlib import Path
from bit_paddle.system import environment
import paddle
from bit_paddle.models.native import build
library = ctypes.CDLL(str(Path(paddle.__file__).parent / "libs" / "libiomp5.so"))
try:
    build.load()
except build.Unavailable:
    sys.exit(print(environment.threads()))
print(environment.threads(), library.omp_get_max_threads())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, environment.machine_cpu_count()),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "3,1"}, 3),
        ({"MKL_NUM_THREADS": "3"}, 3),
        ({"PADDLE_LOCAL_SIZE": str(environment.machine_cpu_count())}, 1),
    ],
)
def test_operators_have_the_threads_that_the_user_says_or_all(given, expected):
    """Whatever Paddle says of them, which sets OMP_NUM_THREADS to 1 as it is imported."""
    done = run("-c", SHOW_THREADS, **given)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {str(expected)}


# --- A whole network ----------------------------------------------------------------------------


def network(tmp_path, operators, dtype="float32"):
    """Return the R26x1 of a golden, with the weights that this has, and images for it."""
    golden = Golden("gradient_r26x1")
    with default_type(dtype):
        model = golden.model(tmp_path)
    model.compute_with(operators)
    return model, golden.images(dtype)


def gradients_of(model):
    return {name: one.grad.numpy() for name, one in model.named_parameters()}


def assert_close(found, expected, bar):
    """Compare {name: gradient} by Euclid's distance: a ReLU's flip changes few of the numbers."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        far = np.linalg.norm(found[name] - value) / np.linalg.norm(value)
        assert far < bar, (name, far)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """Logits and gradients of the plain network in float64, and those of each of its stages."""
    model, images = network(tmp_path_factory.mktemp("exact"), plain, "float64")
    images = paddle.to_tensor(images)
    logits = model(images)
    logits.square().sum().backward()
    gradients = gradients_of(model)
    model.clear_gradients()
    stages = model.forward_stages(images)
    sum((stage * stage.sin()).mean() for stage in stages).backward()
    return logits.numpy(), gradients, [one.numpy() for one in stages], gradients_of_stages(model)


def gradients_of_stages(model):
    return {name: one.grad.numpy() for name, one in model.named_parameters() if "block" in name}


BAR = 1e-3  # of gradients through 26 layers, in which some ReLUs flip: five times what is found


@pytest.mark.parametrize("micro_batches", [0, 1, 3])
def test_a_network(micro_batches, exact, compiled, tmp_path):
    """In one pass, and with kernels that are standardized once for one or three of them."""
    model, images = network(tmp_path, compiled)
    if not micro_batches:
        logits = model(paddle.to_tensor(images))
        logits.square().sum().backward()
        assert error(logits.numpy(), exact[0]) < 1e-4
    else:
        with model.standardized_once() as last_pass:
            for place, part in enumerate(np.array_split(images, micro_batches)):
                if place == micro_batches - 1:
                    last_pass()
                model(paddle.to_tensor(part)).square().sum().backward()
    assert_close(gradients_of(model), exact[1], BAR)


@pytest.mark.parametrize("ending", ["last pass", "error"])
def test_kernels_that_passes_share_are_forgotten(ending, compiled, tmp_path):
    """Neither what was packed nor what was summed outlives the passes, so new weights count."""
    model, images = network(tmp_path, compiled)

    def passes(sizes, fails=False):
        assert sum(sizes) == len(images)
        with model.standardized_once() as last_pass:
            for place, part in enumerate(np.split(images, np.cumsum(sizes)[:-1])):
                if place == len(sizes) - 1:
                    if fails:
                        raise KeyError("stop")
                    last_pass()
                model(paddle.to_tensor(part)).square().sum().backward()
        found = gradients_of(model)
        model.clear_gradients()
        return found

    before = passes([2, 1, 1])
    if ending == "error":
        with pytest.raises(KeyError):
            passes([2, 1, 1], fails=True)
        model.clear_gradients()
    with paddle.no_grad():
        for convolution in convolutions(model):
            weight = convolution.weight
            weight.set_value(weight * (1 + 0.5 * weight.sin()))
    several, whole = passes([1, 2, 1]), passes([4])
    assert_close(several, whole, BAR)
    assert all(np.linalg.norm(whole[name] - one) > 10 * BAR for name, one in before.items())


def test_stages_of_a_network(exact, compiled, tmp_path):
    model, images = network(tmp_path, compiled)
    stages = model.forward_stages(paddle.to_tensor(images))
    for found, expected in zip(stages, exact[2]):
        assert error(found.numpy(), expected) < 1e-4
    sum((stage * stage.sin()).mean() for stage in stages).backward()
    assert_close(gradients_of_stages(model), exact[3], BAR)


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("what", ["unit", "block"])
def test_recompute_gives_the_same_bits(what, amp, loaded, tmp_path):
    if amp == "bf16" and not loaded[1]["bf16"]:
        pytest.skip("no bf16 here")
    found = []
    for recompute in ("off", what):
        model, images = network(tmp_path, loaded[0])
        model.recompute, model.amp = recompute, amp
        with model.standardized_once() as last_pass:
            model(paddle.to_tensor(images[:2])).square().sum().backward()
            last_pass()
            model(paddle.to_tensor(images[2:])).square().sum().backward()
        found.append(gradients_of(model))
    assert all(np.array_equal(found[1][name], value) for name, value in found[0].items())


@pytest.mark.parametrize("name", ["forward_r50x1", "forward_r14x1_odd"])
def test_goldens(name, compiled, tmp_path):
    golden = Golden(name)
    model = golden.model(tmp_path)
    model.compute_with(compiled)
    images = paddle.to_tensor(golden.images("float32"))
    with paddle.no_grad():
        logits, features = model(images).numpy(), model.forward_features(images).numpy()
    assert error(features, golden["features"]) < 1e-4
    assert error(logits, golden["logits"]) < 1e-4


def test_half_precision_errs_as_much_as_the_plain_one(exact, loaded, tmp_path):
    """Both round what goes between the layers, in places of their own: errors of one size."""
    if not loaded[1]["bf16"]:
        pytest.skip("no bf16 here")
    errors = []
    for operators in (plain, loaded[0]):
        model, images = network(tmp_path, operators)
        model.amp = "bf16"
        logits = model(paddle.to_tensor(images))
        logits.square().sum().backward()
        found = gradients_of(model)
        far = [
            np.linalg.norm(found[name] - one) / np.linalg.norm(one)
            for name, one in exact[1].items()
        ]
        errors.append(
            [
                np.abs(logits.numpy() - exact[0]).mean() / np.abs(exact[0]).mean(),
                np.median(far),
                max(far),
            ]
        )
    for expected, found in zip(*errors):
        assert expected / 2 < found < 1.5 * expected


def test_training_gives_the_same_bits_each_time(compiled, small_checkpoint):
    def trained():
        model = create_model(small_checkpoint)
        model.compute_with(compiled)
        optimizer = Momentum(0.01, 0.9, model.parameters(), operators=compiled)
        random = np.random.default_rng(0)
        for _ in range(3):
            pixels = random.integers(0, 256, (4, 3, 48, 48)).astype(np.uint8)
            labels = random.integers(0, 10, 4)
            parts = [MicroBatch(pixels[k : k + 2], labels[k : k + 2], labels) for k in (0, 2)]
            update(model, optimizer, parts, 0.01)
        return [one.numpy() for one in model.parameters()]

    first, *others = trained(), trained(), trained()
    begun = create_model(small_checkpoint).parameters()
    assert not any(np.array_equal(one, other.numpy()) for one, other in zip(first, begun))
    for other in others:
        assert all(map(np.array_equal, first, other))


# --- Passes without gradients -------------------------------------------------------------------


def images_of(count, side=32):
    random = np.random.default_rng(0)
    return paddle.to_tensor(float32(random.uniform(-1, 1, (count, 3, side, side))))


@pytest.fixture(params=["plain", "compiled"])
def either(request):
    return plain if request.param == "plain" else request.getfixturevalue("compiled")


@pytest.fixture
def standardized(monkeypatch):
    """A list that grows by one with each standardization by `plain`."""
    calls, original = [], plain.standardize
    monkeypatch.setattr(plain, "standardize", lambda weight: calls.append(0) or original(weight))
    return calls


def test_eval_standardizes_once_for_passes_without_gradients(standardized, small_checkpoint):
    model = create_model(small_checkpoint)
    count = sum(isinstance(layer, StdConv2D) for layer in model.sublayers())
    keys = list(model.state_dict())
    model.eval()
    with paddle.no_grad():
        for _ in range(2):
            model(images_of(1))
            assert len(standardized) == count == 17
    assert list(model.state_dict()) == keys
    model(images_of(1))
    assert len(standardized) == 2 * count
    model.train()
    with paddle.no_grad():
        model(images_of(1))
    assert len(standardized) == 3 * count
    assert all(one.folded is None for one in model.sublayers() if isinstance(one, StdConv2D))


def test_eval_computes_what_training_does(either, small_checkpoint):
    model = create_model(small_checkpoint)
    model.compute_with(either)
    expected = model(images_of(2)).numpy()
    model.eval()
    with paddle.no_grad():
        assert np.array_equal(model(images_of(2)).numpy(), expected)
        with model.standardized_once():
            assert np.array_equal(model(images_of(2)).numpy(), expected)
    logits = model(images_of(2))
    assert np.array_equal(logits.numpy(), expected)
    logits.square().sum().backward()
    found = gradients_of(model)
    assert all(one.any() for one in found.values())
    model.clear_gradients()
    model.train()
    model(images_of(2)).square().sum().backward()
    assert all(np.array_equal(found[name], one) for name, one in gradients_of(model).items())


# --- The whole network as one operator, in inference --------------------------------------------


@pytest.fixture(params=["off", "bf16"])
def whole(request, loaded, small_checkpoint):
    """A network in inference, whose scales, biases and head are random."""
    if request.param == "bf16" and not loaded[1]["bf16"]:
        pytest.skip("no bf16 here")
    model = create_model(small_checkpoint, 5)
    random = np.random.default_rng(3)
    for parameter in model.parameters():
        if parameter.ndim < 4:
            more = random.standard_normal(parameter.shape).astype(np.float32)
            parameter.set_value(parameter.numpy() + more / 4)
    model.compute_with(loaded[0])
    model.amp = request.param
    model.eval()
    return model


def sized(count, height, width):
    values = np.random.default_rng(count).uniform(-1, 1, (count, 3, height, width))
    return paddle.to_tensor(values.astype(np.float32))


def assert_same_bits(found, expected, rounded_elsewhere):
    """Compare lists of tensors; bf16 ones that are ``rounded_elsewhere`` only about."""
    assert len(found) == len(expected)
    for one, two in zip(found, expected):
        one, two = (each.astype("float32").numpy() for each in (one, two))
        assert np.ptp(one) > 0
        if rounded_elsewhere:
            assert error(one, two) < 0.05
        else:
            assert np.array_equal(one, two)


@pytest.mark.parametrize("of", ["logits", "stages", "activated", "pooled", "features", "maps"])
def test_the_whole_network_computes_what_its_layers_do(of, whole, loaded):
    """The first size decides the layout of the kernels; the others must not differ for that.

    oneDNN 3.2 rounds a bf16 convolution before it adds to what stands there, 3.6 after.
    """
    rounded_elsewhere = whole.amp == "bf16" and loaded[1]["onednn"].startswith("3.2.")
    results = {
        "logits": lambda x: [whole(x)],
        "stages": whole.forward_stages,
        "activated": lambda x: whole.forward_stages(x, activated=True),
        "pooled": lambda x: [whole.forward_pooled(x)],
        "features": lambda x: [whole.forward_features(x)],
        "maps": whole.forward_maps,
    }[of]
    for shape in ((2, 64, 64), (1, 37, 50), (3, 129, 32), (1, 32, 32)):
        layer_by_layer = results(sized(*shape))
        with paddle.no_grad():
            assert_same_bits(results(sized(*shape)), layer_by_layer, rounded_elsewhere)


def test_images_in_parts_are_those_of_one_pass(whole):
    """Early stages take so many images at a time as stay in the cache: here 2 or 3 of 7."""
    images = sized(7, 300, 260)
    with paddle.no_grad():
        together = whole.forward_stages(images)
        each = [whole.forward_stages(images[k : k + 1]) for k in range(7)]
    for stage, found in enumerate(together):
        apart = paddle.concat([one[stage] for one in each]).astype("float32").numpy()
        bar = 1e-4 if whole.amp == "off" else 0.1
        assert error(found.astype("float32").numpy(), apart) < bar


def test_a_prepared_network_ends_with_its_model(whole):
    with paddle.no_grad():
        whole(sized(1, 32, 32))
        twin = copy.deepcopy(whole)
        (prepared,) = whole.prepared.values()
        number = prepared._number
        assert twin.prepared[whole.amp] is prepared
        del prepared
        whole.train()
        assert not whole.prepared
        expected = twin(sized(1, 32, 32))
        twin.eval()
        assert np.array_equal(twin(sized(1, 32, 32)).numpy(), expected.numpy())
        gc.collect()
        with pytest.raises(OSError, match="need the number of a network"):
            paddle.base.core.eager._run_custom_op("bit_infer", sized(1, 32, 32), number)


def test_threads_share_a_prepared_network(whole):
    with paddle.no_grad():
        expected = [whole(sized(n, 40, 40)).numpy() for n in (1, 2, 3, 4)]

    def compute(n):
        with paddle.no_grad():
            return [whole(sized(n, 40, 40)).numpy() for _ in range(10)]

    with ThreadPoolExecutor(4) as pool:
        for n, found in zip((1, 2, 3, 4), pool.map(compute, (1, 2, 3, 4))):
            assert all(np.array_equal(one, expected[n - 1]) for one in found)


@pytest.mark.parametrize("means", ["load_npz", "set_state_dict", "load_dict", "set_dict", "eval"])
def test_new_weights_are_heeded_in_eval(means, either, small_checkpoint, tmp_path):
    other = create_model("R14x1", 10, seed=1)
    other.head.weight.set_value(create_model(small_checkpoint).head.weight)
    other.compute_with(either)
    expected = other(images_of(2)).numpy()
    model = create_model(small_checkpoint)
    model.compute_with(either)
    model.eval()
    if means == "load_npz":
        save_npz(other, tmp_path / "other.npz")
        load_npz(model, tmp_path / "other.npz")
    elif means == "eval":
        for one, value in zip(model.parameters(), other.parameters()):
            one.set_value(value)
        model.eval()
    else:
        getattr(model, means)(other.state_dict())
    with paddle.no_grad():
        assert np.array_equal(model(images_of(2)).numpy(), expected)
    assert not model.training


def test_loading_folds_nothing_in_training(small_checkpoint, standardized):
    model = create_model(small_checkpoint)
    model.set_state_dict(model.state_dict())
    load_npz(model, small_checkpoint)
    assert not standardized and model.training


WITHOUT_GRADIENTS = """
import json
from contextlib import nullcontext
from pathlib import Path
from bit_paddle import create_model  # before Paddle: after Paddle 2.6.2, zlib crashes
import paddle
from bit_paddle.models import cost
from bit_paddle.models.native import build

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))

model = create_model("R26x0.5", 3)
model.compute_with(build.load()[0])
told = []
for mode in (paddle.no_grad, nullcontext):  # of which the second has the higher peak
    for images in (1, 16):  # what is allocated once, then what is measured
        with mode():
            given = paddle.ones([images, 3, 128, 128])
            before = status("VmRSS")
            model(given)
    told.append((status("VmHWM") - before) / images)
print(json.dumps([*told, cost.activations(model.architecture, 128)]))
"""


@pytest.mark.slow
def test_passes_without_gradients_keep_nothing(compiled):
    """At their peak they have what goes from one layer to the next, and not all of it."""
    done = run("-c", WITHOUT_GRADIENTS, **EXACT)
    assert done.returncode == 0, done.stderr
    without, beside, activations = json.loads(done.stdout)
    assert beside > 0.5 * activations and without < 0.3 * beside, (without, beside, activations)


def test_operators_heed_no_grad(compiled):
    """Which Paddle forgets of operators that are not its own."""
    _, arrays = norm_inputs(2, 64, (6, 6))
    x = compiled.enter(paddle.to_tensor(arrays["x"])).detach()
    kernel = paddle.to_tensor(float32(np.ones((64, 64, 1, 1))))
    x.stop_gradient = kernel.stop_gradient = False
    norm = GroupNormReLU(64)

    def outputs():
        yield from (compiled.pool(x), compiled.norm_relu(x, norm))
        yield compiled.convolve(x, compiled.standardize(kernel), 1)
        yield from (*compiled.norm_relu_twice(x, norm), *compiled.norm_relu_beside(x, norm))
        yield from (compiled.convolve(x, kernel, 1), compiled.convolve(x, kernel, 1, x))
        yield compiled.convolve(x[..., :3], kernel[:, :3], 1)

    assert not any(one.stop_gradient for one in outputs())
    with paddle.no_grad():
        assert all(one.stop_gradient for one in outputs())


# --- Want of memory -----------------------------------------------------------------------------

WANT = """
import hashlib, json, resource, sys
from pathlib import Path
import numpy as np
import paddle
from bit_paddle.system import device
from bit_paddle import create_model
from bit_paddle.models import cost
from bit_paddle.models.native import build

def address_space():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmSize"))

def limit(room):
    soft = resource.RLIM_INFINITY if room is None else address_space() + int(room)
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))

model = create_model("R26x0.5", 3)
model.head.weight.set_value(np.random.default_rng(0).normal(size=(1024, 3)).astype("float32"))
model.compute_with(build.load()[0])
model.recompute = sys.argv[1]

def gradients(images, room_there=None, room_back=None, side=96):
    try:
        shape = [images, 3, side, side]
        given = paddle.linspace(-1, 1, images * 3 * side**2).reshape(shape)
        with device.memory_errors():
            limit(room_there)
            loss = model(given).square().sum()
            limit(room_back)
            loss.backward()
        limit(None)
        return hashlib.sha256(b"".join(one.grad.numpy().tobytes() for one in model.parameters()))
    finally:
        limit(None)
        model.clear_gradients()

def outcome(*arguments, **options):
    try:
        return gradients(*arguments, **options).hexdigest()
    except BaseException as error:
        return type(error).__name__

image = cost.activations(model.architecture, 96, model.recompute)
few, many = outcome(2), outcome(16)
crumbs = [bytes(2**15) for _ in range(1000)]
del crumbs[::2]  # room for small things alone, such as the texts of errors
told = [few, many]
for k, room in enumerate((2**19, 2 * image, 8 * image)):
    told += [outcome(16, room), outcome(2), outcome(16, None, room / 4), outcome(2)]
    told += [outcome(16, room, side=104 + 8 * k), outcome(2)]  # sides met for the first time
told += [outcome(2, 8 * image), outcome(16)]
print(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["off", "unit"])
def test_want_of_memory_is_an_error_after_which_less_is_done(recompute, compiled):
    done = run("-c", WANT, recompute, **EXACT)
    assert done.returncode == 0, done.stderr
    few, many, *others, again_few, again_many = json.loads(done.stdout.splitlines()[-1])
    assert len(few) == len(many) == 64 and few != many
    assert others[1::2] == [few] * 9 and (again_few, again_many) == (few, many)
    assert others[0::6] == others[4::6] == ["MemoryError"] * 3
    assert set(others[2::6]) <= {"MemoryError", many} and others[2] == "MemoryError"


# --- Where there are none -----------------------------------------------------------------------


@pytest.fixture
def train(tmp_path):
    """Make two steps, and return what the console and train.log have of operators."""
    pytest.importorskip("sklearn")

    def train(name, *flags, **variables):
        done = run_train(
            *TINY, "--logdir", tmp_path, "--name", name, *flags, env=environment_with(**variables)
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / name / "model.npz").exists()
        lines = (tmp_path / name / "train.log").read_text().splitlines()
        (named,) = (line.partition(" operators: ")[2] for line in lines if " operators: " in line)
        return done.stdout + done.stderr, named

    return train


@pytest.fixture
def unbuilt(tmp_path):
    """Return variables for a command that finds no prebuilt operators, and an empty cache."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "from pathlib import Path\nfrom bit_paddle.models.native import prebuilt\n"
        "prebuilt.FOLDER = Path('/nowhere')\n"
    )
    paths = f"{tmp_path / 'site'}{os.pathsep}{ROOT}"
    return {"PYTHONPATH": paths, "BIT_PADDLE_HOME": tmp_path / "cache"}


@pytest.fixture
def compiler(tmp_path):
    """Return a function that makes a compiler of shell lines, and another that counts its calls."""

    def make(*lines):
        path, calls = tmp_path / "compiler", tmp_path / "calls"
        calls.write_text("")
        path.write_text("\n".join(["#!/bin/sh", f'echo "$@" >> {calls}', *lines, ""]))
        path.chmod(0o755)

        def count():
            return calls.read_text().count("operators.cc")

        return path, count

    return make


@pytest.mark.slow
def test_operators_can_be_refused(train):
    console, named = train("refused", **{build.SWITCH: 0})
    assert named == "Paddle's own (BIT_PADDLE_NATIVE=0)"
    assert "warning" not in console and "compiling" not in console


@pytest.mark.slow
def test_without_a_compiler(train, unbuilt):
    console, named = train("without", CXX="/nowhere/g++", **unbuilt)
    reason = (
        f"none are prebuilt for Paddle {paddle.__version__}; there is no compiler: /nowhere/g++"
    )
    assert named == f"Paddle's own ({reason})"
    assert "warning" not in console and "compiling" not in console
    done = run("-m", "bit_paddle.compile", CXX="/nowhere/g++", **unbuilt)
    assert done.returncode and "error: no compiled operators: there is no compiler" in done.stderr


@pytest.mark.slow
def test_a_build_that_fails_is_not_tried_again_unasked(train, compiler, unbuilt, tmp_path):
    script, calls = compiler("echo no such thing >&2", "exit 1")
    variables = {"CXX": script, **unbuilt}
    console, named = train("first", **variables)
    assert "compiling operators" in console and "warning: operators could not be" in console
    assert named.startswith("Paddle's own (could not be compiled: ")
    assert calls() == 1
    console, named = train("second", **variables)
    assert "compiling operators" not in console and "warning: operators could not be" in console
    assert "`python -m bit_paddle.compile` tries again" in named
    assert calls() == 1
    done = run("-m", "bit_paddle.compile", **variables)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert "error: no compiled operators: could not be compiled: " in done.stderr
    assert "defect of bit_paddle" not in done.stderr
    assert calls() == 2
    (fault,) = (tmp_path / "cache").rglob(build.FAULT)
    assert "no such thing" in fault.read_text()


@pytest.mark.slow
def test_what_is_compiled_is_tried_first(train, compiler, unbuilt):
    """Of a compiler that succeeds with rubbish."""
    script, _ = compiler(
        'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo rubbish > "$2"; shift; done', "exit 0"
    )
    variables = {"CXX": script, **unbuilt}
    console, named = train("rubbish", **variables)
    assert "warning: operators could not be compiled" in console
    assert named.startswith("Paddle's own (could not be compiled: ")


@pytest.mark.slow
def test_without_a_cache(train, unbuilt, tmp_path):
    """A file is in the way of its folder."""
    (tmp_path / "file").write_text("")
    console, named = train("uncached", **{**unbuilt, "BIT_PADDLE_HOME": tmp_path / "file"})
    assert "warning: operators " in console
    assert named.startswith("Paddle's own (") and "Not a directory" in named


CHOOSE = """
import shutil, sys
from bit_paddle.models.native import build, compiler, library
with_all = library.cache_path(compiler.sources_hash())
build.os.environ["BIT_PADDLE_HOME"] = sys.argv[1]
folder = library.cache_path(compiler.sources_hash())
shutil.copytree(with_all, folder)
{damage}
print(build.choose("cpu", "off", print)[1])
"""


@pytest.fixture(scope="module")
def built():
    """Compile into the cache of the tests, unless an earlier session has."""
    folder = library.cache_path(compiler_of_operators.sources_hash())
    if not (folder / build.FACTS).exists():
        done = run("-m", "bit_paddle.compile")
        if "there is no compiler" in done.stderr:
            pytest.skip(done.stderr)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        "(folder / 'lock').unlink(); (folder / 'lock').mkdir()",
        "(folder / build.FACTS).unlink(); (folder / 'lock').unlink(); (folder / 'lock').mkdir()",
        "(folder / build.FACTS).write_bytes(b'')",
        "(folder / build.OPERATORS).write_bytes(b'')",
        "(folder / build.OPERATORS).unlink()",
    ],
)
def test_a_cache_that_is_damaged(damage, built, unbuilt, tmp_path):
    """Plain operators are taken with a warning, or others are compiled; nobody's run ends."""
    paths = unbuilt["PYTHONPATH"]
    done = run("-c", CHOOSE.replace("{damage}", damage), tmp_path / "home", PYTHONPATH=paths)
    assert done.returncode == 0, done.stderr
    ours = "warning: operators " in done.stdout and "\nPaddle's own (" in done.stdout
    assert ours or "compiled for this processor" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_no_fault_of_the_compiler(number, compiler, unbuilt, tmp_path):
    """Ctrl-C comes to all processes of a terminal, and a cluster's SIGTERM to all of a job."""
    pytest.importorskip("sklearn")
    mark = tmp_path / "compiles"
    script, _ = compiler(f'touch "{mark}"; sleep 60')
    variables = {"CXX": script, **unbuilt}
    flags = [*TINY, "--logdir", tmp_path, "--name", "interrupted"]
    process = start_train(*flags, env=environment_with(**variables), start_new_session=True)
    wait_until(mark.exists, process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in err
    assert not list((tmp_path / "cache").rglob(build.FAULT))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_run_alone_ends_its_compiler(number, compiler, unbuilt, tmp_path):
    """And what the compiler has started; the run ends without waiting for them."""
    pytest.importorskip("sklearn")
    ids = [tmp_path / "driver", tmp_path / "inner"]
    script, _ = compiler(
        f'sh -c "echo \\$\\$ > {ids[1]}; sleep 600; :" &', f"echo $$ > {ids[0]}", "wait"
    )
    variables = {"CXX": script, **unbuilt}
    flags = [*TINY, "--logdir", tmp_path, "--name", "interrupted"]
    process = start_train(*flags, env=environment_with(**variables))
    wait_until(lambda: all(path.exists() and path.read_text() for path in ids), process)
    started = [int(path.read_text()) for path in ids]
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert "Traceback" not in err
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in started))
    assert "before the first step" in (tmp_path / "interrupted/train.log").read_text()
    assert not list((tmp_path / "cache").rglob(build.FAULT))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_a_command_without_a_run_ends_its_compiler(
    number, compiler, unbuilt, image_folder, tmp_path
):
    """Each is sent to the command alone."""
    ids = [tmp_path / "driver", tmp_path / "inner"]
    script, _ = compiler(
        f'sh -c "echo \\$\\$ > {ids[1]}; sleep 600; :" &', f"echo $$ > {ids[0]}", "wait"
    )
    words = ["bit_paddle.predict", image_folder / "val/blue/0.png", "--model", "BiT-Mini"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_with(CXX=script, **unbuilt),
    )
    wait_until(lambda: all(path.exists() and path.read_text() for path in ids), process)
    started = [int(path.read_text()) for path in ids]
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback (most recent" not in err
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in started))
    assert not list((tmp_path / "cache").rglob(build.FAULT))


@pytest.mark.slow
def test_two_processes_compile_once(train, compiler, unbuilt, built, tmp_path):
    script, calls = compiler('exec g++ "$@"')
    variables = {"CXX": script, **unbuilt}
    console, named = train("pair", "--nproc", 2, **variables)
    assert named.startswith("compiled for this processor, with oneDNN ")
    assert console.count("compiling operators") <= 1 and "warning: operators" not in console
    assert calls() == 1
    (facts,) = (tmp_path / "cache").rglob(build.FACTS)
    (made,) = (tmp_path / "cache").rglob("*.so")
    assert made == facts.with_name(build.OPERATORS)
