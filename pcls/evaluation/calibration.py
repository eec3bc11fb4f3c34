"""Calibration after training: one temperature, or a scale and a bias a class, fitted to held-out logits.

Both change probabilities by `softmax(scale * logits + bias)`; a temperature is one scale and never changes an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import log_softmax

from pcls.evaluation.quality import Quality, quality, row_chunks, scores

# What a temperature may be. A model that is never wrong would be given 0, one that knows nothing infinity.
TEMPERATURES = (0.02, 50.0)
FOLDS = 5
VECTOR_STEPS = 200

# What logits are multiplied by, and what is then added; each [1] or [classes] float64.
Scaling = tuple[np.ndarray, np.ndarray]

AS_IT_IS: Scaling = (np.ones(1), np.zeros(1))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> Scaling:
    """The temperature with the lowest negative log-likelihood; the scale is one over it.

    In the inverse of the temperature that is convex, so its slope has one zero, which is looked for by Brent's method.

    Args:
      logits: [n, classes].
      labels: [n] class numbers.

    Source: Guo et al. 2017.
    """
    coldest, hottest = 1 / TEMPERATURES[0], 1 / TEMPERATURES[1]

    def slope(inverse: float) -> float:
        """Of the sum: expected logit minus that of the label."""
        total = 0.0
        for rows in row_chunks(logits):
            some = logits[rows].astype(np.float64)
            probabilities = np.exp(log_softmax(inverse * some, axis=1))
            own = np.take_along_axis(some, labels[rows][:, None], 1)[:, 0]
            # Of logits minus that of the label: large ones would cancel.
            total += float((probabilities * (some - own[:, None])).sum())
        return total

    if slope(coldest) <= 0:
        inverse = coldest
    elif slope(hottest) >= 0:
        inverse = hottest
    else:
        inverse = float(brentq(slope, hottest, coldest, xtol=1e-9, rtol=1e-9))
    return np.array([inverse]), np.zeros(1)


def fit_vector(logits: np.ndarray, labels: np.ndarray) -> Scaling:
    """A scale and a bias for each class, by L-BFGS from the best temperature on.

    Each is held near what the temperature alone would make of it, by a normal prior of deviation 1 on the bias and on
    the scale over that of the temperature: a class with few records moves little, one with many freely.

    Args:
      logits: [n, classes].
      labels: [n] class numbers.

    Source: Guo et al. 2017 (vector scaling).
    """
    (start,), _ = fit_temperature(logits, labels)
    n, classes = logits.shape
    chunks = row_chunks(logits)

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        """The mean of minus the log-posterior, and its gradient."""
        scale, bias = np.split(values, 2)
        total, gradient = 0.0, np.zeros((2, classes))
        for rows in chunks:
            some, own = logits[rows].astype(np.float64), labels[rows]
            log_probabilities = log_softmax(start * scale * some + bias, axis=1)
            places = np.arange(len(own))
            total -= float(log_probabilities[places, own].sum())
            error = np.exp(log_probabilities)
            error[places, own] -= 1
            gradient[0] += start * (error * some).sum(0)
            gradient[1] += error.sum(0)
        prior = ((scale - 1) ** 2).sum() + (bias**2).sum()
        return (total + prior / 2) / n, (gradient.ravel() + np.concatenate([scale - 1, bias])) / n

    initial = np.concatenate([np.ones(classes), np.zeros(classes)])
    found = minimize(objective, initial, jac=True, method="L-BFGS-B", options={"maxiter": VECTOR_STEPS})
    scale, bias = np.split(found.x, 2)
    return start * scale, bias


# From the simplest on.
METHODS: Mapping[str, Callable[[np.ndarray, np.ndarray], Scaling]] = {
    "none": lambda logits, labels: AS_IT_IS,
    "temperature": fit_temperature,
    "vector": fit_vector,
}


def stratified_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """[n] int64: the fold of each record. Every fold has the same records of a class, give or take one."""
    rng = np.random.default_rng(seed)
    found = np.empty(len(labels), np.int64)
    # Shuffled, then sorted by class: neighbours of a class lie in different folds, and so do its odd ones.
    by_class = rng.permutation(len(labels))
    by_class = by_class[np.argsort(labels[by_class], kind="stable")]
    found[by_class] = np.arange(len(labels)) % folds
    return found


def cross_validated(logits: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Each record's negative log-likelihood by each method, fitted without the record's fold.

    Returns:
      Method -> [n] float64.
    """
    fold = stratified_folds(labels, FOLDS, seed)
    found = {name: np.zeros(len(labels)) for name in METHODS}
    for number in range(FOLDS):
        own = fold == number
        for name, fit in METHODS.items():
            found[name][own] = scores(scaled(logits[own], fit(logits[~own], labels[~own])), labels[own]).nll
    return found


def chosen_method(losses: Mapping[str, np.ndarray]) -> str:
    """The method to use, from the losses of `cross_validated`.

    A temperature if it does better than nothing. A scale and a bias a class, which can change answers, only if they do
    better than that by more than the standard error of the difference.
    """
    best = "temperature" if losses["temperature"].mean() < losses["none"].mean() else "none"
    gain = losses[best] - losses["vector"]
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    return "vector" if gain.mean() > error else best


def scaled(logits: np.ndarray, scaling: Scaling) -> np.ndarray:
    """[n, classes] calibrated logits, of the type of the logits; as a prediction computes them."""
    scale, bias = (values.astype(logits.dtype) for values in scaling)
    return logits * scale + bias


@dataclass(frozen=True)
class Side:
    """Accuracy and quality of the probabilities on the records that the calibration has not seen."""

    top1: float
    quality: Quality


@dataclass(frozen=True)
class Fit:
    """A calibration, and what it does.

    Attributes:
      method: of `METHODS`.
      scaling: the calibration.
      fitted, measured: records that it was fitted to, and other ones that `before` and `after` are of.
      candidates: method -> mean negative log-likelihood by cross-validation among the fitted ones; empty where the
        method was given.
      before, after: without and with it.
      rejected: a method that was chosen and taken back, for the other records are less likely by it -> their mean
        negative log-likelihood; empty: none.
    """

    method: str
    scaling: Scaling
    fitted: int
    measured: int
    candidates: Mapping[str, float]
    before: Side
    after: Side
    rejected: Mapping[str, float] = field(default_factory=dict)

    @property
    def worse(self) -> bool:
        """Whether the other records are less likely with it than without."""
        return self.after.quality.nll > self.before.quality.nll


def fit(logits: np.ndarray, labels: np.ndarray, fitted: np.ndarray, method: str, seed: int) -> Fit:
    """Fits a calibration to one part of the records, and measures it on the other.

    The method is chosen by cross-validation within the part that is fitted to: by its own likelihood the larger model
    would always win, and on the other part the choice would make the figures look better than they are. Only where that
    other part shows the chosen one to be worse than none, none is taken.

    Args:
      logits: [n, classes].
      labels: [n] class numbers.
      fitted: [n] bool, the records to fit to; at least one is, and one is not.
      method: of `METHODS`, or `auto`.
      seed: of the folds.
    """
    given, wanted = logits[fitted], labels[fitted]
    losses = cross_validated(given, wanted, seed) if method == "auto" else {}
    chosen = chosen_method(losses) if losses else method
    scaling = METHODS[chosen](given, wanted)
    rest, own = logits[~fitted], labels[~fitted]
    found = Fit(
        method=chosen,
        scaling=scaling,
        fitted=len(wanted),
        measured=len(own),
        candidates={name: float(loss.mean()) for name, loss in losses.items()},
        before=_side(rest, own),
        after=_side(scaled(rest, scaling), own),
    )
    if method != "auto" or not found.worse:
        return found
    rejected = {chosen: found.after.quality.nll}
    return replace(found, method="none", scaling=AS_IT_IS, after=found.before, rejected=rejected)


def _side(logits: np.ndarray, labels: np.ndarray) -> Side:
    found = scores(logits, labels)
    measured = quality(found)
    assert measured is not None
    return Side(float(found.correct.mean()), measured)
