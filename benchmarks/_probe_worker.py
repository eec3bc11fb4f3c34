"""One contender of probes.py in a process of its own: fits a linear probe as often as it is asked to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _worker import answer

# Directions in which the classes differ, far fewer than the features: these are correlated, as a network's are.
INNER, NOISE, TESTED = 64, 1.5, 2000
Fitted = tuple[np.ndarray, np.ndarray, int]


def made_up(records: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [records + TESTED, width] float32 after a ReLU, and labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=records + TESTED)
    inner = rng.normal(size=(classes, INNER))[labels] + NOISE * rng.normal(size=(len(labels), INNER))
    mixing = rng.normal(size=(INNER, width)) * 0.9 ** np.arange(INNER)[:, None] / 4
    values = inner @ mixing + 0.3 * rng.normal(size=(len(labels), width))
    return np.maximum(values, 0).astype(np.float32), labels


def pcls_fit(values: np.ndarray, labels: np.ndarray, classes: int, l2: float) -> Callable[[], Fitted]:
    os.environ["JAX_PLATFORMS"] = "cpu"

    from pcls.evaluation.probes import fit_linear

    def fit() -> Fitted:
        probe = fit_linear(values, labels, classes, l2=l2)
        return probe.kernel, probe.bias, probe.iterations

    return fit


def sklearn_fit(values: np.ndarray, labels: np.ndarray, classes: int, l2: float) -> Callable[[], Fitted]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    def fit() -> Fitted:
        scaler = StandardScaler()
        model = LogisticRegression(C=1 / l2, max_iter=1000).fit(scaler.fit_transform(values), labels)
        kernel = model.coef_.T / scaler.scale_[:, None]
        return kernel, model.intercept_ - scaler.mean_ @ kernel, int(model.n_iter_[0])

    return fit


CONTENDERS = {"pcls": pcls_fit, "scikit-learn": sklearn_fit}


def facts(fitted: Fitted, values: np.ndarray, labels: np.ndarray, records: int, l2: float) -> dict[str, float]:
    """Accuracy in % on the records that were not fitted, the mean of the objective on the others, iterations."""
    kernel, bias, iterations = fitted
    logits = values.astype(np.float64) @ kernel + bias
    own, logits_own = logits[records:], logits[:records]
    top = logits_own.max(1, keepdims=True)
    losses = np.log(np.exp(logits_own - top).sum(1)) + top[:, 0] - logits_own[np.arange(records), labels[:records]]
    weights = kernel * values[:records].std(0, dtype=np.float64)[:, None]
    return {
        "accuracy": 100 * float(np.mean(own.argmax(1) == labels[records:])),
        "objective": float(losses.mean() + l2 / 2 * np.sum(weights**2) / records),
        "iterations": iterations,
    }


def main() -> None:
    name, records, width, classes, l2, out = sys.argv[1:]
    size = int(records)
    values, labels = made_up(size, int(width), int(classes))
    fit = CONTENDERS[name](values[:size], labels[:size], int(classes), float(l2))

    def fit_often(count: int) -> None:
        for _ in range(count):
            fit()

    Path(out).write_text(json.dumps(facts(fit(), values, labels, size, float(l2))), encoding="utf-8")
    answer(fit_often, warm_up=1)


if __name__ == "__main__":
    main()
