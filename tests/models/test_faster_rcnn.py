"""Faster R-CNN: samples, proposals, levels, gradients, parts of a batch, detections, cost."""

import numpy as np
import paddle
import pytest

from bit_paddle import create_model
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.detection import anchors, cost, detections, faster_rcnn, proposals
from bit_paddle.models.detection.boxes import iou
from bit_paddle.models.detection.configuration import Detector, network
from bit_paddle.models.detection.faster_rcnn import FasterRCNN, levels_of
from bit_paddle.models.detection.pyramid import BiasedConv2D
from bit_paddle.models.detection.regions import METHODS, regions
from bit_paddle.models.layers import StdConv2D
from bit_paddle.models.native import build, plain

BOXES = [
    np.array([[2.0, 3, 30, 25], [10, 5, 28, 39]]),
    np.zeros((0, 4)),
    np.array([[5.0, 12, 25, 20]]),
    np.array([[1.0, 1, 9, 9], [0, 20, 31, 40], [12, 2, 30, 14]]),
]
LABELS = [np.arange(len(boxes)) % 2 for boxes in BOXES]
SHOWN = [(40, 32), (40, 32), (33, 32), (40, 32)]
SEEDS = [3, 1, 4, 15]


def detector(classes=2, dtype="float32", **options):
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        backbone = create_model("R14x0.5", 0)
        return FasterRCNN(backbone, classes, **{"channels": 32, **options})
    finally:
        paddle.set_default_dtype(before)


def images_of(height, width, dtype="float32", count=1):
    values = np.random.default_rng(2).uniform(-1, 1, (count, 3, height, width))
    return paddle.to_tensor(values.astype(dtype))


@pytest.fixture
def few(monkeypatch):
    """Fewer samples and proposals, so that the tests are quick."""
    monkeypatch.setattr(proposals, "ANCHORS", 64)
    monkeypatch.setattr(proposals, "PROPOSALS", 32)
    monkeypatch.setattr(proposals, "MOST", 40)


def losses_of(model, images, pick=slice(None), normalizer=4):
    parts = (BOXES, LABELS, SHOWN, SEEDS)
    return model.losses(images[pick], *(one[pick] for one in parts), normalizer)


def with_gradients(model, images, parts, losses=losses_of):
    """The losses of all parts of a batch, and the sums of their gradients."""
    model.clear_gradients()
    total = np.zeros(4)
    with model.standardized_once() as last_pass:
        for part in parts:
            if part is parts[-1]:
                last_pass()
            found = losses(model, images, part)
            sum(found).backward()
            total += [float(one) for one in found]
    return total, {name: one.grad.numpy() for name, one in model.named_parameters()}


# --- Samples and proposals ----------------------------------------------------------------------


def test_sampled_anchors():
    """At most half of 256 are positive; positive and negative ones by their overlaps."""
    every = anchors.anchors_of(256, 256, anchors.for_proposals(), np.float64)
    boxes = np.array([[20.0, 30, 90, 100], [100, 100, 250, 220], [40, 40, 41, 42]])
    found = proposals.sampled_anchors(boxes, every, np.random.default_rng(1))
    positive = found.classes == 0
    assert len(found.boxes) == 256 and 3 <= positive.sum() <= 128
    assert set(found.classes[~positive]) == {anchors.NEGATIVE}
    assert len(set(found.indices)) == 256 and np.array_equal(every[found.indices], found.boxes)
    overlaps, best = iou(boxes, found.boxes), iou(boxes, every).max(axis=1)
    assert ((overlaps >= 0.7) | (overlaps == best[:, None])).any(axis=0)[positive].all()
    assert (overlaps < 0.3).all(axis=0)[~positive].all()
    assert not found.codes[~positive].any() and found.codes[positive].any(axis=1).all()
    same, other = (
        proposals.sampled_anchors(boxes, every, np.random.default_rng(seed)) for seed in (1, 2)
    )
    assert np.array_equal(same.indices, found.indices)
    assert not np.array_equal(other.indices, found.indices)
    many = every[(every[:, 0] > 0) & (every[:, 2] < 256)][::7]
    found = proposals.sampled_anchors(many, every, np.random.default_rng(1))
    assert (found.classes == 0).sum() == 128 and len(found.classes) == 256


def test_sampled_proposals():
    """At most a quarter of 512 are positive; the true boxes are among them; classes and codes."""
    random = np.random.default_rng(1)
    boxes, labels = np.array([[20.0, 30, 90, 100], [100, 100, 250, 220]]), np.array([5, 3])
    near = np.repeat(boxes, 200, axis=0) + random.uniform(-10, 10, (400, 4))
    far = np.array([0.0, 0, 10, 10]) + random.uniform(0, 5, (600, 1))
    found = proposals.sampled_proposals(boxes, labels, np.concatenate([near, far]), random)
    positive = found.classes >= 0
    assert len(found.boxes) == 512 and positive.sum() == 128
    overlaps = iou(boxes, found.boxes)
    assert (overlaps.max(axis=0) >= 0.5).tolist() == positive.tolist()
    assert found.classes[positive].tolist() == labels[overlaps.argmax(axis=0)[positive]].tolist()
    few = proposals.sampled_proposals(boxes, labels, far[:3], random)
    assert few.classes.tolist()[2:] == [-1] * 3 and sorted(few.classes[:2]) == [3, 5]
    assert few.indices[:2].min() == 3 and not few.codes.any()
    none = proposals.sampled_proposals(boxes[:0], labels[:0], far, random)
    assert len(none.boxes) == 512 and (none.classes == -1).all()


def test_proposals_by_the_definition(monkeypatch):
    """The best of each level, cut at the edge, suppressed within a level, the best of all."""
    monkeypatch.setattr(proposals, "BEST_OF_LEVEL", {True: 30, False: 20})
    monkeypatch.setattr(proposals, "MOST", 25)
    shapes, random = anchors.for_proposals(), np.random.default_rng(0)
    every = anchors.anchors_of(64, 96, shapes, np.float64)
    scores = random.permutation(len(every)) / len(every) * 4
    found = np.column_stack([scores, random.normal(size=(len(every), 4)) * 0.1])
    for training, best in ((True, 30), (False, 20)):
        boxes, kept_scores, start = [], [], 0
        for rows, columns in anchors.map_sides(64, 96, shapes.levels):
            end = start + rows * columns * 3
            order = start + np.argsort(-scores[start:end])[:best]
            centres = every[order].reshape(-1, 2, 2).mean(1)
            sides = every[order, 2:] - every[order, :2]
            centres = centres + found[order, 1:3] * sides
            halves = sides * np.exp(found[order, 3:]) / 2
            cut = np.concatenate([centres - halves, centres + halves], axis=1)
            cut = cut.clip(0, [90, 60, 90, 60])
            kept = []
            for number, box in enumerate(cut):
                if (box[2:] > box[:2]).all() and (iou(box[None], cut[kept]) <= 0.7).all():
                    kept.append(number)
            boxes.append(cut[kept])
            kept_scores.append(scores[order][kept])
            start = end
        order = np.argsort(-np.concatenate(kept_scores))[:25]
        tensors = paddle.to_tensor(found), paddle.to_tensor(every)
        result = proposals.proposals_of(*tensors, shapes, (64, 96), (60, 90), training)
        np.testing.assert_allclose(result, np.concatenate(boxes)[order], rtol=1e-12)


def test_levels_of_regions():
    sides = [1, 55, 56, 111, 112, 223, 224.0, 447, 448, 5000]
    boxes = np.array([[3, 4, 3 + side, 4 + side] for side in sides])
    assert levels_of(boxes).tolist() == [2, 2, 2, 2, 3, 3, 4, 4, 5, 5]
    assert levels_of(np.array([[0.0, 0, 448, 112], [5, 5, 5, 9]])).tolist() == [4, 2]


@pytest.mark.parametrize("method", METHODS)
def test_each_region_is_taken_from_its_level(method):
    """In the order of the boxes, over levels and images."""
    model, random = detector(dtype="float64", regions=method), np.random.default_rng(0)
    maps = [
        paddle.to_tensor(random.normal(size=(2, 32, *sides)))
        for sides in anchors.map_sides(512, 512, faster_rcnn.LEVELS)
    ]
    starts = random.uniform(0, 100, (2, 9, 2))
    sides = 2 ** random.uniform(3, 8.6, (2, 9, 2))
    boxes = [*np.concatenate([starts, starts + sides], axis=2)]
    boxes[0][4] = [2.5, 9, 470, 480]
    boxes[1] = boxes[1][:6]
    assert {*levels_of(np.concatenate(boxes))} == {2, 3, 4, 5}
    logits, codes = model._regarded(maps, boxes)
    places = [(image, one) for image in (0, 1) for one in boxes[image]]
    for number, (image, one) in enumerate(places):
        (level,) = levels_of(one[None])
        alone = regions(maps[level - 2][image : image + 1], [one[None]], 2**level, method)
        expected = model.box_head(alone)
        np.testing.assert_allclose(logits.numpy()[number], expected[0].numpy()[0], rtol=1e-9)
        np.testing.assert_allclose(
            codes.numpy()[number], expected[1].numpy()[0], rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("side", ["width", "height", "both"])
def test_gradients_of_small_regions(side):
    """Boxes smaller than a pixel of the map: Paddle's own gradient is wrong for them."""
    random = np.random.default_rng(5)
    width, height = (2.0 if side in (name, "both") else 20.0 for name in ("width", "height"))
    boxes = [np.array([[11, 17, 11 + width, 17 + height]])]
    values, way = random.normal(size=(2, 1, 4, 8, 8))
    x = paddle.to_tensor(values, stop_gradient=False)
    weights = paddle.to_tensor(random.normal(size=(1, 4, 7, 7)))
    (regions(x, boxes, 8) * weights).sum().backward()
    ends = [
        float((regions(paddle.to_tensor(values + step * way), boxes, 8) * weights).sum())
        for step in (1e-3, -1e-3)
    ]
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx((x.grad.numpy() * way).sum(), rel=1e-8)


# --- The whole ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_the_whole_by_differences(method, few, monkeypatch):
    """A random direction through each kind of layer; the proposals are constants."""
    model, images = detector(dtype="float64", regions=method), images_of(40, 32, "float64", 2)
    pick, random = slice(0, 2), np.random.default_rng(4)
    for norm in model.proposal_head.norm:  # a map of one pixel is 0: no kink of the ReLU there
        norm.bias.set_value(random.normal(size=norm.bias.shape))
    sum(losses_of(model, images, pick)).backward()
    with paddle.no_grad():
        _, found = model(images)
        fixed = model._proposals(images, found, model._anchors(images, found), SHOWN[pick])
    monkeypatch.setattr(model, "_proposals", lambda *given: fixed)
    for kind in (
        *("backbone.root", "backbone.block2", "backbone.block4", "pyramid.lateral"),
        *("pyramid.output", "pyramid.p6", "pyramid.norm", "proposal_head.conv"),
        *("proposal_head.norm", "proposal_head.objectness", "proposal_head.codes"),
        *("box_head.hidden", "box_head.classes", "box_head.codes"),
    ):
        chosen = [one for name, one in model.named_parameters() if name.startswith(kind)]
        values = [one.numpy() for one in chosen]
        ways = [random.normal(size=one.shape) * 0.1 for one in values]
        slope = sum((one.grad.numpy() * way).sum() for one, way in zip(chosen, ways))
        ends = []
        for step in (1e-6, -1e-6):
            for one, value, way in zip(chosen, values, ways):
                one.set_value(value + step * way)
            with paddle.no_grad():
                ends.append(float(sum(losses_of(model, images, pick))))
        for one, value in zip(chosen, values):
            one.set_value(value)
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-5), kind


def test_parts_of_a_batch_add_up(few):
    """Four images at once, two and two, one by one; one of them has no boxes."""
    model, images = detector(dtype="float64"), images_of(40, 32, "float64", 4)
    whole, gradients = with_gradients(model, images, [slice(0, 4)])
    assert (whole > 0).all()
    for size in (2, 1):
        parts = [slice(start, start + size) for start in range(0, 4, size)]
        total, found = with_gradients(model, images, parts)
        np.testing.assert_allclose(total, whole, rtol=1e-9)
        for name, gradient in gradients.items():
            bar = 1e-9 * np.abs(gradient).max()
            np.testing.assert_allclose(found[name], gradient, rtol=1e-9, atol=bar, err_msg=name)
    other = model.losses(images, BOXES, LABELS, SHOWN, [7, 8, 9, 10], 4)
    assert float(other.objectness) != pytest.approx(whole[0], rel=1e-6)


def test_no_boxes_and_boxes_without_area(few):
    model, images = detector(dtype="float64"), images_of(40, 32, "float64", 2)
    none, labels = [np.zeros((0, 4), np.float32)] * 2, [np.zeros(0, np.int64)] * 2
    found = model.losses(images, none, labels, SHOWN[:2], SEEDS[:2], 2)
    assert float(found.anchors) == float(found.boxes) == 0
    assert float(found.objectness) > 0 and float(found.classes) > 0
    sum(found).backward()
    assert all(np.isfinite(one.grad.numpy()).all() for one in model.parameters())
    bad = np.array([[4.0, 4, 4, 20], [9, 9, 5, 5], [6, 7, 6, 7]])
    boxes = [np.concatenate([bad, BOXES[0]]), bad]
    labels = [np.concatenate([[0, 1, 0], LABELS[0]]), np.array([0, 1, 1])]
    found = model.losses(images, boxes, labels, SHOWN[:2], SEEDS[:2], 4)
    expected = losses_of(model, images, slice(0, 2))
    assert [float(one) for one in found] == [float(one) for one in expected]


def test_an_image_without_proposals(few):
    """Weights that propose boxes far outside: the whole image is the only proposal."""
    model, images = detector(), images_of(40, 32, count=2)
    model.proposal_head.codes.bias.set_value(np.tile([1e4, 0, 0, 0], 3).astype("float32"))
    sum(losses_of(model, images, slice(0, 2))).backward()
    assert np.isfinite(model.box_head.classes.weight.grad.numpy()).all()
    model.eval()
    for found in model.candidates(images, SHOWN[:2]):
        assert len(found.scores) == 2 and np.isfinite(found.boxes).all()


@pytest.mark.parametrize("method", METHODS)
def test_detections_of_a_batch_are_those_of_one_by_one(method, few):
    model, images = detector(3, "float64", regions=method), images_of(72, 64, "float64", 3)
    random = np.random.default_rng(6)
    for layer in (model.box_head.classes, model.box_head.codes):
        layer.weight.set_value(random.normal(size=layer.weight.shape) * 0.2)
    model.eval()
    shown = [(72, 64), (50, 64), (72, 33)]
    with paddle.no_grad():
        together = model.candidates(images, shown)
        for number, (found, (height, width)) in enumerate(zip(together, shown)):
            (alone,) = model.candidates(images[number : number + 1], [shown[number]])
            assert len(found.scores) > 20 and np.array_equal(found.classes, alone.classes)
            np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-9)
            np.testing.assert_allclose(found.boxes, alone.boxes, rtol=1e-9, atol=1e-9)
            assert {*found.classes} == {0, 1, 2} and (np.diff(found.scores) <= 0).all()
            assert found.boxes.min() >= 0 and (found.boxes <= [width, height] * 2).all()


def test_class_boxes_are_decoded_with_their_weights(few):
    """Of each class its own box, moved by code / weight; scores without that of no object."""
    model = detector()
    with paddle.no_grad():
        model.box_head.classes.bias.set_value(np.array([1.0, 3.0, 2.0], "float32"))
        model.box_head.codes.bias.set_value(np.array([0, 0, 0, 0, 1, 2, 0.5, -1], "float32"))
        for layer in (model.box_head.classes, model.box_head.codes):
            layer.weight.set_value(np.zeros(layer.weight.shape, "float32"))
        model._proposals = lambda *given: [np.array([[10, 10, 30, 20]], np.float32)]
        (found,) = model.candidates(images_of(64, 64), [(64, 64)])
    assert found.classes.tolist() == [1, 0]
    scores = np.exp([3.0, 1, 2]) / np.exp([1.0, 2, 3]).sum()
    np.testing.assert_allclose(found.scores, scores[:2], rtol=1e-6)
    width, height = 20 * np.exp(0.1), 10 * np.exp(-0.2)
    x, y = 20 + 20 * 0.1, 15 + 10 * 0.2
    moved = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    np.testing.assert_allclose(found.boxes, [moved, [10, 10, 30, 20]], rtol=1e-6)


def test_a_fit_reaches_the_boxes(few):
    """Two images with two rectangles of two classes, in 150 steps with momentum.

    After 60, 90 or 120 the last digits, which processors and threads change, still decide.
    """
    random, boxes = np.random.default_rng(0), np.array([[6, 8, 30, 26], [34, 30, 56, 60]])
    boxes = [boxes.astype(np.float32), boxes[:, [1, 0, 3, 2]].astype(np.float32)]
    pixels = random.uniform(-0.2, 0.2, (2, 3, 64, 64)).astype(np.float32)
    for image, of_image in zip(pixels, boxes.copy()):
        for label, (x1, y1, x2, y2) in enumerate(of_image.astype(int)):
            image[:, y1:y2, x1:x2] = np.array([[1, -1, -1], [-1, 1, 1]])[label, :, None, None]
    backbone = create_model("R14x0.5", 0)
    backbone.reset_parameters(0)
    model = FasterRCNN(backbone, 2, channels=32)
    images, labels, shown = paddle.to_tensor(pixels), [np.arange(2)] * 2, [(64, 64)] * 2
    optimizer = paddle.optimizer.Momentum(0.02, 0.9, parameters=model.parameters())
    for step in range(150):
        optimizer.set_lr(0.03 * min(1, (step + 1) / 10))
        sum(model.losses(images, boxes, labels, shown, [2 * step, 2 * step + 1], 2)).backward()
        optimizer.step()
        optimizer.clear_grad()
    model.eval()
    with paddle.no_grad():
        found = [detections.nms(one) for one in model.candidates(images, shown)]
    for one, expected in zip(found, boxes):
        sure = one.chosen(np.flatnonzero(one.scores > 0.5))
        assert sorted(sure.classes) == [0, 1]
        assert (iou(expected, sure.boxes[np.argsort(sure.classes)]).diagonal() > 0.75).all()


# --- Cost, and what every network does ----------------------------------------------------------


def test_cost():
    """The formulas count what the layers do, also of odd sides."""
    description = Detector(("a", "b", "c"), channels=32, kind="faster_rcnn")
    model, counted = network(description, create_model("R14x0.5", 0)), []
    assert isinstance(model, FasterRCNN) and model.shapes.sides()[0].tolist() == [8, 8]
    assert len(model(images_of(70, 129))[1][0]) == len(anchors.anchors_of(70, 129, model.shapes))
    for layer in model.sublayers():
        if isinstance(layer, (StdConv2D, BiasedConv2D, paddle.nn.Linear)):
            layer.register_forward_post_hook(
                lambda layer, inputs, output: counted.append(
                    layer.weight.size * int(np.prod([output.shape[0], *output.shape[2:]]))
                )
            )
    model(images_of(96, 96))
    model._regarded(
        [paddle.zeros([1, 32, 8, 8])] * 4, [np.tile(np.array([[0.0, 0, 9, 9]]), (10, 1))]
    )
    architecture = model.backbone.architecture
    assert sum(counted) == cost.two_stage_multiply_adds(architecture, 96, 3, 32, regions=10)
    assert sum(one.size for one in model.parameters()) == description.parameters(architecture)
    more = description.multiply_adds(architecture, 96) - sum(counted)
    assert more == 990 * sum(
        one.weight.size for one in model.box_head.sublayers() if hasattr(one, "weight")
    )
    sides = (128, 256)
    assert description.activations(architecture, sides, "block") < description.activations(
        architecture, sides
    )


def test_cost_of_the_published_size():
    """Torchvision's fasterrcnn_resnet50_fpn: 41,755,286 parameters, 134.38 G at 800 pixels.

    P6, a convolution here, and the GroupNorms come on top.
    """
    architecture, p6 = Architecture.parse("R50x1"), 9 * 256 * 256
    found = cost.two_stage_parameters(architecture, 90)
    assert (found - p6) / 1e6 == pytest.approx(41.755, abs=0.06)
    found = cost.two_stage_multiply_adds(architecture, 800, 90)
    assert (found - p6 * 13**2) / 1e9 == pytest.approx(134.38, abs=0.1)


def test_initial_outputs():
    """Nothing is likely at first but all alike; weights depend on the seed alone."""
    one, same, other = detector(seed=1), detector(seed=1), detector(seed=2)
    outputs = [model(images_of(64, 64))[1].numpy() for model in (one, same, other)]
    assert np.array_equal(outputs[0], outputs[1]) and not np.array_equal(outputs[0], outputs[2])
    assert np.abs(outputs[0]).max() < 0.5
    weights = one.box_head.hidden[0].weight.numpy()
    assert weights.std() == pytest.approx((32 * 49) ** -0.5, rel=0.01)
    assert one.box_head.codes.weight.numpy().std() == pytest.approx(0.001, rel=0.05)


@pytest.fixture(scope="module")
def operators():
    try:
        return build.load(lambda text: None)
    except build.Unavailable as reason:
        pytest.skip(str(reason))


def test_compiled_operators(operators, few):
    """The same maps and losses, and gradients everywhere, with a frozen backbone, too."""
    model, images = detector(channels=64), images_of(68, 64, count=2)
    found = []
    for one in (plain, operators[0]):
        model.compute_with(one)
        maps, outputs = model(images)
        found.append([*(x.numpy() for x in maps), outputs.numpy()])
    for one, other in zip(*found):
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-3 * np.abs(one).max())
    sum(losses_of(model, images, slice(0, 2))).backward()
    assert all(np.isfinite(one.grad.numpy()).all() for one in model.parameters())
    for one in model.parameters():
        one.clear_gradient(False)
    model.learn_only("head")
    sum(losses_of(model, images, slice(0, 2))).backward()
    with_gradient = {name for name, one in model.named_parameters() if one.grad is not None}
    assert with_gradient == set(model.learned())
    assert not any(name.startswith("backbone") for name in with_gradient)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision(amp, few, monkeypatch):
    model, images = detector(), images_of(64, 64, count=2)
    whole = [*losses_of(model, images, slice(0, 2))]
    _, found = model(images)
    fixed = model._proposals(images, found, model._anchors(images, found), SHOWN[:2])
    monkeypatch.setattr(model, "_proposals", lambda *given: fixed)
    model.amp = amp
    half = losses_of(model, images, slice(0, 2))
    assert all(one.dtype == paddle.float32 for one in half)
    np.testing.assert_allclose([float(x) for x in half], [float(x) for x in whole], rtol=0.05)
    sum(half).backward()
    assert all(np.isfinite(one.grad.numpy()).all() for one in model.parameters())


@pytest.mark.parametrize("what", ["unit", "block"])
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_recompute_gives_the_same_bits(what, amp, few):
    found = []
    for recompute in ("off", what):
        model = detector()
        model.amp, model.recompute = amp, recompute
        found.append(with_gradients(model, images_of(40, 32, count=4), [slice(0, 2), slice(2, 4)]))
    assert np.array_equal(found[0][0], found[1][0])
    assert all(np.array_equal(found[1][1][name], one) for name, one in found[0][1].items())
