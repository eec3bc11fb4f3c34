"""Scores of probabilities against scikit-learn, and tables against sums done by hand."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from pcls.evaluation import quality as module
from pcls.evaluation.quality import (
    calibration_error,
    quality,
    reliability,
    risk_coverage,
    row_chunks,
    scores,
    threshold_table,
)


@pytest.fixture(scope="module")
def answers():
    """Logits [400, 6] float32 that know something of their labels."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 6, 400)
    logits = rng.normal(size=(400, 6)) + 1.5 * np.eye(6)[labels]
    return (3 * logits).astype(np.float32), labels


def probabilities_of(logits):
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_the_scores_are_those_of_scikit_learn(answers):
    logits, labels = answers
    found, probabilities = scores(logits, labels), probabilities_of(logits)
    assert found.nll.mean() == pytest.approx(log_loss(labels, probabilities, labels=range(6)), rel=1e-10)
    expected = ((probabilities - np.eye(6)[labels]) ** 2).sum(1)
    np.testing.assert_allclose(found.brier, expected, atol=1e-12)
    np.testing.assert_allclose(found.confidence, probabilities.max(1), rtol=1e-12)
    np.testing.assert_array_equal(found.correct, probabilities.argmax(1) == labels)
    from_logarithms = scores(np.log(probabilities), labels)
    np.testing.assert_allclose(from_logarithms.nll, found.nll, atol=1e-10)


def test_the_scores_of_two_classes_are_those_of_scikit_learns_brier_score(answers):
    from sklearn.metrics import brier_score_loss

    logits, labels = answers[0][:, :2], answers[1] % 2
    expected = brier_score_loss(labels, probabilities_of(logits)[:, 1])
    assert scores(logits, labels).brier.mean() == pytest.approx(2 * expected, rel=1e-10)


def test_large_sets_are_scored_in_chunks_with_the_same_result(answers, monkeypatch):
    logits, labels = answers
    whole = scores(logits, labels)
    monkeypatch.setattr(module, "NUMBERS_AT_ONCE", 6 * 70)
    assert [chunk.stop - chunk.start for chunk in row_chunks(logits)] == [70] * 6
    for name, values in vars(scores(logits, labels)).items():
        np.testing.assert_array_equal(values, getattr(whole, name))


def test_logits_beyond_what_exp_can_take_have_finite_scores():
    found = scores(np.array([[1e4, -1e4], [-1e4, 1e4]]), np.array([0, 0]))
    assert found.nll.tolist() == [0.0, 2e4]
    assert found.brier.tolist() == [0.0, 2.0]


def test_the_bins_hold_what_is_above_their_lower_and_up_to_their_upper_end():
    confidence = np.array([0.0, 0.25, 0.2501, 0.5, 0.75, 1.0])
    correct = np.array([False, True, True, False, True, True])
    bins = reliability(confidence, correct, 4)
    assert [(row.low, row.high, row.count) for row in bins] == [
        (0, 0.25, 2),
        (0.25, 0.5, 2),
        (0.5, 0.75, 1),
        (0.75, 1, 1),
    ]
    assert [row.accuracy for row in bins] == [0.5, 0.5, 1, 1]
    assert bins[0].confidence == 0.125
    assert calibration_error(bins) == pytest.approx((2 * 0.375 + 2 * abs(0.5 - 0.37505) + 0.25 + 0) / 6)


@pytest.mark.parametrize("equal_mass", [False, True])
def test_the_calibration_error_is_that_of_a_loop_over_bins(answers, equal_mass):
    found = scores(*answers)
    order = np.argsort(found.confidence)
    expected = 0.0
    for number in range(15):
        if equal_mass:
            own = np.array_split(order, 15)[number]
        else:
            own = np.flatnonzero((found.confidence > number / 15) & (found.confidence <= (number + 1) / 15))
        if len(own):
            expected += len(own) / 400 * abs(found.confidence[own].mean() - found.correct[own].mean())
    bins = reliability(found.confidence, found.correct, equal_mass=equal_mass)
    assert sum(row.count for row in bins) == 400
    assert calibration_error(bins) == pytest.approx(expected, rel=1e-9)


def test_bins_of_equal_mass_are_no_more_than_the_records():
    bins = reliability(np.array([0.5, 0.9]), np.array([True, False]), equal_mass=True)
    assert [(row.count, row.low, row.high) for row in bins] == [(1, 0.0, 0.5), (1, 0.5, 0.9)]


def test_the_risk_of_the_most_confident_records_counts_errors_in_that_order():
    confidence = np.array([0.2, 0.9, 0.5, 0.8])
    correct = np.array([False, True, True, False])
    np.testing.assert_allclose(risk_coverage(confidence, correct), [0, 1 / 2, 1 / 3, 2 / 4])


def test_records_of_one_confidence_share_their_errors_in_whatever_order_they_come():
    confidence = np.array([0.9, 0.7, 0.7, 0.7, 0.7])
    one = risk_coverage(confidence, np.array([True, False, True, True, True]))
    other = risk_coverage(confidence, np.array([True, True, True, True, False]))
    np.testing.assert_allclose(one, [0, 0.25 / 2, 0.5 / 3, 0.75 / 4, 1 / 5])
    np.testing.assert_array_equal(one, other)


def test_the_threshold_table_tells_what_is_kept_and_how_good_it_is():
    rows = threshold_table(np.array([0.5, 0.6, 0.9]), np.array([False, True, True]), [0.5, 0.6, 0.95])
    assert [(row.kept, row.coverage, row.accuracy) for row in rows] == [(3, 1, 2 / 3), (2, 2 / 3, 1), (0, 0, None)]


def test_the_quality_is_put_together_from_these(answers):
    found = scores(*answers)
    whole = quality(found)
    assert whole.nll == pytest.approx(found.nll.mean())
    assert whole.ece == calibration_error(whole.bins)
    assert len(whole.bins) == 15
    curve = risk_coverage(found.confidence, found.correct)
    assert whole.aurc == pytest.approx(curve.mean())
    assert whole.risk_coverage[0] == (0.05, curve[19])
    assert whole.risk_coverage[-1] == (1.0, pytest.approx(1 - found.correct.mean()))


def test_nothing_has_no_quality_and_one_record_has_one():
    nothing = scores(np.zeros((0, 3)), np.zeros(0, int))
    assert len(nothing.nll) == 0
    assert quality(nothing) is None
    one = quality(scores(np.zeros((1, 2)), np.array([1])))
    # Of equal classes the first is the answer, at a confidence of one half.
    assert (one.nll, one.brier, one.ece, one.aurc) == (pytest.approx(np.log(2)), 0.5, 0.5, 1.0)
