"""Exact evaluation where records carry several labels, or none: every record once, every label by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pcls.data.augment import normalise
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.targets import rarest_labels
from pcls.data.split import held_out
from pcls.errors import UserError
from pcls.evaluation.count import LOGITS_BYTES, EvaluationStep, mean_logits
from pcls.evaluation.ranking import average_precision
from pcls.evaluation.thresholds import EVEN, Thresholds, choose, probabilities
from pcls.nn.module import Arrays, ModelDef

# Not the default of data.split_seed, by which the held-out records were chosen.
SEED = 1
# Held-out records that are enough to choose thresholds on one half and to measure them on the other.
MIN_RECORDS = 20
# Labels that a notice lists.
NAMED = 5


@dataclass(frozen=True)
class LabelScores:
    """What the model says of each counted record, in record order.

    Attributes:
      records: [n] int64 record numbers.
      targets: [n, classes] uint8 of 0 and 1.
      logits: [n, classes] float32; their sigmoids are the probabilities.
      losses: [n] float32.
    """

    records: np.ndarray
    targets: np.ndarray
    logits: np.ndarray
    losses: np.ndarray


def make_score_step(
    model: ModelDef,
    preprocessing: Preprocessing,
    precision: str,
    loss: Callable[[Array, Array], Array],
    tta: str = "none",
) -> EvaluationStep:
    """The evaluation step: `(params, stats, batch) -> numbers`.

    Args:
      model, preprocessing, precision: of the run.
      loss: logits [batch, classes] and targets [batch, classes] to [batch].
      tta: the views of an image whose logits are averaged, a key of `VIEWS`.

    Returns:
      The step, to be compiled. Of each row `record` ([batch] int32), `loss` and `counted` ([batch] float32), `target`
      ([batch, classes] uint8) and `logits` ([batch, classes] float32).
    """
    dtype = jnp.dtype(precision)

    def score_step(params: Arrays, stats: Arrays, batch: Batch) -> dict[str, Array]:
        """The numbers of each row."""
        logits = mean_logits(
            lambda images: model.apply(params, stats, images, lengths=batch.length)[0],
            normalise(batch.image, preprocessing, dtype, batch.length),
            tta,
        ).astype(jnp.float32)
        return {
            "record": batch.record,
            "target": batch.label,
            "loss": loss(logits, batch.label),
            "counted": batch.weight,
            "logits": logits,
        }

    return score_step


def collect_scores(outputs: Iterable[dict[str, Array]], *, size: int, classes: int) -> LabelScores:
    """Gathers the outputs of evaluation steps; on the host.

    Args:
      outputs: of `make_score_step`, replicated, so that every process has the same.
      size: records in the set; those that could not be decoded are left out.
      classes: of the model.

    Raises:
      UserError: the logits would take more than `LOGITS_BYTES`.
    """
    if (needed := 4 * size * classes) > LOGITS_BYTES:
        raise UserError(
            f"the logits of {size:,} held-out records and {classes:,} labels take {needed / 1e9:.1f} GB, and "
            f"{LOGITS_BYTES / 1e9:.1f} GB are allowed; hold out {LOGITS_BYTES // (4 * classes):,} records or fewer"
        )
    found = LabelScores(
        np.full(size, -1, np.int64),
        np.zeros((size, classes), np.uint8),
        np.zeros((size, classes), np.float32),
        np.zeros(size, np.float32),
    )
    for output in map(jax.device_get, outputs):
        counted = output["counted"] > 0
        # Put down where they belong: sorting them afterwards would take the memory twice.
        records = output["record"][counted]
        found.records[records], found.losses[records] = records, output["loss"][counted]
        found.targets[records], found.logits[records] = output["target"][counted], output["logits"][counted]
    there = found.records >= 0
    return found if there.all() else LabelScores(**{name: array[there] for name, array in vars(found).items()})


@dataclass(frozen=True)
class LabelRow:
    """One label at its threshold.

    Attributes:
      name: of the label.
      threshold: from this probability on it is given.
      own: whether that was chosen for it alone.
      support: records that carry it.
      given: records that it is given to.
      hits: of these, those that carry it.
    """

    name: str
    threshold: float
    own: bool
    support: int
    given: int
    hits: int

    @property
    def precision(self) -> float:
        """Share of those that it is given to that carry it; 0 of none."""
        return self.hits / max(self.given, 1)

    @property
    def recall(self) -> float:
        """Share of those that carry it that it is given to; 0 of none."""
        return self.hits / max(self.support, 1)

    @property
    def f1(self) -> float:
        """The harmonic mean of both."""
        return 2 * self.hits / max(self.given + self.support, 1)


@dataclass(frozen=True)
class Rates:
    """How good the given labels are, each number 0 to 1.

    Attributes:
      n: records that were counted.
      micro_precision, micro_recall, micro_f1: of all labels of all records together.
      macro_precision, macro_recall, macro_f1: means over the labels that some record carries.
      hamming: share of the labels of all records that are wrong, given or not.
      subset_accuracy: share of records with every label right.
    """

    n: int
    micro_precision: float
    micro_recall: float
    micro_f1: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    hamming: float
    subset_accuracy: float


def rates_at(
    scores: LabelScores, thresholds: Thresholds, class_names: tuple[str, ...]
) -> tuple[Rates, tuple[LabelRow, ...]]:
    """The rates at some thresholds, and each label's row."""
    n, classes = scores.targets.shape
    whole, wrong, rows = np.ones(n, bool), 0, []
    for label in range(classes):
        carries = scores.targets[:, label] > 0
        given = probabilities(scores.logits[:, label]) >= thresholds.values[label]
        whole &= given == carries
        wrong += int((given != carries).sum())
        value, own = float(thresholds.values[label]), bool(thresholds.own[label])
        counts = (int(carries.sum()), int(given.sum()), int((given & carries).sum()))
        rows.append(LabelRow(class_names[label], value, own, *counts))
    sums = (sum(row.support for row in rows), sum(row.given for row in rows), sum(row.hits for row in rows))
    together, present = LabelRow("", EVEN, False, *sums), [row for row in rows if row.support]
    rates = Rates(
        n,
        micro_precision=together.precision,
        micro_recall=together.recall,
        micro_f1=together.f1,
        macro_precision=_mean([row.precision for row in present]),
        macro_recall=_mean([row.recall for row in present]),
        macro_f1=_mean([row.f1 for row in present]),
        hamming=wrong / max(n * classes, 1),
        subset_accuracy=float(whole.mean()) if n else 0.0,
    )
    return rates, tuple(rows)


def _mean(values: Sequence[float]) -> float:
    """0 of none."""
    return sum(values) / max(len(values), 1)


@dataclass(frozen=True)
class LabelEvaluation:
    """What an evaluation found where records carry several labels. N records in, N counted.

    Attributes:
      n: records counted.
      undecodable: records that could not be decoded, and are in no other number here.
      loss: mean of the loss that the model was trained with, without label smoothing and class weights.
      class_names: in the order of the model's outputs.
      precisions: the average precision of each label; None where no record carries it.
      support: records that carry each label.
      even: at the threshold 0.5 of all labels, on all records.
      chosen: at the chosen thresholds, on the records that they were not chosen on.
      rows: each label there.
      train_counts: training records that carry each label; empty: not known.
      notices: what else the reader has to know, a line each.
    """

    n: int
    undecodable: int
    loss: float
    class_names: tuple[str, ...]
    precisions: tuple[float | None, ...]
    support: tuple[int, ...]
    even: Rates
    chosen: Rates
    rows: tuple[LabelRow, ...]
    train_counts: tuple[int, ...] = ()
    notices: tuple[str, ...] = ()

    score_name: ClassVar[str] = "mAP"

    @property
    def score(self) -> float:
        """The mean of the average precisions, over the labels that some record carries: what a run's best goes by."""
        return _mean([value for value in self.precisions if value is not None])

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Of each label: from this probability on a prediction gives it."""
        return tuple(row.threshold for row in self.rows)

    def summary(self) -> dict[str, float | int]:
        """The numbers that fit on a line, for tables and JSON; those with `chosen` are at the chosen thresholds."""
        return {
            "n": self.n,
            "undecodable": self.undecodable,
            "map": self.score,
            "loss": self.loss,
            "micro_f1": self.even.micro_f1,
            "macro_f1": self.even.macro_f1,
            "hamming": self.even.hamming,
            "subset_accuracy": self.even.subset_accuracy,
            "chosen_micro_f1": self.chosen.micro_f1,
            "chosen_macro_f1": self.chosen.macro_f1,
        }

    def facts(self) -> dict[str, Any]:
        """All that is known, as JSON."""
        labels = [
            asdict(row)
            | {"precision": row.precision, "recall": row.recall, "f1": row.f1}
            | {"average_precision": value, "held_out": held, "trained": trained}
            for row, value, held, trained in zip(
                self.rows, self.precisions, self.support, self.train_counts or (None,) * len(self.rows), strict=True
            )
        ]
        return self.summary() | {
            "class_names": list(self.class_names),
            "even": asdict(self.even),
            "chosen": asdict(self.chosen),
            "labels": labels,
            "notices": list(self.notices),
        }


def label_evaluation(
    scores: LabelScores,
    *,
    size: int,
    class_names: tuple[str, ...],
    train_counts: tuple[int, ...] = (),
    groups: np.ndarray | None = None,
) -> LabelEvaluation:
    """Evaluates the scores of a set.

    The thresholds are chosen on one half of the records and measured on the other. On the same records they would look
    better than they are: the best of many is partly so by chance.

    Args:
      scores: of the records that were counted.
      size: records in the set; those not counted were undecodable.
      class_names: in label order.
      train_counts: training records that carry each label; empty: not known.
      groups: [size]; records of one group stay in one half; None: each is its own.
    """
    even = Thresholds.even(len(class_names))
    chosen_on = choosing_half(scores, groups)
    thresholds, notices = even, []
    if chosen_on.any():
        thresholds = choose(scores.targets[chosen_on], scores.logits[chosen_on])
    else:
        notices.append(f"all thresholds are {EVEN}: {len(scores.records):,} records are too few to choose them")
    others = LabelScores(**{name: array[~chosen_on] for name, array in vars(scores).items()})
    chosen, rows = rates_at(others, thresholds, class_names)
    columns = zip(scores.targets.T > 0, scores.logits.T, strict=True)
    support = scores.targets.sum(0, dtype=np.int64)
    if absent := [name for name, count in zip(class_names, support, strict=True) if not count]:
        few = ", ".join(absent[:NAMED]) + (", ..." if len(absent) > NAMED else "")
        notices.append(f"left out of the means, because no held-out record carries them: {few}")
    return LabelEvaluation(
        n=len(scores.records),
        undecodable=size - len(scores.records),
        loss=float(scores.losses.sum(dtype=np.float64)) / max(len(scores.records), 1),
        class_names=class_names,
        precisions=tuple(average_precision(carries, logits) for carries, logits in columns),
        support=tuple(support.tolist()),
        even=rates_at(scores, even, class_names)[0],
        chosen=chosen,
        rows=rows,
        train_counts=train_counts,
        notices=tuple(notices),
    )


def choosing_half(scores: LabelScores, groups: np.ndarray | None) -> np.ndarray:
    """[n] bool, the records that thresholds are chosen on, about half; none where they would be too few."""
    own = None if groups is None else groups[scores.records]
    half = np.zeros(len(scores.records), bool)
    if len(half) >= MIN_RECORDS:
        half = held_out(rarest_labels(scores.targets), 0.5, SEED, own)
    enough = min(half.sum(), (~half).sum()) >= MIN_RECORDS // 2
    return half if enough else np.zeros(len(half), bool)
