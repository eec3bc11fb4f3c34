"""The compiled training steps of a run, and what they are fed with: images, or places of images on the devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from pcls.data.pipeline import Batch, Places, Workers, training_places
from pcls.parallel.processes import place
from pcls.run.setup import Setup, images_on_devices
from pcls.training.loop import Step
from pcls.training.sizes import StepsByKind
from pcls.training.state import TrainState
from pcls.training.step import Metrics


def compiled_steps(setup: Setup, first: int, at_end: ExitStack) -> Callable[[int, int], Step]:
    """The steps to take after so many finished ones, for one batch or for several stacked.

    Args:
      setup: of the run.
      first: the number of finished steps at the start.
      at_end: told what to give up when the run is over.
    """
    images = images_on_devices(setup) if setup.recipe.data.on_device else None

    def fed(compiled: Callable[..., tuple[TrainState, Metrics]]) -> Step:
        return compiled if images is None else lambda state, places: compiled(state, places, images)

    if len(setup.kinds_from(0)) == 1:
        one = fed(setup.train_step() if images is None else setup.resident_step())
        many = fed(setup.train_steps() if images is None else setup.resident_steps())
        return lambda step, count: one if count == 1 else many
    of_kind = setup.train_step_of if images is None else setup.resident_step_of
    steps = StepsByKind(lambda kind: fed(of_kind(kind)), setup.kinds_from(first))
    at_end.callback(steps.close)
    return lambda step, count: steps[setup.kind_at(step)]


def step_batches(
    setup: Setup, first: int, workers: Callable[[], Workers], warn: Callable[[str], None]
) -> AbstractContextManager[Iterator[Any]]:
    """This process's rows of all batches from a step on, as the steps take them.

    Args:
      setup: of the run.
      first: the number of finished steps at the start.
      workers: who reads, asked where images are read.
      warn: as `Setup.batches` takes it.
    """
    steps = setup.sizes.updates_from(first)
    if not setup.recipe.data.on_device:
        return setup.batches(steps, workers(), warn)
    return nullcontext(training_places(setup.order, rows=setup.rows(setup.plan.batch_size), steps=steps))


def placed(setup: Setup, batch: Batch | Places) -> Any:
    """A batch, or several of them stacked, on the devices."""
    stacked = batch.record.ndim == 2
    sharding = setup.stacked_sharding if stacked else setup.batch_sharding
    batches = batch.record.shape[-1] // len(setup.rows(setup.plan.batch_size))
    return place(batch, sharding, batches * setup.plan.batch_size)
