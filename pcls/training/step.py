"""The compiled training step: a pure function of a state and a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import NamedSharding

from pcls.config.schema import Recipe
from pcls.data.augment import PAIR, alternating, model_inputs, record_keys
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import Preprocessing
from pcls.nn.module import Arrays, ModelDef
from pcls.nn.training import TrainingPass
from pcls.training.distillation import Teaching, distilled
from pcls.training.gradients import accumulated, sharpness_aware
from pcls.training.losses import TrainingLoss
from pcls.training.state import TrainState

Metrics = dict[str, Array]
# (state, parameters that learn, batch, what of a teacher is given) to ([batch] losses, [batch] right answers, the
# batch's statistics).
Losses = Callable[..., tuple[Array, Array, Arrays]]
# (state, batch, what of a teacher is given).
TrainStep = Callable[..., tuple[TrainState, Metrics]]

# The layers' own part of an example's key; the augmentation uses small numbers of it (`Draw`).
MODEL_KEY = 1 << 16

# What the share of right answers is called, by `data.labels`.
RIGHT = {"one": "accuracy", "several": "labels right"}

_WHOLE_BATCH = TrainingPass()


class Sums(NamedTuple):
    """What a batch adds up to beside its loss.

    Attributes:
      weight: examples that count.
      correct: of these, those that are right, as `right` counts them.
      stats: statistics of the batch over its micro-batches.
    """

    weight: Array
    correct: Array
    stats: Arrays


def make_losses(
    model: ModelDef,
    recipe: Recipe,
    preprocessing: Preprocessing,
    *,
    loss_of: TrainingLoss,
    training: TrainingPass = _WHOLE_BATCH,
    frozen: Set[str] = frozenset(),
    teaching: Teaching | None = None,
) -> Losses:
    """What a training step makes of a batch before it looks for gradients.

    `(state, params, batch, *given) -> (losses, right, statistics)`: [batch] losses, [batch] as `right` counts them, and
    the statistics of the batch. `params` are the parameters that learn; the others and running statistics are the
    state's. `given` is what of a teacher is given.

    Args:
      model, recipe, preprocessing: of the run.
      loss_of: what is trained on.
      training: what BatchNorm normalises over; the keys are those of the batch.
      frozen: paths of parameters and statistics that do not learn.
      teaching: how a teacher is asked; None: there is none.
    """
    dtype = jnp.dtype(recipe.train.precision)

    def losses(state: TrainState, params: Arrays, batch: Batch, *given: Any) -> tuple[Array, Array, Arrays]:
        image, label, weight, record, epoch, length = batch
        drawn = jax.random.wrap_key_data(state.key), epoch, record
        keys, turned = record_keys(*drawn), alternating(*drawn)
        images, mixture = model_inputs(image, label, weight, keys, recipe.augment, preprocessing, dtype, length, turned)
        layer_keys = jax.vmap(lambda key: jax.random.fold_in(key, MODEL_KEY))(keys)
        layers = replace(training, keys=layer_keys)
        features: list[Array] | None = [] if recipe.distill.features else None
        logits, stats = model.apply(state.params | params, state.stats, images, layers, length, frozen, features)
        own = loss_of(logits, label, state.step)
        if mixture is not None:
            # Every plain loss is linear in its target, so that of a mixed target is a mean of two; each by its class.
            # Those of label sets too: a label that one of the two carries has a part of both of its terms.
            others = loss_of(logits, mixture.labels, state.step)
            own = mixture.share * own + (1 - mixture.share) * others
        if teaching is not None:
            taught = teaching(given[0], images, batch)
            entered = features[0] if features else None
            own = distilled(recipe.distill, own, logits, entered, taught, weight, recipe.train.loss)
        return own, right(logits, label), stats

    return losses


def make_gradients(losses_of: Losses, recipe: Recipe) -> Callable[..., Any]:
    """`(state, params, batch, *given) -> ((loss, Sums), gradients)`, all of them sums over the batch.

    Args:
      losses_of: of `make_losses`.
      recipe: of the run; says in how many micro-batches, and where the gradients are taken.
    """
    accumulate = recipe.train.accumulate

    def summed_loss(state: TrainState, given: Sequence[Any], params: Arrays, micro: Batch) -> tuple[Array, Sums]:
        """Over a micro-batch."""
        losses, correct, stats = losses_of(state, params, micro, *given)
        shares = jax.tree.map(lambda stat: stat / accumulate, stats)
        weight = micro.weight
        return jnp.sum(losses * weight), Sums(jnp.sum(weight), jnp.sum(correct * weight), shares)

    # Examples that are normalised together, or mixed with each other, stay together in a micro-batch.
    block = math.lcm(recipe.batch_norm.group_size or 1, PAIR if recipe.augment.mixes else 1)

    def gradients(state: TrainState, params: Arrays, batch: Batch, *given: Any) -> Any:
        here = accumulated(partial(summed_loss, state, given), accumulate, block)
        return (sharpness_aware(here, recipe.train.sam_rho) if recipe.train.sam_rho else here)(params, batch)

    return gradients


def make_train_step(
    gradients_of: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    *,
    gradient_shardings: Sequence[Mapping[str, NamedSharding]] = (),
    frozen: Set[str] = frozenset(),
) -> TrainStep:
    """The training step: `(state, batch, *given) -> (state, metrics)`, to be compiled with the state donated.

    The metrics are float32 scalars: `loss` (mean), `correct` and `weight` (sums), `finite` (1 or 0). Of a mixed image
    the label that counts as correct is its own.

    Args:
      gradients_of: of `make_gradients`.
      optimizer, recipe: of the run.
      gradient_shardings: where the gradients are brought, one after the other; the last is where updates are computed.
      frozen: paths of parameters and statistics that the step leaves as they are; there are no gradients of them.
    """
    update = optax.with_extra_args_support(optimizer).update

    def train_step(state: TrainState, batch: Batch, *given: Any) -> tuple[TrainState, Metrics]:
        """One update, of one or several batches; one whose loss or gradient is not finite only counts."""
        batches = max(1, len(batch.label) // recipe.train.batch_size)
        learning = without(frozen, state.params)
        (loss, sums), grads = gradients_of(state, learning, batch, *given)
        # Sums become means only now: a weight known before the backward pass would be an all-reduce of its own.
        loss, grads = jax.tree.map(lambda total: total / jnp.maximum(sums.weight, 1), (loss, grads))
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        for shardings in gradient_shardings:
            grads = jax.lax.with_sharding_constraint(grads, {path: shardings[path] for path in grads})
        updates, opt_state = update(grads, state.opt_state, learning, step=state.step, batches=batches)
        params = optax.apply_updates(learning, updates)
        stats = moved(without(frozen, state.stats), without(frozen, sums.stats), recipe.batch_norm.momentum)
        proposed = replace(
            state,
            params=state.params | params,
            stats=state.stats | stats,
            opt_state=opt_state,
            ema=moving_average(state, params, stats, recipe.train.ema_decay**batches),
            last_good_step=state.step + batches,
        )
        # where, not multiply: 0 * nan is nan, so a scaled update would still poison the weights.
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), proposed, state)
        metrics = {"loss": loss, "correct": sums.correct, "weight": sums.weight, "finite": finite}
        return replace(kept, step=state.step + batches), {name: v.astype(jnp.float32) for name, v in metrics.items()}

    return train_step


def right(logits: Array, label: Array) -> Array:
    """[batch]: 1 where the most probable class is the label; of label sets the share of labels right at logit 0.

    Args:
      logits: [batch, classes].
      label: [batch], or [batch, classes] of 0 and 1.
    """
    return logits.argmax(-1) == label if label.ndim == 1 else jnp.mean((logits > 0) == (label > 0), -1)


def without(frozen: Set[str], arrays: Arrays) -> Arrays:
    """Those that learn."""
    return {path: array for path, array in arrays.items() if path not in frozen}


def moved(running: Arrays, batch: Arrays, momentum: float) -> Arrays:
    """Running statistics after a batch; `momentum` is the share that they keep."""
    return jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * new, running, batch)


def moving_average(state: TrainState, params: Arrays, stats: Arrays, decay: float) -> tuple[Arrays, Arrays] | None:
    """The averages after an update; young ones forget faster, so that the initial weights do not linger.

    Args:
      state: before the update.
      params, stats: after it, those that learn; averages of the others stay as they are.
      decay: share that they keep.
    """
    if state.ema is None:
        return None
    step = state.step.astype(jnp.float32)
    rate = jnp.minimum(decay, (1 + step) / (10 + step))

    def averaged(averages: Arrays, arrays: Arrays) -> Arrays:
        return averages | {path: rate * averages[path] + (1 - rate) * array for path, array in arrays.items()}

    return averaged(state.ema[0], params), averaged(state.ema[1], stats)
