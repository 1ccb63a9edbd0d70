"""The losses of a detector and their gradients, against the reference code and torchvision."""

import numpy as np
import paddle
import pytest
from helpers.places import GOLDEN

from bit_paddle.models.detection import anchors, losses
from bit_paddle.models.detection.anchors import IGNORED, MATCHINGS, NEGATIVE, SHAPES
from bit_paddle.models.detection.boxes import decode, encode

YX = [1, 0, 3, 2]
SIDES = (32, 16, 8, 4, 2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_and_gradients_of_the_reference_code(dtype):
    reference = dict(np.load(GOLDEN / "detection_reference.npz"))
    rng = np.random.default_rng(0)
    rng.random(48), rng.integers(1, 91, 12)
    logits = [rng.standard_normal((1, n, n, 810)).astype("float32") * 2 - 3 for n in SIDES]
    codes = [rng.standard_normal((1, n, n, 36)).astype("float32") * np.float32(0.2) for n in SIDES]
    found = anchors.anchors_of(256, 256, SHAPES["tpu"], np.dtype(dtype))
    boxes = reference["gt"][:, YX].astype(dtype)
    target = anchors.targets_of(boxes, reference["labels"] - 1, found, MATCHINGS["tpu"])
    logits = np.concatenate([part.reshape(1, -1, 90) for part in logits], axis=1)
    codes = np.concatenate([part.reshape(1, -1, 4) for part in codes], axis=1)[..., YX]
    logits, codes = leaf(logits.astype(dtype)), leaf(codes.astype(dtype))
    result = losses.losses(
        logits,
        codes,
        paddle.to_tensor(target.classes[None]),
        paddle.to_tensor(target.codes[None]),
        paddle.to_tensor(found),
        len(reference["matched"]) + 1,
    )
    assert float(result.classes) == pytest.approx(reference["cls_loss"], rel=1e-6)
    assert float(result.boxes) == pytest.approx(50 * reference["box_loss"], rel=2e-6)
    total = result.classes + result.boxes
    assert float(total) == pytest.approx(reference["total"], rel=1e-6)
    total.backward()
    level5 = slice(9 * (32**2 + 16**2), 9 * (32**2 + 16**2 + 8**2))
    gradient = logits.grad.numpy()[0, level5].astype(np.float64)
    np.testing.assert_allclose(gradient.ravel()[::17], reference["grad_cls5"], 1e-4, 1e-9)
    assert np.linalg.norm(gradient) == pytest.approx(reference["grad_cls5_norm"], rel=1e-6)
    gradient = codes.grad.numpy()[0, level5][:, YX]
    np.testing.assert_allclose(gradient, reference["grad_box5"], 2e-4, 1e-8)


def leaf(values):
    return paddle.to_tensor(values, stop_gradient=False)


def test_focal_loss_of_torchvision():
    golden = dict(np.load(GOLDEN / "detection_torchvision.npz"))
    logits = leaf(golden["focal_logits"].reshape(-1, 1))
    classes = np.where(golden["focal_targets"].ravel() == 1, 0, NEGATIVE)
    value = losses.focal(logits, paddle.to_tensor(classes))
    assert float(value) == pytest.approx(golden["focal"], rel=1e-12)
    value.backward()
    np.testing.assert_allclose(logits.grad.numpy(), golden["focal_grad"].reshape(-1, 1), 0, 1e-9)


def test_ignored_anchors_have_no_loss():
    logits = leaf(np.array([[3.0, -2.0], [40.0, -1000.0], [1.0, 1.0]]))
    losses.focal(logits, paddle.to_tensor([1, NEGATIVE, IGNORED])).backward()
    gradient = logits.grad.numpy()
    assert not gradient[2].any() and gradient[0].all() and np.isfinite(gradient).all()
    right = losses.focal(leaf(np.array([[-1000.0, 1000.0]])), paddle.to_tensor([1]))
    assert float(right) == 0  # certain and right


def test_huber_loss_by_hand():
    """0.05 costs 0.05² / 2, 1.0 costs 0.1 (1 - 0.05); a target of exactly 0 costs nothing."""
    codes = leaf(np.array([[0.25, 1.3, 7.0, 0.2]]))
    targets = paddle.to_tensor(np.array([[0.2, 0.3, 0.0, 0.2]]))
    value = losses.huber(codes, targets, None, None)
    assert float(value) == pytest.approx((0.05**2 / 2 + 0.1 * 0.95) / 4)
    value.backward()
    np.testing.assert_allclose(codes.grad.numpy() * 4, [[0.05, 0.1, 0, 0]], atol=1e-12)


def test_giou_loss_by_hand():
    """Squares of 2 at a distance of 1: IoU 0, the hull 10, the union 8; overlapping by half."""
    anchor = np.array([[0.0, 0, 2, 2]])
    for box, expected in (([3.0, 0, 5, 2], 1 + 2 / 10), ([1.0, 0, 3, 2], 1 - 1 / 3)):
        codes = leaf(encode(np.array([box]), anchor))
        value = losses.giou(
            codes,
            paddle.zeros([1, 4], "float64"),
            paddle.to_tensor([True]),
            paddle.to_tensor(anchor),
        )
        assert float(value) == pytest.approx(expected, rel=1e-12)


def test_gradient_of_giou_by_differences():
    rng = np.random.default_rng(5)
    anchor = paddle.to_tensor(rng.uniform(0, 20, (6, 4)).cumsum(axis=1))
    codes, targets = leaf(rng.normal(0, 0.5, (6, 4))), paddle.to_tensor(rng.normal(0, 0.5, (6, 4)))
    positive = paddle.to_tensor([True, True, False, True, True, True])
    losses.giou(codes, targets, positive, anchor).backward()
    gradient = codes.grad.numpy()
    assert not gradient[2].any()
    for index in np.ndindex(6, 4):
        ends = []
        for step in (1e-6, -1e-6):
            moved = codes.numpy().copy()
            moved[index] += step
            ends.append(float(losses.giou(paddle.to_tensor(moved), targets, positive, anchor)))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(gradient[index], rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("box_loss", losses.BOX_LOSSES)
def test_an_image_without_boxes(box_loss):
    found = anchors.anchors_of(64, 64, SHAPES["tpu"])
    none = np.zeros((0, 4), np.float32)
    target = anchors.targets_of(none, np.zeros(0, np.int64), found, MATCHINGS["tpu"])
    logits = leaf(np.full((1, len(found), 3), -4.6, np.float32))
    codes = leaf(np.full((1, len(found), 4), 1e4, np.float32))  # decoded sides have a limit
    result = losses.losses(
        logits,
        codes,
        *(paddle.to_tensor(part[None]) for part in target),
        paddle.to_tensor(found),
        1.0,
        box_loss,
    )
    assert float(result.boxes) == 0 and 0 < float(result.classes) < 1
    (result.classes + result.boxes).backward()
    assert not codes.grad.numpy().any() and np.isfinite(logits.grad.numpy()).all()
    assert np.isfinite(decode(codes, paddle.to_tensor(found)).numpy()).all()
