"""A recipe put together: data, mesh, model, optimizer and plan, all checked before anything is written."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from pcls.config import Recipe
from pcls.data.dataset import Dataset, open_dataset
from pcls.data.preprocessing import Preprocessing
from pcls.models.registry import define_model
from pcls.nn.module import Arrays, ModelDef
from pcls.parallel.mesh import batch_sharding, check_batch_size, local_rows, make_mesh, replicated, state_shardings
from pcls.training.loop import Plan
from pcls.training.optimizers import learning_rate, make_optimizer
from pcls.training.state import TrainState, init_state, state_of
from pcls.training.step import TrainStep, compiled_train_step, make_train_step

# A run leaves at most about this many training rows in its metric files, each a mean over this many steps or more.
LOG_ROWS, MIN_LOG_STEPS = 500, 10

# glibc's numbers for mallopt.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class Setup:
    """All that a run is made of; no array lives yet."""

    recipe: Recipe
    dataset: Dataset
    mesh: Mesh
    model: ModelDef
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    plan: Plan

    @cached_property
    def batch_sharding(self) -> NamedSharding:
        """Of every array of a batch."""
        return batch_sharding(self.mesh)

    @cached_property
    def state_shapes(self) -> TrainState:
        """Shape, type and sharding of every leaf of the state."""
        shapes = jax.eval_shape(self._init)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            state_shardings(self.mesh, shapes),
        )

    @cached_property
    def state_shardings(self) -> Any:
        """The shardings of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.state_shapes)

    def rows(self, batch_size: int) -> np.ndarray:
        """The rows of a global batch that this process feeds."""
        return local_rows(self.batch_sharding, batch_size)

    def initial_state(self, weights: tuple[Arrays, Arrays] | None = None) -> TrainState:
        """The state before the first step, every leaf made where it lives.

        Args:
          weights: parameters and statistics on the host to start from; None: drawn from the seed.
        """
        if weights is None:
            return jax.jit(self._init, out_shardings=self.state_shardings)()
        ema, seed = self.recipe.train.ema_decay > 0, self.recipe.train.seed
        start = partial(state_of, optimizer=self.optimizer, seed=seed, ema=ema)
        return jax.jit(start, out_shardings=self.state_shardings)(*weights)

    def train_step(self) -> TrainStep:
        """The compiled training step."""
        step = make_train_step(self.model, self.optimizer, self.recipe, self.dataset.preprocessing)
        return compiled_train_step(step, self.state_shardings, self.batch_sharding, replicated(self.mesh))

    def _init(self) -> TrainState:
        ema = self.recipe.train.ema_decay > 0
        return init_state(self.model, self.optimizer, self.recipe.train.seed, ema=ema)


def prepare(recipe: Recipe, preprocessing: Preprocessing | None = None) -> Setup:
    """Opens the data and checks that recipe, data, model and devices fit together.

    Args:
      recipe: validated by itself.
      preprocessing: that of pretrained weights; None: worked out from the data.

    Raises:
      UserError: one line that says what does not fit.
    """
    mesh = make_mesh(recipe.mesh.data, recipe.mesh.fsdp)
    check_batch_size("train.batch_size", recipe.train.batch_size, mesh)
    check_batch_size("evaluate.batch_size", recipe.evaluation_batch_size, mesh)
    dataset = open_dataset(recipe.data, preprocessing)
    model = define_model(
        recipe.model.name,
        height=dataset.preprocessing.height,
        width=dataset.preprocessing.width,
        channels=dataset.preprocessing.channels,
        classes=len(dataset.class_names),
        precision=recipe.train.precision,
    )
    plan = make_plan(recipe, len(dataset.train))
    warmup = recipe.optimizer.warmup.steps(plan.epoch_steps)
    schedule = learning_rate(recipe.optimizer, warmup_steps=warmup, steps=plan.steps)
    optimizer = make_optimizer(recipe.optimizer, schedule, model.params)
    return Setup(recipe, dataset, mesh, model, schedule, optimizer, plan)


def make_plan(recipe: Recipe, records: int) -> Plan:
    """The recipe's durations in steps."""
    epoch_steps = records / recipe.train.batch_size
    steps = recipe.train.duration.steps(epoch_steps)
    return Plan(
        steps=steps,
        epoch_steps=epoch_steps,
        batch_size=recipe.train.batch_size,
        evaluate_every=max(1.0, recipe.evaluate.every.exact_steps(epoch_steps)),
        save_every=max(1.0, recipe.checkpoint.every.exact_steps(epoch_steps)),
        log_every=max(MIN_LOG_STEPS, steps // LOG_ROWS),
    )


def tune_process() -> None:
    """Settings of the process that every run wants: a compile cache on disk, and an allocator that keeps its memory."""
    _use_compile_cache()
    if jax.default_backend() == "cpu":
        _keep_freed_memory()


def _use_compile_cache() -> None:
    """A second start of the same recipe need not compile; JAX_COMPILATION_CACHE_DIR names another folder, as always."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "pcls" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _keep_freed_memory() -> None:
    """Keeps glibc from giving XLA's temporary memory back to the kernel after every step.

    Above 32 MiB glibc maps such memory anew each time, and the kernel fills every page with zeros first: the first
    stage of cnn28 takes 7 ms instead of 18. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
