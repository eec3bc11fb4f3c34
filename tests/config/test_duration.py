"""Durations: what is read, what is refused, and how many steps they come to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcls.config import Duration

DURATIONS = st.builds(Duration, st.integers(0, 10**15), st.just("steps")) | st.builds(
    Duration, st.floats(0, 1e15, allow_nan=False), st.just("epochs")
)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("10 epochs", 10, "epochs"),
        ("1 epoch", 1, "epochs"),
        ("0.5 epochs", 0.5, "epochs"),
        ("600 steps", 600, "steps"),
        ("1 step", 1, "steps"),
        ("  7steps ", 7, "steps"),
    ],
)
def test_numbers_with_a_unit_are_read(text, value, unit):
    assert Duration.parse(text) == Duration(value, unit)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "10",
            "epochs",
            "-1 epochs",
            "1.5 steps",
            "1e3 steps",
            "nan epochs",
            "inf epochs",
            "10 Epochs",
            "1. epochs",
        ),
        *("10 hours", "10 epochs 5 steps", "1,000 steps", "9" * 400 + " epochs", "9" * 5000 + " steps"),
    ],
    ids=lambda text: text[:20],
)
def test_anything_else_is_no_duration(text):
    with pytest.raises(ValueError):
        Duration.parse(text)


@given(DURATIONS)
def test_every_duration_reads_back_from_its_text(duration):
    assert Duration.parse(str(duration)) == duration


@given(st.text(max_size=30))
def test_arbitrary_text_is_a_duration_or_a_value_error(text):
    try:
        duration = Duration.parse(text)
    except ValueError:
        return
    assert 0 <= duration.value < float("inf")


def test_long_durations_are_written_in_full():
    assert str(Duration(1_234_567, "steps")) == "1234567 steps"
    assert str(Duration(1.0, "epochs")) == "1 epochs"
    assert str(Duration(1e-7, "epochs")) == "0.0000001 epochs"


@pytest.mark.parametrize(
    ("text", "epoch_steps", "steps"),
    [
        ("10 epochs", 100, 1000),
        ("1 epochs", 468.75, 469),
        ("2 epochs", 468.75, 938),  # 937.5: a half goes up
        ("0.5 epochs", 3, 2),
        ("0.001 epochs", 3, 1),
        ("0 epochs", 3, 0),
        ("600 steps", 3, 600),
        ("0 steps", 3, 0),
    ],
)
def test_steps_are_rounded_to_the_nearest_and_at_least_one(text, epoch_steps, steps):
    assert Duration.parse(text).steps(epoch_steps) == steps


def test_steps_before_rounding_keep_their_fraction():
    assert Duration.parse("2 epochs").exact_steps(468.75) == 937.5
    assert Duration.parse("5 steps").exact_steps(468.75) == 5
