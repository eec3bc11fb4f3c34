"""Exact evaluation: every record counts once, padding never, and no sum depends on batches or devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pcls.data.augment import normalise
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import Preprocessing
from pcls.errors import UserError
from pcls.evaluation.metrics import Evaluation
from pcls.evaluation.quality import Scores, quality
from pcls.nn.module import Arrays, ModelDef

# What the logits of a set may take on the host: those of ImageNet's validation set take 0.2 GB. Who fits something to
# parts of them holds about as much again.
LOGITS_BYTES = 1 << 30

EvaluationStep = Callable[[Arrays, Arrays, Batch], dict[str, Array]]


@dataclass(frozen=True)
class Predictions:
    """What was predicted for each counted record, in record order.

    Attributes:
      records: [n] int64 record numbers.
      labels, predicted: [n] int64 class numbers.
      probability: [n] float64, of the predicted class, calibrated where the evaluation is.
      nll: [n] float64, minus the logarithm of the label's probability, in nats; calibrated likewise.
    """

    records: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    nll: np.ndarray


def make_evaluation_step(
    model: ModelDef,
    preprocessing: Preprocessing,
    precision: str,
    loss: Callable[[Array, Array], Array],
    tta: str = "none",
    calibration: Callable[[Array], Array] | None = None,
    *,
    with_logits: bool = False,
) -> EvaluationStep:
    """The evaluation step: `(params, stats, batch) -> numbers`.

    Args:
      model, preprocessing, precision: of the run.
      loss: logits [batch, classes] and labels [batch] to [batch].
      tta: the views of an image whose logits are averaged, a key of `VIEWS`.
      calibration: [batch, classes] logits to those whose softmax are the probabilities; None: they are that themselves.
        The loss is always that of the model as it was trained.
      with_logits: whether to hand out the logits too, as they are before the calibration.

    Returns:
      The step, to be compiled. Of its numbers `top1`, `top5` and `weight` are counts over the batch (float32 scalars);
      `record`, `label`, `predicted` ([batch] int32), `loss`, `nll`, `brier`, `probability` (of the predicted class) and
      `counted` ([batch] float32) are those of each row, and so is `logits` ([batch, classes] float32) if asked for.
    """
    dtype = jnp.dtype(precision)

    def evaluation_step(params: Arrays, stats: Arrays, batch: Batch) -> dict[str, Array]:
        """Sums over the batch, and the numbers of each row."""
        logits = mean_logits(
            lambda images: model.apply(params, stats, images, lengths=batch.length)[0],
            normalise(batch.image, preprocessing, dtype, batch.length),
            tta,
        )
        raw = logits.astype(jnp.float32)
        scaled = raw if calibration is None else calibration(raw)
        log_probabilities = jax.nn.log_softmax(scaled)
        own = jnp.take_along_axis(log_probabilities, batch.label[:, None], 1)
        # Classes that do not score lower, of equal ones those that come first: the rank that a stable sort would give.
        # "Not lower" instead of "higher": against NaN both are false, and a model that answers NaN is never right.
        earlier = jnp.arange(logits.shape[-1]) < batch.label[:, None]
        ahead = ~(log_probabilities <= own) | ((log_probabilities == own) & earlier)
        rank = jnp.sum(ahead, -1)
        probabilities = jnp.exp(log_probabilities)
        numbers = {
            "top1": jnp.sum((rank < 1) * batch.weight),
            "top5": jnp.sum((rank < 5) * batch.weight),
            "weight": jnp.sum(batch.weight),
            "record": batch.record,
            "label": batch.label,
            "predicted": log_probabilities.argmax(-1).astype(jnp.int32),
            "loss": loss(logits, batch.label),
            "nll": -own[:, 0],
            "brier": jnp.sum(probabilities**2, -1) - 2 * jnp.exp(own[:, 0]) + 1,
            "probability": jnp.exp(log_probabilities.max(-1)),
            "counted": batch.weight,
        }
        return numbers | {"logits": raw} if with_logits else numbers

    return evaluation_step


def mean_logits(predict: Callable[[Array], Array], images: Array, tta: str) -> Array:
    """The mean logits over the views of each image, [batch, classes] float32 unless there is one view only.

    Args:
      predict: [n, height, width, channels] to [n, classes].
      images: [batch, height, width, channels], normalised.
      tta: a key of `VIEWS`.
    """
    views, weights = VIEWS[tta](images)
    if len(views) == 1:
        return predict(images)
    # One pass over all views: a pass for each would multiply the program. Views of an image stay where it is.
    stacked = jnp.stack(views, 1).reshape(-1, *images.shape[1:])
    logits = predict(stacked).reshape(len(images), len(views), -1).astype(jnp.float32)
    return jnp.sum(logits * jnp.array(weights)[:, None], 1)


def only_itself(images: Array) -> tuple[list[Array], list[float]]:
    """Views of images, and their weights."""
    return [images], [1.0]


def mirrored(images: Array) -> tuple[list[Array], list[float]]:
    """The images and their mirror images."""
    return [images, images[:, :, ::-1]], [0.5, 0.5]


def mirrored_and_shifted(images: Array) -> tuple[list[Array], list[float]]:
    """Both also moved by a pixel down to the right and up to the left, which counts half; reflected at the border.

    Source: Jordan 2024.
    """
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    moved = [padded[:, :-2, :-2], padded[:, 2:, 2:]]
    views = [view for image in (images, *moved) for view in mirrored(image)[0]]
    return views, [1 / 4, 1 / 4, *[1 / 8] * 4]


VIEWS = {"none": only_itself, "mirror": mirrored, "shift": mirrored_and_shifted}


def count(
    outputs: Iterable[dict[str, Array]], *, size: int, class_names: tuple[str, ...]
) -> tuple[Evaluation, Predictions]:
    """Adds up the outputs of evaluation steps.

    Args:
      outputs: of `make_evaluation_step`, replicated, so that every process counts the same.
      size: records in the set; those not counted were undecodable.
      class_names: in label order.
    """
    sums = dict.fromkeys(("top1", "top5", "weight"), 0.0)
    names = ("record", "label", "predicted", "loss", "nll", "brier", "probability")
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for output in map(jax.device_get, outputs):
        for name in sums:
            sums[name] += float(output[name])
        counted = output["counted"] > 0
        for name, parts in rows.items():
            parts.append(output[name][counted])
    joined = {name: np.concatenate(parts) for name, parts in rows.items()}
    order = np.argsort(joined["record"], kind="stable")
    predictions = Predictions(
        records=joined["record"][order].astype(np.int64),
        labels=joined["label"][order].astype(np.int64),
        predicted=joined["predicted"][order].astype(np.int64),
        probability=joined["probability"][order].astype(np.float64),
        nll=joined["nll"][order].astype(np.float64),
    )
    # A model that answers NaN is sure of nothing.
    confidence = np.nan_to_num(predictions.probability, nan=0.0)
    brier = joined["brier"][order].astype(np.float64)
    n = round(sums["weight"])
    evaluation = Evaluation(
        n=n,
        undecodable=size - n,
        # Added up in record order: devices and processes would each round in an order of their own.
        loss=float(np.sum(joined["loss"][order], dtype=np.float64)) / max(n, 1),
        top1=sums["top1"] / max(n, 1),
        top5=sums["top5"] / max(n, 1),
        confusion=confusion_counts(predictions.labels, predictions.predicted, len(class_names)),
        class_names=class_names,
        quality=quality(Scores(predictions.nll, brier, confidence, predictions.labels == predictions.predicted)),
    )
    return evaluation, predictions


@dataclass(frozen=True)
class Logits:
    """What the model says of each counted record, in record order.

    Attributes:
      records, labels: [n] int64.
      logits: [n, classes] float32.
    """

    records: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


def collect_logits(outputs: Iterable[dict[str, Array]], *, size: int, classes: int) -> Logits:
    """Gathers the logits of evaluation steps that hand them out; on the host.

    Args:
      outputs: of `make_evaluation_step(..., with_logits=True)`.
      size: records in the set; those that could not be decoded are left out.
      classes: of the model.

    Raises:
      UserError: they would take more than `LOGITS_BYTES`.
    """
    if (needed := 4 * size * classes) > LOGITS_BYTES:
        raise UserError(
            f"the logits of {size:,} records and {classes:,} classes take {needed / 1e9:.1f} GB, and "
            f"{LOGITS_BYTES / 1e9:.1f} GB are allowed; take fewer records: --records {LOGITS_BYTES // (4 * classes)}"
        )
    # Put down where they belong: sorting them afterwards would take the memory twice.
    logits, labels = np.zeros((size, classes), np.float32), np.full(size, -1, np.int64)
    for output in map(jax.device_get, outputs):
        counted = output["counted"] > 0
        records = output["record"][counted]
        logits[records], labels[records] = output["logits"][counted], output["label"][counted]
    records = np.flatnonzero(labels >= 0)
    whole = len(records) == size
    return Logits(records, labels if whole else labels[records], logits if whole else logits[records])


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """[classes, classes] int64 counts; rows are labels, columns predictions."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
