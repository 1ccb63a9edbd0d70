"""The pyramid and RetinaNet: outputs, cost, gradients, frozen parts, compiled operators."""

import numpy as np
import paddle
import pytest

from bit_paddle import create_model
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.detection import anchors, cost, losses
from bit_paddle.models.detection.pyramid import BiasedConv2D
from bit_paddle.models.detection.retinanet import RetinaNet
from bit_paddle.models.layers import StdConv2D
from bit_paddle.models.native import build, plain

SMALL = {"channels": 32, "depth": 1}


def detector(classes=3, dtype="float32", **options):
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        return RetinaNet(create_model("R14x0.5", 0), classes, **{**SMALL, **options})
    finally:
        paddle.set_default_dtype(before)


def images_of(height, width, dtype="float32", count=1):
    values = np.random.default_rng(2).uniform(-1, 1, (count, 3, height, width))
    return paddle.to_tensor(values.astype(dtype))


@pytest.mark.parametrize("p6_from_c5", [False, True])
def test_outputs_and_cost(p6_from_c5):
    """One row per anchor, also of odd sizes; the formulas count what the layers do."""
    model = detector(depth=2, p6_from_c5=p6_from_c5)
    logits, codes = model(images_of(70, 129, count=2))
    number = len(anchors.anchors_of(70, 129, model.shapes))
    assert logits.shape == [2, number, 3] and codes.shape == [2, number, 4]
    counted = []

    def count(layer, inputs, output):
        counted.append(layer.weight.size * output.shape[2] * output.shape[3])

    for layer in model.sublayers():
        if isinstance(layer, (StdConv2D, BiasedConv2D)):
            layer.register_forward_post_hook(count)
    model(images_of(96, 96))
    shape = (model.backbone.architecture, 3, 32, 2, p6_from_c5)
    assert sum(counted) == cost.multiply_adds(shape[0], 96, *shape[1:])
    assert sum(one.size for one in model.parameters()) == cost.parameters(*shape)


@pytest.mark.parametrize(
    "name, side, giga, mega", [("R50x1", 640, 97, 34.0), ("R101x1", 1024, 325, 53.0)]
)
def test_cost_of_the_published_sizes(name, side, giga, mega):
    """The model zoo of the reference code has 97.0 G and 34.0 M, 326.3 G and 53.1 M."""
    architecture = Architecture.parse(name)
    assert round(cost.multiply_adds(architecture, side, 90) / 1e9) == giga
    assert cost.parameters(architecture, 90) / 1e6 == pytest.approx(mega, abs=0.06)


def test_initial_outputs():
    """Every class has a probability of about 0.01; weights depend on the seed alone."""
    one, same, other = detector(seed=1), detector(seed=1), detector(seed=2)
    logits, codes = one(images_of(64, 64))
    probabilities = 1 / (1 + np.exp(-logits.numpy()))
    assert 0.005 < probabilities.min() < 0.01 < probabilities.max() < 0.02
    assert np.abs(codes.numpy()).max() < 0.5
    assert np.array_equal(same(images_of(64, 64))[0].numpy(), logits.numpy())
    assert not np.array_equal(other(images_of(64, 64))[0].numpy(), logits.numpy())


def test_the_pyramid_by_its_parts():
    """The top-down sums, the sources of P6 and P7, and norms without ReLU, written out."""
    model = detector()
    pyramid, stages = model.pyramid, model.backbone.stages(images_of(72, 64), activated=True)[1:]
    for norm in pyramid.norm:
        random = np.random.default_rng(3)
        norm.weight.set_value(random.uniform(0.5, 2, norm.weight.shape).astype("float32"))
        norm.bias.set_value(random.normal(size=norm.bias.shape).astype("float32"))
    c3, c4, c5 = (lateral(one) for lateral, one in zip(pyramid.lateral, stages))
    p4 = c4.numpy() + c5.numpy().repeat(2, axis=2)[:, :, :5].repeat(2, axis=3)
    p3 = c3.numpy() + p4.repeat(2, axis=2)[:, :, :9].repeat(2, axis=3)
    raw = [conv(paddle.to_tensor(one)) for conv, one in zip(pyramid.output, (p3, p4, c5.numpy()))]
    raw.append(pyramid.p6(raw[2]))
    raw.append(pyramid.p7(raw[3].clip(min=0)))
    for found, one, norm in zip(pyramid(stages), raw, pyramid.norm):
        expected = paddle.nn.GroupNorm.forward(norm, one).numpy()
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-3)
        assert found.min() < 0


@pytest.fixture(scope="module")
def batch():
    """A tiny detector in float64, two images, one of them without boxes, and the loss."""
    images = images_of(40, 32, "float64", count=2)
    model = detector(2, "float64")
    found = anchors.anchors_of(40, 32, model.shapes, np.float64)
    boxes = np.array([[2.0, 3, 30, 25], [10, 5, 28, 39]])
    targets = [
        anchors.targets_of(boxes[:count], np.arange(count), found, anchors.MATCHINGS["tpu"])
        for count in (2, 0)
    ]
    classes, codes = (paddle.to_tensor(np.stack(parts)) for parts in zip(*targets))
    positives = int((classes >= 0).sum())
    assert positives > 2

    def loss(pick=slice(None), box_loss="huber"):
        outputs = model(images[pick])
        return sum(
            losses.losses(
                *outputs,
                classes[pick],
                codes[pick],
                paddle.to_tensor(found),
                positives + 1,
                box_loss,
            )
        )

    return model, loss


@pytest.mark.parametrize("box_loss", losses.BOX_LOSSES)
def test_gradients_of_the_whole_by_differences(batch, box_loss):
    """A random direction through each kind of layer: two-sided differences agree to 1e-5."""
    model, loss = batch
    model.clear_gradients()
    loss(box_loss=box_loss).backward()
    random = np.random.default_rng(4)
    kinds = [
        *("backbone.root", "backbone.block3", "pyramid.lateral", "pyramid.output", "pyramid.p"),
        *("pyramid.norm", "class_tower.conv", "class_tower.norm", "class_tower.predict"),
        "box_tower",
    ]
    for kind in kinds:
        chosen = [one for name, one in model.named_parameters() if name.startswith(kind)]
        values = [one.numpy() for one in chosen]
        ways = [random.normal(size=one.shape) * 0.1 for one in values]
        slope = sum((one.grad.numpy() * way).sum() for one, way in zip(chosen, ways))
        ends = []
        for step in (1e-6, -1e-6):
            for one, value, way in zip(chosen, values, ways):
                one.set_value(value + step * way)
            with paddle.no_grad():
                ends.append(float(loss(box_loss=box_loss)))
        for one, value in zip(chosen, values):
            one.set_value(value)
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-5), kind


def test_parts_of_a_batch_add_up(batch):
    """With the positives of the whole batch as the normalizer, and shared kernels."""
    model, loss = batch
    found = []
    for parts in ([slice(None)], [slice(0, 1), slice(1, 2)]):
        model.clear_gradients()
        with model.standardized_once() as last_pass:
            total = 0.0
            for part in parts:
                if part is parts[-1]:
                    last_pass()
                value = loss(part)
                value.backward()
                total += float(value)
        found.append((total, {name: one.grad.numpy() for name, one in model.named_parameters()}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    for name, gradient in found[0][1].items():
        bar = 1e-9 * np.abs(gradient).max()
        np.testing.assert_allclose(found[1][1][name], gradient, rtol=1e-9, atol=bar, err_msg=name)


@pytest.mark.parametrize("learn", ["block3", "head"])
def test_a_frozen_backbone(learn):
    model = detector()
    model.learn_only(learn)
    logits, codes = model(images_of(64, 64))
    (logits.square().mean() + codes.square().mean()).backward()
    with_gradient = {name for name, one in model.named_parameters() if one.grad is not None}
    assert with_gradient == set(model.learned())
    parts = {".".join(name.split(".")[:2]) for name in with_gradient if "backbone" in name}
    blocks = {"backbone.block3", "backbone.block4", "backbone.norm"}
    assert parts == (blocks if learn == "block3" else set())


@pytest.fixture(scope="module")
def operators():
    try:
        return build.load(lambda text: None)
    except build.Unavailable as reason:
        pytest.skip(str(reason))


def test_compiled_operators(operators):
    """The same outputs and gradients, in inference and with a frozen backbone, too.

    P7 is one pixel here, so its norm gives nearly the same for all inputs, and the gradients that
    pass it are nearly 0: they are sums of larger numbers, whose rounding remains.
    """
    model, images = detector(channels=64), images_of(68, 64, count=2)
    found = []
    for one in (plain, operators[0]):
        model.compute_with(one)
        model.clear_gradients()
        logits, codes = model(images)
        (logits.square().mean() + codes.square().mean()).backward()
        gradients = [parameter.grad.numpy() for parameter in model.parameters()]
        model.eval()
        with paddle.no_grad():
            assert np.allclose(model(images)[0].numpy(), logits.numpy(), rtol=1e-4, atol=1e-4)
        model.train()
        found.append([logits.numpy(), codes.numpy(), *gradients])
    rounding = 8 * np.finfo(np.float32).eps * max(np.abs(one).max() for one in found[0][2:])
    for one, other in zip(*found):
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-3 * np.abs(one).max() + rounding)
    model.learn_only("head")
    logits, codes = model(images)
    (logits.sum() + codes.sum()).backward()
    np.testing.assert_allclose(logits.numpy(), found[1][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision(amp):
    model, images = detector(), images_of(64, 64)
    whole = [one.numpy() for one in model(images)]
    model.amp = amp
    half = model(images)
    sum(one.square().mean() for one in half).backward()
    for one, other in zip(whole, half):
        assert other.dtype == paddle.float32
        assert np.abs(other.numpy() - one).max() < 0.1
    assert all(np.isfinite(one.grad.numpy()).all() for one in model.parameters())


@pytest.mark.parametrize("what", ["unit", "block"])
@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("native", [False, True])
def test_recompute_gives_the_same_bits(what, amp, native, operators):
    if amp == "bf16" and native and not operators[1]["bf16"]:
        pytest.skip("no bf16 here")
    found = []
    for recompute in ("off", what):
        model, images = detector(), images_of(64, 64)
        model.compute_with(operators[0] if native else plain)
        model.amp, model.recompute = amp, recompute
        with model.standardized_once() as last_pass:
            for last in (False, True):
                if last:
                    last_pass()
                logits, codes = model(images)
                (logits.square().mean() + codes.square().mean()).backward()
        assert model.backbone.recompute == recompute and model.backbone.amp == amp
        found.append({name: one.grad.numpy() for name, one in model.named_parameters()})
    assert all(np.array_equal(found[1][name], one) for name, one in found[0].items())
