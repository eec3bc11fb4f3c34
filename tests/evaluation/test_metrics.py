import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support

from pcls.evaluation.count import confusion_counts
from pcls.evaluation.intervals import f1_interval, wilson
from pcls.evaluation.metrics import Evaluation, averages, by_lists, by_shots, by_value, per_class

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


def test_each_class_has_intervals_of_its_own_counts():
    labels, predicted = answers()
    rows = per_class(confusion_counts(labels, predicted, 5), NAMES)
    bee = rows[1]
    hits = int(((labels == 1) & (predicted == 1)).sum())
    assert bee.precision_interval == wilson(hits, int((predicted == 1).sum()))
    assert bee.recall_interval == wilson(hits, int((labels == 1).sum()))
    assert bee.f1_interval == f1_interval(hits, bee.support, bee.predicted)
    for row in rows:
        assert row.precision_interval[0] <= row.precision <= row.precision_interval[1]
        assert row.f1_interval[0] <= row.f1 <= row.f1_interval[1]
    # An eel is never there, a dog never predicted.
    assert rows[4].recall_interval == rows[3].precision_interval == (0, 1)


def test_averages_are_those_of_scikit_learn():
    labels, predicted = answers()
    predicted[labels == 3] = 3
    found = averages(per_class(confusion_counts(labels, predicted, 5), NAMES))
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=range(4), zero_division=0)
    micro, *_ = precision_recall_fscore_support(labels, predicted, average="micro", zero_division=0)
    assert found.micro == pytest.approx(micro, rel=1e-12)
    assert found.macro_precision == pytest.approx(precision.mean(), rel=1e-12)
    assert found.macro_recall == pytest.approx(recall.mean(), rel=1e-12)
    assert found.macro_f1 == pytest.approx(f1.mean(), rel=1e-12)
    assert found.recall_gmean == pytest.approx(np.prod(recall) ** (1 / 4), rel=1e-12)


def test_the_geometric_mean_is_0_once_a_class_is_never_found_and_nothing_has_averages_of_0():
    rows = per_class(np.array([[5, 0], [3, 0]]), NAMES[:2])
    assert averages(rows).recall_gmean == 0
    nothing = averages(per_class(np.zeros((2, 2), np.int64), NAMES[:2]))
    assert (nothing.micro, nothing.macro_recall, nothing.recall_gmean) == (0, 0, 0)


def test_classes_are_many_medium_and_few_shot_by_their_training_records():
    confusion = np.diag([8, 6, 4, 2, 0]) + np.diag([2, 4, 6, 8], 1)
    rows = per_class(confusion, NAMES)
    many, medium, few = by_shots(rows, [101, 100, 20, 19, 5])
    assert (many.name, many.classes, many.n, many.accuracy) == ("many", 1, 10, 0.8)
    assert (medium.name, medium.classes, medium.n, medium.accuracy) == ("medium", 2, 20, pytest.approx(0.5))
    # The last class has no records to be evaluated on.
    assert (few.name, few.classes, few.n, few.accuracy) == ("few", 1, 10, 0.2)
    assert by_shots(rows, [500] * 5)[2].accuracy == 0


def test_records_are_parted_by_the_values_of_a_column():
    labels, predicted = answers()
    values = np.resize(["rain", "sun", ""], 200)
    found = by_value(values.tolist(), labels, predicted)
    assert [own.value for own in found] == ["", "rain", "sun"]
    for own in found:
        these = values == own.value
        assert own.n == these.sum()
        assert own.top1 == pytest.approx(accuracy_score(labels[these], predicted[these]), rel=1e-12)
        with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
            expected = balanced_accuracy_score(labels[these], predicted[these])
        assert own.balanced == pytest.approx(expected, rel=1e-12)
        assert own.interval == wilson(own.hits, own.n)


def test_a_prediction_in_the_list_of_right_answers_is_right_and_empty_lists_are_left_out():
    found = by_lists([frozenset({1, 3}), frozenset(), frozenset({0}), frozenset({2})], np.array([3, 1, 0, 1]))
    assert (found.n, found.hits, found.left_out, found.top1) == (3, 2, 1, pytest.approx(2 / 3))
    assert by_lists([frozenset()], np.array([0])).top1 == 0
