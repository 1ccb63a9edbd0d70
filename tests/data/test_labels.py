"""Sets of labels, their few-shot selection and their splits, against plain Python and NumPy."""

import numpy as np
import pytest
from scipy import sparse

from bit_paddle.data import fewshot, labels, stratification
from bit_paddle.data.labels import LabelSets
from bit_paddle.errors import DataError


def random_sets(seed, images=60, classes=7, share=0.3):
    """Some images without a label, and a label that is rare."""
    random = np.random.default_rng(seed)
    dense = random.random((images, classes)) < share * np.linspace(0.2, 1.5, classes)
    return LabelSets.of([np.flatnonzero(row).tolist() for row in dense]), dense


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_index_of_scipy(seed):
    sets, dense = random_sets(seed)
    theirs = sparse.csr_matrix(dense)
    assert np.array_equal(sets.starts, theirs.indptr)
    assert np.array_equal(sets.labels, theirs.indices)
    assert np.array_equal(sets.dense(7), dense) and len(sets) == 60
    assert np.array_equal(sets.lengths, dense.sum(axis=1))
    chosen = np.random.default_rng(seed).integers(0, 60, 25)
    assert np.array_equal(sets[chosen].dense(7), dense[chosen])
    assert np.array_equal(sets[10:20].dense(7), dense[10:20])
    assert np.array_equal(sets.by_label(7).dense(60), dense.T)
    assert np.array_equal(labels.counts(sets, 7), dense.sum(axis=0))
    assert np.array_equal(labels.joined([sets, sets[chosen]]).dense(7)[60:], dense[chosen])
    assert np.array_equal(labels.holders(sets, 3), dense[:, 3])
    assert sets.tolist() == [tuple(np.flatnonzero(row)) for row in dense]
    numbers = np.array([2, -1, 0, 0, 1, -1, 2])  # merged, left out, in another order
    merged = np.stack([dense[:, [2, 3]].any(1), dense[:, 4], dense[:, [0, 6]].any(1)], axis=1)
    assert np.array_equal(sets.renumbered(numbers).dense(3), merged)


def test_an_order_and_repetitions_do_not_matter():
    assert LabelSets.of([[2, 0, 2], [], [1]]).tolist() == [(0, 2), (), (1,)]
    assert LabelSets.of([]).dense(3).shape == (0, 3)
    assert LabelSets.of([[], []]).renumbered(np.array([], np.int64)).tolist() == [(), ()]


def test_a_million_images_take_no_dense_matrix():
    """Of 21,843 labels: as bools they would be 22 GB."""
    random = np.random.default_rng(0)
    starts = 5 * np.arange(1_000_001)
    sets = LabelSets(starts, np.sort(random.integers(0, 21_843, (1_000_000, 5)), axis=1).ravel())
    assert sets[np.array([7, 999_999])].dense(21_843).shape == (2, 21_843)
    assert labels.counts(sets, 21_843).sum() == 5_000_000


def test_one_label_per_image_stays_an_array():
    plain = np.array([2, 0, 1])
    assert labels.targets(plain, 3) is plain and labels.as_labels(plain) is plain
    assert labels.counts(plain, 4).tolist() == [1, 1, 1, 0]
    assert labels.named(plain, "abc") == [("c",), ("a",), ("b",)]


# --- Few-shot -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_few_shot_has_enough_of_each_label(seed):
    sets, dense = random_sets(seed, 400)
    least = int(dense.sum(axis=0).min())
    for count in (1, 3, least):
        chosen = fewshot.select(sets, count, seed, list("abcdefg"))
        assert (dense[chosen].sum(axis=0) >= count).all()
        assert np.array_equal(chosen, np.unique(chosen)) and dense[chosen].any(axis=1).all()
        assert len(chosen) <= 7 * count
        assert np.array_equal(chosen, fewshot.select(sets, count, seed, list("abcdefg")))
    other = fewshot.select(sets, 1, seed + 1, list("abcdefg"))
    assert not np.array_equal(fewshot.select(sets, 1, seed, list("abcdefg")), other)
    with pytest.raises(DataError, match=rf"the largest possible number is {least}"):
        fewshot.select(sets, least + 1, 0, list("abcdefg"))


def test_images_with_several_labels_are_used_for_all_of_them():
    sets = LabelSets.of([[0, 1, 2]] * 3 + [[2]] * 50)
    assert len(fewshot.select(sets, 3, 0, list("abc"))) == 3


# --- Splits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [(0.9, 0.1), (0.5, 0.5), (0.2,) * 5])
def test_every_part_has_its_share_of_every_label(shares):
    sets, dense = random_sets(0, 2000)
    part = stratification.parts_of(sets, np.ones(2000, int), shares, 7)
    for number, share in enumerate(shares):
        own = dense[part == number]
        wanted = dense.sum(axis=0) * share
        assert np.abs(own.sum(axis=0) - wanted).max() <= 0.02 * dense.sum(axis=0).max()
        assert abs(len(own) - 2000 * share) <= 20
    random = np.random.default_rng(0).choice(len(shares), 2000, p=shares)
    error = [
        sum(np.abs(dense[p == k].sum(axis=0) - dense.sum(axis=0) * s).sum()
            for k, s in enumerate(shares)) for p in (part, random)
    ]  # fmt: skip
    assert error[0] < error[1] / 3


def test_a_rare_label_is_in_every_fold():
    dense = np.zeros((100, 3), bool)
    dense[:, 0], dense[::2, 1], dense[:5, 2] = True, True, True
    sets = LabelSets.of([np.flatnonzero(row).tolist() for row in dense])
    part = stratification.parts_of(sets, np.ones(100, int), (0.2,) * 5, 3)
    assert sorted(part[:5].tolist()) == [0, 1, 2, 3, 4]
    assert np.bincount(part).tolist() == [20] * 5


def test_groups_count_by_their_images():
    """One group of 50 images and 50 of one: each half has 50 images."""
    sets = LabelSets.of([[0]] + [[]] * 50)
    sizes = np.array([50] + [1] * 50)
    part = stratification.parts_of(sets, sizes, (0.5, 0.5), 1)
    assert sizes[part == part[0]].sum() == 50
