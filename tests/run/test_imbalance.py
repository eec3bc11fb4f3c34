"""Runs on unbalanced classes, put together as users put them."""

import numpy as np
import pytest

import pcls
from pcls.config import Recipe, with_overrides
from pcls.data.order import Order, SampledOrder
from pcls.errors import UserError
from pcls.training.program import training_order

LABELS = np.repeat([0, 1, 2], [90, 9, 1]).astype(np.int32)


def order_of(labels=LABELS, **overrides) -> Order:
    recipe = with_overrides(Recipe(), {"train.batch_size": 10, "train.duration": "35 steps"} | overrides)
    return training_order(recipe, len(LABELS), labels=labels)


# Sampling


def test_natural_sampling_is_the_plain_order():
    assert order_of() == Order(100, 10, 0)


@pytest.mark.parametrize("sampling", ["balanced", "square_root", "progressive"])
def test_a_recipe_samples_classes_over_as_many_passes_as_it_has(sampling):
    order = order_of(**{"data.sampling": sampling, "train.seed": 3})
    assert isinstance(order, SampledOrder)
    assert (order.seed, order.sampling, order.passes, order.epoch_steps) == (3, sampling, 4, 10)
    # Where nobody has read the labels, as when only memory is asked for, it takes as many steps.
    assert order_of(None, **{"data.sampling": sampling}) == Order(100, 10, 0)


def test_progressive_sampling_of_one_epoch_is_refused():
    with pytest.raises(UserError) as raised:
        order_of(**{"data.sampling": "progressive", "train.duration": "10 steps"})
    assert str(raised.value) == (
        "data.sampling=progressive moves from epoch to epoch, and the run is over before the second; "
        "write a longer train.duration, or data.sampling=balanced"
    )


def test_sampled_classes_come_in_no_buckets():
    with pytest.raises(UserError) as raised:
        with_overrides(Recipe(), {"data.source": "ts", "data.buckets": 3, "data.sampling": "balanced"})
    assert str(raised.value) == (
        "override data.sampling: data.sampling balanced draws records of all lengths; leave out data.buckets, or this"
    )


@pytest.mark.parametrize("where", [{}, {"data.on_device": True}])
def test_a_sampled_run_stopped_halfway_resumes_to_the_same_bits(where, tiny, tmp_path, stop_after, final_state):
    sampled = tiny | where | {"data.sampling": "balanced", "data.long_tail": 50}
    pcls.train("digits_cnn", sampled | {"run.dir": str(tmp_path / "whole")})
    stop_after(5)
    with pytest.raises(pcls.RestartRequested):
        pcls.train("digits_cnn", sampled | {"run.dir": str(tmp_path / "parts")})
    stop_after(0)
    pcls.resume(tmp_path / "parts")
    found, expected = final_state(tmp_path / "parts"), final_state(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
