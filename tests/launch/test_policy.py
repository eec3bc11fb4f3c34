"""Which exit codes start a run again, and when."""

import random

import pytest

from pcls.launch.policy import Policy, deciding, final_codes, restarts, shell_code


@pytest.mark.parametrize(
    ("code", "alone", "expected"),
    [
        (0, True, False),
        (1, True, False),
        (1, False, True),
        (2, True, False),
        (2, False, False),
        (42, True, True),
        (43, False, False),
        (-9, True, True),
        (-15, False, True),
        (137, True, True),
        (255, False, True),
    ],
)
def test_a_restart_follows_42_and_signals_but_not_what_would_fail_again(code, alone, expected):
    assert restarts(code, alone=alone) is expected


def test_of_several_processes_a_bug_is_not_told_from_a_lost_peer():
    assert final_codes(alone=True) == (1, 2, 43)
    assert final_codes(alone=False) == (2, 43)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([1, -9], -9), ([1, 42], 42), ([42, 2], 2), ([-9, 43], 43), ([0, 1], 1), ([0, 0], 0), ([137, 1], 137)],
)
def test_the_code_that_explains_the_others_speaks(codes, expected):
    assert deciding(codes) == deciding(reversed(codes)) == expected


def test_delays_double_up_to_the_longest_and_half_of_each_is_chance():
    policy = Policy(first_delay=2.0, longest_delay=10.0)
    seeded = [policy.delay(failures, random.Random(7)) for failures in (1, 2, 3, 4, 10_000)]
    share = random.Random(7).uniform(0.5, 1.0)
    assert seeded == pytest.approx([share * longest for longest in (2, 4, 8, 10, 10)])
    drawn = [policy.delay(1, random.Random(seed)) for seed in range(200)]
    assert 1.0 <= min(drawn) < 1.1
    assert 1.9 < max(drawn) <= 2.0


def test_codes_are_told_as_a_shell_tells_them():
    assert [shell_code(code) for code in (0, 42, -15, -9)] == [0, 42, 143, 137]
