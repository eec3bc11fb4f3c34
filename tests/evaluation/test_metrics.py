import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from pcls.evaluation.count import confusion_counts
from pcls.evaluation.metrics import Evaluation, per_class

NAMES = ("ant", "bee", "cat", "dog", "eel")


def answers():
    """Labels without an eel, predictions without a dog: both kinds of missing denominator."""
    rng = np.random.default_rng(3)
    return rng.integers(0, 4, 200), rng.choice([0, 1, 2, 4], 200)


def test_the_confusion_counts_are_those_of_scikit_learn():
    labels, predicted = answers()
    np.testing.assert_array_equal(
        confusion_counts(labels, predicted, 5), confusion_matrix(labels, predicted, labels=range(5))
    )


def test_precision_recall_and_f1_are_those_of_scikit_learn():
    labels, predicted = answers()
    rows = per_class(confusion_counts(labels, predicted, 5), NAMES)
    expected = precision_recall_fscore_support(labels, predicted, labels=range(5), zero_division=0)
    found = np.asarray([(row.precision, row.recall, row.f1, row.support) for row in rows]).T
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-12)
    assert [row.predicted for row in rows] == np.bincount(predicted, minlength=5).tolist()
    assert tuple(row.name for row in rows) == NAMES


def test_the_summary_averages_over_the_classes_that_are_there():
    labels, predicted = answers()
    confusion = confusion_counts(labels, predicted, 5)
    summary = Evaluation(200, 3, 1.5, 0.25, 0.75, confusion, NAMES).summary()
    assert list(summary) == ["n", "undecodable", "top1", "top5", "loss", "balanced", "macro_f1"]
    _, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=range(4), zero_division=0)
    assert summary["balanced"] == pytest.approx(np.mean(recall), rel=1e-12)
    assert summary["macro_f1"] == pytest.approx(np.mean(f1), rel=1e-12)


def test_an_evaluation_of_nothing_has_a_summary():
    summary = Evaluation(0, 2, 0.0, 0.0, 0.0, np.zeros((5, 5), np.int64), NAMES).summary()
    assert (summary["n"], summary["undecodable"], summary["balanced"], summary["macro_f1"]) == (0, 2, 0.0, 0.0)
