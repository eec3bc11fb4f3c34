"""Image sizes that change during training. Source: Howard 2018 (fast.ai's DAWNBench entries); Tan & Le 2021."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pcls.config.data import DataSection
from pcls.config.duration import round_half_up
from pcls.data.dataset import IMAGE_FILES
from pcls.data.pipeline import Update
from pcls.errors import UserError
from pcls.models.registry import model_entry


class Phase(NamedTuple):
    """Updates of one kind.

    Attributes:
      start, end: its steps, counted in batches of train.batch_size; the end is excluded.
      height, width: of its images.
      batches: that one update takes together.
    """

    start: int
    end: int
    height: int
    width: int
    batches: int

    def update_at(self, step: int) -> Update:
        """The update that begins at a step. The last may find fewer batches left; after the end they come singly."""
        return Update(self.height, self.width, min(self.batches, max(1, self.end - step)))

    def begins(self, first: int, last: int) -> range:
        """The steps at which its updates begin, from one on and before another."""
        done = -(-max(first - self.start, 0) // self.batches)
        return range(self.start + done * self.batches, last, self.batches)


@dataclass(frozen=True)
class Phases:
    """The phases of a run, in order; without progressive training there is one.

    Attributes:
      phases: each ends on a whole update, but for a run that ends within it.
    """

    phases: tuple[Phase, ...]

    def at(self, step: int) -> Phase:
        """The phase of a step; the last goes on for ever."""
        return next((phase for phase in self.phases if step < phase.end), self.phases[-1])

    @property
    def largest(self) -> Update:
        """The update that needs the most memory: the pixels of its images together."""
        kinds = [phase.update_at(phase.start) for phase in self.phases]
        return max(kinds, key=lambda update: update.batches * update.height * update.width)

    def update_at(self, step: int) -> Update:
        """The update that begins at a step."""
        return self.at(step).update_at(step)

    def began(self, step: int) -> int:
        """The step at which the update began that ended before `step`."""
        phase = self.at(step - 1)
        return step - 1 - (step - 1 - phase.start) % phase.batches

    def updates_from(self, first: int) -> Sequence[int]:
        """The steps, from `first` on, at which an update begins."""
        of_phases = [phase.begins(first, phase.end) for phase in self.phases]
        return of_phases[0] if len(of_phases) == 1 else list(itertools.chain(*of_phases))

    def programs_from(self, first: int, last: int | None = None) -> list[Update]:
        """The different updates that begin from a step on and before another, in the order of their first use."""
        kinds = []
        for phase in self.phases:
            begins = phase.begins(first, phase.end if last is None else min(last, phase.end))
            # The last of a phase may be of a kind of its own.
            kinds += [phase.update_at(step) for step in (*begins[:1], *begins[-1:])]
        return list(dict.fromkeys(kinds))

    def relative_area(self, step: int) -> float:
        """The area of a finished step's images to that of the largest: what their convolutions cost."""
        phase, largest = self.at(step - 1), self.largest
        return phase.height * phase.width / (largest.height * largest.width)


def phases_of(section: DataSection, steps: int, epoch_steps: float, otherwise: tuple[int, int]) -> Phases:
    """The phases of a run.

    Args:
      section: of the recipe.
      steps: of the run.
      epoch_steps: steps of an epoch.
      otherwise: height and width after the last phase.
    """
    found: list[Phase] = []
    start = 0
    for phase in section.progressive:
        updates = max(1, round_half_up((phase.until.steps(epoch_steps) - start) / phase.batches))
        end = start + updates * phase.batches
        found.append(Phase(start, end, phase.image_size, phase.image_size, phase.batches))
        start = end
    found.append(Phase(start, max(start, steps), *otherwise, 1))
    # A run of no steps has a size too.
    return Phases(tuple(phase._replace(end=min(phase.end, steps)) for phase in found if phase.start < max(steps, 1)))


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
