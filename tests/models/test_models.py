"""The network's parts where the goldens do not look."""

import numpy as np
import paddle
import pytest

from bit_paddle import create_model
from bit_paddle.errors import ConfigError
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.layers import GroupNormReLU, StdConv2D
from bit_paddle.models.native.plain import standardize
from bit_paddle.models.resnetv2 import ResNetV2


def formula(weight):
    """(w - mean) / sqrt(var + 1e-10) in float64, but for 1e-10: Paddle keeps that in float32."""
    weight = weight.astype(np.float64)
    axes = (1, 2, 3)
    return (weight - weight.mean(axes, keepdims=True)) / np.sqrt(
        weight.var(axes, keepdims=True) + np.float32(1e-10)
    )


@pytest.mark.parametrize("shape", [(64, 3, 7, 7), (128, 64, 3, 3), (64, 256, 1, 1), (1, 32, 1, 1)])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-5])
def test_standardize_is_its_formula(shape, scale, dtype):
    """Also where 1e-10 matters: a variance of 1e-10 makes it half of the divisor."""
    weight = (np.random.default_rng(0).normal(0.3, 1, shape) * scale).astype(dtype)
    found = standardize(paddle.to_tensor(weight)).numpy()
    bar = {"float64": 1e-12, "float32": 2e-5}[dtype]
    assert np.abs(found - formula(weight)).max() <= bar * np.abs(found).max()


def test_standardize_widens_half_precision():
    weight = np.random.default_rng(0).normal(0, 1e-3, (8, 16, 3, 3)).astype(np.float16)
    found = standardize(paddle.to_tensor(weight))
    assert found.dtype == paddle.float32
    np.testing.assert_allclose(found.numpy(), formula(weight), atol=1e-4)


def test_group_norm_s_gradients_where_a_scale_is_small(dtype):
    """Zero, and small beside its bias: Paddle's kernel for CPUs alone would lose them."""
    scales, biases = np.ones(64), np.full(64, 0.1)
    scales[::3], scales[1::3] = 0, 1e-7
    biases[::2] = 0
    random = np.random.default_rng(0)
    values, weights = random.normal(1, 2, (2, 2, 64, 5, 5))
    norm = GroupNormReLU(64)
    norm.weight.set_value(scales.astype(dtype))
    norm.bias.set_value(biases.astype(dtype))
    x = paddle.to_tensor(values.astype(dtype), stop_gradient=False)
    (norm(x) * paddle.to_tensor(weights.astype(dtype))).sum().backward()

    grouped = values.reshape(2, 32, -1)
    centred = grouped - grouped.mean(2, keepdims=True)
    normalized = centred / np.sqrt(grouped.var(2, keepdims=True) + np.float32(1e-5))
    normalized = normalized.reshape(values.shape)
    passed = weights * (normalized * scales[:, None, None] + biases[:, None, None] > 0)
    expected = (passed * normalized).sum((0, 2, 3))
    found = norm.weight.grad.numpy()
    bar = {"float64": 1e-12, "float32": 1e-5}[dtype]
    assert np.abs(found - expected).max() <= bar * np.abs(expected).max()
    assert np.count_nonzero(expected[::6]) == 0  # a zero scale and bias: ReLU's edge
    assert np.count_nonzero(expected[3::6]) and np.count_nonzero(expected[1::3])


def test_standardized_once_gives_the_gradients_of_plain_passes(dtype):
    """Two micro-batches, and the second step after a change of the weights."""

    def gradients(once):
        model = ResNetV2(Architecture((1, 1, 1, 1), 0.5), 3)
        model.reset_parameters(1)
        model.head.weight.set_value(
            np.random.default_rng(1).normal(0, 0.1, (1024, 3)).astype(dtype)
        )
        random = np.random.default_rng(2)
        results = []
        for _ in range(2):
            images = [
                paddle.to_tensor(random.uniform(-1, 1, (2, 3, 32, 32)).astype(dtype)) for _ in "ab"
            ]
            if once:
                with model.standardized_once() as last_pass:
                    (model(images[0]) ** 2).sum().backward()
                    last_pass()
                    (model(images[1]) ** 2).sum().backward()
            else:
                for part in images:
                    (model(part) ** 2).sum().backward()
            results += [parameter.grad.numpy() for parameter in model.parameters()]
            for parameter in model.parameters():
                parameter.set_value(parameter.detach() - 1e-4 * parameter.grad)
            model.clear_gradients()
        return results

    bar = {"float64": 1e-11, "float32": 1e-3}[dtype]
    for plain, once in zip(gradients(False), gradients(True)):
        assert np.abs(plain - once).max() <= bar * np.abs(plain).max()


def test_standardized_once_standardizes_once(monkeypatch):
    from bit_paddle.models.native import plain

    calls = []
    original = plain.standardize
    monkeypatch.setattr(plain, "standardize", lambda weight: calls.append(1) or original(weight))
    model = create_model("R14x0.5", num_classes=2)
    count = sum(isinstance(layer, StdConv2D) for layer in model.sublayers())
    with model.standardized_once() as last_pass:
        for wait in (lambda: None, lambda: None, last_pass):
            wait()
            model(paddle.zeros([1, 3, 32, 32])).sum().backward()
    assert len(calls) == count == 17
    model(paddle.zeros([1, 3, 32, 32]))
    assert len(calls) == 2 * count


def test_standardized_once_after_an_error():
    model = create_model("R14x0.5", num_classes=2)
    with pytest.raises(KeyError), model.standardized_once():
        model(paddle.zeros([1, 3, 32, 32])).sum().backward()
        raise KeyError
    assert all(
        layer.standardized is None for layer in model.sublayers() if isinstance(layer, StdConv2D)
    )
    assert all(
        layer.weight.grad is None for layer in model.sublayers() if isinstance(layer, StdConv2D)
    )


@pytest.mark.parametrize("units, width, classes", [((1, 2, 1, 1), 1.5, 7), ((2, 1, 1, 3), 0.5, 1)])
def test_any_units_width_and_head(units, width, classes):
    model = ResNetV2(Architecture(units, width), classes)
    model.reset_parameters()
    images = paddle.zeros([2, 3, 64, 96])
    assert list(model(images).shape) == [2, classes]
    assert list(model.forward_features(images).shape) == [2, 2048 * width]
    stages = model.forward_stages(images)
    assert [list(stage.shape) for stage in stages] == [
        [2, 256 * width * 2**k, 64 // 2 ** (k + 2), 96 // 2 ** (k + 2)] for k in range(4)
    ]


def test_without_a_head_the_features_are_the_output():
    model = create_model("R14x0.5", num_classes=0)
    images = paddle.to_tensor(
        np.random.default_rng(0).uniform(-1, 1, (1, 3, 40, 40)).astype(np.float32)
    )
    assert np.array_equal(model(images).numpy(), model.forward_features(images).numpy())


def test_random_weights_depend_on_their_seed_alone():
    def weights(seed):
        return np.concatenate(
            [
                parameter.numpy().ravel()
                for parameter in create_model("R14x0.5", num_classes=2, seed=seed).parameters()
            ]
        )

    assert np.array_equal(weights(0), weights(0))
    assert not np.array_equal(weights(0), weights(1))
    assert not create_model("R14x0.5", num_classes=2).head.weight.numpy().any()


def test_an_architecture_needs_a_number_of_classes():
    with pytest.raises(ConfigError, match="num_classes"):
        create_model("R14x0.5")


@pytest.mark.parametrize("what", ["unit", "block"])
def test_recompute_gives_the_same_bits(what, small_checkpoint):
    """Also through standardized kernels that several passes share."""
    images = paddle.to_tensor(
        np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype("float32")
    )

    def gradients(recompute):
        model = create_model(small_checkpoint)
        model.recompute = recompute
        with model.standardized_once() as last_pass:
            model(images[:2]).square().sum().backward()
            last_pass()
            model(images[2:]).square().sum().backward()
        return {name: one.grad.numpy() for name, one in model.named_parameters()}

    plain, again = gradients("off"), gradients(what)
    assert plain.keys() == again.keys()
    assert all(np.array_equal(plain[name], again[name]) for name in plain)
