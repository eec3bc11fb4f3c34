"""The report of a run whose records carry several labels: tables where one label a record has a confusion."""

from __future__ import annotations

import numpy as np

from pcls.data.dataset import Dataset
from pcls.evaluation.charts import percent
from pcls.evaluation.label_sets import LabelEvaluation, LabelScores, Rates, label_evaluation
from pcls.evaluation.report import RunReport, Table
from pcls.evaluation.sections.records import MAX_LOSSES
from pcls.evaluation.thresholds import probabilities
from pcls.observe.sinks import read_metrics
from pcls.run.evaluate import PREDICTIONS, evaluate_run, open_run_data, train_counts_of
from pcls.run.facts import facts_of, rollback_tables
from pcls.run.folder import RunFolder

NOT_KNOWN = "–"


def label_report(folder: RunFolder) -> RunReport:
    """What the report of a run with several labels a record shows; evaluates first where it has not been evaluated.

    Raises:
      UserError: the run's data is gone.
    """
    recipe = folder.recipe()
    dataset = open_run_data(folder, recipe)
    scores = read_scores(folder)
    evaluation = label_evaluation(
        scores,
        size=len(dataset.evaluation),
        class_names=dataset.class_names,
        train_counts=train_counts_of(dataset),
        groups=dataset.evaluation.groups,
    )
    status = {"status": "unfinished", "step": 0} | folder.status()
    return RunReport(
        title=folder.path.resolve().name,
        subtitle=f"{recipe.model.name} on {recipe.data.source}, {status['status']} at step {status['step']:,}",
        evaluation=None,
        history=read_metrics(folder.path),
        mistakes=[],
        facts=facts_of(folder, recipe, dataset),
        tables=[
            rates_table(evaluation),
            *rollback_tables(folder),
            labels_table(evaluation),
            losses_table(evaluation, scores, dataset),
        ],
        records=dataset.preprocessing.records,
    )


def read_scores(folder: RunFolder) -> LabelScores:
    """The kept scores of a run's last evaluation; evaluates where there are none."""
    path = folder.path / PREDICTIONS
    if not path.is_file():
        evaluate_run(folder.path)
    with np.load(path) as file:
        return LabelScores(**{name: file[name] for name in file.files})


def rates_table(evaluation: LabelEvaluation) -> Table:
    """How good the given labels are, at thresholds of 0.5 and at the chosen ones."""

    def row(name: str, rates: Rates) -> tuple[str, ...]:
        shares = (rates.micro_f1, rates.macro_f1, rates.micro_precision, rates.micro_recall, rates.subset_accuracy)
        return (name, f"{rates.n:,}", *(percent(share) for share in shares), percent(rates.hamming))

    columns = (
        "thresholds", "n", "micro F1", "macro F1", "micro precision", "micro recall", "all labels right", "labels wrong"
    )  # fmt: skip
    note = (
        f"mAP {percent(evaluation.score)} over {evaluation.n:,} records, {evaluation.undecodable:,} more could not be "
        f"decoded; loss {evaluation.loss:.4f}. The chosen thresholds are measured on the half of the records that they "
        "were not chosen on."
    )
    rows = (row("0.5 for all", evaluation.even), row("chosen for each", evaluation.chosen))
    return Table("Results", columns, rows, " ".join([note, *(f"{notice}." for notice in evaluation.notices)]))


def labels_table(evaluation: LabelEvaluation) -> Table:
    """Every label at its threshold, the weakest average precision first; those that nobody carries last."""
    trained = evaluation.train_counts or (None,) * len(evaluation.rows)
    found = zip(evaluation.rows, evaluation.precisions, evaluation.support, trained, strict=True)
    rows = [
        (
            row.name,
            NOT_KNOWN if count is None else f"{count:,}",
            f"{held:,}",
            NOT_KNOWN if average is None else percent(average),
            f"{row.threshold:.2f}",
            percent(row.precision),
            percent(row.recall),
            percent(row.f1),
        )
        for row, average, held, count in sorted(found, key=lambda each: 2.0 if each[1] is None else each[1])
    ]
    columns = ("label", "trained", "held out", "average precision", "threshold", "precision", "recall", "F1")
    return Table("Labels", columns, tuple(rows), "Precision, recall and F1 are those at the threshold.")


def losses_table(evaluation: LabelEvaluation, scores: LabelScores, dataset: Dataset) -> Table:
    """The records that the model is most wrong about: wrong labels in the data are among them."""
    worst = np.argsort(-np.nan_to_num(scores.losses, nan=np.inf), kind="stable")[:MAX_LOSSES]
    thresholds = np.array(evaluation.thresholds)

    def names(row: np.ndarray) -> str:
        return ", ".join(name for name, has in zip(dataset.class_names, row, strict=True) if has) or "none"

    rows = [
        (
            dataset.evaluation.name(int(scores.records[place])),
            f"{scores.losses[place]:.4f}",
            names(scores.targets[place] > 0),
            names(probabilities(scores.logits[place]) >= thresholds),
        )
        for place in worst.tolist()
    ]
    return Table("Top losses", ("record", "loss", "carries", "given"), tuple(rows))
