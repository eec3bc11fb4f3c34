"""Durations with units: `90 epochs`, `5000 steps`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

_PATTERN = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(epochs?|steps?)\s*$")


@dataclass(frozen=True)
class Duration:
    """A length of training. Epochs may be fractions; steps are whole."""

    value: float
    unit: Literal["epochs", "steps"]

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Reads `10 epochs`, `0.5 epochs` or `600 steps`; raises ValueError for anything else."""
        match = _PATTERN.match(text)
        if match is None:
            raise ValueError(text)
        number, unit = match.groups()
        if unit.startswith("step"):
            if "." in number:
                raise ValueError(text)
            return cls(int(number), "steps")
        if not math.isfinite(float(number)):
            raise ValueError(text)
        return cls(float(number), "epochs")

    def exact_steps(self, epoch_steps: float) -> float:
        """This duration in steps, not rounded.

        Args:
          epoch_steps: steps of an epoch, records / batch size; a fraction where they do not divide.
        """
        return self.value * epoch_steps if self.unit == "epochs" else self.value

    def steps(self, epoch_steps: float) -> int:
        """The whole steps of this duration: rounded to the nearest, at least 1 unless the duration is 0."""
        return max(1, round_half_up(self.exact_steps(epoch_steps))) if self.value else 0

    def __str__(self) -> str:
        # Exact, and never with an exponent: `parse` must read back the same length.
        return f"{Decimal(repr(self.value)):f}".removesuffix(".0") + f" {self.unit}"


def round_half_up(value: float) -> int:
    """The nearest whole number; Python's `round` would take 0.5 down and 1.5 up."""
    return math.floor(value + 0.5)
