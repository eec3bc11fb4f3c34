"""Labels that a model doubts."""

from __future__ import annotations

import numpy as np

from pcls.evaluation.label_issues import label_issues


def issues(labels: list[int], predicted: list[int], probability: list[float], own: list[float]) -> list[int]:
    arrays = (np.array(values) for values in (labels, predicted, probability))
    return label_issues(*arrays, -np.log(np.array(own))).tolist()


def test_the_widest_margin_comes_first_and_right_answers_never() -> None:
    # Records of class 1 are given 0.8 for it on average.
    found = issues([1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [0.7, 0.9, 0.85, 0.99, 0.9], [0.7, 0.9, 0.1, 0.01, 0.9])
    assert found == [3, 2]


def test_a_doubt_below_what_the_other_class_usually_gets_is_none() -> None:
    # 0.6 is sure enough for a class that is never surer, and not for one that usually gets 0.9.
    assert issues([1, 0, 2], [1, 1, 2], [0.5, 0.6, 0.9], [0.5, 0.2, 0.9]) == [1]
    assert issues([1, 0, 2], [1, 2, 2], [0.5, 0.6, 0.9], [0.5, 0.2, 0.9]) == []


def test_mislabelled_records_are_found_among_well_separated_ones() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 1000)
    wrong = rng.choice(1000, 20, replace=False)
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + rng.integers(1, 5, 20)) % 5
    sure = rng.uniform(0.8, 0.99, 1000)
    own = np.where(labels == truth, sure, (1 - sure) / 4)
    found = label_issues(labels, truth, sure, -np.log(own))
    assert set(found.tolist()) <= set(wrong.tolist())
    assert len(found) >= 5


def test_nan_and_nothing_give_no_candidate() -> None:
    assert label_issues(np.array([0, 1]), np.array([1, 0]), np.full(2, np.nan), np.full(2, np.nan)).tolist() == []
    assert label_issues(*(np.zeros(0, np.int64),) * 2, *(np.zeros(0),) * 2).tolist() == []


def test_a_class_without_held_out_records_has_no_measure() -> None:
    assert issues([0, 0], [0, 1], [0.9, 0.99], [0.9, 0.01]) == []
