"""How good probabilities are: proper scores, calibration, and what may be answered by a threshold on the confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax

BINS = 15
# Of the risk-coverage curve: one point every 5 % of the records.
CURVE_POINTS = 20
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
# Logits that are worked on at once: 2 MB in float64, which caches hold. With 16 times as many it took 10 times as long.
NUMBERS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Scores:
    """Each record's numbers.

    Attributes:
      nll: [n] float64, minus the logarithm of the label's probability, in nats.
      brier: [n] float64, squared distance of the probabilities to the label's one-hot vector, 0 to 2.
      confidence: [n] float64, probability of the predicted class.
      correct: [n] bool, whether that is the label.
    """

    nll: np.ndarray
    brier: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray


@dataclass(frozen=True)
class Bin:
    """Records of about the same confidence.

    Attributes:
      low, high: ends of the bin; it holds what is above `low` and up to `high`.
      count: records in it.
      confidence, accuracy: their means; 0 of none.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Threshold:
    """What happens if only answers of at least this confidence are given.

    Attributes:
      threshold: on the confidence.
      kept: records that are answered.
      coverage: their share.
      accuracy: of them; None where there is none.
    """

    threshold: float
    kept: int
    coverage: float
    accuracy: float | None


@dataclass(frozen=True)
class Quality:
    """The quality of probabilities.

    Attributes:
      nll, brier: means of the proper scores.
      ece: expected calibration error over bins of equal width. Source: Naeini et al. 2015, Guo et al. 2017.
      ece_equal_mass: the same over bins of equally many records. Source: Nguyen & O'Connor 2015.
      bins: the reliability table that `ece` is of.
      aurc: area under the risk-coverage curve, the mean risk over all coverages. Source: Geifman & El-Yaniv 2017.
      risk_coverage: points of that curve: coverage, and the error rate among the most confident records.
      thresholds: coverage and accuracy by a threshold on the confidence.
    """

    nll: float
    brier: float
    ece: float
    ece_equal_mass: float
    bins: tuple[Bin, ...]
    aurc: float
    risk_coverage: tuple[tuple[float, float], ...]
    thresholds: tuple[Threshold, ...]


def quality_of(values: Mapping[str, Any]) -> Quality:
    """A quality that was written as JSON."""
    return Quality(
        **dict(values)
        | {
            "bins": tuple(Bin(**part) for part in values["bins"]),
            "risk_coverage": tuple((coverage, risk) for coverage, risk in values["risk_coverage"]),
            "thresholds": tuple(Threshold(**row) for row in values["thresholds"]),
        }
    )


def row_chunks(logits: np.ndarray) -> list[slice]:
    """Slices of the rows of [n, classes] logits, so that a chunk in float64 stays small."""
    rows = max(1, NUMBERS_AT_ONCE // max(logits.shape[1], 1))
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]


def scores(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """Each record's numbers, in float64.

    Args:
      logits: [n, classes], or log-probabilities.
      labels: [n] class numbers.
    """
    parts = [_scores(logits[rows].astype(np.float64), labels[rows]) for rows in row_chunks(logits)]
    if not parts:
        return Scores(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, bool))
    nll, brier, confidence, correct = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Scores(nll, brier, confidence, correct)


def _scores(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    log_probabilities = log_softmax(logits, axis=1)
    own = np.take_along_axis(log_probabilities, labels[:, None], 1)[:, 0]
    probabilities = np.exp(log_probabilities)
    brier = (probabilities**2).sum(1) - 2 * np.exp(own) + 1
    return -own, brier, probabilities.max(1), log_probabilities.argmax(1) == labels


def quality(scores: Scores) -> Quality | None:
    """The quality of the probabilities of at least one record; None of none."""
    if not len(scores.nll):
        return None
    bins = reliability(scores.confidence, scores.correct)
    curve = risk_coverage(scores.confidence, scores.correct)
    n = len(curve)
    places = np.unique(np.ceil(np.arange(1, CURVE_POINTS + 1) / CURVE_POINTS * n).astype(int)) - 1
    return Quality(
        nll=float(scores.nll.mean()),
        brier=float(scores.brier.mean()),
        ece=calibration_error(bins),
        ece_equal_mass=calibration_error(reliability(scores.confidence, scores.correct, equal_mass=True)),
        bins=tuple(bins),
        aurc=float(curve.mean()),
        risk_coverage=tuple((float((place + 1) / n), float(curve[place])) for place in places),
        thresholds=tuple(threshold_table(scores.confidence, scores.correct)),
    )


def reliability(
    confidence: np.ndarray, correct: np.ndarray, bins: int = BINS, *, equal_mass: bool = False
) -> list[Bin]:
    """The reliability table.

    Args:
      confidence: [n], 0 to 1.
      correct: [n] bool.
      bins: how many; of equal mass no more than there are records.
      equal_mass: bins of equally many records, in order of the confidence, instead of equally wide ones.
    """
    if equal_mass:
        parts = np.array_split(np.argsort(confidence, kind="stable"), max(1, min(bins, len(confidence))))
        ends = [0.0, *(float(confidence[part].max(initial=0.0)) for part in parts)]
    else:
        # A confidence at the border of two bins is in the lower one, 0 in the first.
        which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        by_bin = np.argsort(which, kind="stable")
        parts = np.split(by_bin, np.searchsorted(which[by_bin], np.arange(1, bins)))
        ends = [number / bins for number in range(bins + 1)]
    return [
        Bin(
            low=ends[number],
            high=ends[number + 1],
            count=len(part),
            confidence=float(confidence[part].mean()) if len(part) else 0.0,
            accuracy=float(correct[part].mean()) if len(part) else 0.0,
        )
        for number, part in enumerate(parts)
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """The mean distance of accuracy and confidence over bins, weighed by their records."""
    n = sum(part.count for part in bins)
    return sum(part.count * abs(part.accuracy - part.confidence) for part in bins) / max(n, 1)


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """The error rate among the k most confident records, for k from 1 to n.

    Records of one confidence come in no order: each counts with the error rate of all of them.

    Args:
      confidence: [n].
      correct: [n] bool.

    Returns:
      [n] float64.
    """
    _, which = np.unique(-confidence, return_inverse=True)
    errors = np.bincount(which, ~correct) / np.bincount(which)
    by_confidence = np.sort(which)
    return np.cumsum(errors[by_confidence]) / np.arange(1, len(which) + 1)


def threshold_table(
    confidence: np.ndarray, correct: np.ndarray, thresholds: Sequence[float] = THRESHOLDS
) -> list[Threshold]:
    """Coverage and accuracy if only answers of at least some confidence are given."""
    found = []
    for threshold in thresholds:
        kept = confidence >= threshold
        count = int(kept.sum())
        accuracy = float(correct[kept].mean()) if count else None
        found.append(Threshold(threshold, count, count / max(len(kept), 1), accuracy))
    return found
