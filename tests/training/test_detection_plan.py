"""The plan of a detection: parts of the data, views, the reach of anchors, memory."""

import dataclasses
import json
import shutil

import numpy as np
import paddle
import pytest
from helpers.squares import make_squares
from PIL import Image

from bit_paddle.config.detection_settings import DetectionSettings
from bit_paddle.data.boxes import loader, parts
from bit_paddle.data.boxes.views import common_sides
from bit_paddle.errors import DataError, OutOfMemoryError
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.detection import configuration, cost
from bit_paddle.models.detection.anchors import SHAPES, anchors_of, targets_of
from bit_paddle.models.detection.boxes import iou
from bit_paddle.models.detection.configuration import Detector
from bit_paddle.models.detection.losses import losses
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.system import environment
from bit_paddle.training.detection.plan import make_plan
from bit_paddle.training.detection.reach import reach_of
from bit_paddle.training.memory import split_further


def plan_of(folder, **changes):
    values = {"batch": 2, "side": 128, "from_scratch": True, **changes}
    return make_plan(DetectionSettings("R14x0.5", str(folder / "boxes.json"), **values))


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return make_squares(tmp_path_factory.mktemp("squares"), 12)


# --- The parts ----------------------------------------------------------------------------------


def test_out_of_memory_advises_a_flag_that_the_command_has(squares):
    with pytest.raises(OutOfMemoryError, match="1 image per micro-batch; take a smaller --side"):
        split_further(plan_of(squares, batch=1), 1)


def test_crowds_alone_are_nothing_to_train_on(squares, tmp_path):
    content = json.loads((squares / "boxes.json").read_text())
    for box in content["annotations"]:
        box["iscrowd"] = 1
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="all boxes are crowds .iscrowd.; there is none to train"):
        parts.open_parts(str(tmp_path / "boxes.json"), str(squares / "images"))


def test_a_tenth_is_held_out(squares):
    plan = plan_of(squares, val_fraction=0.25)
    train, val = set(plan.data.train.paths), set(plan.data.val.paths)
    assert (len(train), len(val)) == (9, 3) and not train & val
    assert "3 of 12 images are held out, 25% (--val_fraction)" in " ".join(plan.notes())
    smaller = plan_of(squares)
    assert len(smaller.data.val) == 1 and set(smaller.data.val.paths) < val
    assert smaller.data_identity != plan.data_identity
    for part in (plan.data.train, plan.data.val):  # each box stays with its image
        whole = parts.open_parts(str(squares / "boxes.json"), val_boxes=str(squares / "boxes.json"))
        for path, boxes, number in zip(part.paths, part.boxes, part.ids):
            place = whole.train.paths.index(path)
            assert np.array_equal(whole.train.boxes[place], boxes)
            assert whole.train.ids[place] == number


def test_validation_has_the_classes_of_training(squares, tmp_path):
    content = json.loads((squares / "boxes.json").read_text())
    content["categories"] = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    plan = plan_of(squares, val_boxes=str(other), val_images=str(squares / "images"))
    assert plan.data.val.classes == plan.data.train.classes == ["blue", "red"]
    labels = np.concatenate(plan.data.val.labels), np.concatenate(plan.data.train.labels)
    assert np.array_equal(labels[0], 1 - labels[1])


def test_the_identity_is_of_names_and_boxes(squares, tmp_path):
    before = plan_of(squares).data_identity
    moved = make_squares(tmp_path / "moved", 12)
    assert plan_of(moved).data_identity == before
    content = json.loads((moved / "boxes.json").read_text())
    content["annotations"][-1]["bbox"][2] += 0.5
    (moved / "boxes.json").write_text(json.dumps(content))
    assert plan_of(moved).data_identity != before


def test_unusable_images_are_reported_at_once(tmp_path):
    folder = make_squares(tmp_path / "squares")
    Image.new("RGB", (96, 128)).save(folder / "images/2.png")
    (folder / "images/4.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="2 of 6 images cannot be used") as caught:
        plan_of(folder)
    assert "2.png: has 96 x 128 pixels, but its boxes are for 128 x 96" in str(caught.value)
    assert "4.png: not an image" in str(caught.value)
    plan = plan_of(folder, on_bad_image="skip", val_fraction=0.4)
    assert sorted([*plan.data.train.paths, *plan.data.val.paths]) == [f"{k}.png" for k in "0135"]
    (note,) = [note for note in plan.notes() if "skipped (--on_bad_image skip)" in note]
    assert "2 unreadable images" in note and "96 x 128" in note and "not an image" in note
    for path in folder.glob("images/*.png"):
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="skip: no image with a box can be used: .*not an image"):
        plan_of(folder, on_bad_image="skip")


def test_skipped_images_may_leave_a_class_without_boxes(squares, tmp_path):
    content = json.loads((squares / "boxes.json").read_text())
    content["annotations"] = [
        box for box in content["annotations"] if box["category_id"] == 1 or box["image_id"] == 3
    ]
    folder = shutil.copytree(squares, tmp_path / "squares")
    (folder / "boxes.json").write_text(json.dumps(content))
    options = {"val_boxes": str(folder / "boxes.json"), "on_bad_image": "skip"}
    assert not any("without a" in note for note in plan_of(folder, **options).notes())
    (folder / "images/3.png").write_bytes(b"nothing")
    notes = " ".join(plan_of(folder, **options).notes())
    assert "1 of 2 classes without a training box: red" in notes


# --- Views and anchors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "originals, longest, sides",
    [
        ([(480, 640)], 320, (256, 384)),
        ([(480, 640), (300, 640)], 640, (512, 640)),
        ([(480, 640), (640, 480)], 320, (384, 384)),
        ([(640, 480)], 1024, (1024, 768)),
    ],
)
def test_views_hold_every_image(originals, longest, sides):
    assert common_sides(np.array(originals), longest) == sides


def test_the_view_and_the_pyramid_of_the_recipe(squares):
    plan = plan_of(squares, recipe="detectron", anchor_base=2.0, scale_min=0.5)
    assert plan.sides == (128, 128) and plan.scales == (0.5, 1.0) and plan.flip
    assert plan.detector.p6_from_c5 and plan.detector.base == 2.0
    assert not plan_of(squares).detector.p6_from_c5


def test_boxes_that_no_anchor_reaches():
    """Counted as with all anchors; the settings that are named reach all that they promise."""
    random, shapes = np.random.default_rng(0), SHAPES["tpu"]
    starts = random.uniform(0, 80, (60, 2))
    boxes = np.hstack([starts, starts + random.uniform(8, 40, (60, 1))])
    found = reach_of([boxes[:20], boxes[20:]], np.array([[128, 128]] * 2), 128, shapes)

    def missed(side, shapes):
        best = iou(boxes * side / 128, anchors_of(side, side, shapes, np.float64)).max(1)
        return int((best < 0.5).sum())

    assert found.missed == missed(128, shapes) > 0 and found.total == 60
    side, base = found.side, found.base
    assert missed(side[0], shapes) == side[1] < found.missed
    assert missed(128, dataclasses.replace(shapes, base=base[0])) == base[1] < found.missed
    assert f"--side {side[0]}" in found.notes()[0] and "--anchor_base" in found.notes()[0]


def test_the_plan_says_which_settings_reach_all(tmp_path):
    folder = make_squares(tmp_path / "small", 8, sides=(12, 16))
    row = dict(plan_of(folder).rows())["anchors"]
    assert "sides of 32 to 813 pixels; 0 of 12 training boxes" in row
    assert "--side 256 (all)" in " ".join(plan_of(folder).notes())
    assert not plan_of(folder, side=256).reach.notes()


# --- Memory -------------------------------------------------------------------------------------


def test_estimated_split(squares):
    plan = plan_of(squares, batch=8)
    image = plan.demand.activations("off", False)
    splits = [plan.batch_split(memory) for memory in (1, image * 3, 17 * image)]
    assert splits == [8, 3, 1]
    assert plan.demand.activations("off", True) < image
    assert plan.demand.activations("unit", False) < image
    assert plan_of(squares, batch=8, recompute="unit").batch_split(image * 3) == 2
    assert plan_of(squares, side=256).demand.activations("off", False) > 3 * image
    assert plan.activation_memory(1 << 30, False, 1) < 1 << 30
    assert plan.activation_memory(0, False, 1) == 0


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_the_plan_counts_two_batches_of_views_and_targets(squares, monkeypatch, detector):
    plan = plan_of(squares, batch=4, detector=detector)
    how = loader.Views(plan.sides, 128, plan.scales, plan.flip)
    anchors, matching = anchors_of(*plan.sides, plan.detector.shapes), plan.detector.matching

    def aims(boxes, labels):
        dense = detector == "retinanet"
        return targets_of(boxes, labels, anchors, matching) if dense else ()

    batch = next(loader.training_batches(plan.data.train, how, aims, 4, seed=0, workers=0))
    arrays = [array for one in batch.share for array in (one.pixels, *one.targets)]
    assert plan.held_bytes == 2 * sum(array.nbytes for array in arrays)
    shared = plan_of(squares, batch=4, nproc=2, detector=detector)
    assert shared.held_bytes == plan.held_bytes / 2
    assert f"{plan.held_bytes / 1e6:,.1f} MB for the views" in dict(plan.rows())["memory"]
    assert not any("two batches" in note for note in plan.notes())
    assert plan.cache_bytes == environment.memory_bytes() // 4 - plan.held_bytes
    monkeypatch.setattr(environment, "memory_bytes", lambda: 2 * plan.held_bytes)
    assert any("of two batches take 0.0 of the 0.0 GB" in note for note in plan.notes())
    assert plan.cache_bytes == 0 and plan_of(squares, cache_gb=0.5).cache_bytes == 5 * 10**8


def test_processes_share_the_cache(squares, monkeypatch):
    """They have what the command that starts them has planned: none divides its share again."""
    plan = plan_of(squares, nproc=2)
    planned = plan.cache_bytes
    assert planned == environment.memory_bytes() // 2 // 4 - plan.held_bytes
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    monkeypatch.setenv("PADDLE_LOCAL_SIZE", "2")
    assert plan.cache_bytes == planned


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["off", "unit"])
def test_activations_are_about_what_paddle_asks_for(recompute):
    """By Paddle's own count of a CPU's memory, between two sizes of micro-batch."""
    core = paddle.base.core
    if not hasattr(core, "host_memory_stat_reset_peak_value"):
        pytest.skip("this Paddle cannot count anew")
    architecture, sides = Architecture((1, 1, 1, 1), 0.5), (128, 256)
    backbone = ResNetV2(architecture, 0)
    backbone.reset_parameters()
    detector = Detector(("a", "b"), channels=64, depth=2)
    model = configuration.network(detector, backbone)
    model.recompute = recompute
    anchors = anchors_of(*sides, detector.shapes)
    peaks = []
    for images in (1, 5):
        classes = np.full((images, len(anchors)), -1)
        classes[:, ::100] = 0
        targets = [classes, np.ones((images, *anchors.shape), "f4"), anchors]
        model.clear_gradients()
        with model.standardized_once():
            for _ in range(2):  # gradients of kernels are there in the second
                before = core.host_memory_stat_current_value("Allocated", 0)
                core.host_memory_stat_reset_peak_value("Allocated", 0)
                found = model(paddle.zeros([images, 3, *sides]))
                sum(losses(*found, *map(paddle.to_tensor, targets), 1.0)).backward()
                del found
        peaks.append(core.host_memory_stat_peak_value("Allocated", 0) - before)
    measured = (peaks[1] - peaks[0]) / 4
    estimate = cost.activations(architecture, sides, 2, 64, 2, recompute)
    assert 0.95 * measured < estimate < (1.2 if recompute == "off" else 1.4) * measured
