"""Whether a recipe fits some devices, what bounds it there and how fast it may be, by compiling its real step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from pcls.config import Recipe
from pcls.config.load import with_overrides
from pcls.data.dataset import described_preprocessing, open_dataset
from pcls.data.preprocessing import Preprocessing
from pcls.observe.chips import Chip, chip_of
from pcls.parallel.mesh import replicated, shard_count
from pcls.planning.costs import Costs, OutOfMemory, out_of_memory, read_costs
from pcls.planning.roofline import Prediction, roofline
from pcls.planning.topology import open_topology
from pcls.training.program import Program, make_program
from pcls.training.resident import Images
from pcls.training.tables import StatePart, state_parts

# The search for the largest batch ends within this share of it.
BATCH_PRECISION = 1 / 16
# Of `train.batch_size`.
MAX_BATCH = 2**24

Say = Callable[[str], None]


@dataclass(frozen=True)
class Facts:
    """What a program needs to know about the data."""

    preprocessing: Preprocessing
    classes: int
    records: int


@dataclass(frozen=True)
class Attempt:
    """A step compiled for one batch size.

    Attributes:
      batch_size: images in a global step.
      needed: bytes that a device must have free; None where the compiler gave up without saying.
      limit: bytes that a device has; None where that is not documented.
      costs: of the program; None where it did not compile for lack of memory.
      seconds: that the compiler took.
    """

    batch_size: int
    needed: int | None
    limit: int | None
    costs: Costs | None
    seconds: float

    @property
    def fits(self) -> bool | None:
        """Whether it fits, by the compiler's own judgement; None where it knows no limit, as for CPUs."""
        return None if self.limit is None else self.costs is not None


@dataclass(frozen=True)
class RecipePlan:
    """The answer of `pcls plan`.

    Attributes:
      recipe: resolved.
      topology: as asked for, with the number of slices.
      devices: that the program runs on.
      chip: what they are, where it is documented.
      program: the recipe's, for these devices.
      attempt: the compiled step.
      prediction: its bounds; None where it does not fit.
      largest_batch: that fits, at most an epoch of images; None where it was not looked for or nothing fits.
    """

    recipe: Recipe
    topology: str
    devices: int
    chip: Chip | None
    program: Program
    attempt: Attempt
    prediction: Prediction | None
    largest_batch: int | None

    @property
    def state(self) -> list[StatePart]:
        """Where the state lies."""
        return state_parts(self.program)


def plan_recipe(recipe: Recipe, topology: str, *, slices: int = 1, largest: bool = True, say: Say) -> RecipePlan:
    """Compiles a recipe's step for devices that need not be here.

    Args:
      recipe: resolved.
      topology: `v5e:16x16`, `v6e:4x4`, `v4:2x2x4`, `cpu-8` and so on.
      slices: of that shape, joined by the data center network.
      largest: whether to look for the largest batch that fits; takes some more compilations.
      say: tells a person what goes on: a compilation may take minutes.

    Raises:
      UserError: no such topology, libtpu is missing, or the recipe does not suit the devices.
    """
    devices = open_topology(topology, slices=slices)
    facts = data_facts(recipe)
    chip = chip_of(devices[0].device_kind)
    compile_for = _Compiler(recipe, facts, devices, chip, say)
    program, attempt = compile_for(recipe.train.batch_size)
    prediction = None
    if attempt.costs is not None:
        images_per_device = recipe.train.batch_size / len(devices)
        prediction = roofline(
            attempt.costs,
            chip,
            images_per_device,
            forward_flops=program.forward_flops,
            precision=recipe.train.precision,
        )
    largest_batch = None
    if largest and attempt.limit is not None:
        largest_batch = largest_that_fits(
            lambda size: compile_for(size)[1], attempt, batch_unit(program), most=min(facts.records, MAX_BATCH)
        )
    return RecipePlan(
        recipe=recipe,
        topology=topology + (f" x {slices} slices" if slices > 1 else ""),
        devices=len(devices),
        chip=chip,
        program=program,
        attempt=attempt,
        prediction=prediction,
        largest_batch=largest_batch,
    )


def data_facts(recipe: Recipe) -> Facts:
    """Image size, classes and records; the data are opened only where the recipe does not state all of them."""
    preprocessing = described_preprocessing(recipe.data)
    if preprocessing is not None and recipe.data.expect_classes and recipe.data.expect_records:
        return Facts(preprocessing, recipe.data.expect_classes, recipe.data.expect_records)
    dataset = open_dataset(recipe.data)
    return Facts(dataset.preprocessing, len(dataset.class_names), len(dataset.train))


def batch_unit(program: Program) -> int:
    """Batch sizes that suit mesh, micro-batches and groups are multiples of this."""
    recipe = program.recipe
    return shard_count(program.mesh) * recipe.train.accumulate * (recipe.batch_norm.group_size or 1)


def compiled_step(program: Program, records: int) -> Any:
    """The training step that a run would use, compiled for the program's devices.

    Args:
      program: of a recipe.
      records: of the training set; with `data.on_device` they are part of the memory.
    """
    if not program.recipe.data.on_device:
        return program.train_step().lower(program.state_shapes, program.batch_shapes).compile()
    batch = program.batch_shapes
    sharding = replicated(program.mesh)
    images = Images(
        jax.ShapeDtypeStruct((records, *batch.image.shape[1:]), batch.image.dtype, sharding=sharding),
        jax.ShapeDtypeStruct((records,), jnp.int32, sharding=sharding),
        batch.length and jax.ShapeDtypeStruct((records,), jnp.int32, sharding=sharding),
    )
    return program.resident_step().lower(program.state_shapes, program.place_shapes, images).compile()


def largest_that_fits(
    attempt_at: Callable[[int], Attempt], first: Attempt, unit: int, *, most: int = MAX_BATCH
) -> int | None:
    """The largest batch that fits, to a sixteenth; None where not even the smallest does.

    The memory that a step needs is nearly linear in its batch, so the search goes where the line through the last two
    answers meets the limit; it halves the interval where it has no line, or one that the answers contradict.

    Args:
      attempt_at: compiles a step for a batch size.
      first: what is known already.
      unit: batch sizes are multiples of it.
      most: larger ones are of no interest.
    """
    tried, beyond = [first], most // unit * unit + unit
    while True:
        fitting = max((attempt.batch_size for attempt in tried if attempt.fits), default=0)
        end = min([beyond, *(attempt.batch_size for attempt in tried if not attempt.fits)])
        # Steps of at least this size: a guess just beside what is known then ends the search, whether it fits or not.
        step = max(unit, round(fitting * BATCH_PRECISION / unit) * unit)
        margin = unit if end == beyond else step
        if end - fitting <= margin:
            return fitting or None
        guess = _where_memory_ends(tried)
        if guess is None or (guess >= end and end < beyond):
            guess = 2 * fitting if all(attempt.fits for attempt in tried) else (fitting + end) / 2
        size = max(int(guess / unit) * unit, fitting + step)
        tried.append(attempt_at(min(size, max(end - margin, fitting + unit))))


def _where_memory_ends(tried: Sequence[Attempt]) -> float | None:
    """The batch size at which the line through the last two answers meets the limit; None: they lie on no such line."""
    known = [(attempt.batch_size, attempt.needed) for attempt in tried if attempt.needed is not None]
    limits = [attempt.limit for attempt in tried if attempt.limit is not None]
    if len(known) < 2 or not limits:
        return None
    (size_a, bytes_a), (size_b, bytes_b) = known[-2:]
    slope = (bytes_b - bytes_a) / (size_b - size_a)
    # What the compiler says when it gives up is less than the documented size: it keeps some for itself.
    return size_b + (min(limits) - bytes_b) / slope if slope > 0 else None


class _Compiler:
    """Compiles a recipe's step for batch sizes."""

    def __init__(self, recipe: Recipe, facts: Facts, devices: list[jax.Device], chip: Chip | None, say: Say):
        self._recipe = recipe
        self._facts = facts
        self._devices = devices
        self._limit = None if chip is None else chip.hbm_bytes // chip.devices
        self._say = say

    def __call__(self, batch_size: int) -> tuple[Program, Attempt]:
        program = make_program(
            with_overrides(self._recipe, {"train.batch_size": batch_size, "evaluate.batch_size": batch_size}),
            self._facts.preprocessing,
            classes=self._facts.classes,
            # As many steps as with the recipe's batch: a warm-up in steps would not fit into fewer.
            records=max(1, self._facts.records * batch_size // self._recipe.train.batch_size),
            devices=self._devices,
        )
        self._say(
            f"compiling the step of {batch_size:,} {program.preprocessing.records} for {len(self._devices):,} devices"
        )
        start = time.perf_counter()
        try:
            compiled = compiled_step(program, self._facts.records)
        except jax.errors.JaxRuntimeError as error:
            lack = out_of_memory(error)
            if lack is None:
                raise
            return program, self._too_large(batch_size, lack, time.perf_counter() - start)
        seconds = time.perf_counter() - start
        costs = _with_micro_batches(read_costs(compiled, self._devices), program)
        return program, Attempt(batch_size, costs.memory.peak, self._limit, costs, seconds)

    def _too_large(self, batch_size: int, lack: OutOfMemory, seconds: float) -> Attempt:
        return Attempt(batch_size, lack.used, lack.limit or self._limit, None, seconds)


def _with_micro_batches(costs: Costs, program: Program) -> Costs:
    """The costs of all micro-batches, where they are a loop: XLA counts its body once.

    The update, outside the loop, is then counted too often; beside the micro-batches it is small.
    """
    count = program.recipe.train.accumulate
    if program.platform == "cpu" or count not in costs.loops:
        return costs
    return replace(costs, flops=costs.flops * count, bytes_accessed=costs.bytes_accessed * count)
