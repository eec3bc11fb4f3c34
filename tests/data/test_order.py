"""The order of records: a permutation in every epoch, a pure function of its arguments, without a visible pattern."""

import copy
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcls.data.buckets import buckets_of
from pcls.data.order import BucketedOrder, Order, SampledOrder, evaluation_records, permuted

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
    parts = [Order(size, batch, seed).records_of_step(s) for s in steps]
    records, epochs = (np.concatenate(column) for column in zip(*parts, strict=True))
    for epoch in (first, first + 1):
        assert np.array_equal(np.sort(records[epochs == epoch]), np.arange(size))


@given(size=st.integers(1, 500), batch=st.integers(1, 64), seed=SEEDS, start=st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_a_step_is_a_slice_of_the_endless_order(size, batch, seed, start):
    whole, epochs = Order(size, batch * (start + 1), seed).records_of_step(0)
    step, step_epochs = Order(size, batch, seed).records_of_step(start)
    assert np.array_equal(step, whole[start * batch :])
    assert np.array_equal(step_epochs, epochs[start * batch :])


def test_the_order_is_the_same_on_every_machine_and_version():
    assert epoch_order(10, seed=1, epoch=2).tolist() == [3, 0, 4, 9, 8, 2, 7, 6, 5, 1]
    records, epochs = Order(1_281_167, 4, 0).records_of_step(10**9)
    assert (records.tolist(), epochs.tolist()) == ([190653, 957294, 941381, 762979], [3122] * 4)


def test_a_set_of_billions_needs_only_the_places_asked_for():
    records, epochs = Order(10**10, 1024, 0).records_of_step(10**6)
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


def columns(order: Order, steps: range) -> tuple[np.ndarray, np.ndarray]:
    parts = [order.records_of_step(step) for step in steps]
    records, epochs = (np.concatenate(column) for column in zip(*parts, strict=True))
    return records, epochs


@given(size=st.integers(1, 60), batch=st.integers(1, 20), first=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_a_dropped_tail_leaves_other_records_out_in_each_pass(size, batch, first):
    order = Order(size, batch, 0, "drop")
    steps = size // batch
    assert (order.pass_steps, order.epoch_steps, order.dropped) == (steps, steps, size - steps * batch)
    if steps:
        records, epochs = columns(order, range(first * steps, (first + 2) * steps))
        for number in (first, first + 1):
            seen = records[epochs == number]
            assert len(seen) == len(set(seen.tolist())) == steps * batch
        assert records.min() >= 0


@given(size=st.integers(1, 60), batch=st.integers(1, 80), first=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_a_padded_tail_fills_the_last_step_of_a_pass(size, batch, first):
    order = Order(size, batch, 0, "pad")
    steps = -(-size // batch)
    assert order.epoch_steps == steps
    records, epochs = columns(order, range(first * steps, (first + 2) * steps))
    for number in (first, first + 1):
        of_pass = records[epochs == number]
        assert np.array_equal(np.sort(of_pass[:size]), np.arange(size))
        assert (of_pass[size:] == -1).all()
        assert len(of_pass) == steps * batch


@pytest.mark.parametrize("tail", ["carry", "drop", "pad"])
def test_repeated_records_come_together_each_time_with_another_epoch(tail):
    order = Order(30, 12, 3, tail, repeats=3)
    assert order.records_a_step == 4
    assert order.epoch_steps == {"carry": 2.5, "drop": 7 / 3, "pad": 8 / 3}[tail]
    pairs = set()
    steps = 30 if tail == "carry" else 2 * int(order.pass_steps)
    for step in range(steps):
        records, epochs = order.records_of_step(step)
        assert np.array_equal(records.reshape(3, 4), np.tile(records[:4], (3, 1)))
        kept = records >= 0
        pairs |= set(zip(records[kept].tolist(), epochs[kept].tolist(), strict=True))
        assert len({*zip(records[kept].tolist(), epochs[kept].tolist(), strict=True)}) == kept.sum()
    passes = steps / order.pass_steps
    assert len(pairs) == round((30 - order.dropped) * 3 * passes)


@pytest.mark.parametrize("tail", ["carry", "drop", "pad"])
@pytest.mark.parametrize("repeats", [1, 2])
def test_the_order_starts_anywhere(tail, repeats):
    order = Order(29, 8, 1, tail, repeats)
    records, epochs = columns(order, range(40))
    later, later_epochs = columns(order, range(17, 40))
    assert np.array_equal(records[17 * 8 :], later)
    assert np.array_equal(epochs[17 * 8 :], later_epochs)


@given(size=st.integers(0, 100), batch=st.integers(1, 150))
def test_evaluation_counts_every_record_once_in_file_order(size, batch):
    batches = [evaluation_records(b, batch_size=batch, size=size) for b in range(-(-size // batch))]
    records = np.concatenate([np.empty(0, int), *batches])
    assert np.array_equal(records[:size], np.arange(size))
    assert (records[size:] == -1).all()
    assert len(records) - size < batch


# Buckets of sequences


def bucketed(sizes, batch_size, seed=0, tail="carry", repeats=1) -> BucketedOrder:
    """Buckets of these sizes, their records mixed through the set; those of bucket b are padded to b + 1 steps."""
    lengths = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)) + 1, sizes))
    return BucketedOrder(buckets_of(lengths, range(1, len(sizes) + 1)), batch_size, seed, tail, repeats)


def bucket_of_record(order: BucketedOrder) -> np.ndarray:
    numbers = np.empty(order.size, int)
    for number, bucket in enumerate(order.buckets):
        numbers[bucket.records] = number
    return numbers


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    batch_size=st.integers(1, 9),
    tail=st.sampled_from(["carry", "pad"]),
    first=st.integers(0, 60),
)
def test_buckets_take_turns_in_proportion_and_any_step_can_be_the_first(sizes, batch_size, tail, first):
    order = bucketed(sizes, batch_size, tail=tail)
    steps = first + 20
    weights = sizes if tail == "carry" else [-(-size // batch_size) for size in sizes]
    stand = [(Fraction(2 * own + 1, weight), number) for number, weight in enumerate(weights) for own in range(steps)]
    expected = [number for _, number in sorted(stand)[:steps]]
    assert [order.place_of_step(step)[0] for step in range(first, steps)] == expected[first:]
    assert order.done_before(first) == [expected[:first].count(number) for number in range(len(sizes))]
    nexts = [next((s for s in range(first, steps) if expected[s] == n), None) for n in range(len(sizes))]
    for found, wanted in zip(order.first_steps(first), nexts, strict=True):
        assert found == wanted if wanted is not None else found >= steps


@pytest.mark.parametrize("tail", ["carry", "drop", "pad"])
def test_a_step_holds_records_of_one_bucket(tail):
    order = bucketed((9, 30, 14), 4, tail=tail)
    of_record = bucket_of_record(order)
    for step in range(60):
        records, _ = order.records_of_step(step)
        numbers = set(of_record[records[records >= 0]].tolist())
        assert numbers == {order.place_of_step(step)[0]}
        assert set(of_record[order.fillers(step, np.arange(99))].tolist()) == numbers


def test_a_pass_that_is_filled_up_holds_every_record_once():
    order = bucketed((9, 30, 2), 4, tail="pad", seed=3)
    assert order.epoch_steps == 3 + 8 + 1
    for epoch in range(3):
        steps = [order.records_of_step(step) for step in range(12 * epoch, 12 * epoch + 12)]
        records = np.concatenate([records for records, _ in steps])
        assert sorted(records[records >= 0].tolist()) == list(range(41))
        assert np.count_nonzero(records < 0) == 12 * 4 - 41
        assert {int(e) for _, epochs in steps for e in epochs} == {epoch}


def test_a_pass_that_drops_its_tails_holds_others_each_time():
    order = bucketed((9, 30), 4, tail="drop")
    assert (order.epoch_steps, order.dropped) == (2 + 7, 1 + 2)
    passes = [np.concatenate([order.records_of_step(9 * e + s)[0] for s in range(9)]).tolist() for e in range(4)]
    assert all(len(set(records)) == 36 for records in passes)
    assert len({frozenset(range(39)) - frozenset(records) for records in passes}) > 1


def test_carried_over_each_bucket_holds_every_record_once_a_pass_and_all_keep_pace():
    order = bucketed((9, 30, 2), 4, seed=5)
    assert order.epoch_steps == 41 / 4
    seen = {}
    for step in range(82):
        for record, epoch in zip(*order.records_of_step(step), strict=True):
            assert (record, epoch) not in seen
            seen[int(record), int(epoch)] = step
    # 8 epochs: less than a pass of the smallest bucket apart, which a step of 4 goes through twice.
    counts = np.bincount([record for record, _ in seen], minlength=41)
    assert counts[order.buckets[1].records].tolist() == [8] * 30
    assert set(counts[order.buckets[0].records]) <= {7, 8, 9}
    assert set(counts[order.buckets[2].records]) == {8}


def test_repeats_hold_each_record_several_times_in_a_step():
    order = bucketed((9, 30), 6, repeats=3)
    assert (order.records_a_step, order.epoch_steps) == (2, 39 / 2 / 3)
    records, epochs = order.records_of_step(4)
    assert np.unique(records, return_counts=True)[1].tolist() == [3, 3]
    assert len(set(zip(records.tolist(), epochs.tolist(), strict=True))) == 6


def test_buckets_of_one_seed_are_shuffled_apart():
    order = bucketed((20, 20), 20, tail="pad")
    (some, _), (other, _) = order.records_of_step(0), order.records_of_step(1)
    places = [np.searchsorted(order.buckets[n].records, r).tolist() for n, r in ((0, some), (1, other))]
    assert places[0] != places[1]
    assert not np.array_equal(some, bucketed((20, 20), 20, tail="pad", seed=1).records_of_step(0)[0])


def test_a_late_step_costs_what_the_first_costs():
    order = bucketed(tuple(range(1000, 1064)), 128)

    def cost(first: int) -> float:
        start = time.perf_counter()
        for step in range(first, first + 20):
            order.place_of_step(step)
        return time.perf_counter() - start

    cost(0)
    assert min(cost(10**12) for _ in range(5)) < 3 * min(cost(0) for _ in range(5))


# Sampling of classes

LABELS = np.random.default_rng(2).permutation(np.repeat(np.arange(4), [100, 25, 4, 1])).astype(np.int32)
COUNTS = np.bincount(LABELS)


def sampled(sampling, batch_size=13, labels=LABELS, **options) -> SampledOrder:
    return SampledOrder(len(labels), batch_size, seed=5, labels=labels, sampling=sampling, **options)


def pass_of(order: SampledOrder, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The records of a pass and their epochs; the order's steps are whole passes."""
    assert order.records_a_step == order.size
    return order.records_of_step(number)


@pytest.mark.parametrize(
    ("sampling", "quotas"),
    [
        ("balanced", [[32, 32, 33, 33]]),
        # 130 * (10, 5, 2, 1) / 18 = 72.2, 36.1, 14.4, 7.2
        ("square_root", [[72, 36, 15, 7]]),
        ("progressive", [[100, 25, 4, 1], [66, 29, 18, 17], [32, 32, 33, 33]]),
    ],
)
def test_each_pass_holds_the_quota_of_every_class(sampling, quotas):
    order = sampled(sampling, len(LABELS), passes=3)
    for number in range(5):
        records, _ = pass_of(order, number)
        expected = quotas[min(number, len(quotas) - 1)]
        assert np.bincount(LABELS[records]).tolist() == expected


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any),
    sampling=st.sampled_from(["balanced", "square_root", "progressive"]),
    passes=st.integers(2, 5),
)
def test_quotas_fill_the_pass_beside_their_shares_and_leave_no_class_out(counts, sampling, passes):
    labels = np.repeat(np.arange(len(counts)), counts)
    order, present = sampled(sampling, labels=labels, passes=passes), np.bincount(labels) > 0
    found = order.quotas
    assert (found.sum(1) == len(labels)).all()
    assert (found[:, present] >= 1).all()
    assert not found[:, ~present].any()
    if sampling == "balanced":
        assert np.ptp(found[0, present]) <= 1
    if sampling == "progressive":
        assert found[0].tolist() == np.bincount(labels).tolist()
        assert found[-1].tolist() == sampled("balanced", labels=labels).quotas[0].tolist()


@pytest.mark.parametrize("sampling", ["balanced", "square_root", "progressive"])
@pytest.mark.parametrize("tail", ["carry", "drop", "pad"])
@pytest.mark.parametrize("repeats", [1, 3])
def test_no_record_of_a_class_comes_more_often_than_another_nor_twice_with_one_epoch(sampling, tail, repeats):
    order = sampled(sampling, 12, tail=tail, repeats=repeats, passes=4)
    records, epochs = columns(order, range(round(12 * order.pass_steps)))
    records, epochs = records[records >= 0], epochs[records >= 0]
    assert len({*zip(records.tolist(), epochs.tolist(), strict=True)}) == len(records)
    assert len(records) == 12 * repeats * (130 - order.dropped)
    # A dropped tail leaves other uses of a class out in each pass.
    if tail != "drop":
        often = np.bincount(records, minlength=130) / repeats
        assert max(np.ptp(often[label == LABELS]) for label in range(4)) <= 1
        assert np.bincount(LABELS[records]).tolist() == (repeats * order._used(12)).tolist()


@pytest.mark.parametrize("tail", ["carry", "drop", "pad"])
@pytest.mark.parametrize("repeats", [1, 2])
def test_a_sampled_order_starts_anywhere(tail, repeats):
    records, epochs = columns(sampled("progressive", 8, tail=tail, repeats=repeats, passes=3), range(90))
    # Another one, which has seen no step before.
    later, later_epochs = columns(sampled("progressive", 8, tail=tail, repeats=repeats, passes=3), range(61, 90))
    assert np.array_equal(records[61 * 8 :], later)
    assert np.array_equal(epochs[61 * 8 :], later_epochs)


def test_a_sampled_order_is_the_same_on_every_machine_and_version():
    records, epochs = sampled("square_root", 6, labels=np.arange(130) ** 2 % 7).records_of_step(1000)
    assert (records.tolist(), epochs.tolist()) == ([114, 42, 108, 29, 56, 7], [43, 61, 43, 44, 60, 61])


def test_a_copy_in_another_process_finds_the_same_records():
    order = sampled("progressive", 16, passes=3)
    before = order.records_of_step(20)
    sent = copy.deepcopy(order)
    assert np.array_equal(sent.records_of_step(20), before)
    assert np.array_equal(sent.records_of_step(3), order.records_of_step(3))


def test_seeds_mix_places_and_classes_apart():
    def first(seed):
        order = SampledOrder(130, 130, seed, labels=LABELS, sampling="balanced")
        return order.records_of_step(0)[0]

    assert not np.array_equal(LABELS[first(1)], LABELS[first(2)])
    of_common = [records[LABELS[records] == 0] for records in (first(1), first(2))]
    assert set(of_common[0]) != set(of_common[1])


def test_passes_of_a_class_are_permuted_anew_and_no_record_is_preferred():
    labels = np.repeat([0, 1], [3, 3000]).astype(np.int32)
    order = SampledOrder(3003, 3003, 0, labels=labels, sampling="balanced")
    records, epochs = columns(order, range(4))
    firsts = []
    for epoch in range(1500):
        rare = records[(labels[records] == 0) & (epochs == epoch)]
        assert sorted(rare.tolist()) == [0, 1, 2]
        firsts.append(order._permutation(0, epoch)[0])
    counts = np.bincount(firsts, minlength=3)
    assert ((counts - 500) ** 2 / 500).sum() < 14  # one in a thousand, 2 degrees of freedom


def test_one_class_is_a_set_that_is_gone_through():
    order = sampled("balanced", 7, labels=np.zeros(7, np.int32))
    for step in range(3):
        records, epochs = order.records_of_step(step)
        assert sorted(records.tolist()) == list(range(7))
        assert set(epochs.tolist()) == {step}


def test_a_late_step_of_many_classes_is_soon_found():
    labels = np.random.default_rng(0).zipf(1.5, 10**5) % 1000
    order = sampled("balanced", 256, labels=labels.astype(np.int32))
    order.records_of_step(0)
    start = time.perf_counter()
    records, _ = order.records_of_step(10**7)
    assert time.perf_counter() - start < 1
    assert len(set(labels[records])) > 150
