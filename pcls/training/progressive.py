"""Image sizes that change during training. Source: Howard 2018 (fast.ai's DAWNBench entries); Tan & Le 2021."""

from __future__ import annotations

from pcls.config.schema import DataSection
from pcls.errors import UserError
from pcls.models.registry import model_entry


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


def largest_size(section: DataSection, steps: int, epoch_steps: float, otherwise: int) -> int:
    """The largest of the sizes that a run of so many steps trains with."""
    ends = [0, *(phase.until.steps(epoch_steps) for phase in section.progressive)]
    return max(size_at(section, end, epoch_steps, otherwise) for end in ends if end < steps)


def check_progressive(section: DataSection, model: str, epoch_steps: float) -> None:
    """UserError unless the phases follow each other and the model takes their sizes."""
    if not section.progressive:
        return
    entry = model_entry(model)
    if entry.fixed_size:
        raise UserError(f"data.progressive: the weights of {model} are made for one image size; leave it out")
    if section.source.partition(":")[0] not in ("folder", "tfds"):
        raise UserError(f"data.progressive needs image files; {section.source} keeps pixels of one size; leave it out")
    ends = [phase.until.steps(epoch_steps) for phase in section.progressive]
    if sorted({0, *ends}) != [0, *ends]:
        raise UserError("data.progressive: each phase must end after the one before it; order them by `until`")
    small = min(phase.image_size for phase in section.progressive)
    if small < entry.min_size:
        raise UserError(f"data.progressive: {model} needs images of {entry.min_size} or more, and a phase has {small}")
