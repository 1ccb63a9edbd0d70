"""The rule against the reference code's, step by step, and the paper's against its text."""

import numpy as np
import pytest
from conftest import GOLDEN

from bit_paddle.recipes import hyperrule

golden = np.load(GOLDEN / "hyperrule.npz")
SIZES = [int(key.split("/")[1]) for key in golden.files if key.startswith("schedule/")]


@pytest.mark.parametrize("size", SIZES)
def test_schedule_learning_rates_and_mixup(size):
    schedule = hyperrule.schedule(size)
    assert [schedule.warmup, *schedule.drops, schedule.steps] == golden[f"schedule/{size}"].tolist()
    assert hyperrule.mixup_alpha(size) == golden[f"mixup/{size}"]
    rates = [schedule.learning_rate(step) for step in range(schedule.steps)]
    assert rates == golden[f"lr/{size}"].tolist()  # exactly, every step


def test_resolution():
    for size, pair in zip(golden["resolution/sizes"], golden["resolution/precrop_crop"]):
        found = hyperrule.resolution(*size)
        assert [found.precrop, found.crop] == pair.tolist(), size


def test_paper_rule():
    schedule = hyperrule.schedule(1_000, "paper")
    assert (schedule.warmup, schedule.drops, schedule.steps) == (0, (150, 300, 450), 500)
    assert schedule.learning_rate(0) == 0.003
    assert schedule.learning_rate(150) == 0.003 and schedule.learning_rate(151) == pytest.approx(
        0.0003
    )
    assert hyperrule.schedule(500_000, "paper").drops == (6000, 12000, 18000)
    assert hyperrule.resolution(300, 300, "paper") == hyperrule.Resolution(448, 384)
    assert hyperrule.resolution(300, 300, "paper", "R152x4") == hyperrule.Resolution(512, 480)
    assert hyperrule.resolution(32, 32, "paper", "R152x4") == hyperrule.Resolution(160, 128)


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 333, 1000, 20_000])
def test_scaled_keeps_proportions(steps):
    whole = hyperrule.schedule(50_000)
    scaled = whole.scaled(steps)
    assert scaled.steps == steps
    for found, of in zip((scaled.warmup, *scaled.drops), (whole.warmup, *whole.drops)):
        assert abs(found - of * steps / whole.steps) <= 0.5
    assert all(rate >= 0 for rate in map(scaled.learning_rate, range(steps)))


def test_scaled_to_its_own_length_is_itself():
    assert hyperrule.schedule(5).scaled(500) == hyperrule.schedule(5)
