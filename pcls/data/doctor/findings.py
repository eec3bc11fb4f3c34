"""What the doctor reports: findings, the most serious first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np


class Severity(IntEnum):
    """How much a finding matters."""

    SERIOUS = 0  # results will be wrong, or a run stops
    WARNING = 1  # likely a mistake: look
    NOTE = 2  # good to know


@dataclass(frozen=True)
class Finding:
    """Something found.

    Attributes:
      kind: a word for programs.
      severity: how much it matters.
      title: what was found, in the plural.
      count: how many of them.
      advice: what to do.
      cases: groups of records that belong together, mostly of one; numbers as in `Survey`.
      lines: what is to say without records.
      left_out: records that a quarantine would take, so that the finding is gone.
    """

    kind: str
    severity: Severity
    title: str
    count: str
    advice: str
    cases: Sequence[np.ndarray] | np.ndarray = ()
    lines: tuple[str, ...] = ()
    left_out: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
