"""What a recipe costs on devices that need not be here; the search for the largest batch, by made-up compilers."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import jax
import pytest

import pcls
from pcls.config import load_recipe
from pcls.observe.chips import CHIPS, GIB
from pcls.planning import plan as planning
from pcls.planning.plan import Attempt, batch_unit, data_facts, largest_that_fits, plan_recipe
from pcls.planning.text import plan_json
from pcls.training.program import make_program

TINY = {"data.image_size": 10, "train.batch_size": 32}
LIMIT = 31 * GIB
MADE = object()


def searched(first, unit, needed, *, tells=True, limit=LIMIT, **options):
    """The largest batch that a made-up compiler finds room for, and the sizes that it was asked to compile."""
    asked = []

    def attempt_at(size):
        assert size >= unit
        assert size % unit == 0
        fits = needed(size) <= limit
        # The documented memory is larger than what the compiler says when it gives up.
        return Attempt(
            size, needed(size) if fits or tells else None, limit + GIB if fits else limit, MADE if fits else None, 1.0
        )

    def counted(size):
        asked.append(size)
        assert len(asked) < 30, asked
        return attempt_at(size)

    return largest_that_fits(counted, attempt_at(first), unit, **options), asked


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("unit", [1, 16, 1024])
@pytest.mark.parametrize("first", [1, 3, 64])
@pytest.mark.parametrize("offset", [0, 1 * GIB, 25 * GIB])
@pytest.mark.parametrize("an_image", [2**16, 10_000_000, 140_000_000])
def test_linear_memory_is_searched_to_a_sixteenth_with_few_compilations(tells, unit, first, offset, an_image):
    found, asked = searched(first * unit, unit, lambda size: offset + an_image * size, tells=tells)
    true = (LIMIT - offset) // an_image // unit * unit
    assert 15 / 16 * true <= (found or 0) <= true
    assert len(asked) <= (6 if tells else 12)
    assert len(set(asked)) == len(asked)


def test_memory_that_bends_or_jumps_ends_within_a_sixteenth_too():
    for needed in (
        lambda size: 40_000 * size**1.4,
        lambda size: 5 * GIB + 3_000_000 * size + (8 * GIB if size > 2000 else 0),
        lambda size: 4_000_000_000 * (size // 512) + 1,
    ):
        found, asked = searched(256, 16, needed)
        assert needed(found) <= LIMIT
        # The next that would have been worth a compilation does not fit.
        assert needed(found + max(16, round(found / 256) * 16)) > LIMIT
        assert len(asked) <= 12


def test_where_not_even_the_smallest_batch_fits_there_is_no_largest():
    for tells in (True, False):
        found, asked = searched(4096, 64, lambda size: 40 * GIB + 10**8 * size, tells=tells)
        assert found is None
        assert asked[-1] == 64
        assert len(asked) <= 7


def test_where_everything_fits_the_search_ends_at_what_is_of_interest():
    found, asked = searched(32, 8, lambda size: 1000 * size, most=1438)
    assert found == 1432
    assert len(asked) <= 2
    # A compiler whose answer does not grow with the batch gives no line to follow.
    found, asked = searched(32, 8, lambda size: GIB, most=1438)
    assert found == 1432
    assert len(asked) <= 7
    # What was asked for stands, even beyond that.
    assert searched(2048, 8, lambda size: GIB, most=1438) == (2048, [])


def test_a_batch_beyond_what_is_of_interest_that_does_not_fit_is_searched_below():
    found, asked = searched(2**20, 8, lambda size: GIB + 10**7 * size, most=1000)
    assert found == 1000
    assert max(asked) <= 1000


def test_a_line_that_a_failure_contradicts_is_not_followed():
    """Each answer below promises that the limit is far away; memory ends at 1000 without a word."""
    found, asked = searched(64, 1, lambda size: size * 1000 if size <= 1000 else 2 * LIMIT, tells=False, most=2**15)
    assert 938 <= found <= 1000
    assert len(asked) <= 12


# A recipe's own step


@pytest.fixture(scope="module")
def plan():
    return pcls.plan("digits_rnn", TINY, topology="cpu-8", say=lambda text: None)


def test_a_plan_for_cpus_counts_everything_and_predicts_nothing(plan):
    assert (plan.topology, plan.devices, plan.chip) == ("cpu-8", 8, None)
    assert plan.attempt.fits is None
    assert plan.largest_batch is None
    assert plan.prediction.images_per_second is None
    costs = plan.attempt.costs
    # zero1: one sum over all devices, one gathering of each kernel that the update was split by.
    assert costs.by_kind()["all-reduce"][0] == 1
    assert costs.largest_all_gather == 64 * 16 * 4
    assert costs.donated >= len(jax.tree.leaves(plan.program.state_shapes)) - 2
    assert plan.attempt.needed == costs.memory.peak > 9128


def test_the_state_in_a_plan_is_split_as_it_is_trained(plan):
    parts = {part.name: part for part in plan.state}
    assert (parts["parameters"].bytes, parts["parameters"].split) == (4 * 1706, 0)
    assert parts["optimizer"].bytes_per_device < parts["optimizer"].bytes / 4


@pytest.fixture
def chip(monkeypatch):
    """CPUs that pass for chips of a few hundred kilobytes."""
    made_up = replace(CHIPS[3], kind="cpu", hbm_bytes=400_000)
    monkeypatch.setattr(planning, "chip_of", lambda kind: made_up)
    return made_up


def too_large(batch_size, most, used="5.00G"):
    if batch_size > most:
        raise jax.errors.JaxRuntimeError(
            f"RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
            f"Used {used} of 0.50G hbm. Exceeded hbm capacity by 4.50G."
        )


def with_memory_for(monkeypatch, most):
    """A compiler that gives up above a batch size, and below it knows one program only."""
    real, made = planning.compiled_step, []

    def compiled_step(program, records):
        too_large(program.plan.batch_size, most)
        made.extend([] if made else [real(program, records)])
        return made[0]

    monkeypatch.setattr(planning, "compiled_step", compiled_step)


def test_a_plan_for_documented_chips_predicts_what_the_roofline_says(chip):
    said = []
    plan = plan_recipe(load_recipe("digits_rnn", TINY), "cpu-8", largest=False, say=said.append)
    assert said == ["compiling the step of 32 images for 8 devices"]
    assert plan.attempt.fits
    assert plan.attempt.limit == 400_000
    slow, fast = plan.prediction.images_per_second
    assert plan.prediction.memory_seconds == plan.attempt.costs.bytes_accessed / chip.hbm_bandwidth
    longest = max(getattr(plan.prediction, f"{name}_seconds") for name in ("compute", "memory", "network"))
    assert fast == pytest.approx(32 / longest)
    assert 0 < slow < fast


def test_the_largest_batch_of_a_plan_is_found_between_what_fits_and_what_does_not(chip, monkeypatch):
    with_memory_for(monkeypatch, 100)
    plan = plan_recipe(load_recipe("digits_rnn", TINY), "cpu-8", say=lambda text: None)
    assert plan.attempt.batch_size == 32
    assert 88 <= plan.largest_batch <= 96


def test_a_step_that_does_not_fit_has_no_prediction_but_the_batch_that_would(chip, monkeypatch):
    with_memory_for(monkeypatch, 40)
    plan = plan_recipe(load_recipe("digits_rnn", TINY | {"train.batch_size": 64}), "cpu-8", say=lambda text: None)
    assert plan.attempt.fits is False
    assert plan.prediction is None
    assert (plan.attempt.needed, plan.attempt.limit) == (5 * GIB, GIB // 2)
    assert plan.largest_batch == 40


def test_a_warm_up_in_steps_does_not_end_the_search_for_larger_batches(chip, monkeypatch):
    with_memory_for(monkeypatch, 10**6)
    settings = TINY | {"train.duration": "1 epochs", "optimizer.warmup": "40 steps"}
    plan = plan_recipe(load_recipe("digits_rnn", settings), "cpu-8", say=lambda text: None)
    # A whole epoch would be one step, which 40 steps of warm-up do not fit into.
    assert plan.largest_batch == 1432


def test_another_failure_of_the_compiler_is_no_lack_of_memory(monkeypatch):
    def broken(program, records):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(planning, "compiled_step", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        plan_recipe(load_recipe("digits_rnn", TINY), "cpu-8", say=lambda text: None)


def test_the_images_of_a_resident_set_are_part_of_the_memory():
    few, all_of_them = (
        plan_recipe(load_recipe("digits_rnn", TINY | more), "cpu-8", say=lambda text: None).attempt.costs.memory
        for more in ({}, {"data.on_device": True})
    )
    images = 1438 * (10 * 10 + 4)
    batch = 32 // 8 * (10 * 10 + 4 + 4)
    # Nothing but numbers of records comes in with a step.
    assert all_of_them.arguments - few.arguments == pytest.approx(images - batch, abs=64)


def test_micro_batches_on_chips_are_all_counted(monkeypatch):
    """On CPU they are written out one after the other; a loop of four must cost the same."""
    recipe = load_recipe("digits_rnn", TINY | {"train.accumulate": 4})
    program = make_program(recipe, data_facts(recipe).preprocessing, classes=10, records=1438)
    costs = plan_recipe(recipe, "cpu-8", say=lambda text: None).attempt.costs
    looped = replace(costs, loops=(64, 4))
    assert planning._with_micro_batches(looped, program) == looped
    monkeypatch.setitem(vars(program), "platform", "tpu")
    counted = planning._with_micro_batches(looped, program)
    assert (counted.flops, counted.bytes_accessed) == (4 * costs.flops, 4 * costs.bytes_accessed)
    assert planning._with_micro_batches(replace(costs, loops=(64,)), program).flops == costs.flops


def test_batches_come_in_units_of_shards_micro_batches_and_groups():
    settings = {
        "model.name": "resnet18_cifar",
        "batch_norm.over": "groups",
        "batch_norm.group_size": 2,
        "train.accumulate": 3,
        "train.batch_size": 96,
    }
    recipe = load_recipe("digits_cnn", settings)
    program = make_program(recipe, data_facts(recipe).preprocessing, classes=10, records=1438)
    assert batch_unit(program) == 8 * 3 * 2


def test_a_recipe_that_states_its_numbers_is_planned_without_its_data():
    for name, size, classes, records in (
        ("imagenet_resnet50", 224, 1000, 1_281_167),
        ("imagenet_resnet50_fast", 256, 1000, 1_281_167),
        ("imagenet_convnext_tiny", 224, 1000, 1_281_167),
        ("cifar10_resnet18", 32, 10, 50_000),
    ):
        facts = data_facts(load_recipe(name))
        assert (facts.preprocessing.height, facts.classes, facts.records) == (size, classes, records)


def test_a_recipe_that_does_not_is_planned_from_its_data():
    facts = data_facts(load_recipe("digits_rnn", TINY))
    assert (facts.preprocessing.height, facts.classes, facts.records) == (10, 10, 1438)


def run_plan(*argv, python=sys.executable):
    # Not the eight devices of these tests: the verb itself asks for as many as it needs.
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return subprocess.run(
        [python, "-m", "pcls", "plan", *argv], capture_output=True, text=True, timeout=120, env=environment, check=False
    )


def test_the_verb_asks_for_its_own_devices_and_prints_json_alone():
    done = run_plan("digits_cnn", "data.image_size=10", "--topology", "cpu-4", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["topology"], found["devices"], found["batch_size"], found["model"]) == ("cpu-4", 4, 32, "cnn28")
    assert found["all_reduces"] == found["collectives"]["all-reduce"]["count"] >= 1
    assert found["fits"] is None
    assert done.stderr == "compiling the step of 32 images for 4 devices\n"


@pytest.mark.tpu
def test_libtpu_compiles_for_chips_that_are_not_here_and_says_what_does_not_fit():
    done = run_plan(
        "digits_rnn", "train.batch_size=256", "train.accumulate=2", "--topology", "v6e:1x1", "--quick", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["chip"], found["fits"], found["bound"]) == ("TPU v6e", True, "memory")
    assert found["limit_bytes"] == 32 * GIB
    assert 10**5 < found["images_per_second"][0] < found["images_per_second"][1] < 10**9
    # All but the 28 steps of the loop over the rows, and both micro-batches: 85,000 if only one were counted.
    assert 150_000 < found["flops_per_image"] < 3 * 2 * (28 * (28 * 32 + 32 * 32) + 32 * 10)
    done = run_plan("digits_rnn", "train.batch_size=16777216", "--topology", "v6e:1x1", "--quick")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "pcls: rnn28 does not fit on v6e:1x1: a step of 16,777,216 images needs "
    )
    assert "of 31.2" in done.stderr
    assert "change train.batch_size, train.accumulate=2" in done.stderr


def test_json_of_a_plan_is_valid_and_has_the_promised_keys(plan):
    found = json.loads(json.dumps(plan_json(plan), allow_nan=False))
    promised = {"hbm_bytes_per_image", "all_reduces", "collectives", "memory", "fits", "images_per_second", "bound"}
    assert promised <= found.keys()
    assert found["hbm_bytes_per_image"] == plan.attempt.costs.bytes_accessed * 8 / 32
