"""Updates of several kinds in one run, by size and by what learns, and the programs of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pcls.data.order import BucketedOrder
from pcls.data.pipeline import Update
from pcls.training.freezing import Freezing
from pcls.training.loop import Step


class Sizes(Protocol):
    """What the updates of a run take, by the global steps at which they begin."""

    @property
    def largest(self) -> Update:
        """The one that needs the most memory."""

    def update_at(self, step: int) -> Update:
        """The update that begins at a step."""

    def began(self, step: int) -> int:
        """The step at which the update began that ended before `step`."""

    def updates_from(self, first: int) -> Sequence[int]:
        """The steps, from `first` on, at which an update begins."""

    def programs_from(self, first: int, last: int | None = None) -> list[Update]:
        """The different updates that begin from a step on and before another, in the order of their first use."""

    def relative_area(self, step: int) -> float:
        """The area of the images up to a finished step to that of the largest: what their convolutions cost."""


@dataclass(frozen=True)
class BucketSizes:
    """Sequences of each step padded to the length of its bucket.

    Attributes:
      order: of the training records.
      features: of a step of a sequence.
      steps: of the run.
    """

    order: BucketedOrder
    features: int
    steps: int

    @property
    def largest(self) -> Update:
        """As `Sizes` says."""
        return self._of_bucket(len(self.order.buckets) - 1)

    def update_at(self, step: int) -> Update:
        """As `Sizes` says."""
        return self._of_bucket(self.order.place_of_step(step)[0])

    def began(self, step: int) -> int:
        """As `Sizes` says."""
        return step - 1

    def updates_from(self, first: int) -> range:
        """As `Sizes` says."""
        return range(first, self.steps)

    def programs_from(self, first: int, last: int | None = None) -> list[Update]:
        """As `Sizes` says."""
        begins = enumerate(self.order.first_steps(first))
        end = self.steps if last is None else min(last, self.steps)
        return [self._of_bucket(number) for step, number in sorted((step, n) for n, step in begins) if step < end]

    def relative_area(self, step: int) -> float:
        """Of all steps: those between two rows of the log are of many buckets."""
        read = sum(order.pass_steps * b.steps for order, b in zip(self.order.orders, self.order.buckets, strict=True))
        return read / sum(order.pass_steps for order in self.order.orders) / self.largest.height

    def _of_bucket(self, number: int) -> Update:
        return Update(self.order.buckets[number].steps, self.features)


class Kind(NamedTuple):
    """What a program is compiled for.

    Attributes:
      update: what it takes.
      phase: of the freezing: what learns.
    """

    update: Update
    phase: int


def kinds_from(first: int, steps: int, sizes: Sizes, freezing: Freezing) -> list[Kind]:
    """The kinds of a run from a step on, in the order of their first use."""
    spans = freezing.spans(first, steps)
    return [Kind(update, phase) for phase, start, end in spans for update in sizes.programs_from(start, end)]


class StepsByKind:
    """Training steps for updates of several kinds: while the first trains, the others are compiled one by one.

    Args:
      compiled: makes the step of a kind.
      kinds: in the order of their use.
    """

    def __init__(self, compiled: Callable[[Kind], Step], kinds: Sequence[Kind]):
        # One after the other: two compilers at once would each take twice as long, and the first is waited for.
        pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._steps = {kind: pool.submit(compiled, kind) for kind in kinds}
        pool.shutdown(wait=False)

    def __getitem__(self, kind: Kind) -> Step:
        """The step of a kind; waits for it where it is not ready."""
        return self._steps[kind].result()

    def close(self) -> None:
        """Gives up what has not begun."""
        for step in self._steps.values():
            step.cancel()
