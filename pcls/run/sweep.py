"""Sweeps: any number of processes, on any machines, share a folder and train its trials, each once.

The folder is the only meeting point. It holds `sweep.json`, which says what is tried, and for each trial a run folder
and, while a process trains it, a lock. A process that finds nothing to do waits for the others: where one of them dies,
another takes its trial over and goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from pcls.config import Recipe
from pcls.config.load import flat_recipe, with_overrides
from pcls.errors import PclsError, RestartRequested, UserError, first_line
from pcls.models.registry import model_entry
from pcls.observe.table import aligned
from pcls.run.evaluate import EVALUATION
from pcls.run.folder import RunFolder
from pcls.run.lock import Holder, Seen, keep, take
from pcls.run.train import train_or_resume
from pcls.run.trials import (
    Setting,
    Space,
    Strategy,
    Trial,
    base_recipe,
    command,
    overrides_of,
    promoted,
    read_space,
    rung_shares,
    settings,
    trials_of,
)
from pcls.run.weights import Start

PLAN, FAILED, LOG = "sweep.json", "failed.json", "log.txt"
# What a run may be judged by, and whether more is better.
METRICS = {"top1": True, "top5": True, "balanced": True, "macro_f1": True, "loss": False, "map": True, "micro_f1": True}
# Those that say nothing where a record has one label, and where it may have several.
OF_LABEL_SETS, OF_ONE_LABEL = ("map", "micro_f1"), ("top1", "top5", "balanced")
POLL_SECONDS = 1.0

Say = Callable[[str], None]
StartOf = Callable[[Recipe], Start | None]


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
      value: of the metric; None: it failed.
      error: why it failed, in one line.
    """

    value: float | None
    error: str = ""


@dataclass(frozen=True)
class Result:
    """A setting and how it did.

    Attributes:
      setting: keys and values.
      duration: that its runs trained; with halving, of the last rung that it reached.
      values: of the metric, seed by seed, of the runs that finished.
      runs: their folders.
      command: what trains it alone.
    """

    setting: Setting
    duration: str
    values: tuple[float, ...]
    runs: tuple[Path, ...]
    command: str

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Over the seeds, of a sample; None where there is one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
      metric: that it went by.
      results: settings of which all runs finished, the best first; with halving, later rungs first.
      failed: folder and reason of the runs that did not.
    """

    metric: str
    results: tuple[Result, ...]
    failed: tuple[tuple[Path, str], ...]


def sweep(
    recipe: str,
    arguments: Sequence[str],
    folder: Path,
    *,
    strategy: Strategy = "random",
    trials: int = 0,
    seed: int = 0,
    metric: str = "top1",
    start_of: StartOf,
    say: Say,
) -> Sweep:
    """Trains what nobody else trains, until all trials of the sweep are done.

    Args:
      recipe: a file or a name.
      arguments: as `read_space` takes them.
      folder: of the sweep; processes that are given the same one share the work.
      strategy, trials, seed: as `settings` takes them.
      metric: a key of `METRICS`.
      start_of: the pretrained weights that a recipe names.
      say: hears of every trial that ends here.

    Raises:
      UserError: before anything starts: what cannot be read or trained, or a folder that holds another sweep.
      RestartRequested: stopped on request; the same command goes on.
    """
    if metric not in METRICS:
        raise UserError(f"--metric {metric!r}: one of {', '.join(METRICS)} is needed")
    space = read_space(arguments)
    if strategy == "halving" and "train.duration" in space.swept:
        raise UserError(
            "train.duration is set by --strategy halving; give the longest, or sweep it by another strategy"
        )
    base, chosen = base_recipe(recipe, space), settings(space, strategy, trials, seed)
    if metric in (OF_ONE_LABEL if base.data.holds_label_sets else OF_LABEL_SETS):
        other = "map" if base.data.holds_label_sets else "top1"
        raise UserError(f"--metric {metric}: is not known with data.labels={base.data.labels}; write --metric {other}")
    shares = rung_shares(len(chosen), strategy)
    for share in shares:
        for trial in trials_of(base, space, enumerate(chosen), share=share):
            model_entry(trial.recipe.model.name)
    _agree_on_plan(folder, base, space, chosen, {"strategy": strategy, "metric": metric})
    ranked = list(range(len(chosen)))
    found: dict[int, Result] = {}
    failed: list[tuple[Path, str]] = []
    for rung, share in enumerate(shares):
        of_rung = trials_of(base, space, [(number, chosen[number]) for number in sorted(ranked)], rung, share)
        outcomes = _finish(of_rung, folder, metric, start_of, say)
        failed += [(folder / trial.name, out.error) for trial, out in outcomes if out.value is None]
        done = {
            number: result
            for number in ranked
            if (result := _result(recipe, space, chosen[number], number, outcomes, folder)) is not None
        }
        # Of equal ones the first that was drawn.
        ranked = sorted(done, key=lambda number: (_badness(metric, done[number].mean), number))
        # Those that went on stand before those that did not, and so did their results.
        found = {number: done[number] for number in ranked} | {n: r for n, r in found.items() if n not in done}
        ranked = ranked[: promoted(len(of_rung) // max(1, len(space.seeds)))]
    return Sweep(metric, tuple(found.values()), tuple(failed))


def _agree_on_plan(folder: Path, base: Recipe, space: Space, chosen: Sequence[Setting], others: dict[str, str]) -> None:
    """Writes what is tried, once; UserError where the folder holds something else."""
    plan = others | {
        "recipe": flat_recipe(with_overrides(base, {"run.dir": ""})),
        "seeds": list(space.seeds),
        "settings": [overrides_of(setting) for setting in chosen],
    }
    file = folder / PLAN
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            # Whole or not at all, whoever is first: a link fails where another process was.
            own = folder / f"{PLAN}.{socket.gethostname()}.{os.getpid()}"
            own.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
            with contextlib.suppress(FileExistsError):
                os.link(own, file)
            own.unlink()
        kept = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--folder {folder}: cannot be used ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{file}: is damaged ({error}); name another folder") from error
    differing = [
        key for key in plan if not isinstance(kept, dict) or kept.get(key) != json.loads(json.dumps(plan[key]))
    ]
    if differing:
        raise UserError(
            f"{folder}: holds another sweep, whose {', '.join(differing)} differ; name another folder by --folder, or "
            "repeat its command"
        )


def _finish(
    trials: Sequence[Trial], folder: Path, metric: str, start_of: StartOf, say: Say
) -> list[tuple[Trial, Outcome]]:
    """Every trial's outcome, once all have one."""
    told, seen = "", Seen()
    while True:
        busy = None
        for number, trial in enumerate(trials, 1):
            if _outcome(folder / trial.name, metric) is not None:
                continue
            begin = time.perf_counter()
            holder = _train_alone(trial, folder, metric, start_of, seen)
            if holder is not None:
                busy = holder
                continue
            out = _outcome(folder / trial.name, metric)
            assert out is not None
            seconds = time.perf_counter() - begin
            say(f"{number}/{len(trials)} {_in_words(trial.name, metric, out)}  {seconds:.0f} s")
        outcomes = [(trial, out) for trial in trials if (out := _outcome(folder / trial.name, metric)) is not None]
        if len(outcomes) == len(trials):
            return outcomes
        if busy is None:
            continue
        waiting = f"waiting for others, such as process {busy.pid} on {busy.host}"
        if waiting != told:
            say(waiting)
            told = waiting
        time.sleep(POLL_SECONDS)


def _in_words(name: str, metric: str, out: Outcome) -> str:
    return f"{name}  failed: {out.error}" if out.value is None else f"{name}  {metric} {out.value:.4f}"


def _train_alone(trial: Trial, folder: Path, metric: str, start_of: StartOf, seen: Seen) -> Holder | None:
    """Trains a trial unless another process does, or may; returns that one."""
    lock = folder / f"{trial.name}.lock"
    holder = take(lock, seen)
    if holder is not None:
        return holder
    with keep(lock):
        # It may have been finished between the look and the lock.
        if _outcome(folder / trial.name, metric) is None:
            _train(trial, folder / trial.name, start_of)
    return None


def _train(trial: Trial, path: Path, start_of: StartOf) -> None:
    """Trains or goes on; what a run says goes to its log. A failure is noted in its folder."""
    path.mkdir(parents=True, exist_ok=True)
    try:
        with (path / LOG).open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
            train_or_resume(with_overrides(trial.recipe, {"run.dir": str(path)}), start_of)
    except RestartRequested as error:
        raise RestartRequested(f"stopped in trial {path}; the same command goes on") from error
    except (PclsError, jax.errors.JaxRuntimeError) as error:
        RunFolder(path).write_json(FAILED, {"error": first_line(error)})


def _outcome(path: Path, metric: str) -> Outcome | None:
    """What became of the trial in this folder; None: nothing yet."""
    run = RunFolder(path)
    try:
        failure = run.read_json(FAILED)
        if failure is not None:
            return Outcome(None, str(failure["error"]))
        if not run.exists() or run.status().get("status") != "finished":
            return None
        value = float(run.read_json(EVALUATION)[metric])
    except UserError as error:
        return Outcome(None, str(error))
    except (AttributeError, KeyError, TypeError, ValueError):
        return Outcome(None, f"{path / EVALUATION}: does not say {metric}")
    return Outcome(value) if math.isfinite(value) else Outcome(None, f"its {metric} is not finite")


def _result(
    recipe: str,
    space: Space,
    setting: Setting,
    number: int,
    outcomes: Sequence[tuple[Trial, Outcome]],
    folder: Path,
) -> Result | None:
    """The setting with its runs; None where one of them failed: others would be judged by fewer seeds."""
    own = [(trial, out) for trial, out in outcomes if trial.number == number]
    values = tuple(out.value for _, out in own if out.value is not None)
    if len(values) < len(own):
        return None
    runs = tuple(folder / trial.name for trial, _ in own)
    duration = str(own[0][0].recipe.train.duration)
    return Result(setting, duration, values, runs, command(recipe, space, setting))


def _badness(metric: str, value: float) -> float:
    return -value if METRICS[metric] else value


def sweep_json(found: Sweep) -> dict[str, Any]:
    """The sweep as JSON's own types."""
    return {
        "metric": found.metric,
        "best": found.results[0].command if found.results else None,
        "settings": [
            {
                "values": dict(result.setting),
                "duration": result.duration,
                "mean": result.mean,
                "deviation": result.deviation,
                "runs": {str(run): value for run, value in zip(result.runs, result.values, strict=True)},
                "command": result.command,
            }
            for result in found.results
        ],
        "failed": [{"run": str(path), "error": error} for path, error in found.failed],
    }


def sweep_text(found: Sweep) -> str:
    """A table, the best first, what failed, and the command of the best."""
    lines = []
    if found.results:
        keys = [key for key, _ in found.results[0].setting]
        halved = "train.duration" not in keys and len({result.duration for result in found.results}) > 1
        head = [*keys, *(["train.duration"] if halved else []), found.metric, "deviation", "runs"]
        rows = [_row(result, halved) for result in found.results]
        lines += aligned([head, *rows], left=None)
    for path, error in found.failed:
        lines.append(f"failed: {path}: {error} (delete {path / FAILED} to try it again)")
    lines.append(f"best: {found.results[0].command}" if found.results else "no setting finished")
    return "\n".join(lines)


def _row(result: Result, halved: bool) -> list[str]:
    deviation = "-" if result.deviation is None else f"{result.deviation:.4f}"
    values = [value for _, value in result.setting]
    return [*values, *([result.duration] if halved else []), f"{result.mean:.4f}", deviation, str(len(result.values))]
