import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcls
from pcls.config.load import load_recipe
from pcls.config.optimizer import SparsitySection
from pcls.errors import RestartRequested, UserError
from pcls.pretrained.bundle import load_bundle
from pcls.training.freezing import NEVER
from pcls.training.sparsity import sparse

RNG = np.random.default_rng(0)
PARAMS = {
    "conv/kernel": RNG.normal(size=(3, 3, 4, 5)).astype(np.float32),
    "conv/bias": RNG.normal(size=5).astype(np.float32),
    "head/kernel": RNG.normal(size=(8, 3)).astype(np.float32),
}
KERNELS = ("conv/kernel", "head/kernel")


def trained(settings, steps, *, starts=None, batches=1):
    """Parameters after each update by small random steps, and the last state."""
    section = SparsitySection.model_validate(settings)
    optimizer = sparse(optax.sgd(0.01), section, PARAMS, starts or {}, epoch_steps=10, steps=steps * batches)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state, rng = optimizer.init(params), np.random.default_rng(1)
    update = jax.jit(optimizer.update, static_argnames="batches")
    found = []
    for step in range(steps):
        grads = {path: rng.normal(size=array.shape).astype(np.float32) for path, array in PARAMS.items()}
        updates, state = update(grads, state, params, step=step * batches, batches=batches)
        params = optax.apply_updates(params, updates)
        found.append(jax.device_get(params))
    return found, state


def zeros(array) -> float:
    return float((np.asarray(array) == 0).mean())


def test_zeros_grow_along_the_curve_and_stay_to_the_end():
    found, state = trained({"final": 0.8, "start": "4 steps", "end": "20 steps", "every": 2}, 24)
    for step, params in enumerate(found, 1):
        # Looked at after each second step.
        seen = min(step if step == 20 else step // 2 * 2, 20)
        share = 0 if seen <= 4 else 0.8 * (1 - (1 - (seen - 4) / 16) ** 3)
        for path in KERNELS:
            assert zeros(params[path]) == pytest.approx(share, abs=0.5 / PARAMS[path].size + 1e-6), (step, path)
        assert zeros(params["conv/bias"]) == 0
    for path in KERNELS:
        # What is zero once stays so; the others move on.
        for before, after in itertools.pairwise(found):
            assert not np.any((before[path] == 0) & (after[path] != 0))
        np.testing.assert_array_equal(found[-1][path] != 0, np.asarray(state.masks[path]) > 0)
        assert np.any(found[-1][path] != found[-2][path])
    # The smallest went, but for those that moved.
    size = np.abs(PARAMS["conv/kernel"])
    gone = found[-1]["conv/kernel"] == 0
    assert size[gone].mean() < 0.8 * size.mean() < size[~gone].mean()


def test_two_of_four_inputs_are_zero_and_they_are_the_smallest():
    found, _ = trained({"final": 0.5, "pattern": "two_of_four", "start": "3 steps"}, 6)
    assert zeros(found[2]["conv/kernel"]) == 0
    for params in found[3:]:
        for path in KERNELS:
            *window, inputs, outputs = params[path].shape
            fours = params[path].reshape(*window, inputs // 4, 4, outputs)
            assert ((fours == 0).sum(-2) == 2).all()
    before = np.abs(found[2]["head/kernel"]).reshape(2, 4, 3)
    kept = found[3]["head/kernel"].reshape(2, 4, 3) != 0
    assert (np.where(kept, before, np.inf).min(1) > np.where(kept, 0, before).max(1) - 0.1).all()


def test_updates_of_several_batches_reach_the_end_too():
    found, _ = trained({"final": 0.5, "end": "7 steps", "every": 5}, 6, batches=2)
    assert zeros(found[1]["head/kernel"]) == 0
    assert zeros(found[3]["head/kernel"]) == 0.5
    np.testing.assert_array_equal(found[3]["head/kernel"] == 0, found[-1]["head/kernel"] == 0)


def test_what_never_learns_keeps_its_numbers():
    _, state = trained({"final": 0.5}, 4, starts={"head/kernel": NEVER})
    assert state.masks.keys() == {"conv/kernel"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"final": 0.5, "start": "9 steps", "end": "3 steps"}, "goes from step 9 to step 3"),
        ({"final": 0.5, "end": "2 epochs"}, "to step 20, and the run has 10; write a start before the end"),
        ({"final": 0.5, "start": "10 steps", "pattern": "two_of_four"}, "from step 10 to step 11"),
    ],
)
def test_times_that_cannot_be_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        trained(settings, 10)


def test_a_network_without_inputs_in_fours_is_refused():
    section = SparsitySection(final=0.5, pattern="two_of_four")
    with pytest.raises(UserError, match="finds no kernel that learns and has inputs in fours"):
        sparse(optax.sgd(0.1), section, {"head/kernel": np.zeros((6, 4))}, {}, epoch_steps=1, steps=3)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.sparsity.pattern=two_of_four"], "optimizer.sparsity.pattern has no effect without"),
        (["optimizer.sparsity.every=5"], "optimizer.sparsity.every has no effect without optimizer.sparsity.final"),
        (["optimizer.sparsity.final=0.8", "optimizer.sparsity.pattern=two_of_four"], "is 0.5 with two_of_four"),
        (["optimizer.sparsity.final=1"], "optimizer.sparsity.final is 1"),
        (["optimizer.sparsity.final=-0.1"], "optimizer.sparsity.final is -0.1"),
        (["optimizer.sparsity.final=.nan"], "optimizer.sparsity.final is"),
        (["optimizer.sparsity.final=0.5", "train.ema_decay=0.9"], "needs train.ema_decay=0"),
    ],
)
def test_recipes_that_cannot_be_are_refused(overrides, words):
    with pytest.raises(UserError) as caught:
        load_recipe("digits_cnn", overrides)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.system
def test_a_run_that_was_stopped_goes_on_to_the_same_bits_and_says_its_zeros(tiny, tmp_path, stop_after, final_state):
    settings = tiny | {
        "train.ema_decay": 0.0,
        "optimizer.sparsity.final": 0.75,
        "optimizer.sparsity.every": 2,
        "optimizer.sparsity.end": "10 steps",
    }
    whole = pcls.train("digits_cnn", settings | {"run.dir": str(tmp_path / "whole")})
    with pytest.MonkeyPatch.context():
        stop_after(7)
        with pytest.raises(RestartRequested):
            pcls.train("digits_cnn", settings | {"run.dir": str(tmp_path / "halves")})
    stop_after(-1)
    pcls.resume(tmp_path / "halves")
    states = [final_state(path) for path in (whole.path, tmp_path / "halves")]
    assert states[0].keys() == states[1].keys()
    assert any("masks" in name for name in states[0])
    for name, leaf in states[0].items():
        np.testing.assert_array_equal(leaf, states[1][name], err_msg=name)
    params = load_bundle(whole.path / "bundle").params
    assert all(
        zeros(params[f"{layer}/kernel"]) == pytest.approx(0.75, abs=0.01) for layer in ("conv2", "dense", "head")
    )
    card = (whole.path / "bundle" / "README.md").read_text()
    assert "75 % of the numbers in its kernels are 0" in card and "as long as" in card
