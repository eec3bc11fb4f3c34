"""Which saved steps are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """What is kept beside the newest step, which always is.

    Attributes:
      newest: so many newest steps, 2 or more: one may prove damaged when it is needed.
      best: so many steps of the highest score.
      every: the first step at or after each multiple of so many steps, a fraction where an epoch is one; 0: none.
    """

    newest: int = 2
    best: int = 0
    every: float = 0.0

    def reasons(self, scores: Mapping[int, float | None]) -> dict[int, str]:
        """The steps to keep, each with the reason.

        Args:
          scores: of the valid steps; None, or not finite: such a step is never kept for its score. The damaged ones
            are no part of this: they neither count nor go.
        """
        steps = sorted(scores)
        kept = dict.fromkeys(steps[-max(self.newest, 1) :], "newest")
        ranked = sorted(((score, step) for step, score in scores.items() if _finite(score)), reverse=True)
        for _, step in ranked[: self.best]:
            kept.setdefault(step, "best")
        if self.every:
            # The earliest of an interval stays so, whatever is saved later: no memory of past decisions is needed.
            first = {self._interval(step): step for step in reversed(steps)}
            for interval, step in first.items():
                if interval > 0:
                    kept.setdefault(step, "every")
        return kept

    def _interval(self, step: int) -> int:
        """How many multiples of `every`, each rounded half up, fall on the step or before it."""
        return math.ceil((step + 0.5) / self.every) - 1


def _finite(score: float | None) -> bool:
    return score is not None and math.isfinite(score)
