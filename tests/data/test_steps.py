"""What is known of the steps of a set of sequences."""

import numpy as np
import pytest

from pcls.data.sources.sequences import RaggedStore, SequenceSource
from pcls.data.sources.source import Subset
from pcls.data.steps import RECORDS_AT_ONCE, lengths_text, step_statistics


def source_of(*records) -> SequenceSource:
    """Of arrays [steps, features]; the labels take turns."""
    lengths = np.array([len(record) for record in records])
    labels = np.arange(len(records)) % 2
    store = RaggedStore(np.concatenate(records).astype(np.float32), lengths, labels, "test")
    return SequenceSource(store, ("a", "b"), labels, lengths, records[0].shape[1])


def test_statistics_are_over_all_steps_that_count():
    rng = np.random.default_rng(0)
    records = [rng.normal((5, -300), (2, 0.1), (n, 2)) for n in rng.integers(1, 9, 2 * RECORDS_AT_ONCE + 7)]
    mean, std = step_statistics(source_of(*records))
    every = np.concatenate(records).astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(mean, every.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, every.std(0), rtol=1e-9)


def test_a_record_that_cannot_be_decoded_has_no_part_in_them():
    records = [np.full((2, 1), 3.0), np.full((5, 1), np.nan), np.full((2, 1), 5.0)]
    assert step_statistics(source_of(*records)) == ((4.0,), (1.0,))
    assert step_statistics(source_of(records[1], records[1])) == ((0.0,), (1.0,))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30, 1e-42])
def test_a_feature_of_one_value_is_not_divided_by_nothing(value):
    (mean,), (std,) = step_statistics(source_of(*[np.full((n % 5 + 1, 1), value) for n in range(100)]))
    assert mean == pytest.approx(value, rel=1e-6, abs=1e-44)
    assert std == 1.0


def test_a_part_of_a_set_has_statistics_and_lengths_of_its_own():
    part = Subset(source_of(np.ones((2, 1)), np.zeros((3, 1)), np.zeros((2, 1))), np.array([0, 2]))
    assert part.lengths.tolist() == [2, 2]
    assert step_statistics(part) == ((0.5,), (0.5,))


def test_lengths_and_padding_are_told_in_three_lines():
    source = source_of(np.zeros((4, 3)), np.zeros((5, 3)), np.zeros((10, 3)))
    assert lengths_text(source, (5, 10)).splitlines() == [
        "steps       4 to 10, median 5",
        "features    3",
        "padded to   5, 10: 5.0% of all steps are padding",
    ]
