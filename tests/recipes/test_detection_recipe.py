"""The recipe of detection: the paper's schedule on COCO, and on small data."""

from bit_paddle.recipes import detection
from bit_paddle.recipes.hyperrule import Schedule


def test_schedule_on_coco():
    """118,287 images: 462 steps an epoch; drops after 16 and 22 of 30 epochs."""
    assert detection.schedule(118_287, 256) == Schedule(462, (7392, 10_165), 13_861)
    assert detection.base_lr(256) == 0.08


def test_other_lengths_keep_the_proportions():
    assert detection.schedule(3200, 16, 60) == Schedule(200, (6400, 8800), 12_000)
    assert detection.schedule(3, 256, 30) == Schedule(0, (0, 0), 1)


def test_a_short_run_is_no_warm_up_alone():
    assert detection.schedule(800, 8, 1) == Schedule(10, (53, 73), 100)


def test_learning_rate_is_in_proportion_to_the_batch():
    assert detection.base_lr(8) == 0.0025
