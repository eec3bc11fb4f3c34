"""Classifiers on frozen features: logistic regression, nearest neighbours, class means, discriminant analysis.

Features lie split by rows over the mesh, filled up with rows of weight 0; what is fitted is whole on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.scipy.linalg import cho_factor, cho_solve, solve_triangular
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pcls.data.split import held_out
from pcls.errors import UserError
from pcls.parallel.mesh import BATCH_AXES, batch_sharding, local_rows, make_mesh, replicated, shard_count
from pcls.parallel.processes import place

# Of the largest entry of the mean loss's gradient. At scikit-learn's 1e-4 small penalties end far from the optimum: of
# 4,000 x 1,024 features and 50 classes, at l2 = 0.1, 3 times its objective and 4 points of accuracy below.
TOLERANCE, MAX_ITERATIONS, MEMORY = 1e-5, 1000, 10
# Evaluations of a line search, and the share of the slope that it leaves.
MAX_SEARCH, FLAT = 10, 0.1
MIN_SHRINKAGE = 1e-4
# As DINO has them.
NEIGHBOURS, TEMPERATURE = 20, 0.07
# Similarities that a device holds at once: 64 MB.
QUERIES, BLOCK = 1024, 16384

# Penalties that are tried on a share of the records, and the one for too few records.
L2_GRID, L2_SHARE, L2_OF_FEW = (0.1, 1.0, 10.0, 100.0, 1000.0), 0.2, 10.0


@dataclass(frozen=True)
class LinearProbe:
    """A dense layer on features.

    Attributes:
      kernel: [features, classes] float32.
      bias: [classes] float32.
      iterations: of the fit; 0: it is in closed form.
      loss: the objective over the sum of the weights; NaN in closed form.
      converged: whether the gradient came below the tolerance.
    """

    kernel: np.ndarray
    bias: np.ndarray
    iterations: int = 0
    loss: float = float("nan")
    converged: bool = True

    def logits(self, features: np.ndarray) -> np.ndarray:
        """[n, features] to [n, classes] float32."""
        return features @ self.kernel + self.bias


def fit_linear(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    l2: float,
    weights: np.ndarray | None = None,
    mesh: Mesh | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> LinearProbe:
    """Multinomial logistic regression: minimises the sum of weighted cross-entropies + l2 / 2 * |kernel|^2.

    The kernel of that penalty is the one on standardised features (mean 0, deviation 1, by the weights); the result is
    folded back and takes features as they are. scikit-learn's C is 1 / l2, after its StandardScaler.

    By L-BFGS. A linear model's logits along a direction are those of two products, so a line search to the bottom costs
    no further product: an iteration has two, where one by any line search over the loss has two or more for each trial.
    From as many records as features on, the steps are preconditioned by the Hessian at zero weights, which takes a half
    to a third of the iterations.

    Args:
      features: [n, features] float32, the same in every process.
      labels: [n], 0 to classes - 1.
      classes: how many.
      l2: above 0.
      weights: [n], 0 or more, of each record; None: 1.
      mesh: over which rows are split; None: all devices.
      tolerance: of the largest entry of the gradient, over the sum of the weights.
      max_iterations: at most.

    Raises:
      UserError: features that are not finite.
      ValueError: no l2 above 0.

    Source: Liu & Nocedal 1989; Böhning 1992 (bounds of the multinomial Hessian).
    """
    if not l2 > 0:
        raise ValueError(f"l2 is {l2}; above 0 is needed, or separable classes have no optimum")
    mesh = make_mesh(-1) if mesh is None else mesh
    rows = _placed(features, labels, weights, mesh)
    fit = _compiled(_fit, mesh, classes, len(features) > features.shape[1])
    found = jax.device_get(fit(*rows, (np.float32(l2), np.float32(tolerance), np.int32(max_iterations))))
    return LinearProbe(
        found.kernel, found.bias, int(found.iterations), float(found.loss), bool(found.gradient <= tolerance)
    )


def chosen_l2(features: np.ndarray, labels: np.ndarray, classes: int, *, seed: int, mesh: Mesh | None = None) -> float:
    """The penalty of `L2_GRID` that is most accurate on a share of the records, held out from the fit.

    Of equally accurate ones the largest. `L2_OF_FEW` where each class has too few records to hold one out.

    Args:
      features, labels, classes, mesh: as in `fit_linear`.
      seed: of the share.
    """
    held = held_out(labels, L2_SHARE, seed)
    if not held.any():
        return L2_OF_FEW

    def accuracy(l2: float) -> float:
        probe = fit_linear(features[~held], labels[~held], classes, l2=l2, mesh=mesh)
        return float(np.mean(probe.logits(features[held]).argmax(1) == labels[held]))

    return max(L2_GRID, key=lambda l2: (accuracy(l2), l2))


class _Fitted(NamedTuple):
    kernel: Any
    bias: Any
    iterations: Any
    loss: Any
    gradient: Any


class _Iterate(NamedTuple):
    """Of the fit: `point` is the preconditioned weights, `logits` the features' product with them."""

    iterations: Array
    point: Array
    weights: Array
    logits: Array
    gradient: Array
    memory: Any
    moving: Array


def _fit(
    classes: int,
    precondition: bool,
    features: Array,
    labels: Array,
    counts: Array,
    l2: Array,
    tolerance: Array,
    max_iterations: Array,
) -> _Fitted:
    total = counts.sum()
    mean, scale = _standardisation(features, counts)
    # The bias is the weight of a feature that is 1, and has no penalty.
    inputs = jnp.concatenate([(features - mean) / scale, jnp.ones((len(features), 1))], 1)
    penalty = jnp.full((inputs.shape[1], 1), l2).at[-1].set(0)
    targets = jax.nn.one_hot(labels, classes)
    to_weights, to_point = _preconditioner(inputs, counts, penalty, classes, precondition)
    lbfgs = optax.scale_by_lbfgs(MEMORY)

    def gradient(logits: Array, weights: Array) -> Array:
        return inputs.T @ (counts[:, None] * (jax.nn.softmax(logits) - targets)) + penalty * weights

    def going_on(now: _Iterate) -> Array:
        steep = jnp.abs(now.gradient).max() > tolerance * total
        return now.moving & steep & (now.iterations < max_iterations)

    def iterate(now: _Iterate) -> _Iterate:
        update, memory = lbfgs.update(to_point(now.gradient), now.memory, now.point)
        along = to_weights(-update)
        logits_along = inputs @ along
        linear = jnp.vdot(penalty * now.weights, along) - jnp.vdot(counts[:, None] * targets, logits_along)
        quadratic = jnp.vdot(penalty * along, along)

        def slopes(step: Array) -> tuple[Array, Array]:
            """First and second derivative of the objective along the direction."""
            probabilities = jax.nn.softmax(now.logits + step * logits_along)
            expected = probabilities * logits_along
            means = expected.sum(1)
            spread = (expected * logits_along).sum(1) - means**2
            return counts @ means + linear + step * quadratic, counts @ spread + quadratic

        step = _line_search(slopes)
        weights, logits = now.weights + step * along, now.logits + step * logits_along
        return _Iterate(
            now.iterations + 1,
            now.point - step * update,
            weights,
            logits,
            gradient(logits, weights),
            memory,
            # Where float32 ends, no direction leads down any more.
            step > 0,
        )

    zero, none = jnp.zeros((inputs.shape[1], classes)), jnp.zeros((len(features), classes))
    start = _Iterate(jnp.int32(0), zero, zero, none, gradient(none, zero), lbfgs.init(zero), jnp.bool_(True))
    end = jax.lax.while_loop(going_on, iterate, start)
    losses = jax.nn.logsumexp(end.logits, 1) - (end.logits * targets).sum(1)
    loss = (counts @ losses + jnp.vdot(penalty * end.weights, end.weights) / 2) / total
    kernel = end.weights[:-1] / scale[:, None]
    return _Fitted(kernel, end.weights[-1] - mean @ kernel, end.iterations, loss, jnp.abs(end.gradient).max() / total)


def _standardisation(features: Array, counts: Array) -> tuple[Array, Array]:
    """Mean and deviation of each feature, by the weights of the records."""
    total = counts.sum()
    mean = counts @ features / total
    deviation = jnp.sqrt(counts @ (features - mean) ** 2 / total)
    # A feature of one value has no deviation that float32 could tell.
    told = deviation > 1e-6 * jnp.abs(mean)
    return mean, jnp.where(told, deviation, 1.0)


def _preconditioner(
    inputs: Array, counts: Array, penalty: Array, classes: int, whole: bool
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """From points to weights, and from gradients by weights to those by points, in which the Hessian is near one.

    At zero weights the Hessian of each class is inputs' counts inputs / classes + penalty, but for a term that all
    classes share. With fewer records than features its factors would cost more than they save: only scaled.
    """
    if not whole:
        scale = jnp.sqrt(classes / counts.sum())
        return lambda point: point * scale, lambda gradient: gradient * scale
    size = inputs.shape[1]
    hessian = (inputs * counts[:, None]).T @ inputs / classes + penalty * jnp.eye(size)
    # So much that rounding leaves the factor real.
    factor = jnp.linalg.cholesky(hessian + 1e-6 * jnp.trace(hessian) / size * jnp.eye(size), upper=True)
    return partial(solve_triangular, factor), partial(solve_triangular, factor, trans=1)


def _line_search(slopes: Callable[[Array], tuple[Array, Array]]) -> Array:
    """The step to the bottom of a convex function, by Newton's method within a bracket; 0: it does not go down.

    Args:
      slopes: step to first and second derivative.
    """
    first, second = slopes(jnp.float32(0))

    def searching(now: Any) -> Array:
        count, _, _, _, slope = now
        return (jnp.abs(slope) > FLAT * -first) & (count < MAX_SEARCH)

    def search(now: Any) -> Any:
        count, below, above, step, _ = now
        slope, curvature = slopes(step)
        below, above = jnp.where(slope <= 0, step, below), jnp.where(slope > 0, step, above)
        newton = step - slope / curvature
        inside = (newton > below) & (newton < above)
        other = jnp.where(jnp.isinf(above), 2 * below, (below + above) / 2)
        flat = jnp.abs(slope) <= FLAT * -first
        return count + 1, below, above, jnp.where(flat, step, jnp.where(inside, newton, other)), slope

    start = (jnp.int32(0), jnp.float32(0), jnp.float32(jnp.inf), -first / second, first)
    count, below, _, step, _ = jax.lax.while_loop(searching, search, start)
    # Down to `below` it goes down, whatever the last trial was.
    step = jnp.where((count == MAX_SEARCH) & (below > 0), below, step)
    return jnp.where((first < 0) & jnp.isfinite(step), step, 0.0)


@dataclass(frozen=True)
class MeanProbe:
    """The class whose mean is nearest, among directions seen from the middle of all features.

    Attributes:
      centre: [features] float32, the mean of all records.
      means: [classes, features] float32, of the centred features of length 1.
      present: [classes] bool, classes that have records.

    Source: Snell et al. 2017; centred and of length 1: Wang et al. 2019 (SimpleShot).
    """

    centre: np.ndarray
    means: np.ndarray
    present: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """[n, features] to [n, classes] float32: larger where the mean is nearer."""
        nearness = directions(features - self.centre) @ self.means.T - np.sum(self.means**2, 1) / 2
        return np.where(self.present, nearness, np.float32(-np.inf))


def fit_means(features: np.ndarray, labels: np.ndarray, classes: int) -> MeanProbe:
    """The mean of each class, as `MeanProbe` has it; arguments as in `fit_linear`."""
    centre = features.mean(0)
    seen, counts = directions(features - centre), np.bincount(labels, minlength=classes)
    order = np.argsort(labels, kind="stable")
    means = np.zeros((classes, features.shape[1]), np.float32)
    parts = np.split(order, np.cumsum(counts)[:-1])
    for own, part in enumerate(parts):
        means[own] = seen[part].mean(0) if len(part) else 0
    return MeanProbe(centre, means, counts > 0)


def directions(features: np.ndarray) -> np.ndarray:
    """[n, features], each row brought to length 1; zeros stay."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)


def fit_lda(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    shrinkage: float | None = None,
    mesh: Mesh | None = None,
) -> LinearProbe:
    """Linear discriminant analysis in closed form: normal classes of one covariance, shrunk towards a multiple of one.

    Args:
      features, labels, classes: as in `fit_linear`.
      shrinkage: 0 to 1; None: that of Ledoit & Wolf, of what the records differ from the means of their classes by.
      mesh: as in `fit_linear`.

    Returns:
      The probe. With one record a class nothing is known of the covariance: it is taken for one.

    Raises:
      UserError: features that are not finite.

    Source: Fisher 1936; Ledoit & Wolf 2004.
    """
    mesh = make_mesh(-1) if mesh is None else mesh
    fit = _compiled(_lda, mesh, classes)
    asked = np.float32(np.nan if shrinkage is None else shrinkage)
    kernel, bias = jax.device_get(fit(*_placed(features, labels, None, mesh), (asked,)))
    return LinearProbe(kernel, bias)


def _lda(classes: int, features: Array, labels: Array, counts: Array, asked: Array) -> tuple[Array, Array]:
    total, width = counts.sum(), features.shape[1]
    centre = counts @ features / total
    centred = features - centre
    members = counts[:, None] * jax.nn.one_hot(labels, classes)
    records = members.sum(0)
    means = members.T @ centred / jnp.maximum(records, 1)[:, None]
    apart = jnp.sqrt(counts)[:, None] * (centred - means[labels])
    covariance = apart.T @ apart / total
    level, squares = jnp.trace(covariance) / width, jnp.sum(covariance**2)
    # How far the sample's covariance is off, over how far it is from a multiple of one.
    off = (jnp.sum(jnp.sum(apart**2, 1) ** 2) / total - squares) / total
    shrinkage = jnp.where(jnp.isnan(asked), jnp.minimum(off / (squares - width * level**2), 1), asked)
    # 0 / 0 where there is nothing to shrink; and so much that float32 can invert it.
    shrinkage = jnp.maximum(jnp.nan_to_num(shrinkage), MIN_SHRINKAGE)
    # Of records that are the means themselves there is nothing but rounding.
    known = level > 1e-10 * jnp.mean(centred**2)
    shrunk = jnp.where(known, (1 - shrinkage) * covariance + shrinkage * level * jnp.eye(width), jnp.eye(width))
    kernel = cho_solve(cho_factor(shrunk), means.T)
    bias = jnp.log(records / total) - jnp.sum(means.T * kernel, 0) / 2
    return kernel, bias - centre @ kernel


def nearest_neighbours(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    queries: np.ndarray,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Votes of the nearest records by cosine, each of weight exp(cosine / temperature).

    Features lie split by rows over the mesh; each device looks for the nearest of its own, block by block, so that no
    more than `QUERIES` x `BLOCK` similarities are held at once. Of equally near ones those count that come first.

    Args:
      features, labels, classes: as in `fit_linear`.
      queries: [m, features].
      neighbours: that vote; all, where there are fewer.
      temperature: above 0.
      mesh: as in `fit_linear`.

    Returns:
      [m, classes] float32.

    Raises:
      UserError: features that are not finite.

    Source: Wu et al. 2018; the defaults: Caron et al. 2021 (DINO).
    """
    mesh = make_mesh(-1) if mesh is None else mesh
    shards = shard_count(mesh)
    own = -(-len(features) // shards)
    block = -(-own // -(-own // BLOCK))
    rows = _placed(directions(features), labels, None, mesh, multiple=shards * block)
    some = min(QUERIES, len(queries))
    asked = np.pad(directions(queries).astype(np.float32), ((0, -len(queries) % some), (0, 0)))
    find = _compiled(_votes, mesh, mesh, classes, min(neighbours, len(features)), block)
    votes = find(*rows, (asked.reshape(-1, some, asked.shape[1]), np.float32(temperature)))
    return np.asarray(jax.device_get(votes)).reshape(-1, classes)[: len(queries)]


def _votes(
    mesh: Mesh,
    classes: int,
    neighbours: int,
    block: int,
    features: Array,
    labels: Array,
    counts: Array,
    queries: Array,
    temperature: Array,
) -> Array:
    def nearest(values: Array, of: Array) -> tuple[Array, Array]:
        values, places = jax.lax.top_k(values, neighbours)
        return values, jnp.take_along_axis(of, places, 1)

    def of_device(features: Array, labels: Array, counts: Array, queries: Array) -> Array:
        blocks = tuple(array.reshape(-1, block, *array.shape[1:]) for array in (features, labels, counts))

        def of_queries(some: Array) -> Array:
            def nearer(best: tuple[Array, Array], part: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
                rows, of, counted = part
                cosines = jnp.where(counted > 0, some @ rows.T, -jnp.inf)
                of = jnp.broadcast_to(of, cosines.shape)
                # The best so far first: of equal ones top_k takes the first.
                return nearest(jnp.concatenate([best[0], cosines], 1), jnp.concatenate([best[1], of], 1)), None

            none = jnp.full((len(some), neighbours), -jnp.inf), jnp.zeros((len(some), neighbours), labels.dtype)
            own, _ = jax.lax.scan(nearer, none, blocks)
            cosines, of = nearest(*jax.lax.all_gather(own, BATCH_AXES, axis=1, tiled=True))
            rows = jnp.arange(len(some))[:, None]
            return jnp.zeros((len(some), classes)).at[rows, of].add(jnp.exp(cosines / temperature))

        return jax.lax.map(of_queries, queries)

    split = P(BATCH_AXES)
    # What all have gathered is the same on all, which jax cannot know.
    run = jax.shard_map(of_device, mesh=mesh, in_specs=(split, split, split, P()), out_specs=P(), check_vma=False)
    return run(features, labels, counts, queries)


def _placed(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray | None, mesh: Mesh, multiple: int = 0
) -> tuple[Any, Any, Any]:
    """Features, labels and weights by rows over the mesh, filled up with weight 0.

    Args:
      features, labels, weights, mesh: as in `fit_linear`.
      multiple: of it there are rows; 0: of the devices.

    Raises:
      UserError: features that are not finite, or more than a device holds.
    """
    if not np.isfinite(features.sum(dtype=np.float64)):
        raise UserError("the features hold NaN or infinity: the weights of the model are damaged, or trained too far")
    _check_memory(features.size, mesh)
    counts = np.ones(len(features), np.float32) if weights is None else weights.astype(np.float32)
    sharding, multiple = batch_sharding(mesh), multiple if multiple else shard_count(mesh)
    size = -(-len(features) // multiple) * multiple
    own, more = local_rows(sharding, size), size - len(features)

    def filled(array: np.ndarray) -> np.ndarray:
        whole = np.pad(array, ((0, more), *[(0, 0)] * (array.ndim - 1))) if more else array
        return whole if len(own) == size else whole[own]

    return place(
        (filled(features.astype(np.float32, copy=False)), filled(labels.astype(np.int32)), filled(counts)),
        sharding,
        size,
    )


def _check_memory(numbers: int, mesh: Mesh) -> None:
    """UserError where a device cannot hold its part of the features and a standardised copy, where it tells."""
    memory = (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
    needed = 8 * numbers // shard_count(mesh)
    if memory and needed > memory:
        raise UserError(
            f"the features of a device and a standardised copy take {needed / 1e9:.1f} GB, and it has "
            f"{memory / 1e9:.1f} GB; take fewer records, as by data.per_class=100, or more devices"
        )


@cache
def _compiled(function: Callable[..., Any], mesh: Mesh, *static: Any) -> Any:
    """The function of static arguments, three arrays split by rows, and a tuple of whole ones; compiled once."""
    rows, whole = batch_sharding(mesh), replicated(mesh)

    def run(features: Array, labels: Array, counts: Array, others: tuple[Array, ...]) -> Any:
        # As float32 as they say: accelerators would round the products' inputs.
        with jax.default_matmul_precision("float32"):
            return function(*static, features, labels, counts, *others)

    return jax.jit(run, in_shardings=(rows, rows, rows, whole), out_shardings=whole)
