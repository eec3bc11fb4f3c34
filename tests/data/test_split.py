"""Seeded, stratified choices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcls.data.split import few_of_each, held_out, long_tailed

LABELS = np.repeat(np.arange(4), [100, 50, 10, 3])


def test_the_same_share_of_every_class_is_held_out():
    chosen = held_out(LABELS, 0.2, seed=0)
    assert np.bincount(LABELS[chosen]).tolist() == [20, 10, 2, 1]


@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=6), share=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_every_class_keeps_a_record_to_train_on(counts, share, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    chosen = held_out(labels, share, seed)
    assert np.bincount(labels[~chosen], minlength=len(counts)).min() >= 1
    assert (np.abs(np.bincount(labels[chosen], minlength=len(counts)) - np.array(counts) * share) <= 1).all()


@pytest.mark.parametrize(
    "choose",
    [
        lambda seed: held_out(LABELS, 0.3, seed),
        lambda seed: few_of_each(LABELS, 5, seed),
        lambda seed: long_tailed(LABELS, 50, seed),
    ],
)
def test_the_seed_decides_the_choice(choose):
    assert np.array_equal(choose(1), choose(1))
    assert not np.array_equal(choose(1), choose(2))


def test_few_takes_so_many_of_each_and_all_of_a_class_that_has_fewer():
    assert np.bincount(LABELS[few_of_each(LABELS, 5, seed=0)]).tolist() == [5, 5, 5, 3]


def test_more_of_each_contain_fewer_of_each():
    assert not (few_of_each(LABELS, 5, seed=0) & ~few_of_each(LABELS, 8, seed=0)).any()


def test_a_long_tail_falls_exponentially_from_the_first_class_to_the_last():
    labels = np.tile(np.arange(5), 1000)
    assert np.bincount(labels[long_tailed(labels, 10_000, seed=0)]).tolist() == [1000, 100, 10, 1, 1]
    assert np.bincount(labels[long_tailed(labels, 16, seed=0)]).tolist() == [1000, 500, 250, 125, 62]
    assert long_tailed(labels, 1, seed=0).all()


def test_a_long_tail_takes_no_more_than_there_is():
    assert np.bincount(LABELS[long_tailed(LABELS, 8, seed=0)]).tolist() == [100, 50, 10, 3]


def test_of_one_class_a_long_tail_takes_all():
    assert long_tailed(np.zeros(7, int), 100, seed=0).all()


def test_records_of_one_class_do_not_move_the_choice_in_another():
    more = np.append(LABELS, [1, 1, 1])
    others = LABELS != 1
    chosen = held_out(more, 0.2, seed=0)[: len(LABELS)]
    assert np.array_equal(chosen[others], held_out(LABELS, 0.2, seed=0)[others])


def test_groups_are_never_parted():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 1000)
    labels = groups % 3
    chosen = held_out(labels, 0.25, 4, groups)
    assert not set(groups[chosen]) & set(groups[~chosen])
    for label in range(3):
        assert chosen[labels == label].mean() == pytest.approx(0.25, abs=0.05)
    assert not np.array_equal(chosen, held_out(labels, 0.25, 5, groups))


def test_a_class_of_one_group_is_trained_on():
    groups, labels = np.array([7, 7, 7, 1, 2, 3, 4]), np.array([0, 0, 0, 1, 1, 1, 1])
    chosen = held_out(labels, 0.5, 0, groups)
    assert not chosen[:3].any()
    assert chosen.sum() == 2
