"""When a launcher starts processes again: by their exit codes, ever later, and not for ever."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from pcls.errors import Diverged, PclsError, RestartRequested, UserError

# What a shell adds to the number of the signal that ended a process.
SHELL_SIGNAL_BASE = 128


@dataclass(frozen=True)
class Policy:
    """Limits on restarts.

    Attributes:
      max_restarts: so many in a row without a new checkpoint.
      first_delay, longest_delay: seconds before the first of them, which each one doubles, and at most.
      grace: seconds from SIGTERM to SIGKILL.
    """

    max_restarts: int = 5
    first_delay: float = 2.0
    longest_delay: float = 120.0
    grace: float = 60.0

    def delay(self, failures: int, rng: random.Random) -> float:
        """Seconds before the next start, after so many failures in a row: half of them by chance.

        Processes of many machines that failed together would else come back together.
        """
        # 2**64 is no number of seconds, and a float has no 2**5000.
        longest = min(self.longest_delay, self.first_delay * 2 ** min(failures - 1, 64))
        return longest * rng.uniform(0.5, 1.0)


def final_codes(*, alone: bool) -> tuple[int, ...]:
    """Exit codes after which a new start would fail again.

    Of several processes, one that loses another may end by an exception of the network, and so with the code of a bug:
    there a bug is told apart by the cap on restarts only.
    """
    final = (UserError.exit_code, Diverged.exit_code)
    return (PclsError.exit_code, *final) if alone else final


def restarts(code: int, *, alone: bool) -> bool:
    """Whether to start all again after one ended so; by a signal is a number below 0, as `subprocess` has it."""
    return code != 0 and code not in final_codes(alone=alone)


def deciding(codes: Iterable[int]) -> int:
    """The code that speaks for processes that ended at the same time.

    The user's mistakes and divergence show in all of them alike; an end by a signal or on request explains the
    exceptions of the others.
    """
    return min(codes, key=_rank)


def _rank(code: int) -> int:
    if code in (UserError.exit_code, Diverged.exit_code):
        return 0
    if code == RestartRequested.exit_code or code < 0 or code > SHELL_SIGNAL_BASE:
        return 1
    return 2 if code else 3


def shell_code(code: int) -> int:
    """The code as a shell tells it: 143 for a process that SIGTERM ended."""
    return SHELL_SIGNAL_BASE - code if code < 0 else code
