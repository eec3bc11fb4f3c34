"""Batches of several sizes: the programs of each, and what the buckets of sequences take turns at."""

import threading

import numpy as np

from pcls.data.buckets import buckets_of
from pcls.data.order import BucketedOrder
from pcls.data.pipeline import Update
from pcls.training.freezing import NEVER, Freezing
from pcls.training.sizes import BucketSizes, Kind, StepsByKind, kinds_from


def test_each_kind_is_compiled_once_in_order_while_the_first_trains():
    compiled, go_on = [], threading.Event()
    first, second, third = kinds = [Kind(Update(160, 160, 3), 0), Kind(Update(192, 128), 0), Kind(Update(192, 128), 1)]

    def compile_kind(kind):
        if kind != first:
            assert go_on.wait(10)
        compiled.append(kind)
        return lambda state, batch: (state + 1, kind)

    steps = StepsByKind(compile_kind, kinds)
    assert steps[first](0, None) == (1, first)
    assert compiled == [first]
    go_on.set()
    assert steps[third](1, None) == (2, third)
    assert steps[second](2, None) == (3, second)
    assert compiled == kinds


def test_what_has_not_begun_is_given_up():
    started, go_on = threading.Event(), threading.Event()
    compiled = []
    kinds = [Kind(Update(160, 160), 0), Kind(Update(192, 192), 0)]

    def compile_kind(kind):
        started.set()
        go_on.wait(10)
        compiled.append(kind)

    steps = StepsByKind(compile_kind, kinds)
    started.wait(10)
    steps.close()
    go_on.set()
    assert steps[kinds[0]] is None
    assert compiled == kinds[:1]


def test_kinds_come_in_the_order_in_which_a_run_meets_them():
    freezing = Freezing({"a": 0, "b": 5, "c": 12, "d": NEVER})
    for first in range(20):
        for steps in (first + 1, first + 4, first + 30):
            sizes = BucketSizes(ORDER, 3, steps)
            met = [Kind(sizes.update_at(step), freezing.phase_at(step)) for step in range(first, steps)]
            assert kinds_from(first, steps, sizes, freezing) == list(dict.fromkeys(met))


# 6, 18 and 24 sequences that are padded to 5, 9 and 20 steps of 3 features; a batch is of 2.
LENGTHS = np.repeat([5, 9, 20], [6, 18, 24])
ORDER = BucketedOrder(buckets_of(LENGTHS, (5, 9, 20)), 2, 0)


def test_each_step_takes_the_length_of_its_bucket():
    sizes = BucketSizes(ORDER, 3, 100)
    for step in range(60):
        update = sizes.update_at(step)
        assert update == Update(int(LENGTHS[ORDER.records_of_step(step)[0]].max()), 3)
    assert sizes.largest == Update(20, 3)
    assert sizes.updates_from(4) == range(4, 100)
    assert sizes.began(4) == 3


def test_programs_come_in_the_order_in_which_a_run_meets_them():
    for first in range(30):
        for steps in (first, first + 1, first + 3, first + 30):
            sizes = BucketSizes(ORDER, 3, steps)
            expected = dict.fromkeys(sizes.update_at(step) for step in range(first, steps))
            assert sizes.programs_from(first) == list(expected)


def test_the_relative_area_is_the_mean_of_all_steps():
    heights = [BucketSizes(ORDER, 3, 100).update_at(step).height for step in range(24)]
    assert BucketSizes(ORDER, 3, 100).relative_area(7) == np.mean(heights) / 20
