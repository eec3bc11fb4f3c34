"""Rates at steps that were computed by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.config import Duration
from pcls.config.optimizer import OptimizerSection
from pcls.errors import UserError
from pcls.training.schedules import learning_rate, peak_rate


def steps(count):
    return Duration(count, "steps")


def rates(at, section, *, run=12, epoch_steps=4.0, batch_size=256):
    schedule = learning_rate(section, steps=run, epoch_steps=epoch_steps, batch_size=batch_size)
    return [float(schedule(step)) for step in at]


COS_45 = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, {0: 0.4, 5: 0.4, 11: 0.4, 12: 0.4}),
        ({"schedule": "constant", "warmup": steps(4)}, {0: 0.0, 1: 0.1, 3: 0.3, 4: 0.4, 11: 0.4}),
        ({"schedule": "constant", "warmup": steps(4), "warmup_start": 0.5}, {0: 0.2, 2: 0.3, 4: 0.4}),
        ({"schedule": "linear"}, {0: 0.4, 3: 0.3, 6: 0.2, 11: 0.4 / 12, 12: 0.0}),
        ({"schedule": "linear", "end_lr": 0.25, "warmup": steps(4)}, {0: 0.0, 2: 0.2, 4: 0.4, 8: 0.25, 12: 0.1}),
        ({"schedule": "cosine"}, {0: 0.4, 3: 0.2 * (1 + COS_45), 6: 0.2, 9: 0.2 * (1 - COS_45), 12: 0.0}),
        ({"schedule": "cosine", "warmup": steps(4)}, {0: 0.0, 2: 0.2, 4: 0.4, 6: 0.2 * (1 + COS_45), 8: 0.2, 12: 0.0}),
        ({"schedule": "cosine", "end_lr": 0.5}, {0: 0.4, 6: 0.3, 12: 0.2}),
        (
            {"schedule": "step", "step_every": Duration(1, "epochs")},
            {0: 0.4, 3: 0.4, 4: 0.04, 7: 0.04, 8: 0.004, 11: 0.004},
        ),
        # An epoch of 4 steps: drops at 2.4, 4.8, 7.2, 9.6.
        (
            {"schedule": "step", "step_every": Duration(0.6, "epochs"), "step_factor": 0.5},
            {2: 0.4, 3: 0.2, 4: 0.2, 5: 0.1, 7: 0.1, 8: 0.05, 9: 0.05, 10: 0.025},
        ),
        # The drop within the warm-up shows where the warm-up ends.
        (
            {"schedule": "step", "step_every": steps(3), "step_factor": 0.5, "warmup": steps(4)},
            {0: 0.0, 3: 0.3, 4: 0.2, 5: 0.2, 6: 0.1, 11: 0.05},
        ),
        (
            {"schedule": "one_cycle", "warmup": steps(4), "end_lr": 0.0},
            {
                0: 0.016,
                1: 0.016 + 0.192 * (1 - COS_45),
                2: 0.208,
                4: 0.4,
                6: 0.2 * (1 + COS_45),
                8: 0.2,
                12: 0.0,
            },
        ),
        ({"schedule": "one_cycle", "warmup": steps(4)}, {0: 0.016, 4: 0.4, 12: 1.6e-6}),
        (
            {"schedule": "wsd", "cooldown": steps(4), "warmup": steps(2)},
            {0: 0.0, 1: 0.2, 2: 0.4, 5: 0.4, 8: 0.4, 9: 0.3, 10: 0.2, 11: 0.1, 12: 0.0},
        ),
        (
            {"schedule": "wsd", "cooldown": steps(4), "cooldown_shape": "1-sqrt", "end_lr": 0.1},
            {0: 0.4, 8: 0.4, 9: 0.4 - 0.36 * 0.5, 10: 0.4 - 0.36 * COS_45, 12: 0.04},
        ),
        ({"schedule": "wsd", "cooldown": Duration(1, "epochs")}, {8: 0.4, 10: 0.2}),
    ],
    ids=str,
)
def test_a_schedule_has_the_rates_of_its_formula(settings, expected):
    found = rates(expected, OptimizerSection(lr=0.4, **settings))
    np.testing.assert_allclose(found, list(expected.values()), atol=1e-7)


def test_the_last_step_of_a_run_still_learns():
    assert rates([11], OptimizerSection(lr=0.4, schedule="linear"))[0] == pytest.approx(0.4 / 12)


def test_a_rate_stays_at_its_end_after_the_run():
    assert rates([12, 500], OptimizerSection(lr=0.4, schedule="linear", end_lr=0.25)) == pytest.approx([0.1, 0.1])


def test_a_rate_per_256_images_grows_with_the_batch():
    section = OptimizerSection(lr=0.1, lr_per_256=True, schedule="constant")
    assert rates([0], section, batch_size=1024) == pytest.approx([0.4])
    assert rates([0], section, batch_size=64) == pytest.approx([0.025])
    assert peak_rate(section, 1024) == pytest.approx(0.4)


def test_a_rate_that_is_not_per_256_images_is_the_same_for_any_batch():
    assert rates([0], OptimizerSection(lr=0.1, schedule="constant"), batch_size=1024) == pytest.approx([0.1])


def test_a_traced_step_of_a_long_run_gives_a_float32():
    schedule = learning_rate(OptimizerSection(lr=0.4), steps=1_000_000, epoch_steps=5004.3, batch_size=256)
    found = jax.jit(schedule)(jnp.int32(500_000))
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(0.2, rel=1e-6)


def test_a_run_of_one_step_takes_it_at_the_peak():
    assert rates([0], OptimizerSection(lr=0.4), run=1) == pytest.approx([0.4])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"warmup": Duration(5, "epochs")},
            "optimizer.warmup is 5 epochs, 20 steps, and the run has room for 11; "
            "shorten optimizer.warmup or lengthen train.duration",
        ),
        (
            {"warmup": steps(12)},
            "optimizer.warmup is 12 steps, 12 steps, and the run has room for 11; "
            "shorten optimizer.warmup or lengthen train.duration",
        ),
        (
            {"schedule": "wsd", "warmup": steps(4), "cooldown": Duration(2.25, "epochs")},
            "optimizer.cooldown is 2.25 epochs, 9 steps, and the run has room for 8; "
            "shorten optimizer.cooldown or lengthen train.duration",
        ),
    ],
    ids=str,
)
def test_phases_that_do_not_fit_into_the_run_are_refused_with_the_numbers(settings, message):
    with pytest.raises(UserError) as raised:
        rates([0], OptimizerSection(lr=0.4, **settings))
    assert str(raised.value) == message


@pytest.mark.parametrize("every", [41, 49, 103])
def test_every_compiled_drop_comes_at_its_step(every):
    section = OptimizerSection(lr=1.0, schedule="step", step_every=steps(every), step_factor=0.99)
    at = np.arange(60 * every, dtype=np.int32)
    found = jax.jit(learning_rate(section, steps=60 * every, epoch_steps=1.0, batch_size=1))(at)
    np.testing.assert_allclose(found, 0.99 ** (at // every), rtol=1e-5)
