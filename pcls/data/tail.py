"""How unbalanced a set is, and the same set with a long tail: the usual benchmarks, made of any source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pcls.config.data import DataSection
from pcls.data.dataset import check_one_label, open_dataset, open_kept
from pcls.data.quarantine import quarantine_text
from pcls.data.sources.source import Source
from pcls.data.split import long_tailed
from pcls.errors import UserError

# Records of a class: fewer than the first are few, more than the second many. Source: Liu et al. 2019.
FEW, MANY = 20, 100
# The largest class over the smallest, up to which nothing need be done.
BALANCED = 3.0


@dataclass(frozen=True)
class LongTail:
    """A training set, and what a long tail leaves of it.

    Attributes:
      train, evaluation: the whole set.
      kept: [records] bool.
      ratio: that was asked for; 1: none, all are kept.
    """

    train: Source
    evaluation: Source
    kept: np.ndarray
    ratio: float

    @property
    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """[classes] records before and after."""
        labels, classes = self.train.labels, len(self.train.class_names)
        return np.bincount(labels, minlength=classes), np.bincount(labels[self.kept], minlength=classes)


def open_long_tail(section: DataSection, ratio: float | None) -> LongTail:
    """Opens a set and makes the tail that `data.long_tail` makes.

    Args:
      section: of a recipe.
      ratio: 1 or more; None: as the recipe says.
    """
    check_one_label(section, "pcls data imbalance")
    ratio = section.long_tail if ratio is None else ratio
    dataset = open_dataset(section.model_copy(update={"long_tail": 1.0}))
    kept = long_tailed(dataset.train.labels, ratio, section.split_seed)
    return LongTail(dataset.train, dataset.evaluation, kept, ratio)


def left_out_text(section: DataSection, tail: LongTail) -> str:
    """The training records that a long tail leaves out, as a list for `data.quarantine`.

    Raises:
      UserError: a recipe with that list would not train and evaluate on the same records as one with `data.long_tail`.
    """
    if section.quarantine or section.per_class or section.classes:
        key = next(key for key in ("quarantine", "per_class", "classes") if getattr(section, key))
        raise UserError(
            f"--out: a list is of the whole set, and data.{key} is set; leave that out, and write it beside"
        )
    if open_kept(section)[1] is None:
        raise UserError(
            "--out: the set has no evaluation part of its own, and what is held out of the records that a list leaves "
            f"would have a long tail too; write data.long_tail={tail.ratio:g} into the recipe instead"
        )
    names = [tail.train.name(int(record)) for record in np.flatnonzero(~tail.kept)]
    evaluated = {tail.evaluation.name(record) for record in range(len(tail.evaluation))}
    if same := evaluated.intersection(names):
        raise UserError(
            f"--out: records of both parts of the set have the same name, as {min(same)!r}, so that a list would take "
            f"both; write data.long_tail={tail.ratio:g} into the recipe instead"
        )
    title = f"data.long_tail={tail.ratio:g} data.split_seed={section.split_seed}: {len(names):,} records less"
    return quarantine_text([(title, True, names)])


def tail_text(tail: LongTail) -> str:
    """Records of every class, how unbalanced they are, and what to try."""
    before, after = tail.counts
    columns = [before] if tail.ratio == 1 else [before, after]
    heads = ["records", f"long tail {tail.ratio:g}"][: len(columns)]
    width = max(map(len, ("class", "largest / smallest", *tail.train.class_names)))
    ratios = [f"{_ratio(counts):,.1f}" for counts in columns]
    lines = [_line(width, "class", heads)]
    lines += [
        _line(width, name, [f"{counts[label]:,}" for counts in columns])
        for label, name in enumerate(tail.train.class_names)
    ]
    lines += [
        _line(width, "all", [f"{counts.sum():,}" for counts in columns]),
        _line(width, "largest / smallest", ratios),
    ]
    return "\n".join([*lines, *_to_try(columns[-1])])


def _line(width: int, name: str, cells: Sequence[str]) -> str:
    return f"{name:<{width}}" + "".join(f"  {cell:>14}" for cell in cells)


def _ratio(counts: np.ndarray) -> float:
    present = counts[counts > 0]
    return float(present.max() / present.min())


def _to_try(counts: np.ndarray) -> list[str]:
    if _ratio(counts) <= BALANCED:
        return ["nearly balanced: nothing need be done about it"]
    few, many = int((counts < FEW).sum()), int((counts > MANY).sum())
    shots = f"{many:,} with more than {MANY} records, {len(counts) - few - many:,} with {FEW} to {MANY}"
    lines = [
        f"classes: {shots}, {few:,} with fewer than {FEW}",
        "read balanced accuracy, not top-1; try first: imbalance.logit_adjustment=1",
        "with augmentation also data.sampling=balanced; docs/imbalance.md has more",
    ]
    return lines + ["few records teach a class little: start from pretrained weights, pcls finetune"] * (few > 0)
