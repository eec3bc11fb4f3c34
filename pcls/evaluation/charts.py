"""Curves of a run's history as drawings: places, paths and words, which the report's template only prints."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_POINTS = 400  # A chart is about 450 pixels wide: more points than pixels cost bytes and show nothing.


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


def _number(value: object) -> float:
    """The value as a float; NaN for what is missing, no number, infinite, or so large that its sums would overflow."""
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
    """Values by step, all arrays [points] float64; NaN in `value` is a gap."""

    name: str
    step: np.ndarray
    epoch: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Spot:
    """A place of a chart that answers the pointer with `title`. `x` is a marker's centre or a band's left edge."""

    x: float
    y: float
    width: float
    title: str


@dataclass(frozen=True)
class Line:
    """A curve as the page draws it: an SVG path, and what answers the pointer."""

    name: str
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
    _Kind("Accuracy", "accuracy", "top1", percent, lambda share: f"{100 * share:.4g}\u00a0%", from_zero=False),
    _Kind("Learning rate", "lr", text="{:.3g}".format),
)
# The view box, and the edges of the plot within it.
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 458.0, 10.0, 212.0


def charts(history: Sequence[Mapping[str, Any]], records: str = "images") -> list[Chart]:
    """The charts for which `history` has rows; see `RunReport.history` and `RunReport.records`."""
    train, evaluated = _rows(history, "train"), _rows(history, "eval")
    speed = _Kind(f"{records.capitalize()} per second", "images_per_second", text="{:,.0f}".format)
    drawn = []
    for kind in (*_CHARTS, speed):
        curves = [_curve("train", train, kind.train), _curve("eval", evaluated, kind.evaluated)]
        if present := [curve for curve in curves if curve is not None]:
            drawn.append(_chart(kind, present, _data_wait(train) if kind is speed else ()))
    return drawn


def _rows(history: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    """Rows of a kind in order of step. A resumed run repeats the steps since its checkpoint: the later row holds."""
    by_step = {_number(row.get("step")): row for row in history if row.get("kind") == kind}
    return [by_step[step] for step in sorted(step for step in by_step if math.isfinite(step))]


def _curve(name: str, rows: Sequence[Mapping[str, Any]], key: str) -> Curve | None:
    """The values of a key over all rows; None where no row has the key (mixup has no training accuracy)."""
    if not any(key in row for row in rows):
        return None
    step, epoch, value = (np.array([_number(row.get(k)) for row in rows]) for k in ("step", "epoch", key))
    return Curve(name, step, epoch, value)


def _data_wait(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    waits = [wait for row in rows if math.isfinite(wait := _number(row.get("data_wait")))]
    return (f"Waiting for data took {percent(float(np.mean(waits)), 1)} of the time on average.",) if waits else ()


def thin(curve: Curve, limit: int = MAX_POINTS) -> Curve:
    """At most `limit` points: the first and the last as they are, between them the means of equal shares.

    A mean is over the finite values of its share; a share without any is a gap.
    """
    n = len(curve.step)
    if n <= limit:
        return curve
    # limit - 2 shares of the inner points, and each end as a share of its own.
    starts = np.concatenate([[0], np.linspace(1, n - 1, limit - 1).astype(np.int64)])
    return Curve(curve.name, *(_share_means(a, starts) for a in (curve.step, curve.epoch, curve.value)))


def _share_means(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Means over values[starts[i]:starts[i + 1]], finite values only; NaN where there are none."""
    finite = np.isfinite(values)
    counts = np.add.reduceat(finite.astype(np.int64), starts)
    sums = np.add.reduceat(np.where(finite, values, 0.0), starts)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _chart(kind: _Kind, curves: Sequence[Curve], notes: tuple[str, ...]) -> Chart:
    notes += tuple(note for curve in curves if (note := _gap_note(curve)))
    drawn = [curve for curve in map(thin, curves) if np.isfinite(curve.value).any()]
    if not drawn:
        return Chart(kind.title, "", notes, (), (), ())
    steps = np.concatenate([curve.step for curve in drawn])
    values = np.concatenate([curve.value[np.isfinite(curve.value)] for curve in drawn])
    x_axis = step_axis(float(steps.min()), float(steps.max()))
    y_axis = value_axis(float(values.min()), float(values.max()), from_zero=kind.from_zero, may_log=kind.may_log)
    return Chart(
        title=kind.title + (", logarithmic" if y_axis.log else ""),
        summary=f"{kind.title} over steps. " + " ".join(_in_words(curve, kind) for curve in drawn),
        notes=notes,
        lines=tuple(_line(curve, kind, x_axis, y_axis) for curve in drawn),
        x_ticks=tuple(zip(_xs(x_axis, x_axis.ticks), map(short, x_axis.ticks), strict=True)),
        y_ticks=tuple(zip(_ys(y_axis, y_axis.ticks), map(kind.tick, y_axis.ticks), strict=True)),
    )


def _gap_note(curve: Curve) -> str:
    gaps, rows = int((~np.isfinite(curve.value)).sum()), len(curve.value)
    return f"{gaps:,} of {rows:,} {curve.name} rows hold no finite value." if gaps else ""


def _in_words(curve: Curve, kind: _Kind) -> str:
    """The curve for who cannot see it: where it starts and where it ends."""
    first, last = np.flatnonzero(np.isfinite(curve.value))[[0, -1]]
    start, end = (f"{kind.text(curve.value[i])} at step {curve.step[i]:,.0f}" for i in (first, last))
    return f"{curve.name.capitalize()}: {start}, {end}."


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


def _line(curve: Curve, kind: _Kind, x_axis: Axis, y_axis: Axis) -> Line:
    xs, ys = _xs(x_axis, curve.step), _ys(y_axis, curve.value)
    titles = [_spot_title(curve, kind, i) for i in range(len(xs))]
    # Evaluations are few and shown as markers; training points are many, so each gets the band around it.
    places = [(x, 0.0) for x in xs] if curve.name == "eval" else _bands(xs)
    spots = (Spot(x, y, w, title) for (x, w), y, title in zip(places, ys, titles, strict=True) if math.isfinite(y))
    return Line(curve.name, _path(xs, ys), tuple(spots))


def _spot_title(curve: Curve, kind: _Kind, i: int) -> str:
    epoch = f", epoch {curve.epoch[i]:.2f}" if math.isfinite(curve.epoch[i]) else ""
    return f"{curve.name} {kind.text(curve.value[i])}\nstep {curve.step[i]:,.0f}{epoch}"


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
