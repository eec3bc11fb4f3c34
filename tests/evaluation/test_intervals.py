import numpy as np
import pytest
from scipy.stats import binomtest

from pcls.evaluation.intervals import f1_interval, wilson


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (981, 1000)])
def test_the_interval_of_a_share_is_scipys(hits, n):
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson(hits, n), (expected.low, expected.high), atol=1e-12)
    assert wilson(hits, n)[0] >= 0
    assert wilson(hits, n)[1] <= 1


def test_of_nothing_nothing_is_known():
    assert wilson(0, 0) == (0, 1)
    assert f1_interval(0, 0, 0) == (0, 1)


@pytest.mark.parametrize("shares", [[0.08, 0.02, 0.02, 0.88], [0.02, 0.05, 0.01, 0.92]])
def test_the_interval_of_an_f1_holds_the_true_one_in_about_95_of_100_sets(shares):
    """Sets of 500 records: hits, missed, wrongly given, and all others."""
    hit, missed, wrong, _ = shares
    true = 2 * hit / (2 * hit + missed + wrong)
    rng = np.random.default_rng(0)
    held = 0
    for hits, lost, given, _ in rng.multinomial(500, shares, 2000).tolist():
        low, high = f1_interval(hits, hits + lost, hits + given)
        assert 0 <= low <= 2 * hits / max(2 * hits + lost + given, 1) <= high <= 1
        held += low <= true <= high
    assert 0.93 <= held / 2000 <= 0.975
