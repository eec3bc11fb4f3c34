"""The order of records: a permutation in every epoch, a pure function of its arguments, without a visible pattern."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcls.data.order import evaluation_records, permuted, records_of_step

SEEDS = st.integers(0, 2**32 - 1)


def epoch_order(size: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permuted(np.arange(size), size=size, seed=seed, epoch=epoch)


@given(st.integers(1, 3000), SEEDS, st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_an_epoch_is_a_permutation(size, seed, epoch):
    assert np.array_equal(np.sort(epoch_order(size, seed, epoch)), np.arange(size))


@given(size=st.integers(1, 60), batch=st.integers(1, 150), seed=SEEDS, first=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_the_steps_hold_each_record_once_an_epoch(size, batch, seed, first):
    start, stop = first * size, (first + 2) * size  # places of two whole epochs
    steps = range(start // batch, -(-stop // batch))
    parts = [records_of_step(s, batch_size=batch, size=size, seed=seed) for s in steps]
    records, epochs = (np.concatenate(column) for column in zip(*parts, strict=True))
    for epoch in (first, first + 1):
        assert np.array_equal(np.sort(records[epochs == epoch]), np.arange(size))


@given(size=st.integers(1, 500), batch=st.integers(1, 64), seed=SEEDS, start=st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_a_step_is_a_slice_of_the_endless_order(size, batch, seed, start):
    whole, epochs = records_of_step(0, batch_size=batch * (start + 1), size=size, seed=seed)
    step, step_epochs = records_of_step(start, batch_size=batch, size=size, seed=seed)
    assert np.array_equal(step, whole[start * batch :])
    assert np.array_equal(step_epochs, epochs[start * batch :])


def test_the_order_is_the_same_on_every_machine_and_version():
    assert epoch_order(10, seed=1, epoch=2).tolist() == [3, 0, 4, 9, 8, 2, 7, 6, 5, 1]
    records, epochs = records_of_step(10**9, batch_size=4, size=1_281_167, seed=0)
    assert (records.tolist(), epochs.tolist()) == ([190653, 957294, 941381, 762979], [3122] * 4)


def test_a_set_of_billions_needs_only_the_places_asked_for():
    records, epochs = records_of_step(10**6, batch_size=1024, size=10**10, seed=0)
    assert len(set(records.tolist())) == 1024
    assert records.min() >= 0
    assert records.max() < 10**10
    assert set(epochs.tolist()) == {0}


@pytest.mark.parametrize("size", [1000, 1797, 60000])
def test_neighbouring_epochs_and_seeds_are_unrelated(size):
    # The correlation of unrelated permutations has the deviation 1 / sqrt(size); of 24 one is rarely beyond 4.
    base = epoch_order(size)
    for seed in range(4):
        for epoch in range(6):
            other = epoch_order(size, seed, epoch)
            if (seed, epoch) != (0, 0):
                assert abs(np.corrcoef(base, other)[0, 1]) < 4 / np.sqrt(size)
            assert abs(np.corrcoef(other[1:], other[:-1])[0, 1]) < 4 / np.sqrt(size)


@pytest.mark.parametrize("size", [2, 5, 33, 100])
def test_no_record_is_preferred_at_any_place(size):
    epochs = 2000
    first_and_last = np.stack([permuted(np.array([0, size - 1]), size=size, seed=7, epoch=e) for e in range(epochs)])
    for place in (0, 1):
        counts = np.bincount(first_and_last[:, place], minlength=size)
        chi_square = ((counts - epochs / size) ** 2).sum() / (epochs / size)
        # Mean size - 1, deviation sqrt(2 (size - 1)); 5 deviations above is less than one in 1,000 for each size.
        assert chi_square < size - 1 + 5 * np.sqrt(2 * (size - 1))


@given(size=st.integers(0, 100), batch=st.integers(1, 150))
def test_evaluation_counts_every_record_once_in_file_order(size, batch):
    batches = [evaluation_records(b, batch_size=batch, size=size) for b in range(-(-size // batch))]
    records = np.concatenate([np.empty(0, int), *batches])
    assert np.array_equal(records[:size], np.arange(size))
    assert (records[size:] == -1).all()
    assert len(records) - size < batch
