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
    resident = setup.recipe.data.on_device
    given = ((images_on_devices(setup),) if resident else ()) + setup.given

    def fed(compiled: Callable[..., tuple[TrainState, Metrics]]) -> Step:
        return (lambda state, batch: compiled(state, batch, *given)) if given else compiled

    if len(setup.kinds_from(0)) == 1:
        one = fed(setup.resident_step() if resident else setup.train_step())
        many = fed(setup.resident_steps() if resident else setup.train_steps())
        return lambda step, count: one if count == 1 else many
    of_kind = setup.resident_step_of if resident else setup.train_step_of
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
