"""Detections of images of different shapes, in batches and over several views."""

import numpy as np
import paddle
import pytest
from helpers.pictures import cloud

from bit_paddle import create_model
from bit_paddle.data.boxes.looks import Looks, evaluation_views
from bit_paddle.data.boxes.views import GREY, View
from bit_paddle.errors import ConfigError
from bit_paddle.inference import detecting
from bit_paddle.inference.parts import Parts
from bit_paddle.models.detection import anchors, configuration, detections
from bit_paddle.models.detection.boxes import decode, iou
from bit_paddle.models.detection.configuration import Detector
from bit_paddle.models.detection.detections import Detections
from bit_paddle.models.detection.retinanet import RetinaNet
from bit_paddle.system.device import to_device

SIZES = [(90, 120), (120, 90), (96, 96), (30, 200), (200, 50), (128, 128)]  # (height, width)


class Pictures:
    """Clouds of these sizes, which count how often they are opened."""

    def __init__(self, sizes=SIZES):
        self.sizes, self.opened = sizes, []

    def image(self, index):
        self.opened.append(index)
        height, width = self.sizes[index]
        return cloud(index, width, height)


@pytest.fixture
def float64():
    """Networks are in float64 for the length of a test."""
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype("float32")


@pytest.fixture
def network(float64):
    """A random detector in float64, whose scores differ much from anchor to anchor."""
    model = RetinaNet(create_model("R14x0.5", 0), 3, channels=32, depth=1)
    random = np.random.default_rng(0)
    for tower, scale in ((model.class_tower, 0.2), (model.box_tower, 0.05)):
        weight = tower.predict.weight
        weight.set_value(random.normal(0, scale, weight.shape))
    model.eval()
    return model


def one_by_one(network, picture, sides, scaled, least):
    """The detections of one unmirrored view, written out."""
    view = View((picture.height, picture.width), scaled, sides)
    with paddle.no_grad():
        logits, codes = network(to_device(view.pixels(picture)[None]))
    boxes = decode(codes[0], paddle.to_tensor(anchors.anchors_of(*sides, network.shapes, "f8")))
    boxes = boxes.numpy().clip(0, [scaled[1], scaled[0]] * 2)
    scores = 1 / (1 + np.exp(-logits[0].numpy()))
    rows, classes = np.nonzero(scores >= least)
    rows, classes = (
        each[(boxes[rows, 2:] > boxes[rows, :2]).all(axis=1)] for each in (rows, classes)
    )
    ratio = np.array(picture.size * 2) / np.array(scaled[::-1] * 2)
    return detections.nms(Detections(boxes[rows] * ratio, scores[rows, classes], classes))


@pytest.mark.parametrize("batch, workers", [(1, 0), (2, 2), (8, 0)])
def test_of_different_shapes(network, batch, workers):
    """Any batch gives each image the detections that it has alone."""
    images = Pictures()
    found = detecting.detections_of(
        network, images, [5, 0, 2, 1, 3, 4], Looks(200), least_score=0.3, batch=batch,
        workers=workers,
    )  # fmt: skip
    found = dict(found)
    assert sorted(found) == list(range(6)) and sorted(images.opened) == list(range(6))
    scaled = [(150, 200), (200, 150), (200, 200), (30, 200), (200, 50), (200, 200)]
    sides = [(256, 256)] * 3 + [(128, 256), (256, 128), (256, 256)]
    for index, one in found.items():
        alone = one_by_one(network, images.image(index), sides[index], scaled[index], 0.3)
        assert 5 < len(alone.scores) <= 100
        np.testing.assert_allclose(one.scores, alone.scores, atol=1e-9)
        np.testing.assert_allclose(one.boxes, alone.boxes, atol=1e-9)
        assert np.array_equal(one.classes, alone.classes)
        height, width = SIZES[index]
        assert (one.boxes >= 0).all() and (one.boxes <= [width, height, width, height]).all()


@pytest.mark.parametrize("suppression", detecting.SUPPRESSIONS)
def test_of_several_views(network, suppression):
    """All views of an image are merged before one suppression, in the image's pixels."""
    images, looks = Pictures(), Looks(128, (1.0, 1.5), flip=True)
    (seen,) = evaluation_views(images, [0], looks)
    assert [view.sides for view in seen.views] == [(128, 128)] * 2 + [(256, 256)] * 2
    assert [view.scaled for view in seen.views] == [(96, 128)] * 2 + [(144, 192)] * 2
    assert np.array_equal(seen.pixels[1][:, :96], seen.pixels[0][:, :96, ::-1])
    assert (seen.pixels[1][:, 96:] == GREY).all()
    every = []
    with paddle.no_grad():
        for view, pixels in zip(seen.views, seen.pixels):
            (one,) = network.candidates(to_device(pixels[None]), [view.shown])
            one = one.chosen(one.scores >= 0.3)
            every.append(one._replace(boxes=view.restored(one.boxes)))
    every = detections.merged(every)
    expected = detections.nms(every)
    if suppression == "soft-nms":
        expected = detections.soft_nms(every, least=0.3)
    ((index, found),) = detecting.detections_of(
        network, images, [0], looks, suppression=suppression, least_score=0.3, batch=3
    )
    assert index == 0 and len(found.scores) > 10 and found.scores.min() >= 0.3
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_views_are_computed_in_smaller_parts_where_memory_runs_out(network, monkeypatch):
    """Here two views are too many; the detections are those of whole batches."""
    whole = dict(detecting.detections_of(network, Pictures(), range(6), Looks(200), batch=8))
    tried, lines, candidates = [], [], network.candidates

    def limited(pixels, shown):
        tried.append(len(pixels))
        if len(pixels) > 2:
            raise MemoryError
        return candidates(pixels, shown)

    monkeypatch.setattr(network, "candidates", limited)
    options = {"batch": 8, "parts": Parts(lines.append)}
    found = dict(detecting.detections_of(network, Pictures(), range(6), Looks(200), **options))
    assert tried == [4, 2, 2, 1, 1] and len(lines) == 1 and "from now on 2 images" in lines[0]
    assert sorted(found) == sorted(whole)
    for index, one in found.items():
        np.testing.assert_allclose(one.scores, whole[index].scores, atol=1e-9)
        np.testing.assert_allclose(one.boxes, whole[index].boxes, atol=1e-9)


def test_a_mirrored_view_alone_finds_mirrored_boxes(network):
    """What a detector finds in the mirrored image, the mirrored view finds at the other side."""

    class Mirrored(Pictures):
        def image(self, index):
            return super().image(index).transpose(0)

    (seen,) = evaluation_views(Pictures(), [5], Looks(128, flip=True))
    view, pixels = seen.views[1], seen.pixels[1]
    with paddle.no_grad():
        (one,) = network.candidates(to_device(pixels[None]), [view.shown])
    restored = view.restored(one.boxes)
    ((_, other),) = detecting.detections_of(network, Mirrored(), [5], Looks(128), least_score=0.3)
    mirrored = other.boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [128, 0, 128, 0]
    assert len(mirrored) > 5 and iou(mirrored, restored).max(axis=1).min() > 1 - 1e-9


def test_faults(network):
    with pytest.raises(ConfigError, match="did you mean soft-nms"):
        list(detecting.detections_of(network, Pictures(), [0], Looks(128), suppression="soft_nms"))
    assert list(detecting.detections_of(network, Pictures(), [], Looks(128))) == []


@pytest.fixture(scope="module")
def model():
    """A random detector in float32."""
    detector = Detector(("blue", "red"), channels=32, depth=0, side=128)
    net = configuration.network(detector, create_model("R14x0.5", 0))
    net.eval()
    return detecting.DetectorModel(net, detector)


def test_what_cannot_be_measured(model):
    for options in ({"side": 0}, {"scales": []}, {"scales": (1.0, 0.0)}):
        with pytest.raises(ConfigError, match="expected a side of 1 or more pixels"):
            model.detect([], **options)


def test_detections_of_given_images(model):
    """Paths and pictures, one or several, in their order."""
    pictures = [cloud(0, 100, 60), cloud(1, 60, 100), cloud(2, 100, 100)]
    every = model.detect(pictures, least_score=0.0)
    for picture, one in zip(pictures, every):
        (alone,) = model.detect(picture, least_score=0.0)
        assert len(alone.scores) == len(one.scores) > 10
        assert abs(alone.scores - one.scores).max() < 1e-5
        assert (one.boxes[:, 2] <= picture.width).all()
    assert model.classes == ("blue", "red")
    assert len(model.detect(pictures[0], least_score=0.999)[0].scores) == 0


@pytest.mark.parametrize("kind", configuration.KINDS)
def test_any_batch_of_any_detector(kind, float64):
    """In float64 the detections of an image do not depend on those beside it."""
    detector = Detector(("blue", "red"), channels=32, depth=0, side=128, kind=kind)
    net = configuration.network(detector, create_model("R14x0.5", 0))
    net.eval()
    single, several = (
        dict(detecting.detections_of(net, Pictures(), range(6), Looks(200), batch=batch))
        for batch in (1, 4)
    )
    for index, one in single.items():
        assert len(one.scores) > 5
        np.testing.assert_allclose(several[index].scores, one.scores, atol=1e-9)
        np.testing.assert_allclose(several[index].boxes, one.boxes, atol=1e-7)
