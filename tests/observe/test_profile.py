"""Which dispatches a trace holds; jax's profiler itself is tried in tests/run/test_session.py."""

import jax
import pytest

from pcls.errors import UserError
from pcls.observe.profile import Profiler, check_steps


@pytest.fixture
def traced(monkeypatch, tmp_path):
    """A function that runs dispatches of so many steps each; returns those in the trace, the end, and what was said."""

    def run(steps, dispatches):
        events, said, done = [], [], 0
        monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append(("start", done, folder)))
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append(("stop", done)))
        profiler = Profiler(tmp_path, steps, said.append)
        profiler.after(0, dispatches[0])
        for count, following in zip(dispatches, [*dispatches[1:], 1], strict=True):
            done += count
            profiler.after(done, done + following)
        profiler.close()
        assert len(events) in (0, 2)
        assert all(event[2] == str(tmp_path) for event in events[:1])
        return tuple(event[1] for event in events), said

    return run


def test_the_trace_starts_before_the_first_step_and_holds_the_last_whole(traced, tmp_path):
    """When step 16 is dispatched, the host has read the numbers of step 15."""
    found, said = traced(range(10, 16), [1] * 30)
    assert found == (9, 16)
    assert said == [f"profiled: look at it with: tensorboard --logdir {tmp_path} (needs pip install xprof)"]


def test_the_first_step_can_be_traced(traced):
    assert traced(range(1, 2), [1] * 5)[0] == (0, 2)


def test_steps_that_are_dispatched_together_are_traced_together(traced):
    """10 to 15 of dispatches of 8: those of 9 to 16 and, until its numbers are there, the next."""
    assert traced(range(10, 16), [8] * 6)[0] == (8, 24)
    # A range within one dispatch is not passed over.
    assert traced(range(3, 5), [100, 100, 100])[0] == (0, 200)
    # Nor does a longer dispatch start a trace too soon.
    assert traced(range(10, 12), [1, 1, 1, 5, 1, 1, 1, 1, 1])[0] == (9, 12)


def test_a_run_that_ends_inside_the_range_ends_the_trace(traced):
    found, said = traced(range(3, 100), [1] * 5)
    assert found == (2, 5)
    assert len(said) == 1


@pytest.mark.parametrize("steps", [None, range(50, 60)])
def test_nothing_is_traced_where_nothing_was_asked_for(steps, traced):
    assert traced(steps, [1] * 5) == ((), [])


def test_closing_twice_is_closing_once(traced, tmp_path):
    Profiler(tmp_path, range(1, 3), pytest.fail).close()


@pytest.mark.parametrize("steps", [None, range(1, 2), range(12, 13), range(10, 100), range(1, 1000)])
def test_steps_of_the_run_can_be_traced(steps):
    check_steps(steps, 1, 12)


@pytest.mark.parametrize(("steps", "first"), [(range(13, 20), 1), (range(2, 5), 5)])
def test_steps_that_the_run_has_not_are_refused(steps, first):
    with pytest.raises(
        UserError, match=f"profile: steps {steps.start} to {steps.stop - 1} are not among .* {first} to 12"
    ):
        check_steps(steps, first, 12)
