"""Metric rows to metrics.jsonl, metrics.csv, TensorBoard, and Weights & Biases where asked for."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcls.errors import UserError

JSONL, CSV, TENSORBOARD, WANDB_ID = "metrics.jsonl", "metrics.csv", "tensorboard", "wandb_id"
COLUMNS = (
    "kind",
    "step",
    "epoch",
    "loss",
    "accuracy",
    "top1",
    "top5",
    "map",
    "micro_f1",
    "n",
    "undecodable",
    "lr",
    "images_per_second",
    "mfu",
    "data_wait",
    "host_seconds",
    "skipped",
    "seconds",
    "goodput",
    "lost_to_compile",
    "lost_to_idle",
    "lost_to_data",
    "lost_to_checkpoint",
    "lost_to_evaluation",
)


class MetricFiles:
    """Appends rows to the run's metric files, each row flushed (TensorBoard's every second): a killed run keeps them.

    Args:
      folder: of the run.
      start: the step that training starts from; rows beyond it, which a killed run had written after its last
        checkpoint, are dropped, because these steps are done again.
    """

    def __init__(self, folder: Path, *, start: int):
        rows = [row for row in read_metrics(folder) if row["step"] <= start]
        self._jsonl = (folder / JSONL).open("w", encoding="utf-8")
        self._csv_file = (folder / CSV).open("w", encoding="utf-8", newline="")
        self._csv = csv.DictWriter(self._csv_file, COLUMNS, extrasaction="ignore")
        self._csv.writeheader()
        for row in rows:
            self._append(row)
        self._tensorboard_folder = folder / TENSORBOARD
        self._tensorboard: Any = None
        self._start = start

    def write(self, row: Mapping[str, Any]) -> None:
        """Writes one row; `kind` (train or eval) and `step` are needed."""
        self._append(row)
        writer = self._tensorboard_writer()
        for name, value in row.items():
            if name not in ("kind", "step") and isinstance(value, int | float):
                writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def close(self) -> None:
        """Closes the files."""
        self._jsonl.close()
        self._csv_file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _append(self, row: Mapping[str, Any]) -> None:
        # JSON has no NaN.
        finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
        self._jsonl.write(json.dumps(finite, allow_nan=False) + "\n")
        self._jsonl.flush()
        self._csv.writerow(finite)
        self._csv_file.flush()

    def _tensorboard_writer(self) -> Any:
        # Opened with the first row: the import is slow, and a run that fails at once leaves no empty event file.
        if self._tensorboard is None:
            from tensorboardX import SummaryWriter

            # Its thread brings rows to the disk every second; its `flush` would make the loop wait for the disk
            # instead, and not for the rows. The suffix: a resume within the second must not overwrite the file.
            self._tensorboard = SummaryWriter(
                str(self._tensorboard_folder),
                purge_step=self._start + 1,
                flush_secs=1,
                filename_suffix=f".from{self._start}",
            )
        return self._tensorboard


class Wandb:
    """Sends rows to Weights & Biases; its key, server and mode come from its own settings, never from the recipe.

    Args:
      project: its name there.
      folder: of the run; its name is the run's. A file in it keeps the run's id, so that a resumed run goes on there.
      config: the recipe, flat.

    Raises:
      UserError: the package is missing, or will not start.
    """

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]):
        require_wandb()
        import wandb

        try:
            self._run = wandb.init(
                project=project,
                id=_wandb_id(folder),
                name=folder.name,
                dir=str(folder),
                config=dict(config),
                resume="allow",
            )
        except (wandb.errors.Error, OSError) as error:
            raise UserError(f"observe.wandb: {error}; leave it empty, or set WANDB_MODE=offline") from error

    def write(self, row: Mapping[str, Any]) -> None:
        """Sends one row; `kind` and `step` are needed."""
        values = {f"{row['kind']}/{name}": value for name, value in row.items() if name not in ("kind", "step")}
        self._run.log(values, step=row["step"])

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()


def require_wandb() -> None:
    """UserError where the package is missing."""
    found = importlib.util.find_spec("wandb")
    # Any folder of that name, such as the one that wandb itself writes its runs to, is found as a package without file.
    if found is None or found.origin is None:
        raise UserError("observe.wandb needs the package wandb: pip install 'pcls[wandb]'")


def _wandb_id(folder: Path) -> str:
    """The run's id there, drawn once: folders of the same name elsewhere are other runs."""
    path = folder / WANDB_ID
    if not path.is_file():
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a last line that a kill cut short is left out."""
    path = folder / JSONL
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
