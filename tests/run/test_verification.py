"""Devices that err: a bit that flips in one of eight, a step that comes out otherwise."""

import jax
import numpy as np
import pytest

import pcls
from pcls.config import load_recipe
from pcls.data.pipeline import Workers
from pcls.run import verification
from pcls.run.setup import prepare
from pcls.run.verification import Verification


@pytest.fixture(scope="module")
def setup(tiny):
    return prepare(load_recipe("digits_cnn", tiny))


@pytest.fixture(scope="module")
def verified(setup):
    return Verification(setup)


def with_flipped_bit(array, number):
    """The array, whose copy on one device has its last element's lowest bit flipped."""
    pieces = []
    for place, shard in enumerate(array.addressable_shards):
        piece = np.array(shard.data)
        if place == number:
            piece.reshape(-1)[-1:].view(np.uint8)[0] ^= 1
        pieces.append(jax.device_put(piece, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, pieces)


def with_fault(state, leaf="conv2/kernel", number=3):
    state.params[leaf] = with_flipped_bit(state.params[leaf], number)
    return state


def test_copies_that_agree_are_no_news(setup, verified):
    verified.compare_copies(setup.initial_state(), 1)


def test_a_flipped_bit_names_step_leaf_and_device(setup, verified):
    device = setup.mesh.devices.flat[3]
    with pytest.raises(pcls.RestartRequested) as error:
        verified.compare_copies(with_fault(setup.initial_state()), 1200)
    assert error.value.exit_code == 42
    assert str(error.value) == (
        f"step 1,200: params/conv2/kernel is not the same on all devices (guard.verify): {device} of process 0; the "
        "last checkpoint is of before; resume, and if the same device is named again, leave it out"
    )


def test_a_step_that_comes_out_otherwise_is_found(setup, verified, monkeypatch):
    compiled, taken = setup.train_step(), []

    def errs_once(state, batch):
        taken.append(batch)
        state, metrics = compiled(state, batch)
        return (with_fault(state, "head/bias", 6) if len(taken) == 1 else state), metrics

    with setup.batches([0], Workers(0)) as batches, pytest.raises(pcls.RestartRequested) as error:
        verified.step_twice(errs_once, setup.initial_state(), next(batches), 1)
    assert "params/head/bias came out otherwise when the step was taken again" in str(error.value)
    assert f"{setup.mesh.devices.flat[6]} of process 0" in str(error.value)


def test_a_verified_run_ends_with_the_same_bits(tiny, tmp_path, finished_run, final_state, monkeypatch):
    steps = []
    take = Verification.step_twice
    monkeypatch.setattr(
        verification.Verification,
        "step_twice",
        lambda self, train, state, batch, step: (steps.append(step), take(self, train, state, batch, step))[1],
    )
    run = pcls.train("digits_cnn", tiny | {"run.dir": str(tmp_path / "run"), "guard.verify": "5 steps"})
    assert steps == [5, 10, 12]
    found, expected = final_state(run.path), final_state(finished_run)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def test_a_fault_ends_the_run_before_it_is_saved(tiny, tmp_path, monkeypatch):
    compare = Verification.compare_copies
    monkeypatch.setattr(
        Verification,
        "compare_copies",
        lambda self, state, step: compare(self, with_fault(state) if step == 8 else state, step),
    )
    path = tmp_path / "run"
    with pytest.raises(pcls.RestartRequested, match="step 8: params/conv2/kernel is not the same"):
        pcls.train("digits_cnn", tiny | {"run.dir": str(path), "guard.verify": "100 steps"})
    assert sorted(folder.name for folder in (path / "checkpoints").iterdir()) == ["4"]
