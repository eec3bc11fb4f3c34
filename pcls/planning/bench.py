"""How fast models train and predict on the devices that are here, with made-up images that already lie on them."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcls.config import Recipe
from pcls.config.load import with_overrides
from pcls.data.augment import normalise
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import Preprocessing
from pcls.errors import UserError
from pcls.models.registry import model_entry
from pcls.nn.flops import TRAINING_FLOPS_PER_FORWARD
from pcls.nn.module import HEAD_KERNEL
from pcls.observe.chips import chip_of, share_of_peak
from pcls.parallel.mesh import make_mesh, shard_count
from pcls.parallel.shares import check_batch_size
from pcls.planning.costs import out_of_memory, read_costs
from pcls.training.program import Program, make_program

# A measurement is the median of this many equal parts.
PARTS = 5
# On CPU the sweep ends where the batch was doubled twice without gaining this; elsewhere where memory is full.
WORTH = 1.05
FIRST_BATCH = 16
# Of `train.batch_size`.
MAX_BATCH = 2**24

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rate:
    """One measurement.

    Attributes:
      model, task: `train` or `inference`.
      batch_size: images in a step over all devices.
      images_per_second: median over the parts of the measurement.
      slowest, fastest: part, images/s.
      mfu: share of the peak that the model's own FLOPs use; None where the chip's peak is not documented.
      compiled_mfu: the same of the FLOPs that the compiler counts.
      memory_bytes: a device must have free, by the compiler's account.
      compile_seconds: that the compiler took.
    """

    model: str
    task: str
    batch_size: int
    images_per_second: float
    slowest: float
    fastest: float
    mfu: float | None
    compiled_mfu: float | None
    memory_bytes: int
    compile_seconds: float


def bench_models(
    names: Sequence[str], *, precision: str, batch_size: int = 0, seconds: float = 3.0, say: Say
) -> Iterator[Rate]:
    """Measures models on all devices, each at its customary image size.

    Args:
      names: of the registry.
      precision: of the computation.
      batch_size: over all devices; 0: doubled until memory is full (on CPU until it no longer helps).
      seconds: that a measurement takes.
      say: hears why a sweep ends.

    Raises:
      UserError: unknown model, or a batch that does not divide by the devices or does not fit.
    """
    for name in names:
        model_entry(name)
    if batch_size:
        check_batch_size("--batch-size", batch_size, shard_count(make_mesh(-1)))
    tasks = itertools.product(names, ("train", "inference"))
    sweeps = (_sweep(name, task, precision, batch_size, seconds, say) for name, task in tasks)
    return itertools.chain.from_iterable(sweeps)


def _sweep(name: str, task: str, precision: str, batch_size: int, seconds: float, say: Say) -> Iterator[Rate]:
    best, idle, size = 0.0, 0, batch_size or FIRST_BATCH * jax.device_count()
    while size <= MAX_BATCH:
        try:
            rate = _measure(name, task, precision, size, seconds)
        except jax.errors.JaxRuntimeError as error:
            if out_of_memory(error) is None:
                raise
            if batch_size:
                raise UserError(f"--batch-size {size}: more than the memory holds; name a smaller one") from error
            say(f"{name} {task}: memory is full at {size:,} images")
            return
        yield rate
        if batch_size:
            return
        idle = 0 if rate.images_per_second > best * WORTH else idle + 1
        if jax.default_backend() == "cpu" and idle == 2:
            say(f"{name} {task}: larger batches than {size // 4:,} are hardly faster")
            return
        best, size = max(best, rate.images_per_second), 2 * size


def _measure(name: str, task: str, precision: str, batch_size: int, seconds: float) -> Rate:
    program = synthetic_program(name, precision, batch_size)
    start = time.perf_counter()
    compiled, call = (_training if task == "train" else _inference)(program)
    compile_seconds = time.perf_counter() - start
    costs = read_costs(compiled, list(program.mesh.devices.flat))
    rates = sorted(batch_size / duration for duration in _durations(call, seconds))
    rate = statistics.median(rates)
    chip = chip_of(jax.devices()[0].device_kind)
    products = TRAINING_FLOPS_PER_FORWARD if task == "train" else 1
    return Rate(
        model=name,
        task=task,
        batch_size=batch_size,
        images_per_second=rate,
        slowest=rates[0],
        fastest=rates[-1],
        mfu=share_of_peak(products * program.forward_flops * rate, chip, costs.devices, precision),
        compiled_mfu=share_of_peak(costs.flops * costs.devices * rate / batch_size, chip, costs.devices, precision),
        memory_bytes=costs.memory.peak,
        compile_seconds=compile_seconds,
    )


def synthetic_program(name: str, precision: str, batch_size: int) -> Program:
    """A model at its customary size, with SGD and no augmentation, for all devices that are here."""
    entry = model_entry(name)
    settings = {
        "model.name": name,
        "train.batch_size": batch_size,
        "train.precision": precision,
        "optimizer.name": "sgd",
        "optimizer.lr": 0.01,
    }
    half = (0.5,) * entry.channels
    preprocessing = Preprocessing(entry.image_size, entry.image_size, entry.channels, half, half)
    return make_program(
        with_overrides(Recipe(), settings), preprocessing, classes=entry.classes, records=100 * batch_size
    )


def synthetic_batch(program: Program) -> Batch:
    """Noise, on the devices."""
    rng, shapes = np.random.default_rng(0), program.batch_shapes
    classes = program.state_shapes.params[HEAD_KERNEL].shape[-1]
    size = program.plan.batch_size
    host = Batch(
        image=rng.integers(0, 256, shapes.image.shape, np.uint8),
        label=rng.integers(0, classes, size, np.int32),
        weight=np.ones(size, np.float32),
        record=np.arange(size, dtype=np.int32),
        epoch=np.zeros(size, np.int32),
    )
    return jax.device_put(host, program.batch_sharding)


def _training(program: Program) -> tuple[Any, Callable[[], Any]]:
    """The compiled step, and a call of it on the state that the last one left."""
    compiled = program.train_step().lower(program.state_shapes, program.batch_shapes).compile()
    state, batch = program.initial_state(), synthetic_batch(program)

    def call() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics

    return compiled, call


def _inference(program: Program) -> tuple[Any, Callable[[], Any]]:
    dtype = jnp.dtype(program.recipe.train.precision)

    def predict(params: Any, stats: Any, images: jax.Array) -> jax.Array:
        return program.model.apply(params, stats, normalise(images, program.preprocessing, dtype))[0]

    shapes, images = program.state_shapes, program.batch_shapes.image
    compiled = jax.jit(predict).lower(shapes.params, shapes.stats, images).compile()
    state, batch = program.initial_state(), synthetic_batch(program)
    return compiled, lambda: compiled(state.params, state.stats, batch.image)


def _durations(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds a call, of each part."""
    jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(call())
    once = max(time.perf_counter() - start, 1e-6)
    calls = max(1, round(seconds / PARTS / once))
    return [_seconds_a_call(call, calls) for _ in range(PARTS)]


def _seconds_a_call(call: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls - 1):
        call()
    jax.block_until_ready(call())
    return (time.perf_counter() - start) / calls
