"""The compiled steps: pure functions of a state and a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pcls.config.schema import Recipe
from pcls.data.augment import augment, normalise, record_keys
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import Preprocessing
from pcls.nn.module import Arrays, ModelDef
from pcls.training.losses import cross_entropy, weighted_mean
from pcls.training.state import TrainState

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    model: ModelDef, optimizer: optax.GradientTransformation, recipe: Recipe, preprocessing: Preprocessing
) -> TrainStep:
    """The training step: `(state, batch) -> (state, metrics)`, to be compiled with the state donated.

    The metrics are float32 scalars: `loss` (mean), `correct` and `weight` (sums), `finite` (1 or 0).
    """
    dtype = jnp.dtype(recipe.train.precision)

    def loss_fn(params: Arrays, state: TrainState, batch: Batch) -> tuple[Array, tuple[Arrays, Array]]:
        key = jax.random.wrap_key_data(state.key)
        images = augment(batch.image, record_keys(key, batch.epoch, batch.record), recipe.augment)
        logits, stats = model.apply(params, state.stats, normalise(images, preprocessing, dtype), train=True)
        losses = cross_entropy(logits, batch.label, recipe.train.label_smoothing)
        correct = jnp.sum((logits.argmax(-1) == batch.label) * batch.weight)
        return weighted_mean(losses, batch.weight), (stats, correct)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One update; a step whose loss or gradient is not finite only counts."""
        (loss, (stats, correct)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, state, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        proposed = replace(
            state,
            params=params,
            stats=stats,
            opt_state=opt_state,
            ema=moving_average(state, params, stats, recipe.train.ema_decay),
            last_good_step=state.step + 1,
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        # where, not multiply: 0 * nan is nan, so a scaled update would still poison the weights.
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), proposed, state)
        metrics = {
            "loss": loss,
            "correct": correct,
            "weight": jnp.sum(batch.weight),
            "finite": finite.astype(jnp.float32),
        }
        return replace(kept, step=state.step + 1), metrics

    return train_step


def moving_average(state: TrainState, params: Arrays, stats: Arrays, decay: float) -> tuple[Arrays, Arrays] | None:
    """The averages after a step; young averages forget faster, so that the initial weights do not linger."""
    if state.ema is None:
        return None
    step = state.step.astype(jnp.float32)
    rate = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: rate * old + (1 - rate) * new, state.ema, (params, stats))


def compiled_train_step(step: TrainStep, state_shardings: Any, batch_shardings: Any, replicated: Any) -> TrainStep:
    """Compiles a training step for a mesh: state donated and staying where it is, metrics on every device."""
    # jax 0.10 gives a CPU's convolutions without padding to YNN: a step of cnn28 takes 34 ms instead of 21. Naming the
    # matrix products alone leaves them to Eigen, as jax 0.12 does by itself.
    slow_convolutions = jax.default_backend() == "cpu" and jax.__version_info__ < (0, 11)
    ynn = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    return jax.jit(
        step,
        in_shardings=(state_shardings, batch_shardings),
        out_shardings=(state_shardings, replicated),
        donate_argnums=0,
        compiler_options=ynn if slow_convolutions else None,
    )
