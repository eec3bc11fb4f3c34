"""What a run notes of itself in the bundle that it delivers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

import numpy as np

from pcls.config import Recipe, flat_recipe
from pcls.data.sources.remote import is_url, without_secrets
from pcls.data.sources.source import Source
from pcls.evaluation.label_sets import LabelEvaluation, LabelRow
from pcls.evaluation.metrics import ClassRow, Evaluation, per_class
from pcls.observe.environment import package_versions
from pcls.pretrained.history import MOST_CLASSES, ClassRates, Training
from pcls.run.setup import Setup


def training_facts(setup: Setup, evaluation: Evaluation | LabelEvaluation) -> Training:
    """What was trained with, and what was measured on.

    Args:
      setup: of the run.
      evaluation: of the weights that are delivered.
    """
    dataset = setup.dataset
    return Training(
        recipe=handed_on(setup.recipe),
        versions=package_versions(),
        records=len(dataset.train),
        held_out=len(dataset.evaluation),
        digest=held_out_digest(dataset.evaluation),
        classes=tuple(class_rates(evaluation)) if len(dataset.class_names) <= MOST_CLASSES else (),
    )


def handed_on(recipe: Recipe) -> dict[str, Any]:
    """The recipe without the run's folder; of absolute paths the last part only, of URLs no secrets."""
    return {key: _handed_on(value) for key, value in flat_recipe(recipe).items() if key != "run.dir"}


def _handed_on(value: Any) -> Any:
    if isinstance(value, list):
        return [_handed_on(one) for one in value]
    if not isinstance(value, str):
        return value
    if is_url(value):
        return without_secrets(value)
    return PurePath(value).name if value.startswith(("/", "~")) else value


def held_out_digest(source: Source) -> str:
    """What tells two sets of held-out records apart: SHA-256 over a line for each, in their order.

    A line is the record's class, or its classes, and the last part of its name: the same wherever the set lies. The
    pixels are left out: they may be terabytes.
    """
    sha = hashlib.sha256()
    for line in _lines(source):
        sha.update(line.encode("utf-8", "backslashreplace"))
    return f"sha256:{sha.hexdigest()}"


def _lines(source: Source) -> Iterator[str]:
    names, own, sets = source.class_names, source.labels, source.targets
    for record in range(len(source)):
        labels = ",".join(names[number] for number in ([own[record]] if sets is None else np.flatnonzero(sets[record])))
        yield f"{labels}\t{source.name(record).rpartition('/')[2]}\n"


def class_rates(evaluation: Evaluation | LabelEvaluation) -> Iterator[ClassRates]:
    """Of each class; where records carry several labels, at the chosen thresholds."""
    if isinstance(evaluation, LabelEvaluation):
        rows: Iterable[ClassRow | LabelRow] = evaluation.rows
    else:
        rows = per_class(evaluation.confusion, evaluation.class_names)
    for row in rows:
        yield ClassRates(row.support, row.precision, row.recall, row.f1)
