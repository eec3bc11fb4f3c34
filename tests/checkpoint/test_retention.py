import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcls.checkpoint.retention import Retention
from pcls.training.loop import Plan


def kept(retention, scores):
    return sorted(retention.reasons(scores))


def test_the_newest_the_best_and_those_at_every_so_many_steps_are_kept_each_with_its_reason():
    scores = {5: 0.9, 10: 0.1, 15: 0.5, 20: 0.95, 25: 0.2, 30: None, 35: 0.3}
    found = Retention(2, best=2, every=10).reasons(scores)
    assert found == {35: "newest", 30: "newest", 20: "best", 5: "best", 10: "every"}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_a_score_that_is_not_finite_keeps_no_step(bad):
    assert kept(Retention(2, best=1), {1: bad, 2: 0.5, 3: bad, 4: bad}) == [2, 3, 4]
    assert kept(Retention(2, best=1), {1: bad, 2: bad, 3: bad}) == [2, 3]


def test_of_equal_scores_the_later_step_is_the_best():
    assert kept(Retention(2, best=1), {1: 0.5, 2: 0.5, 3: 0, 4: 0}) == [2, 3, 4]


@given(
    st.dictionaries(st.integers(0, 200), st.none() | st.floats(), min_size=1),
    st.integers(2, 4),
    st.integers(0, 3),
    st.sampled_from([0, 1, 7, 10.5, 1e9]),
)
def test_the_newest_steps_are_always_kept(scores, newest, best, every):
    assert set(sorted(scores)[-newest:]) <= set(kept(Retention(newest, best, every), scores))


@given(st.sets(st.integers(1, 400), min_size=1), st.sampled_from([3, 7.25, 11.5, 20]))
def test_one_step_a_multiple_stays_for_good_though_it_is_decided_anew_after_every_save(saved, every):
    retention, alive = Retention(2, every=every), {}
    for step in sorted(saved):
        alive[step] = None
        alive = dict.fromkeys(retention.reasons(alive))
    assert set(alive) == set(retention.reasons(dict.fromkeys(saved)))


@pytest.mark.parametrize("every", [1, 4, 2.5, 44.9375, 0.75])
def test_the_multiples_are_those_at_which_a_run_saves(every):
    plan = Plan(500, 44.9375, 32, 500, every, 500)
    due, step = [], 0
    while step < 450:
        step = plan.next_due(step, every)
        due.append(step)
    scores = dict.fromkeys(range(1, 500))
    assert [step for step, why in sorted(Retention(2, every=every).reasons(scores).items()) if why == "every"][
        : len(due)
    ] == due[: len(due)]
