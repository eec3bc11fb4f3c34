"""What is frozen stays as it is to the last bit, and costs no gradient; what thaws begins anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.config.optimizer import FreezeRule
from pcls.errors import UserError
from pcls.training.freezing import NEVER, freezing
from pcls.training.sizes import Kind

PARAMS = ("bn1/scale", "conv1/kernel", "conv2/kernel", "head/kernel")
STATS = ("bn1/mean",)
FREEZE = [{"match": "^(conv1|bn1)/"}, {"match": "^(conv2|bn2)/", "until": "3 steps"}]


def rule(match, until=None):
    return FreezeRule(match=match, until=until)


def of_rules(*rules, steps=20):
    return freezing(rules, PARAMS, STATS, epoch_steps=4.0, steps=steps)


def test_the_first_rule_that_matches_holds():
    found = of_rules(rule("^bn1/scale", "0 steps"), rule("1/"), rule("^conv", "2 epochs"))
    assert found.starts == {
        "bn1/scale": 0,
        "bn1/mean": NEVER,
        "conv1/kernel": NEVER,
        "conv2/kernel": 8,
        "head/kernel": 0,
    }
    assert found.phases == (0, 8)
    assert [found.phase_at(step) for step in (0, 7, 8, 9)] == [0, 0, 1, 1]
    assert found.frozen(0) == {"bn1/mean", "conv1/kernel", "conv2/kernel"}
    assert found.frozen(1) == {"bn1/mean", "conv1/kernel"}
    assert found.spans(5, 20) == [(0, 5, 8), (1, 8, 20)]
    assert found.spans(8, 20) == [(1, 8, 20)]


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([rule("^haed/")], "'^haed/' matches no parameter"),
        ([rule("^head/", "1 steps"), rule("^head/")], "'^head/' matches no parameter that no earlier rule matches"),
        ([rule("mean")], "'mean' matches no parameter"),
        ([rule(".")], "keeps every parameter as it is"),
        ([rule("."), rule("head", "1 steps")], "'head' matches no parameter that no earlier"),
        ([rule("^conv1/", "5 epochs")], "is frozen until 5 epochs, and the run has 20 steps"),
    ],
)
def test_a_rule_without_sense_is_refused(rules, words):
    with pytest.raises(UserError, match=r"^optimizer\.freeze") as raised:
        of_rules(*rules)
    assert words in str(raised.value)


@pytest.fixture(scope="module")
def frozen_program(program):
    """With momentum, averages and dropout; the first convolution never learns, the second from step 3 on."""
    return program(
        1,
        **{"optimizer.freeze": FREEZE, "train.ema_decay": 0.5, "model.dropout": 0.2, "optimizer.name": "adamw"},
    )


@pytest.fixture(scope="module")
def states(frozen_program, batch_at, host_copy):
    """After 0 to 5 steps."""
    state = frozen_program.initial_state()
    # Statistics of a trained network: the batch's own would show.
    start = {path: 0.3 + 0.1 * array for path, array in state.stats.items()}
    state = state.__class__(**{**vars(state), "stats": start, "ema": (state.ema[0], jax.tree.map(jnp.copy, start))})
    kinds = {kind.phase: frozen_program.train_step_of(kind) for kind in frozen_program.kinds_from(0)}
    found = [host_copy(state)]
    for step in range(5):
        state, metrics = kinds[frozen_program.kind_at(step).phase](state, batch_at(step))
        assert float(metrics["finite"]) == 1
        found.append(host_copy(state))
    return found


def groups_that_moved(before, after):
    return {path.split("/")[0] for path in before if not np.array_equal(before[path], after[path])}


def test_frozen_parameters_statistics_and_averages_stay_to_the_last_bit(states):
    for step in range(3):
        before, after = states[step], states[step + 1]
        for old, new in zip((before.params, before.ema[0]), (after.params, after.ema[0]), strict=True):
            assert groups_that_moved(old, new) == {"head"}
        assert groups_that_moved(before.stats, after.stats) == set()
        assert groups_that_moved(before.ema[1], after.ema[1]) == set()
    for step in (3, 4):
        assert groups_that_moved(states[step].params, states[step + 1].params) == {"conv2", "bn2", "head"}
        assert groups_that_moved(states[step].stats, states[step + 1].stats) == {"bn2"}


def test_the_first_step_of_what_thaws_is_as_long_as_a_first_step(states):
    # Adam's first step moves by the rate, whatever the gradient; with moments that count from step 0 by 3 times that.
    moved = np.abs(states[4].params["conv2/kernel"] - states[3].params["conv2/kernel"])
    assert np.median(moved) == pytest.approx(0.02, rel=1e-3)


def test_a_frozen_layer_normalises_by_its_running_statistics(frozen_program, states, batch_at):
    images = (jnp.asarray(batch_at(0).image, jnp.float32) / 255 - 0.5) / 0.25
    model, state = frozen_program.model, states[0]
    frozen = frozen_program.freezing.frozen(0)
    trained, stats = model.apply(state.params, state.stats, images, frozen_program.training, frozen=frozen)
    predicted, _ = model.apply(state.params, state.stats, images)
    np.testing.assert_array_equal(trained, predicted)
    np.testing.assert_array_equal(stats["bn2/mean"], state.stats["bn2/mean"])
    own, _ = model.apply(state.params, state.stats, images, frozen_program.training)
    assert not np.allclose(own, predicted, atol=0.1)


def test_no_gradient_is_computed_for_what_is_frozen(program):
    def flops(freeze):
        made = program(1, **{"optimizer.freeze": freeze})
        return made.train_step_of(made.kind_at(0)).cost_analysis()["flops"]

    whole, trunk = flops([]), flops([{"match": "^(conv|bn)"}])
    assert trunk < 0.45 * whole


def test_the_state_of_what_never_learns_is_not_kept(frozen_program):
    state = frozen_program.state_shapes
    kept = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    assert not any("conv1" in path for path in kept)
    assert any("conv2" in path for path in kept)


def test_a_program_each_phase_in_their_order(frozen_program):
    kinds = frozen_program.kinds_from(0)
    assert [kind.phase for kind in kinds] == [0, 1]
    assert frozen_program.kinds_from(3) == [Kind(kinds[0].update, 1)]
    assert frozen_program.plan.at_once == 1
