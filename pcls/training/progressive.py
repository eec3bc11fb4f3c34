"""Image sizes that change during training. Source: Howard 2018 (fast.ai's DAWNBench entries); Tan & Le 2021."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pcls.config.duration import round_half_up
from pcls.config.schema import DataSection
from pcls.data.dataset import IMAGE_FILES
from pcls.data.pipeline import Batch, Update
from pcls.errors import UserError
from pcls.models.registry import model_entry
from pcls.training.loop import Step
from pcls.training.state import TrainState
from pcls.training.step import Metrics


class Phase(NamedTuple):
    """Updates of one kind.

    Attributes:
      start, end: its steps, counted in batches of train.batch_size; the end is excluded.
      image_size: height and width of its images.
      batches: that one update takes together.
    """

    start: int
    end: int
    image_size: int
    batches: int

    def update_at(self, step: int) -> Update:
        """The update that begins at a step. The last may find fewer batches left; after the end they come singly."""
        return Update(self.image_size, min(self.batches, max(1, self.end - step)))


def phases_of(section: DataSection, steps: int, epoch_steps: float, otherwise: int) -> tuple[Phase, ...]:
    """The phases of a run, in order; each ends on a whole update, but for a run that ends within it.

    Args:
      section: of the recipe.
      steps: of the run.
      epoch_steps: steps of an epoch.
      otherwise: the size after the last phase.
    """
    found: list[Phase] = []
    start = 0
    for phase in section.progressive:
        updates = max(1, round_half_up((phase.until.steps(epoch_steps) - start) / phase.batches))
        found.append(Phase(start, start + updates * phase.batches, phase.image_size, phase.batches))
        start = found[-1].end
    found.append(Phase(start, max(start, steps), otherwise, 1))
    return tuple(phase._replace(end=min(phase.end, steps)) for phase in found if phase.start < steps)


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase of a step; the last goes on for ever."""
    return next((phase for phase in phases if step < phase.end), phases[-1])


def update_at(phases: Sequence[Phase], step: int) -> Update:
    """The update that begins at a step; without phases all are alike."""
    return phase_at(phases, step).update_at(step) if phases else Update()


def largest_update(phases: Sequence[Phase]) -> Update:
    """The one that needs the most memory: the pixels of its images together."""
    kinds = [phase.update_at(phase.start) for phase in phases]
    return max(kinds, key=lambda update: update.batches * update.image_size**2)


def updates_from(phases: Sequence[Phase], first: int) -> list[int]:
    """The steps, from `first` on, at which an update begins."""
    return [step for phase in phases for step in range(max(first, phase.start), phase.end, phase.batches)]


def programs_from(phases: Sequence[Phase], first: int) -> list[Update]:
    """The different updates from a step on, in the order of their first use."""
    ahead = [phase for phase in phases if phase.end > first]
    kinds = [
        phase.update_at(step)
        for phase in ahead
        for step in (max(first, phase.start), *updates_from([phase], first)[-1:])
    ]
    return list(dict.fromkeys(kinds))


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
        images, size = batch.image.shape[:2]
        return self._steps[Update(size, images // self._batch_size)].result()(state, batch)

    def close(self) -> None:
        """Gives up what has not begun."""
        for step in self._steps.values():
            step.cancel()


def check_progressive(section: DataSection, model: str, epoch_steps: float) -> None:
    """UserError unless the phases follow each other and the model takes their sizes."""
    if not section.progressive:
        return
    entry = model_entry(model)
    if entry.fixed_size:
        raise UserError(f"data.progressive: the weights of {model} are made for one image size; leave it out")
    if section.source.partition(":")[0] not in IMAGE_FILES:
        raise UserError(f"data.progressive needs image files; {section.source} keeps pixels of one size; leave it out")
    ends = [phase.until.steps(epoch_steps) for phase in section.progressive]
    if sorted({0, *ends}) != [0, *ends]:
        raise UserError("data.progressive: each phase must end after the one before it; order them by `until`")
    small = min(phase.image_size for phase in section.progressive)
    if small < entry.min_size:
        raise UserError(f"data.progressive: {model} needs images of {entry.min_size} or more, and a phase has {small}")
