"""Batches of several sizes in one run: which updates take which, and the programs that train on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from pcls.data.order import BucketedOrder
from pcls.data.pipeline import Batch, Update
from pcls.training.loop import Step
from pcls.training.state import TrainState
from pcls.training.step import Metrics


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

    def programs_from(self, first: int) -> list[Update]:
        """The different updates from a step on, in the order of their first use."""

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

    def programs_from(self, first: int) -> list[Update]:
        """As `Sizes` says."""
        begins = enumerate(self.order.first_steps(first))
        return [
            self._of_bucket(number) for step, number in sorted((step, n) for n, step in begins) if step < self.steps
        ]

    def relative_area(self, step: int) -> float:
        """Of all steps: those between two rows of the log are of many buckets."""
        read = sum(order.pass_steps * b.steps for order, b in zip(self.order.orders, self.order.buckets, strict=True))
        return read / sum(order.pass_steps for order in self.order.orders) / self.largest.height

    def _of_bucket(self, number: int) -> Update:
        return Update(self.order.buckets[number].steps, self.features)


class SizedStep:
    """A training step for batches of several kinds: while the first trains, the others are compiled one by one.

    Args:
      compiled: makes the step of a kind.
      updates: the kinds, in the order of their use.
      batch_size: images of a batch.
    """

    def __init__(self, compiled: Callable[[Update], Step], updates: Sequence[Update], batch_size: int):
        # One after the other: two compilers at once would each take twice as long, and the first is waited for.
        pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._steps = {update: pool.submit(compiled, update) for update in updates}
        self._batch_size = batch_size
        pool.shutdown(wait=False)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """A step with the program of the batch's kind; waits for it where it is not ready."""
        images, height, width = batch.image.shape[:3]
        return self._steps[Update(height, width, images // self._batch_size)].result()(state, batch)

    def close(self) -> None:
        """Gives up what has not begun."""
        for step in self._steps.values():
            step.cancel()
