"""Which classes are taken for which: the matrix of counts, a picture of it for many classes, the worst pairs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from pcls.evaluation.charts import percent
from pcls.evaluation.metrics import Evaluation
from pcls.evaluation.sections.records import palette_uri

MAX_FIGURES = 30  # Classes up to which counts fit on a screen.
# Dots a side of the heat map as a whole, of which each is wide enough to be seen, and of a closer look at it. With more
# classes a dot stands for several.
MAX_HEAT, MAX_DETAIL = 250, 1000
MAX_PAIRS = 20
# Counts that the page carries for the pointer: half a megabyte. The largest are kept.
MAX_CELLS = 60_000
# Classes up to which those that are confused are brought together, and up to which the tree is turned as well: that
# takes three seconds of 1,000 classes in the worst case, and grows with the third power.
MAX_ORDERED, MAX_TURNED = 4000, 1000
SHADES = 15  # Of each colour: a picture of 31 colours takes half the bytes of one with 256.


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix; `shade` is the opacity of its colour, 0 to 1."""

    count: int
    hit: bool
    shade: float
    title: str


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix with its counts: one row of cells a label."""

    names: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    upright: bool  # Whether the column headings are short enough to stand side by side.


@dataclass(frozen=True)
class Picture:
    """A picture of counts.

    Attributes:
      uri: a data: URI.
      group: classes a side that a dot stands for.
      side: of the picture in classes; more than there are where the last dots stand for fewer.
    """

    uri: str
    group: int
    side: int


@dataclass(frozen=True)
class HeatMap:
    """The confusion matrix of many classes as a picture, and its counts for whoever points at it.

    Attributes:
      image: the whole.
      detail: the same with more dots, for a closer look; empty: there are no more.
      classes: how many.
      ordered: whether the order is by confusion; else it is that of the classes.
      names: JSON, the classes' names in the picture's order.
      supports: JSON, records of each class in that order.
      cells: JSON, for each label in that order a flat list: place of a predicted class, count, and so on.
      left_out: counts that are not in `cells`.
    """

    image: Picture
    detail: Picture | None
    classes: int
    ordered: bool
    names: str
    supports: str
    cells: str
    left_out: int


def shades(share: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Opacity of each cell, given its share of the label's records and whether it lies on the diagonal.

    Errors go by the square root, and never below what can be seen: a report is read for its few errors. No colour gets
    so strong that text on it is hard to read in light or dark.
    """
    errors = np.maximum(0.14, 0.75 * np.sqrt(share))
    return np.where(share > 0, np.where(hit, 0.6 * share, errors), 0.0)


def shares(confusion: np.ndarray) -> np.ndarray:
    """Each count as a share of its label's records; 0 for a label without records."""
    return np.asarray(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1))


def matrix(evaluation: Evaluation) -> Matrix:
    """The confusion matrix for an HTML table."""
    names = evaluation.class_names
    share = shares(evaluation.confusion)
    shade = shades(share, np.eye(len(names), dtype=bool))

    def cell(i: int, j: int) -> Cell:
        count = int(evaluation.confusion[i, j])
        title = f"label {names[i]}, predicted {names[j]}: {count:,} ({percent(share[i, j], 1)} of the label)"
        return Cell(count, i == j, round(float(shade[i, j]), 3), title)

    rows = tuple(tuple(cell(i, j) for j in range(len(names))) for i in range(len(names)))
    return Matrix(names, rows, upright=max(map(len, names), default=0) <= 4)


def confusion_order(confusion: np.ndarray) -> np.ndarray:
    """[classes] numbers, so that classes that are taken for each other stand side by side.

    The leaves of an average-linkage tree over 1 minus the share of confusions; up to MAX_TURNED classes turned so that
    neighbours are as near as the tree allows. Source: Bar-Joseph et al. 2001.
    """
    if len(confusion) < 3:
        return np.arange(len(confusion))
    share = shares(confusion)
    distance = 1 - (share + share.T) / 2
    np.fill_diagonal(distance, 0)
    pairs = squareform(distance, checks=False)
    tree = linkage(pairs, "average")
    turned = optimal_leaf_ordering(tree, pairs) if len(confusion) <= MAX_TURNED else tree
    return np.asarray(leaves_list(turned), np.int64)


def heat_map(evaluation: Evaluation) -> HeatMap:
    """The confusion matrix as a picture."""
    classes = len(evaluation.class_names)
    ordered = classes <= MAX_ORDERED
    order = confusion_order(evaluation.confusion) if ordered else np.arange(classes)
    counts = evaluation.confusion[np.ix_(order, order)]
    cells, left_out = _cells(counts)
    return HeatMap(
        image=_picture(counts, MAX_HEAT),
        detail=_picture(counts, MAX_DETAIL) if classes > MAX_HEAT else None,
        classes=classes,
        ordered=ordered,
        names=json.dumps([evaluation.class_names[number] for number in order], ensure_ascii=False),
        supports=json.dumps(counts.sum(1).tolist(), separators=(",", ":")),
        cells=cells,
        left_out=left_out,
    )


def _picture(counts: np.ndarray, most: int) -> Picture:
    """Of at most so many dots a side."""
    group = math.ceil(len(counts) / most)
    starts = np.arange(0, len(counts), group)
    right = np.add.reduceat(np.diag(counts), starts)
    dots = np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)
    hit = np.eye(len(dots), dtype=bool)
    # Classes of one dot that are taken for each other are no hits.
    share = np.where(hit, right[:, None], dots) / np.maximum(dots.sum(axis=1, keepdims=True), 1)
    # Opacity instead of mixed colours: the same picture lies on a light and on a dark page. Nothing is written on it,
    # so it is stronger than a table's cell. The colours are Okabe and Ito's: all kinds of sight tell them apart.
    errors = np.where(share > 0, np.clip(1.5 * np.sqrt(share), 0.3, 1), 0)
    opacity = np.where(hit, share, errors)
    level = np.ceil(opacity * SHADES).astype(np.uint8)
    steps = np.round(255 * np.arange(1, SHADES + 1) / SHADES).astype(np.uint8)[:, None]
    blue, orange = (np.tile(np.array(colour, np.uint8), (SHADES, 1)) for colour in ((0, 114, 178), (213, 94, 0)))
    clear = np.zeros((1, 4), np.uint8)
    colours = np.concatenate([clear, np.hstack([blue, steps]), np.hstack([orange, steps])])
    uri = palette_uri(np.where(hit | (level == 0), level, level + SHADES), colours)
    return Picture(uri, group, group * len(dots))


def _cells(counts: np.ndarray) -> tuple[str, int]:
    """The largest counts, row by row, and how many are left out."""
    present = np.flatnonzero(counts)
    kept = present
    if len(present) > MAX_CELLS:
        largest = np.argsort(-counts.ravel()[present], kind="stable")[:MAX_CELLS]
        kept = np.sort(present[largest])
    rows, columns = np.unravel_index(kept, counts.shape)
    pairs = np.stack([columns, counts[rows, columns]], 1)
    parts = np.split(pairs, np.searchsorted(rows, np.arange(1, len(counts))))
    return json.dumps([part.ravel().tolist() for part in parts], separators=(",", ":")), len(present) - len(kept)


@dataclass(frozen=True)
class Pair:
    """How often records of one class were taken for another; `share` is of the label's records."""

    label: str
    predicted: str
    count: int
    share: str


def confused_pairs(evaluation: Evaluation, limit: int = MAX_PAIRS) -> list[Pair]:
    """The pairs with the most errors, in class order where equal."""
    names, confusion = evaluation.class_names, evaluation.confusion
    errors = np.where(np.eye(len(names), dtype=bool), 0, confusion)
    order = np.argsort(-errors, axis=None, kind="stable")[:limit]
    share = shares(confusion)
    return [
        Pair(names[i], names[j], int(errors[i, j]), percent(share[i, j], 1))
        for i, j in zip(*np.unravel_index(order, errors.shape), strict=True)
        if errors[i, j] > 0
    ]
