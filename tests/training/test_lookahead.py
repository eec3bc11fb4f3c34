"""Slow weights beside their formula in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pcls.config import load_recipe
from pcls.config.optimizer import LookaheadSection, OptimizerSection
from pcls.errors import UserError
from pcls.training.freezing import NEVER
from pcls.training.optimizers import make_optimizer

PARAMS = {"stages/0/kernel": np.float32([[1.0, -2.0]]), "head/bias": np.float32([0.5])}
LR = 0.25


def gradient(step):
    return {path: np.float32(np.random.default_rng(step).normal(size=array.shape)) for path, array in PARAMS.items()}


def trained(section, steps, *, run=None, starts=None, batches=1, learns=lambda step: PARAMS):
    """Parameters after each update, of a run of so many steps."""
    settings = OptimizerSection(name="sgd", lr=LR, momentum=0.5, nesterov=False, lookahead=section)
    params = dict(jax.tree.map(jnp.asarray, PARAMS))
    optimizer = make_optimizer(settings, lambda step: LR, params, starts or {}, run or steps)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update, static_argnames="batches")
    found = []
    for step in range(steps):
        own = {path: params[path] for path in learns(step)}
        grads = {path: array for path, array in gradient(step).items() if path in own}
        updates, state = update(grads, state, own, step=step * batches, batches=batches)
        params = params | optax.apply_updates(own, updates)
        found.append(dict(params))
    return found, state


@pytest.mark.parametrize(("share", "ramp"), [(None, None), (0.25, None), (0.2, 3.0), (1.0, None)])
def test_slow_weights_take_a_share_of_each_round_and_the_optimizer_goes_on_from_there(share, ramp):
    steps, every = 11, 3
    found, _ = trained(LookaheadSection(every=every, share=share, ramp=ramp), steps)
    slow = fast = {path: array.astype(np.float64) for path, array in PARAMS.items()}
    trace = {path: np.zeros_like(array) for path, array in fast.items()}
    for step in range(steps):
        trace = {path: gradient(step)[path] + 0.5 * trace[path] for path in trace}
        fast = {path: fast[path] - LR * trace[path] for path in fast}
        if (step + 1) % every == 0:
            way = 1 - (1 - (share or 0.5)) * ((step + 1) / steps) ** (ramp or 0)
            slow = {path: slow[path] + way * (fast[path] - slow[path]) for path in slow}
            fast = slow
        if step + 1 == steps:
            # Two steps into its fourth round the run ends: with the weights of the third.
            fast = slow
        for path, array in fast.items():
            np.testing.assert_allclose(found[step][path], array, rtol=1e-5, atol=1e-6)


def test_an_update_of_several_batches_may_end_a_round_within_it():
    found, _ = trained(LookaheadSection(every=3, share=1.0), 3, run=100, batches=2)
    plain, _ = trained(LookaheadSection(every=2, share=1.0), 3, run=100)
    # All of the way is what the optimizer does by itself.
    np.testing.assert_allclose(found[-1]["head/bias"], plain[-1]["head/bias"], rtol=1e-6)
    half, half_state = trained(LookaheadSection(every=3), 2, run=100, batches=2)
    np.testing.assert_allclose(half[-1]["head/bias"], half_state.slow["head/bias"], rtol=1e-6)


def test_what_never_learns_has_no_slow_weights_and_what_learns_late_keeps_its_own_until_then():
    starts = {"stages/0/kernel": NEVER, "head/bias": 0}
    found, state = trained(LookaheadSection(every=2), 4, starts=starts, learns=lambda step: ["head/bias"])
    assert state.slow.keys() == {"head/bias"}
    np.testing.assert_array_equal(found[-1]["stages/0/kernel"], PARAMS["stages/0/kernel"])
    late, state = trained(
        LookaheadSection(every=2),
        5,
        run=100,
        starts={"head/bias": 3},
        learns=lambda step: PARAMS if step >= 3 else ["stages/0/kernel"],
    )
    # Its first step ended a round, half of which counts; the next was its second.
    first = PARAMS["head/bias"] - LR * gradient(3)["head/bias"] / 2
    np.testing.assert_allclose(late[3]["head/bias"], first, rtol=1e-5)
    np.testing.assert_allclose(state.slow["head/bias"], first, rtol=1e-5)


@pytest.mark.parametrize("key", ["share", "ramp"])
def test_what_has_no_effect_is_refused(key):
    with pytest.raises(UserError) as raised:
        load_recipe("digits_cnn", [f"optimizer.lookahead.{key}=0.5"])
    assert str(raised.value) == (
        f"override optimizer.lookahead.{key}: optimizer.lookahead.{key} has no effect without optimizer.lookahead.every"
    )


def test_a_share_beyond_all_of_the_way_is_refused():
    with pytest.raises(
        UserError, match=r"optimizer\.lookahead\.share is 1\.5 \(number\); a finite number > 0 and <= 1"
    ):
        load_recipe("digits_cnn", ["optimizer.lookahead.every=5", "optimizer.lookahead.share=1.5"])
