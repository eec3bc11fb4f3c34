"""Image sizes that change during training. Source: Howard 2018 (fast.ai's DAWNBench entries); Tan & Le 2021."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pcls.config.schema import DataSection
from pcls.data.dataset import IMAGE_FILES
from pcls.data.pipeline import Batch
from pcls.errors import UserError
from pcls.models.registry import model_entry
from pcls.training.loop import Step
from pcls.training.state import TrainState
from pcls.training.step import Metrics


def size_at(section: DataSection, step: int, epoch_steps: float, otherwise: int) -> int:
    """Height and width of the images of a global step.

    Args:
      section: of the recipe.
      step: counted from 0.
      epoch_steps: steps of an epoch.
      otherwise: the size after the last phase.
    """
    for phase in section.progressive:
        if step < phase.until.steps(epoch_steps):
            return phase.image_size
    return otherwise


def sizes_from(section: DataSection, first: int, steps: int, epoch_steps: float, otherwise: int) -> list[int]:
    """The sizes of the steps from `first` to the last, in their order, each once."""
    starts = [first, *(phase.until.steps(epoch_steps) for phase in section.progressive)]
    sizes = [size_at(section, start, epoch_steps, otherwise) for start in starts if first <= start < steps]
    return list(dict.fromkeys(sizes))


class SizedStep:
    """A training step for images of several sizes: while the first trains, the others are compiled one by one.

    Args:
      compiled: makes the step of a size.
      sizes: heights of the images, in the order of their use.
    """

    def __init__(self, compiled: Callable[[int], Step], sizes: Sequence[int]):
        # One after the other: two compilers at once would each take twice as long, and the first is waited for.
        pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._steps = {size: pool.submit(compiled, size) for size in sizes}
        pool.shutdown(wait=False)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """A step with the program of the batch's size; waits for it where it is not ready."""
        return self._steps[batch.image.shape[1]].result()(state, batch)

    def close(self) -> None:
        """Gives up what has not begun."""
        for step in self._steps.values():
            step.cancel()


def largest_size(section: DataSection, steps: int, epoch_steps: float, otherwise: int) -> int:
    """The largest of the sizes that a run of so many steps trains with."""
    return max(sizes_from(section, 0, steps, epoch_steps, otherwise))


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
