"""Evaluations, calibrations and comparisons as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pcls.evaluation.calibration import Fit
from pcls.evaluation.intervals import Interval, wilson
from pcls.evaluation.label_sets import LabelEvaluation, LabelRow
from pcls.evaluation.metrics import (
    FEW_SHOT_BELOW,
    MANY_SHOT_ABOVE,
    ClassRow,
    Evaluation,
    averages,
    by_shots,
    per_class,
)
from pcls.evaluation.paired import Comparison
from pcls.evaluation.quality import Quality
from pcls.observe.console import telling
from pcls.observe.table import aligned

# With more classes, text shows those that need a look; JSON has all.
MOST_ROWS = 20
NAME_WIDTH = 30


def evaluation_json(evaluation: Evaluation | LabelEvaluation) -> dict[str, Any]:
    """Everything that an evaluation knows but the confusion counts; `null` for what is not known."""
    if isinstance(evaluation, LabelEvaluation):
        return evaluation.facts()
    rows = per_class(evaluation.confusion, evaluation.class_names)
    shots = by_shots(rows, evaluation.train_counts) if evaluation.train_counts else None
    listed = evaluation.listed
    return {
        **evaluation.summary(),
        "top1_interval": _top1_interval(evaluation),
        "averages": asdict(averages(rows)),
        "calibration": evaluation.calibration or None,
        "quality": None if evaluation.quality is None else asdict(evaluation.quality),
        "shots": None if shots is None else {own.name: _without(asdict(own), "name") for own in shots},
        "listed": None if listed is None else asdict(listed) | {"top1": listed.top1, "interval": listed.interval},
        "column": evaluation.column or None,
        "subsets": [asdict(own) | {"top1": own.top1, "interval": own.interval} for own in evaluation.subsets],
        "classes": [_class_json(row) for row in rows],
        "notices": list(evaluation.notices),
    }


def _class_json(row: ClassRow) -> dict[str, Any]:
    intervals = {
        "precision_interval": row.precision_interval,
        "recall_interval": row.recall_interval,
        "f1_interval": row.f1_interval,
    }
    return asdict(row) | intervals


def _without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def _top1_interval(evaluation: Evaluation) -> Interval:
    return wilson(round(evaluation.top1 * evaluation.n), evaluation.n)


def evaluation_text(evaluation: Evaluation | LabelEvaluation) -> str:
    """An evaluation for a person."""
    if isinstance(evaluation, LabelEvaluation):
        return label_sets_text(evaluation)
    rows = per_class(evaluation.confusion, evaluation.class_names)
    together, quality = averages(rows), evaluation.quality
    told = telling(evaluation.summary(), len(rows))
    lines = [f"{name:<12} {_number(value)}" for name, value in told.items()]
    lines[2] += f"  {_interval(_top1_interval(evaluation))}"
    lines.append(f"{'recall gmean':<12} {together.recall_gmean:.4f}")
    if evaluation.listed:
        own = evaluation.listed
        lines.append(
            f"{'listed':<12} {own.top1:.4f}  {_interval(own.interval)}, of {own.n:,} records with a right answer; "
            f"{own.left_out:,} have none"
        )
    if quality:
        lines += ["", *_quality_lines(evaluation, quality)]
        lines.append(f"{'calibrated':<12} {evaluation.calibration or 'no; pcls calibrate RUN does it'}")
    if evaluation.train_counts:
        lines += ["", *_shot_lines(evaluation, rows)]
    if evaluation.subsets:
        lines += ["", *_subset_lines(evaluation)]
    lines += ["", *_class_lines(rows)]
    lines += ["", *evaluation.notices] if evaluation.notices else []
    return "\n".join(lines)


def _quality_lines(evaluation: Evaluation, quality: Quality) -> list[str]:
    answered = [row for row in quality.thresholds if row.accuracy is not None]
    calibrated = "  after calibration; the loss is before" if evaluation.calibration else ""
    lines = [
        f"{'NLL':<12} {quality.nll:.4f}{calibrated}",
        f"{'Brier':<12} {quality.brier:.4f}",
        f"{'ECE':<12} {quality.ece:.4f}  in bins of equal width; of equal mass {quality.ece_equal_mass:.4f}",
        f"{'AURC':<12} {quality.aurc:.4f}",
    ]
    if answered:
        shown = ", ".join(f"{row.accuracy:.1%} of {row.coverage:.1%} at {row.threshold:g}" for row in answered[::2])
        lines.append(f"{'accuracy':<12} {shown} confidence or more")
    return lines


def _shot_lines(evaluation: Evaluation, rows: Sequence[ClassRow]) -> list[str]:
    few, many = FEW_SHOT_BELOW, MANY_SHOT_ABOVE
    trained = {"many": f"more than {many}", "medium": f"{few} to {many}", "few": f"fewer than {few}"}
    return [
        f"{own.name + '-shot':<12} {own.accuracy:.4f}  {own.classes:,} classes with {trained[own.name]} training "
        f"records, {own.n:,} held out"
        for own in by_shots(rows, evaluation.train_counts)
        if own.classes
    ]


def _subset_lines(evaluation: Evaluation) -> list[str]:
    rows = [
        (
            _shown(own.value) or "(empty)",
            f"{own.n:,}",
            f"{own.top1:.4f}",
            _interval(own.interval),
            f"{own.balanced:.4f}",
        )
        for own in evaluation.subsets
    ]
    return aligned([(_shown(evaluation.column), "n", "top1", "95 %", "balanced"), *rows])


def _class_lines(rows: Sequence[ClassRow]) -> list[str]:
    chosen = rows if len(rows) <= MOST_ROWS else sorted((row for row in rows if row.support), key=lambda row: row.f1)
    cells = [
        (
            _shown(row.name),
            f"{row.support:,}",
            f"{row.precision:.4f}",
            f"{row.recall:.4f}",
            f"{row.f1:.4f}",
            _interval(row.f1_interval),
        )
        for row in chosen[:MOST_ROWS]
    ]
    table = aligned([("class", "n", "precision", "recall", "F1", "95 % of F1"), *cells])
    more = len(rows) - MOST_ROWS
    return table if more <= 0 else [*table, f"the {MOST_ROWS} worst of {len(rows):,} classes; --json has all"]


def label_sets_text(evaluation: LabelEvaluation) -> str:
    """The same where records carry several labels."""
    chosen, rows = evaluation.chosen, evaluation.rows
    measured = f"on {chosen.n:,} records that the thresholds were not chosen on"
    lines = [f"{name:<15} {_number(value)}" for name, value in evaluation.summary().items()]
    lines[-2] += f"  {measured}; precision {chosen.micro_precision:.4f}, recall {chosen.micro_recall:.4f}"
    lines[-1] += f"  precision {chosen.macro_precision:.4f}, recall {chosen.macro_recall:.4f}"
    order = list(range(len(rows)))
    if len(rows) > MOST_ROWS:
        known = [label for label in order if evaluation.precisions[label] is not None]
        order = sorted(known, key=lambda label: evaluation.precisions[label] or 0.0)[:MOST_ROWS]
    cells = [_label_cells(rows[label], evaluation.support[label], evaluation.precisions[label]) for label in order]
    lines += ["", *aligned([("label", "n", "AP", "threshold", "precision", "recall", "F1"), *cells])]
    if any(not rows[label].own for label in order):
        lines.append("* too few records carry it, or lack it: the threshold of all labels together")
    if len(order) < len(rows):
        lines.append(f"the {len(order)} worst of {len(rows):,} labels; --json has all")
    return "\n".join([*lines, *(["", *evaluation.notices] if evaluation.notices else [])])


def _label_cells(row: LabelRow, support: int, precision: float | None) -> tuple[str, ...]:
    return (
        _shown(row.name),
        f"{support:,}",
        "-" if precision is None else f"{precision:.4f}",
        f"{row.threshold:.4f}{'' if row.own else '*'}",
        f"{row.precision:.4f}",
        f"{row.recall:.4f}",
        f"{row.f1:.4f}",
    )


def fit_json(fit: Fit) -> dict[str, Any]:
    """Everything that is known of a calibration."""
    scale, bias = fit.scaling
    return {
        "method": fit.method,
        "scale": scale.tolist(),
        "bias": bias.tolist(),
        "temperature": float(1 / scale[0]) if fit.method == "temperature" else None,
        "fitted": fit.fitted,
        "measured": fit.measured,
        "candidates": dict(fit.candidates),
        "rejected": dict(fit.rejected),
        "before": asdict(fit.before),
        "after": asdict(fit.after),
    }


def fit_text(fit: Fit) -> str:
    """A calibration for a person: how it was chosen, and a table of what it does."""
    lines = []
    if fit.candidates:
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in fit.candidates.items())
        lines.append(f"NLL by cross-validation on {fit.fitted:,} records: {losses}")
    lines += [
        f"{name} makes the {fit.measured:,} other records less likely, NLL {fit.before.quality.nll:.4f} -> {loss:.4f}: "
        "not taken"
        for name, loss in fit.rejected.items()
    ]
    temperature = f" {1 / fit.scaling[0][0]:.4g}" if fit.method == "temperature" else ""
    lines.append(f"calibration: {fit.method}{temperature}; on {fit.measured:,} other records:")
    names = (("NLL", "nll"), ("Brier", "brier"), ("ECE", "ece"), ("ECE, mass", "ece_equal_mass"), ("AURC", "aurc"))
    sides = [(name, *(getattr(side.quality, key) for side in (fit.before, fit.after))) for name, key in names]
    rows = [("top1", fit.before.top1, fit.after.top1), *sides]
    return "\n".join(
        [*lines, *aligned([("", "before", "after"), *((name, f"{one:.4f}", f"{two:.4f}") for name, one, two in rows)])]
    )


def comparison_json(comparison: Comparison, names: Sequence[str]) -> dict[str, Any]:
    """Everything that a comparison knows."""
    return {
        "runs": list(names),
        **asdict(comparison),
        "top1": [comparison.first, comparison.second],
        "difference": comparison.difference,
    }


def comparison_text(comparison: Comparison, names: Sequence[str]) -> str:
    """A comparison for a person."""
    low, high = comparison.interval
    only = [comparison.only_first, comparison.only_second]
    lines = [
        f"{'':<7} {'top1':>8} {'only it right':>14}",
        *(
            f"{letter:<7} {top1:>8.4f} {right:>14,}  {name}"
            for letter, top1, right, name in zip("AB", (comparison.first, comparison.second), only, names, strict=True)
        ),
        "",
        f"n        {comparison.n:,}: both right {comparison.both:,}, neither {comparison.neither:,}",
        f"B - A    {comparison.difference:+.4f}  ({low:+.4f} to {high:+.4f}; 95 %, bootstrap in pairs)",
        f"McNemar  p = {comparison.p:.3g} (exact): {_verdict(comparison)}",
    ]
    uneven = [row for row in comparison.classes if row.only_first != row.only_second]
    if uneven:
        uneven.sort(key=lambda row: -abs(row.only_first - row.only_second))
        rows = [(_shown(row.name), f"{row.n:,}", f"{row.only_first:,}", f"{row.only_second:,}") for row in uneven]
        lines += ["", *aligned([("class", "n", "only A right", "only B right"), *rows[:MOST_ROWS]])]
        if len(rows) > MOST_ROWS:
            lines.append(f"the {MOST_ROWS} most uneven of {len(rows):,} classes; --json has all")
    return "\n".join(lines)


def _verdict(comparison: Comparison) -> str:
    if comparison.p >= 0.05:
        return "the difference may be chance"
    return f"{'B' if comparison.difference > 0 else 'A'} is better, by more than chance at 5 %"


def _shown(name: str) -> str:
    """A name in one line of bearable length; whatever it holds."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    return line if len(line) <= NAME_WIDTH else f"{line[: NAME_WIDTH - 3]}..."


def _interval(interval: Interval) -> str:
    return f"({interval[0]:.4f} to {interval[1]:.4f})"


def _number(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
