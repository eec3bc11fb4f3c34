"""Measurements of the smallest network; what is measured is made up where only the arithmetic counts."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from pcls.errors import UserError
from pcls.models.registry import MODELS, model_entry
from pcls.observe.chips import CHIPS
from pcls.planning import bench
from pcls.planning.bench import Rate, bench_models, synthetic_batch, synthetic_program


def measured(names=("rnn28",), **options):
    said = []
    settings = {"precision": "float32", "batch_size": 16, "seconds": 0.05, "say": said.append}
    return list(bench_models(names, **settings | options)), said


@pytest.fixture(scope="module")
def fixed():
    return measured()


def test_a_fixed_batch_is_measured_once_for_training_and_for_inference(fixed):
    rates, said = fixed
    assert [(rate.model, rate.task, rate.batch_size) for rate in rates] == [
        ("rnn28", "train", 16),
        ("rnn28", "inference", 16),
    ]
    assert said == []


def test_the_numbers_of_a_measurement_are_possible(fixed):
    train, inference = fixed[0]
    for rate in (train, inference):
        assert 0 < rate.slowest <= rate.images_per_second <= rate.fastest
        assert rate.compile_seconds > 0
        # 16 images and the parameters at least.
        assert rate.memory_bytes > 16 / 8 * 28 * 28 + 4 * 2282
    assert inference.memory_bytes < train.memory_bytes


def test_a_cpu_has_no_mfu(fixed):
    assert [(rate.mfu, rate.compiled_mfu) for rate in fixed[0]] == [(None, None)] * 2


def test_mfu_is_the_models_flops_over_the_peak_of_all_chips(monkeypatch):
    # Two devices a chip, so that eight are four chips.
    chip = replace(CHIPS[0], bf16_flops=1e12, f32_flops=None, devices=2)
    monkeypatch.setattr(bench, "chip_of", lambda kind: chip)
    (train, inference), _ = measured()
    # Forward: 28 steps of 28 pixels and 64 units, and the head, a multiply-add counted as two.
    forward = 2 * (28 * (28 * 32 + 32 * 32) + 32 * 10)
    assert inference.mfu == pytest.approx(forward * inference.images_per_second / 4e12, rel=0.05)
    assert train.mfu == pytest.approx(3 * forward * train.images_per_second / 4e12, rel=0.05)
    # The compiler counts the activations and the update, too.
    assert train.compiled_mfu > 0.5 * train.mfu


def test_an_unknown_model_is_refused_before_anything_is_measured():
    with pytest.raises(UserError, match="'rnn29'; there is no such model; the nearest is 'rnn28'"):
        bench_models(["rnn28", "rnn29"], precision="float32", batch_size=16, say=pytest.fail)


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    with pytest.raises(UserError, match="--batch-size is 20 and does not divide by the 8 devices; write 16 or 24"):
        bench_models(["rnn28"], precision="float32", batch_size=20, say=pytest.fail)


# Sweeps


def swept(monkeypatch, rate_of, backend="cpu", **options):
    """The batch sizes of a sweep whose measurements are made up, and what was said at its end."""

    def measure(name, task, precision, batch_size, seconds):
        value = rate_of(batch_size)
        if value is None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.")
        return Rate(name, task, batch_size, value, value, value, None, None, 1, 1.0)

    monkeypatch.setattr(bench, "_measure", measure)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    said = []
    rates = bench._sweep("rnn28", "train", "float32", options.get("batch_size", 0), 1.0, said.append)
    return [rate.batch_size for rate in rates], said


def test_on_cpu_a_sweep_ends_where_doubling_twice_gained_nothing(monkeypatch):
    sizes, said = swept(monkeypatch, lambda size: min(size, 300))
    assert sizes == [128, 256, 512, 1024, 2048]
    assert said == ["rnn28 train: larger batches than 512 are hardly faster"]


def test_elsewhere_a_sweep_goes_on_until_memory_is_full(monkeypatch):
    sizes, said = swept(monkeypatch, lambda size: 100 if size <= 4096 else None, backend="gpu")
    assert sizes == [128, 256, 512, 1024, 2048, 4096]
    assert said == ["rnn28 train: memory is full at 8,192 images"]


def test_a_sweep_whose_memory_is_never_full_ends_at_the_largest_batch_of_a_recipe(monkeypatch):
    sizes, _ = swept(monkeypatch, lambda size: size, backend="gpu")
    assert sizes[-1] == 2**24


def test_a_fixed_batch_that_does_not_fit_is_the_users_mistake(monkeypatch):
    with pytest.raises(UserError, match="--batch-size 4096: more than the memory holds; name a smaller one"):
        swept(monkeypatch, lambda size: None, batch_size=4096)


def test_another_failure_is_no_full_memory(monkeypatch):
    def broken(*arguments):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(bench, "_measure", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        list(bench._sweep("rnn28", "train", "float32", 0, 1.0, pytest.fail))


# Larger ones of a family differ in numbers only, and take ten seconds each to trace.
@pytest.mark.system
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"sequencer2d_m", "sequencer2d_l", "rglru2d_s"}))
def test_every_model_can_be_measured_at_its_customary_size(name):
    entry = model_entry(name)
    program = synthetic_program(name, "bfloat16", 8)
    shape = program.batch_shapes.image.shape
    assert shape == (8, entry.image_size, entry.image_size, entry.channels)
    batch = synthetic_batch(program)
    assert batch.image.shape == shape
    assert batch.image.sharding == program.batch_sharding
    assert 0 <= int(batch.label.min()) <= int(batch.label.max()) < entry.classes
    assert np.asarray(batch.weight).tolist() == [1.0] * 8
