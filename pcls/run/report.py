"""The report of a run, or of several, put together from what lies in their folders."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from pcls.config import Recipe, flat_recipe
from pcls.data.dataset import Dataset, check_one_label
from pcls.data.quarantine import read_quarantine
from pcls.errors import UserError
from pcls.evaluation.charts import percent
from pcls.evaluation.count import Predictions
from pcls.evaluation.intervals import wilson
from pcls.evaluation.label_issues import label_issues
from pcls.evaluation.metrics import Evaluation, per_class
from pcls.evaluation.quality import quality_of
from pcls.evaluation.report import RunReport, RunsReport, Table
from pcls.evaluation.sections.audit import Audit
from pcls.evaluation.sections.calibrated import BeforeAfter
from pcls.evaluation.sections.confusion import MAX_PAIRS
from pcls.evaluation.sections.numbers import balanced_interval, interval_text
from pcls.evaluation.sections.records import MAX_LOSSES, MAX_SUSPECTS
from pcls.evaluation.sections.speed import seconds_text, speed
from pcls.nn.flops import image_costs
from pcls.observe.chips import chip_of
from pcls.observe.sinks import read_metrics
from pcls.pretrained.bundle import load_bundle
from pcls.run.calibrate import CALIBRATION
from pcls.run.compare import compare_runs
from pcls.run.evaluate import evaluate_run, open_run_data, read_evaluation, saved_preprocessing
from pcls.run.explain import explain, network_of
from pcls.run.facts import definition_of, facts_of, rollback_tables, value_text
from pcls.run.folder import RunFolder
from pcls.run.label_report import label_report
from pcls.run.shown import mistakes


class Bounds(Protocol):
    """What a device can do at most, as `pcls.planning.limits.Limits`."""

    def training_seconds(self, images: float, forward_flops: float, activation_bytes: float) -> tuple[float, float]:
        """Best and worst."""


FASTER = (
    " What happened is faster: the device was busy when it was measured, its caches hold what layers put out, or less "
    "was done than is counted here (frozen layers, shorter sequences, smaller images)."
)

# A device's limits by its name; `cpu`: this machine's.
LimitsOf = Callable[[str], Bounds]


def report_of(paths: Sequence[str | Path], limits_of: LimitsOf | None = None) -> RunReport | RunsReport:
    """What the report of a run, or of several, shows; UserError as `run_report` and `runs_report` say."""
    return run_report(paths[0], limits_of) if len(paths) == 1 else runs_report(paths)


def default_path(paths: Sequence[str | Path]) -> Path:
    """Where a report goes: `report.html` in the run's folder; of several runs `comparison.html` in the first's."""
    folder = RunFolder(paths[0])
    return folder.report if len(paths) == 1 else folder.path / "comparison.html"


def run_report(path: str | Path, limits_of: LimitsOf | None = None) -> RunReport:
    """What a run's report shows; evaluates first where the run has not been evaluated.

    Args:
      path: its folder.
      limits_of: of devices, for what was to be expected; None: that is left out.

    Raises:
      UserError: no run here, or its data is gone.
    """
    folder = RunFolder(path)
    recipe = folder.recipe()
    if recipe.data.holds_label_sets:
        return label_report(folder)
    evaluation, predictions = _evaluated(folder)
    dataset = open_run_data(folder, recipe)
    history = read_metrics(folder.path)
    status = {"status": "unfinished", "step": 0} | folder.status()
    suspects = label_issues(predictions.labels, predictions.predicted, predictions.probability, predictions.nll)
    network = network_of(folder, recipe, dataset)
    explained, method = ([], "") if network is None else explain(network, recipe.model, dataset, predictions)
    return RunReport(
        title=folder.path.resolve().name,
        subtitle=f"{recipe.model.name} on {recipe.data.source}, {status['status']} at step {status['step']:,}",
        evaluation=evaluation,
        history=history,
        mistakes=mistakes(dataset, predictions, worst(predictions)),
        facts=facts_of(folder, recipe, dataset),
        tables=rollback_tables(folder),
        records=dataset.preprocessing.records,
        audit=audit(recipe, dataset, evaluation),
        fit=calibration_fit(folder, evaluation),
        suspects=mistakes(dataset, predictions, suspects[:MAX_SUSPECTS]),
        suspects_found=len(suspects),
        explained=explained,
        method=method,
        plan=plan_table(folder, recipe, dataset, history, limits_of),
    )


def _evaluated(folder: RunFolder) -> tuple[Evaluation, Predictions]:
    check_one_label(folder.recipe().data, "pcls report of several runs")
    kept = read_evaluation(folder)
    if kept is None:
        evaluate_run(folder.path)
        kept = read_evaluation(folder)
        assert kept is not None
    return kept


def worst(predictions: Predictions) -> np.ndarray:
    """Places of the largest losses; a model that answers NaN has the largest of all."""
    losses = np.nan_to_num(predictions.nll, nan=np.inf)
    return np.argsort(-losses, kind="stable")[:MAX_LOSSES]


def audit(recipe: Recipe, dataset: Dataset, evaluation: Evaluation) -> Audit:
    """What is known of a run's data."""
    quarantined = None
    if recipe.data.quarantine:
        quarantined = len(read_quarantine(Path(recipe.data.quarantine).expanduser()))
    return Audit(
        class_names=evaluation.class_names,
        train=evaluation.train_counts,
        held_out=tuple(evaluation.confusion.sum(1).tolist()),
        undecodable=evaluation.undecodable,
        quarantined=quarantined,
        notices=dataset.notices,
    )


def calibration_fit(folder: RunFolder, evaluation: Evaluation) -> BeforeAfter | None:
    """What `pcls calibrate` measured on records that it did not fit to; None: nothing, or of other weights."""
    values = folder.read_json(CALIBRATION)
    if not values or values["step"] != folder.status().get("step"):
        return None
    method = str(values["method"])
    described = "none does better than the probabilities as they are" if method == "none" else evaluation.calibration
    # A bundle made anew has lost its calibration, and the file is of the old one.
    if (method != "none") != bool(evaluation.calibration):
        return None
    if method != "none" and values["scale"] != list(_calibration_scale(folder)):
        return None
    before, after = (quality_of(values[side]["quality"]) for side in ("before", "after"))
    return BeforeAfter(f"Calibration: {described}", before, after, int(values["measured"]))


def _calibration_scale(folder: RunFolder) -> tuple[float, ...]:
    calibration = load_bundle(folder.bundle).calibration if folder.bundle.is_dir() else None
    return () if calibration is None else calibration.scale


def plan_table(
    folder: RunFolder,
    recipe: Recipe,
    dataset: Dataset,
    history: Sequence[Mapping[str, Any]],
    limits_of: LimitsOf | None,
) -> Table | None:
    """What a recipe and the devices' limits let expect, beside what happened; None: nothing was kept of that."""
    found, status = speed(history), folder.status()
    if found is None or not status.get("steps"):
        return None
    size, records, steps = recipe.train.batch_size, dataset.preprocessing.records, int(status["steps"])
    epoch = max((float(row["epoch"]) for row in history if isinstance(row.get("epoch"), int | float)), default=0.0)
    rows = [
        ("steps", f"{steps:,}", f"{int(status.get('step', 0)):,}"),
        (f"{records} seen", f"{steps * size:,}", f"{round(epoch * len(dataset.train)):,}"),
    ]
    bounds, note = _bounds(folder, limits_of)
    if bounds is not None and found.rate:
        model = definition_of(recipe, dataset)
        count, limits = bounds
        costs = image_costs(model, dataset.preprocessing.training.shape, jnp.dtype(recipe.train.precision))
        best, worst = (own / count for own in limits.training_seconds(1, *costs))
        rows += [
            (f"{records} per second", f"{1 / worst:,.0f} to {1 / best:,.0f}", f"{found.rate:,.0f}"),
            ("time of a step", f"{_milli(best * size)} to {_milli(worst * size)}", _milli(size / found.rate)),
            (
                "time of all steps",
                f"{seconds_text(best * size * steps)} to {seconds_text(worst * size * steps)}",
                seconds_text(found.parts[0].seconds) if found.parts else "–",
            ),
        ]
        if found.rate > 1.05 / best:
            note += FASTER
    return Table("Plan and what happened", ("", "plan", "happened"), tuple(rows), note)


def _bounds(folder: RunFolder, limits_of: LimitsOf | None) -> tuple[tuple[int, Bounds] | None, str]:
    """How many devices of which limits a run had, and what is to be said of that; None: nothing is known."""
    kept = folder.read_json("environment.json") or {}
    count, _, kind = str(kept.get("devices", "")).partition(" x ")
    if limits_of is None or not count.isdecimal() or " + " in kind:
        return None, ""
    what = "a bound from FLOPs and memory traffic of the products alone, not a forecast"
    if kind == "cpu":
        # Virtual devices share the cores, whose limit is measured as one.
        if kept.get("platform") != platform.platform():
            return None, "The run was on another machine's CPU; of that nothing is known here."
        return (1, limits_of("cpu")), f"The plan of speed is {what}; this CPU was measured when the report was written."
    chip = chip_of(kind)
    if chip is None:
        return None, f"Nothing is documented here of {kind}, so there is no plan of its speed."
    return (int(count), limits_of(chip.name.partition(" ")[2].lower())), f"The plan of speed is {what}, of {kind}."


def _milli(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g}\u00a0ms" if seconds < 1 else f"{seconds:,.3g}\u00a0s"


def runs_report(paths: Sequence[str | Path]) -> RunsReport:
    """What the report of several runs shows: curves laid over each other, numbers, and where settings differ.

    Each run is tested against the first, record by record, where both are finished and have the same held-out records
    and classes; where not, the table says so.

    Raises:
      UserError: no run, the same run twice, or one whose data is gone.
    """
    folders = [RunFolder(path) for path in paths]
    recipes = [folder.recipe() for folder in folders]
    if len({folder.path.resolve() for folder in folders}) < len(folders):
        raise UserError("pcls report: a run is named twice; name each run once")
    names = _names(folders)
    evaluations = [_evaluated(folder)[0] for folder in folders]
    kinds = [records_of(folder) for folder in folders]
    tables = [
        numbers_table(names, evaluations),
        paired_table(names, folders),
        classes_table(names, evaluations),
        settings_table(names, recipes),
    ]
    return RunsReport(
        title=" · ".join(names),
        subtitle=f"{len(paths)} runs side by side",
        histories={name: read_metrics(folder.path) for name, folder in zip(names, folders, strict=True)},
        tables=tables,
        records="sequences" if set(kinds) == {"sequences"} else "images",
    )


def records_of(folder: RunFolder) -> str:
    """What a run was trained on."""
    preprocessing = saved_preprocessing(folder)
    return "images" if preprocessing is None else preprocessing.records


def _names(folders: Sequence[RunFolder]) -> list[str]:
    """The folders' names; whole paths where two have the same."""
    names = [folder.path.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder.path) for folder in folders]


def numbers_table(names: Sequence[str], evaluations: Sequence[Evaluation]) -> Table:
    """Each run's numbers, with 95 % intervals where those are known."""
    rows = []
    for name, own in zip(names, evaluations, strict=True):
        numbers, quality = own.summary(), own.quality
        top1 = wilson(round(own.top1 * own.n), own.n)
        rows.append(
            (
                name,
                f"{own.n:,}",
                f"{len(own.class_names):,}",
                f"{percent(own.top1)} ({interval_text(top1)})",
                percent(own.top5),
                f"{percent(numbers['balanced'])} ({interval_text(balanced_interval(own.confusion))})",
                percent(numbers["macro_f1"]),
                f"{own.loss:.4f}",
                "–" if quality is None else f"{quality.ece:.4f}",
            )
        )
    columns = ("run", "n", "classes", "top-1 (95 %)", "top-5", "balanced (95 %)", "macro F1", "loss", "ECE")
    return Table("Numbers", columns, tuple(rows), "Of each run's own held-out records.")


def paired_table(names: Sequence[str], folders: Sequence[RunFolder]) -> Table:
    """Each run against the first on the same records; or why that cannot be."""
    first = folders[0].path
    rows = []
    for name, folder in zip(names[1:], folders[1:], strict=True):
        try:
            found = compare_runs(first, folder.path)
        except UserError as error:
            rows.append((name, "–", "–", "–", "–", "–", str(error)))
            continue
        low, high = found.interval
        rows.append(
            (
                name,
                f"{found.n:,}",
                f"{found.only_first:,}",
                f"{found.only_second:,}",
                f"{100 * found.difference:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
                f"{found.p:.3g}",
                "may be chance" if found.p >= 0.05 else "better" if found.difference > 0 else "worse",
            )
        )
    columns = ("run", "n", "only first right", "only it right", "difference in points (95 %)", "p", "verdict")
    note = "Record by record; p: McNemar’s exact test; interval: bootstrap in pairs. Several runs are several tests."
    return Table(f"Against {names[0]}", columns, tuple(rows), note)


def classes_table(names: Sequence[str], evaluations: Sequence[Evaluation]) -> Table:
    """The classes whose recalls lie farthest apart, of those that all runs have by name and have records of."""
    recalls = [
        {row.name: row.recall for row in per_class(own.confusion, own.class_names) if row.support}
        for own in evaluations
    ]
    common = [name for name in recalls[0] if all(name in own for own in recalls)]
    spread = {name: max(own[name] for own in recalls) - min(own[name] for own in recalls) for name in common}
    uneven = sorted((name for name in common if spread[name] > 0), key=lambda name: -spread[name])[:MAX_PAIRS]
    rows = tuple((name, *(percent(own[name], 1) for own in recalls)) for name in uneven)
    others = len({name for own in recalls for name in own}) - len(common)
    note = f"Of {len(common):,} classes that all runs have" + (f"; {others:,} are left out." if others else ".")
    return Table("Classes with the most different recall", ("class", *names), rows, note)


def settings_table(names: Sequence[str], recipes: Sequence[Recipe]) -> Table:
    """The settings that are not the same in all runs."""
    flat = [flat_recipe(recipe) for recipe in recipes]
    keys = [key for key in dict.fromkeys(key for own in flat for key in own) if key != "run.dir"]
    rows = [
        (key, *(value_text(own.get(key, "–")) for own in flat))
        for key in keys
        if len({value_text(own.get(key, "–")) for own in flat}) > 1
    ]
    note = "" if rows else "Every setting is the same in all runs."
    return Table("Settings that differ", ("setting", *names), tuple(rows), note)
