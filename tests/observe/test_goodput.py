"""Where the time goes; the clock is made up where seconds are asserted."""

import time

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcls.observe import goodput as module
from pcls.observe.goodput import CAUSES, Goodput, union_length


@pytest.fixture
def clock(monkeypatch):
    """The time, which passes when the test says so."""

    class Clock:
        now = 1000.0

        def time(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def goodput(clock):
    made = Goodput()
    yield made
    made.close()


def compiles(goodput, start, end, event="/jax/core/compile/backend_compile_duration"):
    goodput._on_event(event, start, end)


def lost(row):
    return {cause: row[f"lost_to_{cause}"] for cause in ("compile", *CAUSES)}


def test_what_no_cause_claims_is_training(goodput, clock):
    clock.now += 5
    goodput.start_training()
    for cause, seconds in (("data", 1), ("checkpoint", 2), ("evaluation", 3), ("data", 0.5)):
        with goodput.lost_to(cause):
            clock.now += seconds
    clock.now += 8.5
    row = goodput.row(7)
    assert (row["kind"], row["step"], row["seconds"]) == ("goodput", 7, 20)
    assert lost(row) == {"compile": 0, "idle": 5, "data": 1.5, "checkpoint": 2, "evaluation": 3}
    assert row["goodput"] == 8.5 / 20


def test_compiling_is_booked_as_such_wherever_it_comes_up(goodput, clock):
    clock.now += 10
    compiles(goodput, 1004, 1007)
    goodput.start_training()
    with goodput.lost_to("evaluation"):
        clock.now += 6
        compiles(goodput, 1011, 1015)
    clock.now += 4
    compiles(goodput, 1017, 1018)
    row = goodput.row(3)
    assert lost(row) == {"compile": 8, "idle": 7, "data": 0, "checkpoint": 0, "evaluation": 2}
    assert row["goodput"] == 3 / 20


def test_a_function_that_is_traced_inside_another_is_compiled_once(goodput, clock):
    goodput.start_training()
    compiles(goodput, 1000, 1004)
    compiles(goodput, 1001, 1003, "/jax/core/compile/jaxpr_trace_duration")
    clock.now += 8
    assert lost(goodput.row(1))["compile"] == 4


def test_other_events_of_jax_are_no_compilation(goodput, clock):
    goodput.start_training()
    compiles(goodput, 1000, 1004, "/jax/checkpoint/write/durations")
    clock.now += 8
    assert goodput.row(1)["goodput"] == 1


def test_time_is_booked_when_the_work_inside_fails(goodput, clock):
    goodput.start_training()
    with pytest.raises(ZeroDivisionError), goodput.lost_to("checkpoint"):
        clock.now += 2
        raise ZeroDivisionError
    assert lost(goodput.row(1))["checkpoint"] == 2


def test_a_row_at_the_very_start_is_finite(goodput):
    assert 0 <= goodput.row(0)["goodput"] <= 1


def test_jax_tells_of_its_compilations_until_it_is_closed():
    goodput = Goodput()
    goodput.start_training()

    def fresh(factor):
        # A constant that no other test compiles, so that it comes out of no cache in this process.
        return jax.jit(lambda x: jnp.sin(x * factor) @ jnp.cos(x).T)(jnp.ones((3, 3))).block_until_ready()

    with goodput.lost_to("data"):
        began = time.time()
        fresh(0.8765)
        spent = time.time() - began
    row = goodput.row(1)
    assert 0 < row["lost_to_compile"] <= spent + 1e-3
    # What was compiled inside is not booked twice.
    assert row["lost_to_compile"] + row["lost_to_data"] == pytest.approx(spent, abs=0.01)
    goodput.close()
    fresh(0.9876)
    assert goodput.row(2)["lost_to_compile"] == row["lost_to_compile"]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10))))
def test_spans_cover_together_what_they_cover_second_by_second(spans):
    spans = [(start, start + length) for start, length in spans]
    seconds = {second for start, end in spans for second in range(start, end)}
    assert union_length(spans) == len(seconds)
