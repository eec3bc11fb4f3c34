"""Curves of a run's history as drawings: places, paths and words, which the report's template only prints."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# A chart is about 450 pixels wide: more points than pixels cost bytes and show nothing. Runs that share one share them.
MAX_POINTS, MIN_POINTS = 400, 100


def percent(share: float, digits: int = 2) -> str:
    """A share of 0 to 1 as text, "97.22 %" with a no-break space; a dash where it is not finite."""
    return f"{100 * share:.{digits}f}\u00a0%" if math.isfinite(share) else "–"


def short(value: float) -> str:
    """A number for an axis, at most about six characters: 0.25, 2.5e-4, 1,500, 20k, 1.2M."""
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-2:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    return f"{value / 1e3:.4g}k" if size >= 1e4 else f"{value:,.4g}"


def finite(value: object) -> float | None:
    """The value as a float; None for what is missing, no number, infinite, or so large that its sums would overflow."""
    number = _number(value)
    return number if math.isfinite(number) else None


def _number(value: object) -> float:
    """As `finite`, with NaN for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return math.nan
    return float(value) if -1e100 < value < 1e100 else math.nan


@dataclass(frozen=True)
class Axis:
    """The range of an axis, and where its ticks are."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """Maps values to 0 (low) to 1 (high); NaN stays NaN. The middle where the range is a single value."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        if low == high:
            return np.where(np.isfinite(values), 0.5, np.nan)
        scaled = np.log10(values) if self.log else values
        return np.asarray((scaled - low) / (high - low))


@dataclass(frozen=True)
class Curve:
    """Values by step.

    Attributes:
      name: `train` or `eval`.
      step, epoch, value: [points] float64; NaN in `value` is a gap.
      run: its number and name, where several share a chart; None: there is one.
    """

    name: str
    step: np.ndarray
    epoch: np.ndarray
    value: np.ndarray
    run: tuple[int, str] | None = None

    @property
    def title(self) -> str:
        """As a reader is told of it."""
        return self.name if self.run is None else f"{self.run[1]}, {self.name}"


@dataclass(frozen=True)
class Spot:
    """A place of a chart that answers the pointer with `title`. `x` is a marker's centre or a band's left edge."""

    x: float
    y: float
    width: float
    title: str


@dataclass(frozen=True)
class Line:
    """A curve as the page draws it: an SVG path, and what answers the pointer.

    Attributes:
      name: `train` or `eval`.
      title: as a reader is told of it.
      run: number of its run, where several share the chart; None: there is one.
      path: of SVG.
      spots: where it answers.
    """

    name: str
    title: str
    run: int | None
    path: str
    spots: tuple[Spot, ...]


@dataclass(frozen=True)
class Chart:
    """A chart as the page draws it, in units of the SVG's view box. Without finite values `lines` is empty."""

    title: str
    summary: str
    notes: tuple[str, ...]
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_label: str = "step"


def _percent_tick(share: float) -> str:
    return f"{100 * share:.4g}\u00a0%"


@dataclass(frozen=True)
class _Kind:
    """A chart of the page: which key of which rows, from which value on, in which words."""

    title: str
    train: str
    evaluated: str = ""
    text: Callable[[float], str] = "{:.4g}".format
    tick: Callable[[float], str] = short
    from_zero: bool = True
    may_log: bool = False


_CHARTS = (
    _Kind("Loss", "loss", "loss", may_log=True),
    _Kind("Accuracy", "accuracy", "top1", percent, _percent_tick, from_zero=False),
    _Kind("Mean average precision", "", "map", percent, _percent_tick, from_zero=False),
    _Kind("Learning rate", "lr", text="{:.3g}".format),
)
# The view box, and the edges of the plot within it.
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 458.0, 10.0, 212.0


History = Sequence[Mapping[str, Any]]


def charts(history: History) -> list[Chart]:
    """The curves of learning for which `history` has rows; see `RunReport.history`."""
    return [
        _chart(kind, curves) for kind in _CHARTS if (curves := _curves(history, kind.train, kind.evaluated, run=None))
    ]


def speed_charts(history: History, records: str = "images") -> list[Chart]:
    """The curves of speed; `records` is what was trained on."""
    return [
        _chart(kind, curves)
        for kind in _speed_kinds(records)
        if (curves := _curves(history, kind.train, kind.evaluated, run=None))
    ]


def overlaid(histories: Mapping[str, History], records: str = "images") -> list[Chart]:
    """The same curves of several runs, by name, laid over each other."""
    drawn = []
    for kind in (*_CHARTS, *_speed_kinds(records)):
        curves = [
            curve
            for number, (name, history) in enumerate(histories.items())
            for curve in _curves(history, kind.train, kind.evaluated, run=(number, name))
        ]
        if curves:
            drawn.append(_chart(kind, curves))
    return drawn


def rank_chart(title: str, counts: Mapping[str, np.ndarray]) -> Chart:
    """Counts of classes in some order, as curves over their rank.

    Args:
      title: of the chart.
      counts: of `train` and `eval`, [classes] each, in the same order.
    """
    ranks = np.arange(1, 1 + len(next(iter(counts.values()))), dtype=np.float64)
    curves = [Curve(name, ranks, np.full(len(ranks), np.nan), own.astype(np.float64)) for name, own in counts.items()]
    kind = _Kind(title, "", text="{:,.0f}".format, may_log=True)
    return _chart(kind, curves, x_label="class, the largest first")


def _speed_kinds(records: str) -> tuple[_Kind, ...]:
    return (
        _Kind(f"{records.capitalize()} per second", "images_per_second", text="{:,.0f}".format),
        _Kind("Waiting for data", "data_wait", text=percent, tick=_percent_tick),
        _Kind("MFU", "mfu", text=percent, tick=_percent_tick),
    )


def _curves(history: History, train: str, evaluated: str, run: tuple[int, str] | None) -> list[Curve]:
    """Of a key of the training rows and one of the evaluations, those that are there."""
    found = (_curve("train", _rows(history, "train"), train), _curve("eval", _rows(history, "eval"), evaluated))
    return [replace(curve, run=run) for curve in found if curve is not None]


def _rows(history: History, kind: str) -> list[Mapping[str, Any]]:
    """Rows of a kind in order of step. A resumed run repeats the steps since its checkpoint: the later row holds."""
    by_step = {_number(row.get("step")): row for row in history if row.get("kind") == kind}
    return [by_step[step] for step in sorted(step for step in by_step if math.isfinite(step))]


def _curve(name: str, rows: Sequence[Mapping[str, Any]], key: str) -> Curve | None:
    """The values of a key over all rows; None where no row has the key (mixup has no training accuracy)."""
    if not any(key in row for row in rows):
        return None
    step, epoch, value = (np.array([_number(row.get(k)) for row in rows]) for k in ("step", "epoch", key))
    return Curve(name, step, epoch, value)


def thin(curve: Curve, limit: int = MAX_POINTS) -> Curve:
    """At most `limit` points: the first and the last as they are, between them the means of equal shares.

    A mean is over the finite values of its share; a share without any is a gap.
    """
    n = len(curve.step)
    if n <= limit:
        return curve
    # limit - 2 shares of the inner points, and each end as a share of its own.
    starts = np.concatenate([[0], np.linspace(1, n - 1, limit - 1).astype(np.int64)])
    step, epoch, value = (_share_means(values, starts) for values in (curve.step, curve.epoch, curve.value))
    return replace(curve, step=step, epoch=epoch, value=value)


def _share_means(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Means over values[starts[i]:starts[i + 1]], finite values only; NaN where there are none."""
    finite = np.isfinite(values)
    counts = np.add.reduceat(finite.astype(np.int64), starts)
    sums = np.add.reduceat(np.where(finite, values, 0.0), starts)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _chart(kind: _Kind, curves: Sequence[Curve], x_label: str = "step") -> Chart:
    notes = tuple(note for curve in curves if (note := _gap_note(curve)))
    runs = 1 + max((curve.run[0] for curve in curves if curve.run), default=0)
    limit = max(MIN_POINTS, MAX_POINTS // runs)
    drawn = [curve for curve in (thin(curve, limit) for curve in curves) if np.isfinite(curve.value).any()]
    if not drawn:
        return Chart(kind.title, "", notes, (), (), (), x_label)
    steps = np.concatenate([curve.step for curve in drawn])
    values = np.concatenate([curve.value[np.isfinite(curve.value)] for curve in drawn])
    x_axis = step_axis(float(steps.min()), float(steps.max()))
    y_axis = value_axis(float(values.min()), float(values.max()), from_zero=kind.from_zero, may_log=kind.may_log)
    return Chart(
        title=kind.title + (", logarithmic" if y_axis.log else ""),
        summary=f"{kind.title} by {x_label}. " + " ".join(_in_words(curve, kind, x_label) for curve in drawn),
        notes=notes,
        lines=tuple(_line(curve, kind, x_axis, y_axis, x_label) for curve in drawn),
        x_ticks=tuple(zip(_xs(x_axis, x_axis.ticks), map(short, x_axis.ticks), strict=True)),
        y_ticks=tuple(zip(_ys(y_axis, y_axis.ticks), map(kind.tick, y_axis.ticks), strict=True)),
        x_label=x_label,
    )


def _gap_note(curve: Curve) -> str:
    gaps, rows = int((~np.isfinite(curve.value)).sum()), len(curve.value)
    return f"{gaps:,} of {rows:,} {curve.title} rows hold no finite value." if gaps else ""


def _in_words(curve: Curve, kind: _Kind, x_label: str) -> str:
    """The curve for who cannot see it: where it starts and where it ends."""
    first, last = np.flatnonzero(np.isfinite(curve.value))[[0, -1]]
    place = x_label.partition(",")[0]
    start, end = (f"{kind.text(curve.value[i])} at {place} {curve.step[i]:,.0f}" for i in (first, last))
    title = curve.title
    return f"{title[:1].upper()}{title[1:]}: {start}, {end}."


def _xs(axis: Axis, values: Iterable[float]) -> list[float]:
    return [round(_LEFT + (_RIGHT - _LEFT) * float(place), 1) for place in axis.place(np.array(list(values)))]


def _ys(axis: Axis, values: Iterable[float]) -> list[float]:
    return [round(_BOTTOM - (_BOTTOM - _TOP) * float(place), 1) for place in axis.place(np.array(list(values)))]


def step_axis(low: float, high: float) -> Axis:
    """An axis that ends where the data end, with whole numbers as ticks."""
    if low == high:
        return Axis(low, high, (low,))
    unit = max(1.0, _nice_unit(high - low, 5))
    return Axis(low, high, _multiples(unit, math.ceil(low / unit), math.floor(high / unit)))


def value_axis(low: float, high: float, *, from_zero: bool, may_log: bool) -> Axis:
    """An axis that ends on ticks. Logarithmic, if it may, where all is positive and spans three powers of ten."""
    if may_log and low > 0 and high / low >= 1000:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        powers = range(first, last + 1, math.ceil((last - first) / 6))
        return Axis(10.0**first, 10.0**last, tuple(10.0**power for power in powers), log=True)
    if from_zero or high - low <= 1e-9 * abs(high):  # A constant has no range of its own: show it against zero.
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        high = 1.0
    unit = _nice_unit(high - low, 4)
    # A hair of slack, else 0.3 / 0.1 rounds up to four.
    ticks = _multiples(unit, math.floor(low / unit + 1e-9), math.ceil(high / unit - 1e-9))
    return Axis(ticks[0], ticks[-1], ticks)


def _nice_unit(span: float, parts: int) -> float:
    """The smallest of 1, 2, 2.5, 5, 10 times a power of ten that covers `span` in at most `parts`."""
    power = 10.0 ** math.floor(math.log10(span / parts))
    return next(unit * power for unit in (1, 2, 2.5, 5, 10) if unit * power * parts >= span * (1 - 1e-9))


def _multiples(unit: float, first: int, last: int) -> tuple[float, ...]:
    return tuple(unit * i for i in range(first, last + 1))


def _line(curve: Curve, kind: _Kind, x_axis: Axis, y_axis: Axis, x_label: str) -> Line:
    xs, ys = _xs(x_axis, curve.step), _ys(y_axis, curve.value)
    titles = [_spot_title(curve, kind, i, x_label) for i in range(len(xs))]
    # Evaluations are few and shown as markers; training points are many, so each gets the band around it. Bands of
    # several runs would lie over each other: their points answer as the markers do.
    banded = curve.name != "eval" and curve.run is None
    places = _bands(xs) if banded else [(x, 0.0) for x in xs]
    spots = (Spot(x, y, w, title) for (x, w), y, title in zip(places, ys, titles, strict=True) if math.isfinite(y))
    run = None if curve.run is None else curve.run[0]
    return Line(curve.name, curve.title, run, _path(xs, ys), tuple(spots))


def _spot_title(curve: Curve, kind: _Kind, i: int, x_label: str) -> str:
    epoch = f", epoch {curve.epoch[i]:.2f}" if math.isfinite(curve.epoch[i]) else ""
    place = x_label.partition(",")[0]
    return f"{curve.title} {kind.text(curve.value[i])}\n{place} {curve.step[i]:,.0f}{epoch}"


def _bands(xs: Sequence[float]) -> list[tuple[float, float]]:
    """The left edge and width of the part of the plot that is nearest to each x."""
    middles = [(a + b) / 2 for a, b in itertools.pairwise(xs)]
    edges = [_LEFT, *middles, _RIGHT]
    return [(round(a, 1), round(b - a, 1)) for a, b in itertools.pairwise(edges)]


def _path(xs: Sequence[float], ys: Sequence[float]) -> str:
    """An SVG path that lifts the pen at gaps."""
    parts, drawing = [], False
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            # "h0" makes a point between two gaps visible: a round dot, by the line's caps.
            parts.append(f"L{x:g},{y:g}" if drawing else f"M{x:g},{y:g}h0")
        drawing = math.isfinite(y)
    return "".join(parts)
