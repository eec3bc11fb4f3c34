"""Learning rates read off curves whose answer is known, and the ramp itself."""

import jax
import numpy as np
import pytest

from pcls.training.optimizers import make_optimizer
from pcls.training.rate_finder import (
    DIVERGED,
    UNSETTLED,
    curve,
    diverged,
    ramp,
    ramp_losses,
    smoothed,
    steepest,
    valley,
)
from pcls.training.step import make_train_step

RATES = np.geomspace(1e-6, 1, 61)


def bowl(fall_from: float, fall_to: float) -> np.ndarray:
    """Flat, then falling linearly in log rate from one rate to another, then rising steeply."""
    logs = np.log10(RATES)
    low, high = np.log10(fall_from), np.log10(fall_to)
    falling = 2.0 - 1.5 * np.clip((logs - low) / (high - low), 0, 1)
    return falling + 10 * np.clip(logs - high, 0, None) ** 2


def test_the_valley_is_the_middle_of_the_longest_fall():
    assert valley(RATES, bowl(1e-4, 1e-2)) == pytest.approx(1e-3, rel=0.15)


def test_a_short_rise_on_the_way_down_moves_the_valley_little():
    values = bowl(1e-4, 1e-2)
    values[30] += 0.2
    assert valley(RATES, values) == pytest.approx(1e-3, rel=0.5)


def test_a_shorter_fall_before_the_longest_does_not_count():
    values = bowl(1e-3, 1e-1) + np.where(RATES < 1.2e-6, 0.5, 0)
    assert valley(RATES, values) == pytest.approx(1e-2, rel=0.3)


def test_the_steepest_point_is_where_a_sigmoid_turns():
    values = 1 / (1 + np.exp(3 * (np.log10(RATES) + 3)))
    assert steepest(RATES, values) == pytest.approx(1e-3, rel=0.01)


def test_the_steepest_point_lies_before_the_lowest():
    values = bowl(1e-5, 1e-3)
    # Below the lowest nothing counts, however steep it falls after the rise.
    values[-1] = values[-2] - 50 + 100
    found = steepest(RATES, values)
    assert found is not None
    assert 1e-5 <= found <= 1e-3


@pytest.mark.parametrize("values", [np.full(61, 2.0), np.linspace(2, 3, 61), np.zeros(0)], ids=["flat", "rise", "none"])
def test_a_loss_that_never_falls_suggests_nothing(values):
    rates = RATES[: len(values)]
    assert (steepest(rates, values), valley(rates, values)) == (None, None)


def test_the_running_mean_starts_at_the_first_value_and_follows_a_constant_exactly():
    np.testing.assert_allclose(smoothed(np.full(9, 3.5)), 3.5, rtol=1e-12)
    rising = smoothed(np.array([1.0, 2.0]), keep=0.5)
    np.testing.assert_allclose(rising, [1.0, (0.5 * 1 + 2) / 1.5])


def test_divergence_is_told_by_the_running_mean():
    before = np.full(UNSETTLED, 0.1)
    assert not diverged(np.array([*before, 1.0, 0.5, DIVERGED * 0.5]))
    assert diverged(np.array([*before, 1.0, 0.5, DIVERGED * 0.51]))
    # Of pretrained weights the first losses are small, and differ by chance.
    assert not diverged(np.array([0.001, 0.1]))


def test_a_fall_by_chance_in_the_first_batches_suggests_nothing():
    losses = np.concatenate([[2.0, 4.0, 2.5], bowl(1e-4, 1e-2)[2:]])
    found = curve(RATES, losses)
    assert found.smooth[0] > found.smooth[1]
    assert found.steepest > 1e-4
    assert found.valley > 1e-4


def test_the_ramp_is_exponential_from_end_to_end():
    rates = [float(ramp(1e-6, 1.0, 61)(step)) for step in range(61)]
    np.testing.assert_allclose(rates, RATES, rtol=1e-5)


def test_a_curve_leaves_out_the_batch_before_the_first_rate_and_what_is_not_finite():
    found = curve(RATES, np.array([9.0, 3.0, 2.0, np.nan]))
    np.testing.assert_array_equal(found.rates, RATES[:2])
    np.testing.assert_array_equal(found.losses, [3.0, 2.0])
    assert found.diverged
    assert not curve(RATES, np.full(62, 1.0)).diverged


@pytest.fixture(scope="module")
def compiled(program):
    """The program of the tiny network, and its compiled step whose rate rises to 1e6 within 40 steps."""
    made = program()
    rising = ramp(1e-4, 1e6, 40)
    optimizer = make_optimizer(made.recipe.optimizer, rising, made.model.params)
    step = make_train_step(made.gradients_of(0), optimizer, made.recipe)
    return made, jax.jit(step, donate_argnums=0)


def test_a_ramp_ends_where_the_loss_diverges_and_leaves_the_state_as_it_was(compiled, batch_at, host_copy):
    made, step = compiled
    state = made.initial_state()
    before = host_copy(state)
    losses = ramp_losses(step, state, map(batch_at, range(41)), lambda batch: batch)
    jax.tree.map(np.testing.assert_array_equal, host_copy(state), before)
    assert 20 < len(losses) < 41
    found = curve(np.geomspace(1e-4, 1e6, 40), losses)
    assert found.diverged
    assert 1e-3 < found.valley < 1e2
    # The first loss is that of the state as it was given, whatever the first rate is.
    again = ramp_losses(step, state, [batch_at(0), batch_at(1)], lambda batch: batch)
    np.testing.assert_array_equal(again, losses[:2])
