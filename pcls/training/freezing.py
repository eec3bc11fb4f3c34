"""What of a model learns when: freezing is a function of the step, by ordered rules over paths."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pcls.config.optimizer import FreezeRule
from pcls.errors import UserError

NEVER = math.inf


@dataclass(frozen=True)
class Freezing:
    """When each parameter and each running statistic starts to learn.

    Attributes:
      starts: path to the first step that moves it: 0 for what is never frozen, `NEVER` for what stays as it is.
    """

    starts: Mapping[str, float]

    @cached_property
    def phases(self) -> tuple[int, ...]:
        """The first step of each phase, in which always the same learns; the first is 0."""
        return tuple(sorted({0, *(int(start) for start in self.starts.values() if start < NEVER)}))

    def phase_at(self, step: int) -> int:
        """The number of a step's phase."""
        return sum(start <= step for start in self.phases) - 1

    def frozen(self, phase: int) -> frozenset[str]:
        """What stays as it is in a phase."""
        return frozenset(path for path, start in self.starts.items() if start > self.phases[phase])

    def spans(self, first: int, last: int) -> list[tuple[int, int, int]]:
        """Phase, start and end of the steps from `first` to before `last`, cut by phase, in order."""
        ends = [*self.phases[1:], last]
        cut = [(max(first, start), min(end, last)) for start, end in zip(self.phases, ends, strict=True)]
        return [(number, start, end) for number, (start, end) in enumerate(cut) if start < end]


def freezing(
    rules: Sequence[FreezeRule], params: Iterable[str], stats: Iterable[str], *, epoch_steps: float, steps: int
) -> Freezing:
    """The rules as steps.

    Args:
      rules: of the recipe; the first match holds, without one a path learns from the start.
      params, stats: paths of the model.
      epoch_steps: steps of an epoch.
      steps: of the run.

    Raises:
      UserError: a rule that matches no parameter, or all of them for the whole run, or ends after the run.
    """
    params, stats, unused = tuple(params), frozenset(stats), list(rules)
    starts: dict[str, float] = {}
    for path in (*params, *sorted(stats)):
        rule = next((rule for rule in rules if re.search(rule.match, path)), None)
        starts[path] = 0 if rule is None else _start(rule, epoch_steps)
        if rule in unused and path not in stats:
            unused.remove(rule)
    if unused:
        raise UserError(
            f"optimizer.freeze: {unused[0].match!r} matches no parameter that no earlier rule matches; paths look like "
            f"{', '.join(params[:4])}"
        )
    if rules and all(starts[path] >= max(steps, 1) for path in params):
        raise UserError("optimizer.freeze keeps every parameter as it is until the end; leave some out")
    late = next((rule for rule in rules if steps <= _start(rule, epoch_steps) < NEVER), None)
    if late:
        raise UserError(
            f"optimizer.freeze: {late.match!r} is frozen until {late.until}, and the run has {steps:,} steps; leave "
            "`until` out if it shall never learn"
        )
    return Freezing(starts)


def _start(rule: FreezeRule, epoch_steps: float) -> float:
    return NEVER if rule.until is None else rule.until.steps(epoch_steps)
