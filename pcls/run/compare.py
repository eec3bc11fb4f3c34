"""Two finished runs on the same held-out records."""

from __future__ import annotations

from pathlib import Path

from pcls.data.dataset import check_one_label
from pcls.errors import UserError
from pcls.evaluation.count import Predictions
from pcls.evaluation.paired import Comparison, compare
from pcls.run.evaluate import evaluate_run, open_run_data, read_evaluation
from pcls.run.folder import RunFolder


def compare_runs(first: str | Path, second: str | Path) -> Comparison:
    """Compares the accuracies of two finished runs, record by record; evaluates those that have not been.

    Raises:
      UserError: no run, one that is not finished, or held-out records or classes that are not the same.
    """
    (one, names, classes), (two, others, other_classes) = (_answers(RunFolder(path)) for path in (first, second))
    if classes != other_classes:
        raise UserError(
            f"{first} and {second} have other classes ({len(classes):,} and {len(other_classes):,}, "
            f"{_difference(classes, other_classes)}); compare runs on the same data"
        )
    if names != others or one.labels.tolist() != two.labels.tolist():
        raise UserError(
            f"{first} and {second} were not evaluated on the same records ({len(names):,} and {len(others):,}, "
            f"{_difference(names, others)}); compare runs with the same data.* and data.split_seed"
        )
    if not names:
        raise UserError(f"{first}: no held-out record could be evaluated; there is nothing to compare")
    return compare(one.labels, one.predicted, two.predicted, classes)


def _answers(folder: RunFolder) -> tuple[Predictions, list[str], tuple[str, ...]]:
    """A run's predictions, the names of their records, and its classes."""
    recipe = folder.recipe()
    check_one_label(recipe.data, "pcls compare")
    if folder.status().get("status") != "finished":
        raise UserError(f"{folder.path}: the run is not finished; go on with: pcls resume {folder.path}")
    if read_evaluation(folder) is None:
        evaluate_run(folder.path)
    kept = read_evaluation(folder)
    assert kept is not None
    evaluation, predictions = kept
    held = open_run_data(folder, recipe).evaluation
    if len(held) < evaluation.n + evaluation.undecodable:
        raise UserError(
            f"{folder.path}: its data has fewer records than when it was evaluated; pcls eval {folder.path}"
        )
    return predictions, [held.name(record) for record in predictions.records.tolist()], evaluation.class_names


def _difference(first: list[str] | tuple[str, ...], second: list[str] | tuple[str, ...]) -> str:
    """The first place where two lists differ, in words."""
    pairs = zip(first, second, strict=False)
    one, other = next((pair for pair in pairs if pair[0] != pair[1]), ("the last of them", "one more"))
    return f"{one} against {other}" if one != other else "with other labels"
