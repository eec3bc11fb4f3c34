"""The demonstration: does pretraining help with 25 labelled images? On real digits, for a CNN and a recurrent net."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from pcls.config import load_recipe
from pcls.errors import UserError
from pcls.evaluation.report import Table, write
from pcls.observe.table import aligned
from pcls.run.report import run_report
from pcls.run.train import train_recipe
from pcls.transfer.finetune import fine_tuning
from pcls.transfer.start import start_from

SEEDS = (0, 1, 2)
PRETRAINING_CLASSES, NEW_CLASSES = [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]
LABELS_A_CLASS = 5
# How both arms learn the 25 images; the recurrent network needs longer at a higher rate.
FEW_SHOT: dict[str, dict[str, Any]] = {
    "digits_cnn": {"train.duration": "400 steps", "optimizer.lr": 2e-3, "augment.shift": 3},
    "digits_rnn": {"train.duration": "600 steps", "optimizer.lr": 5e-3, "augment.shift": 2},
}


@dataclass(frozen=True)
class Trial:
    """One seed of one model: top-1 of each arm, 0 to 1."""

    pretrained: float
    finetuned: float
    scratch: float


def run_demo(folder: Path | None = None) -> Path:
    """Runs the demonstration and prints its table.

    Args:
      folder: for the runs and the report, must be new; None: `runs/demo`, or the first of `runs/demo-2` ... that is.

    Returns:
      The report's path.
    """
    folder = folder or next(path for path in _default_folders() if not path.exists())
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; remove it or name another: pcls demo --folder FOLDER")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"Pretrain on the digits 0-4, then learn 5-9 from {LABELS_A_CLASS} images a class, {len(SEEDS)} seeds.")
    print(f"What each run says goes to {folder / 'log.txt'}.\n")
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        trials = {recipe: [_told(recipe, seed, folder, log) for seed in SEEDS] for recipe in FEW_SHOT}
    example = folder / "digits_cnn-0-finetuned"
    report = run_report(example)
    assert report.evaluation is not None
    table = summary(trials, counted=report.evaluation.n)
    print(f"\n{as_text(table)}\n")
    page = write(
        replace(
            report, title="pcls demo", subtitle=f"The table compares; all else is the run {example}", tables=[table]
        ),
        folder / "report.html",
    )
    print(f"report: {page}\nnext:   pcls report {example}\n        pcls finetune FOLDER --model {folder}/digits_cnn-0")
    return page


def _default_folders() -> Iterator[Path]:
    yield Path("runs/demo")
    yield from (Path(f"runs/demo-{number}") for number in itertools.count(2))


def _told(recipe: str, seed: int, folder: Path, log: TextIO) -> Trial:
    start = time.perf_counter()
    trial = run_trial(recipe, seed, folder, log)
    print(
        f"{recipe}, seed {seed}: pretrained {trial.pretrained:.1%}, fine-tuned {trial.finetuned:.1%}, "
        f"from scratch {trial.scratch:.1%}  ({time.perf_counter() - start:.0f} s)",
        flush=True,
    )
    return trial


def run_trial(recipe: str, seed: int, folder: Path, log: TextIO) -> Trial:
    """Pretrains, fine-tunes, and trains from scratch by the same recipe on the same 25 images."""
    base = folder / f"{recipe}-{seed}"
    pretraining = {
        "run.dir": str(base),
        "data.classes": PRETRAINING_CLASSES,
        "train.seed": seed,
        "evaluate.every": "1000 epochs",
        "checkpoint.every": "1000 epochs",
    }
    few = {
        "data.classes": NEW_CLASSES,
        "data.per_class": LABELS_A_CLASS,
        "data.split_seed": seed,
        "data.image_size": 28,
        "train.seed": seed,
        **FEW_SHOT[recipe],
    }
    pretrained = train_recipe(load_recipe(recipe, pretraining), stream=log)
    finetuning = fine_tuning("digits", base, {"run.dir": f"{base}-finetuned", **few}, recipe="full").recipe
    finetuned = train_recipe(finetuning, start_from(base, finetuning), stream=log)
    from_scratch = fine_tuning("digits", base, {"run.dir": f"{base}-scratch", **few}, recipe="scratch").recipe
    scratch = train_recipe(from_scratch, stream=log)
    return Trial(pretrained.evaluation.score, finetuned.evaluation.score, scratch.evaluation.score)


def summary(trials: dict[str, list[Trial]], *, counted: int) -> Table:
    """Mean and deviation of each arm over the seeds, in per cent, and the mean gain of the pairs in points."""
    rows = []
    for recipe, of_recipe in trials.items():
        gains = [trial.finetuned - trial.scratch for trial in of_recipe]
        arms = [[trial.finetuned for trial in of_recipe], [trial.scratch for trial in of_recipe]]
        rows.append(
            (recipe, *(f"{_mean_and_deviation(arm)} %" for arm in arms), f"{_mean_and_deviation(gains)} points")
        )
    return Table(
        title=f"Digits 5-9 from {LABELS_A_CLASS} labelled images a class",
        columns=("recipe", "fine-tuned", "from scratch", "gain"),
        rows=tuple(rows),
        note=f"Top-1 on the other {counted:,} images of 5-9; mean ± deviation of {len(SEEDS)} seeds. Each seed draws "
        "its own 25 images and weights; both arms share images, recipe and length.",
    )


def as_text(table: Table) -> str:
    """The table for a terminal."""
    return "\n".join([table.title, *aligned([table.columns, *table.rows], left=None), table.note])


def _mean_and_deviation(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"
