import numpy as np
import pytest
from scipy.stats import binomtest

from pcls.evaluation.paired import bootstrap_interval, compare, mcnemar


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (0, 6), (3, 3), (2, 9), (40, 61), (700, 500)])
def test_the_p_value_is_that_of_scipys_exact_test(b, c):
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(b, c) == mcnemar(c, b)


def test_the_interval_is_that_of_records_drawn_one_by_one():
    differences = np.repeat([-1, 1, 0], [12, 30, 158])
    rng = np.random.default_rng(5)
    drawn = differences[rng.integers(0, 200, (10_000, 200))].mean(1)
    found = bootstrap_interval(200, 12, 30)
    np.testing.assert_allclose(found, np.percentile(drawn, [2.5, 97.5]), atol=0.0051)
    assert found == bootstrap_interval(200, 12, 30)
    assert found[0] < 18 / 200 < found[1]


def test_the_interval_holds_the_true_difference_in_about_95_of_100_sets():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        _, b, c = rng.multinomial(400, [0.8, 0.08, 0.12])
        low, high = bootstrap_interval(400, int(b), int(c))
        held += low <= 0.04 <= high
    assert 0.91 <= held / 300 <= 0.98


def test_a_comparison_counts_who_is_right_by_class():
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    first = np.array([0, 0, 1, 1, 0, 0, 0])
    second = np.array([0, 1, 1, 1, 1, 1, 0])
    found = compare(labels, first, second, ("ant", "bee", "cat"))
    assert (found.n, found.both, found.only_first, found.only_second, found.neither) == (7, 2, 1, 2, 2)
    assert (found.first, found.second) == (np.mean(labels == first), np.mean(labels == second))
    assert found.difference == pytest.approx(1 / 7)
    assert [(row.name, row.n, row.only_first, row.only_second) for row in found.classes] == [
        ("ant", 3, 1, 0),
        ("bee", 4, 0, 2),
    ]
    assert found.p == 1.0


def test_the_same_answers_do_not_differ():
    labels = np.array([0, 1, 1])
    found = compare(labels, labels, labels, ("a", "b"))
    assert (found.difference, found.interval, found.p) == (0, (0, 0), 1)
