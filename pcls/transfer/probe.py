"""How far frozen features go: simple classifiers on what enters a pretrained head, from few images a class to all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from pcls.config import Recipe, with_overrides
from pcls.config.load import Overrides
from pcls.data.buckets import Bucket
from pcls.data.dataset import Dataset, data_settings
from pcls.data.sources.source import Source
from pcls.data.split import few_of_each
from pcls.errors import UserError
from pcls.evaluation.probes import (
    L2_GRID,
    L2_OF_FEW,
    L2_SHARE,
    chosen_l2,
    fit_lda,
    fit_linear,
    fit_means,
    nearest_neighbours,
)
from pcls.observe.table import aligned
from pcls.parallel.mesh import make_mesh
from pcls.pretrained.bundle import Bundle
from pcls.run.bundles import open_bundle
from pcls.run.features import Features, features_of
from pcls.run.setup import open_data

ALL = "all"


@dataclass(frozen=True)
class Row:
    """One kind of classifier on one number of records a class.

    Attributes:
      kind: a key of `KINDS`.
      shots: records a class; None: all.
      accuracies: on the held-out records, 0 to 1; one a draw of the records.
      l2: of the linear probe, one a draw; empty: other kinds.
    """

    kind: str
    shots: int | None
    accuracies: tuple[float, ...]
    l2: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Of the accuracies."""
        return float(np.mean(self.accuracies))

    @property
    def deviation(self) -> float | None:
        """Of the accuracies; None: there is one only."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else None


@dataclass(frozen=True)
class Probes:
    """What the features of a model give on some data.

    Attributes:
      model: of the registry.
      features: that enter its head.
      train, held_out: records.
      class_names: of the data.
      rows: the results.
      notices: what else the user should know, a line each.
    """

    model: str
    features: int
    train: int
    held_out: int
    class_names: tuple[str, ...]
    rows: tuple[Row, ...]
    notices: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = [asdict(row) | {"mean": row.mean, "deviation": row.deviation} for row in self.rows]
        return asdict(self) | {"rows": rows}


def probe(
    source: str | Path,
    data: str,
    overrides: Overrides = (),
    *,
    kinds: Sequence[str] = (),
    shots: Sequence[int | None] = (None,),
    seeds: int = 3,
    mesh: Mesh | None = None,
) -> Probes:
    """Runs a model once over the data, then fits classifiers to its features.

    Args:
      source: a finished run, a bundle, or a name of the catalogue.
      data: as `pcls.data.dataset.data_settings` reads it.
      overrides: of the recipe's data.
      kinds: keys of `KINDS`; empty: all.
      shots: records a class; None: all.
      seeds: draws of the records, where not all are taken.
      mesh: of devices; None: all.

    Raises:
      UserError: the weights or the data are at fault, or there is no such kind.
    """
    kinds = kinds or tuple(KINDS)
    check_options(kinds, shots, seeds)
    check_overrides(overrides)
    bundle = open_bundle(source)
    dataset = probe_data(bundle, data, overrides)
    mesh = make_mesh(-1) if mesh is None else mesh
    train = bundle_features(bundle, dataset, dataset.train, dataset.train_buckets, mesh)
    evaluation = bundle_features(bundle, dataset, dataset.evaluation, dataset.evaluation_buckets, mesh)
    check_some(data, train, evaluation)
    classes = len(dataset.class_names)
    rows = [probed(kind, count, seeds, train, evaluation, classes, mesh) for count in shots for kind in kinds]
    return Probes(
        bundle.model,
        train.values.shape[1],
        len(train),
        len(evaluation),
        dataset.class_names,
        tuple(rows),
        tuple(_notices(dataset, train, evaluation, shots)),
    )


def check_options(kinds: Sequence[str], shots: Sequence[int | None], seeds: int) -> None:
    """UserError for what cannot be asked for; it can be told before anything is opened."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--kind {kind}: there is no such probe; known: {', '.join(KINDS)}, {ALL}")
    if not shots or any(count is not None and count < 1 for count in shots):
        raise UserError("--shots: numbers of records a class, 1 or more, or all, are needed, as in 1,5,20,all")
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}; 1 or more draws are needed")


def check_overrides(overrides: Overrides) -> None:
    """UserError for settings that have no effect here."""
    for override in overrides:
        if not override.startswith("data."):
            raise UserError(f"{override}: has no effect on a probe, which trains no network; only data.* has")


def probe_data(bundle: Bundle, data: str, overrides: Overrides = ()) -> Dataset:
    """Data as the weights see them in evaluation, the training records too.

    Raises:
      UserError: data that does not suit the weights.
    """
    recipe = with_overrides(Recipe(), data_settings(data) | {"model.name": bundle.model})
    # Pixels in memory are brought to one size when they are opened.
    return open_data(with_overrides(recipe, overrides), replace(bundle.preprocessing, train=None))


def bundle_features(
    bundle: Bundle, dataset: Dataset, source: Source, buckets: Sequence[Bucket] = (), mesh: Mesh | None = None
) -> Features:
    """The features of some records of a set.

    Args:
      bundle: the model.
      dataset: as `probe_data` opens it.
      source: of it, one part, or some records of one.
      buckets: of that part, where its records are sequences.
      mesh: as in `features_of`.

    Raises:
      UserError: the weights are for images of another size.
    """
    model = replace(bundle, preprocessing=dataset.preprocessing).definition()
    if any(leaf.shape != bundle.params[path].shape for path, leaf in model.params.items()):
        height, width, _ = bundle.preprocessing.shape
        raise UserError(
            f"the weights of {bundle.model} are for images of {height} x {width} and no others; "
            "leave data.image_size out"
        )
    return features_of(
        model,
        dict(bundle.params),
        dict(bundle.stats),
        source,
        dataset.preprocessing,
        precision=bundle.precision,
        mesh=mesh,
        threads=0 if dataset.in_memory else None,
        buckets=buckets,
    )


def check_some(data: str, train: Features, evaluation: Features) -> None:
    """UserError where no record of a part could be decoded."""
    if not len(train) or not len(evaluation):
        raise UserError(f"{data}: none of its records could be decoded; look at them with: pcls data doctor {data}")


def probed(
    kind: str, shots: int | None, seeds: int, train: Features, evaluation: Features, classes: int, mesh: Mesh
) -> Row:
    """One kind of classifier, fitted to some of the features and tried on others.

    Args:
      kind: a key of `KINDS`.
      shots: records a class; None: all.
      seeds: draws of the records, where not all are taken.
      train, evaluation: features to fit to, and to try on.
      classes: how many.
      mesh: of devices.
    """
    accuracies, penalties = [], []
    for seed in range(seeds if shots else 1):
        some = train.chosen(few_of_each(train.labels, shots, seed)) if shots else train
        answer = KINDS[kind](some, evaluation.values, classes, seed, mesh)
        accuracies.append(float(np.mean(answer.predicted == evaluation.labels)))
        penalties += [] if answer.l2 is None else [answer.l2]
    return Row(kind, shots, tuple(accuracies), tuple(penalties))


class Answer(NamedTuple):
    """Of a probe: the class of each query, [n], and the penalty that it chose."""

    predicted: np.ndarray
    l2: float | None = None


def _knn(train: Features, queries: np.ndarray, classes: int, seed: int, mesh: Mesh) -> Answer:
    return Answer(nearest_neighbours(train.values, train.labels, classes, queries, mesh=mesh).argmax(1))


def _mean(train: Features, queries: np.ndarray, classes: int, seed: int, mesh: Mesh) -> Answer:
    return Answer(fit_means(train.values, train.labels, classes).logits(queries).argmax(1))


def _lda(train: Features, queries: np.ndarray, classes: int, seed: int, mesh: Mesh) -> Answer:
    return Answer(fit_lda(train.values, train.labels, classes, mesh=mesh).logits(queries).argmax(1))


def _linear(train: Features, queries: np.ndarray, classes: int, seed: int, mesh: Mesh) -> Answer:
    l2 = chosen_l2(train.values, train.labels, classes, seed=seed, mesh=mesh)
    fitted = fit_linear(train.values, train.labels, classes, l2=l2, mesh=mesh)
    return Answer(fitted.logits(queries).argmax(1), l2)


KINDS: dict[str, Callable[[Features, np.ndarray, int, int, Mesh], Answer]] = {
    "knn": _knn,
    "mean": _mean,
    "lda": _lda,
    "linear": _linear,
}


def _notices(dataset: Dataset, train: Features, evaluation: Features, shots: Sequence[int | None]) -> Iterator[str]:
    yield from dataset.notices
    lost = len(dataset.train) + len(dataset.evaluation) - len(train) - len(evaluation)
    if lost:
        yield f"records that could not be decoded, and are left out: {lost:,}"
    counts = np.bincount(train.labels, minlength=len(dataset.class_names))
    fewest = int(counts.argmin())
    for count in shots:
        short = int(np.sum(counts < (count or 0)))
        if short:
            yield (
                f"{count} a class: classes that have fewer records, and give all: {short:,} of {len(counts):,}; "
                f"{dataset.class_names[fewest]!r} has {counts[fewest]:,}"
            )


def probes_text(probes: Probes) -> str:
    """What was probed, a line for each number of records with a column for each kind, and how to read it."""
    table = [("a class", "probe", "accuracy %", "")]
    for row in probes.rows:
        spread = "" if row.deviation is None else f" ± {100 * row.deviation:.2f}"
        penalties = f"l2 {', '.join(f'{l2:g}' for l2 in row.l2)}" if row.l2 else ""
        table.append((str(row.shots or ALL), row.kind, f"{100 * row.mean:.2f}{spread}", penalties))
    lines = aligned(table, left=None)
    draws = max(len(row.accuracies) for row in probes.rows)
    return "\n".join(
        [
            f"{probes.model}: {probes.features:,} features; {probes.train:,} records to fit to, "
            f"{probes.held_out:,} held out, {len(probes.class_names):,} classes",
            "",
            *lines,
            "",
            "accuracy on the records held out" + (f"; mean ± deviation of {draws} draws" if draws > 1 else ""),
            *_penalty_text(probes.rows),
            *probes.notices,
        ]
    )


def _penalty_text(rows: Sequence[Row]) -> list[str]:
    if not any(row.l2 for row in rows):
        return []
    grid = ", ".join(f"{l2:g}" for l2 in L2_GRID)
    return [f"l2: the best of {grid} on {L2_SHARE:.0%} of the records to fit to; {L2_OF_FEW:g} where those are too few"]
