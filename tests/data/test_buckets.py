"""Length buckets: the boundaries that pad least, and each record in the shortest that holds it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcls.data.buckets import MAX_CANDIDATES, buckets_of, padded_lengths, padding_share


def steps_read(lengths, padded) -> int:
    return sum(min(steps for steps in padded if steps >= length) for length in lengths)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 3), st.integers(1, 5))
def test_no_other_boundaries_pad_less(lengths, more, count):
    longest = max(lengths) + more
    padded = padded_lengths(np.array(lengths), longest, count)
    assert len(padded) <= count
    assert list(padded) == sorted(set(padded))
    assert padded[-1] == longest
    others = sorted({*lengths} - {longest})
    choices = [(*some, longest) for size in range(count) for some in itertools.combinations(others, size)]
    assert steps_read(lengths, padded) == min(steps_read(lengths, choice) for choice in choices)


def test_equal_boundaries_are_one():
    assert padded_lengths(np.array([7, 7, 7]), 7, 4) == (7,)
    assert padded_lengths(np.array([3, 7, 7]), 7, 4) == (3, 7)


def test_the_longest_may_be_the_evaluations():
    assert padded_lengths(np.array([3, 5]), 9, 1) == (9,)
    assert padded_lengths(np.array([3, 5]), 9, 3) == (3, 5, 9)


def test_of_very_many_lengths_the_boundaries_are_still_near_the_best():
    lengths = np.random.default_rng(0).integers(1, 20 * MAX_CANDIDATES, 50_000)
    padded = padded_lengths(lengths, 30 * MAX_CANDIDATES, 9)
    assert padded[-2:] == (lengths.max(), 30 * MAX_CANDIDATES)
    # Eight equal parts of an even distribution pad 1 in 9 steps.
    assert padding_share(lengths, padded) == pytest.approx(1 / 9, abs=0.002)


def test_each_record_is_in_the_shortest_bucket_that_holds_it():
    short, long = buckets_of(np.array([4, 9, 5, 1, 6]), (5, 7, 9))[::2]
    assert (short.steps, short.records.tolist()) == (5, [0, 2, 3])
    assert (long.steps, long.records.tolist()) == (9, [1])


def test_a_bucket_without_records_is_left_out():
    assert [bucket.steps for bucket in buckets_of(np.array([4, 9]), (5, 7, 9))] == [5, 9]


def test_the_share_of_padding_counts_every_record_once():
    assert padding_share(np.array([4, 5, 9]), (5, 9)) == pytest.approx(1 / 19)
    assert padding_share(np.array([5, 5]), (5,)) == 0
