"""`pcls compress`: a finished run's model made smaller, measured before and after, refused where it loses too much."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import jax

from pcls.compression.measured import Compressed, Variant, compressed_json, points_lost
from pcls.compression.narrow import goal_of
from pcls.compression.prune import Score
from pcls.compression.recovery import Recovery, usual_length
from pcls.compression.targets import Target, parse_target
from pcls.compression.text import variants_text
from pcls.compression.tradeoff import tradeoff_svg
from pcls.compression.work import Work
from pcls.config import Recipe
from pcls.config.duration import Duration
from pcls.config.load import with_overrides
from pcls.data.dataset import check_one_label
from pcls.errors import UserError
from pcls.nn.quantized import Bits, quantizer
from pcls.parallel.tuning import tune_process
from pcls.pretrained.bundle import CARD, FACTS, WEIGHTS, Bundle, load_bundle, save_bundle
from pcls.run.evaluate import open_run_data
from pcls.run.folder import RunFolder
from pcls.run.setup import setup_of
from pcls.run.weights import Start

# What was measured, beside the bundle's own files.
FACTS_OF_COMPRESSION, PICTURE = "compression.json", "tradeoff.svg"
RECORDS, STEPS = 256, 3
Say = Callable[[str], None]


def compress_run(
    path: str | Path,
    *,
    target: str = "int8",
    weights_only: bool = False,
    bits: int = 8,
    records: int = RECORDS,
    max_loss: float = 1.0,
    steps: int = STEPS,
    finetune: str = "",
    score: str = "l2",
    out: str | Path = "",
    start_of: Callable[[Recipe], Start | None],
    say: Say,
) -> Compressed:
    """Writes a smaller bundle of a finished run, and leaves the run's own as it is.

    Args:
      path: the run's folder.
      target: `int8`: integers of 8 bits for weights and for the inputs of convolutions and dense layers. `flops=0.5`:
        channels are removed until that share of the FLOPs is left. `size=1MB`: of the weight file, by integer weights
        and, where these are not enough, by removing channels. `latency=2ms`: of a prediction of one image on this
        machine, by removing channels.
      weights_only: inputs stay as they are; with `int8`.
      bits: of integer weights, 8 or 4; with `int8` and `size`.
      records: with `int8`: training records that the ranges of inputs are taken from, and held-out ones that each layer
        by itself is tried on.
      max_loss: points of top-1 accuracy on the run's held-out records that it may cost.
      steps: in which channels are removed; after each the network is trained a little.
      finetune: how long each time, as `2 epochs`; empty: a fifth of the run's length.
      score: which channels go, as `prune` says.
      out: folder of the new bundle; empty: beside the run's own.
      start_of: makes the weights that a recipe names.
      say: hears of each step, and what was measured before anything is refused.

    Raises:
      UserError: no such target, a run that is not finished, a network that cannot be pruned, a folder that holds
        something else, or more than `max_loss` is lost; nothing is written then.
    """
    wanted = parse_target(target)
    checked = _checked_bits(bits, records, max_loss)
    length, checked_score = _checked_pruning(steps, finetune, score)
    _check_effects(wanted, weights_only, bits, records, steps, finetune, score)
    folder, recipe, bundle = _finished(path)
    name = f"int{bits}{'_weights' if weights_only else ''}" if wanted.kind == "int8" else wanted.folder_name
    target_folder = _free(Path(out) if out else folder.path / f"bundle_{name}")
    if wanted.kind in ("int8", "size"):
        quantizer()
    tune_process()
    if jax.process_count() > 1:
        raise UserError("pcls compress measures latencies, in one process; start it without --coordinator")
    # Before the data is opened: what cannot be is told at once.
    goal = goal_of(wanted, bundle, checked, checked_score, say)
    work = Work(bundle, setup_of(recipe, open_run_data(folder, recipe)), records, say)
    if wanted.kind == "int8":
        variants, last = work.quantized(checked, weights_only=weights_only)
    else:
        recovery = Recovery(recipe, folder.path, length or usual_length(recipe), start_of)
        variants, last = work.narrowed(goal, recovery, steps, checked_score, max_loss)
    if lost := _fault(wanted, variants, max_loss, checked, weights_only=weights_only):
        say(variants_text(variants))
        raise UserError(f"{path}: {lost}")
    layers = tuple(work.sensitivities(last.quantization)) if wanted.kind == "int8" and last.quantization else ()
    # Rates of the classes are those of the model as it was; and so is the recipe, not that of a short training between.
    done = f"--target {wanted.text}, from {variants[0].parameters:,} parameters"
    training = bundle.training and replace(bundle.training, classes=(), compressed=done)
    if target_folder.exists():
        say(f"{target_folder}: the compressed bundle that was there is replaced")
    metrics = variants[-1].evaluation.summary()
    save_bundle(replace(last, metrics=metrics, training=training), target_folder)
    found = Compressed(target_folder, tuple(variants), layers)
    (target_folder / FACTS_OF_COMPRESSION).write_text(json.dumps(compressed_json(found), indent=2) + "\n", "utf-8")
    (target_folder / PICTURE).write_text(tradeoff_svg(wanted.kind, variants), "utf-8")
    return found


def _finished(path: str | Path) -> tuple[RunFolder, Recipe, Bundle]:
    """A finished run; UserError where there is none that can be made smaller."""
    folder = RunFolder(path)
    if not folder.exists() and (folder.path / FACTS).is_file():
        raise UserError(f"{path}: is a bundle; compression needs the run's data too: name the run's folder")
    # As a prediction sees an image: by one view.
    recipe = with_overrides(folder.recipe(), {"evaluate.tta": "none"})
    check_one_label(recipe.data, "pcls compress")
    if folder.status().get("status") != "finished" or not folder.bundle.is_dir():
        raise UserError(f"{path}: has no bundle, which is written when a run is finished: pcls resume {path}")
    bundle = load_bundle(folder.bundle)
    if bundle.quantization is not None:
        raise UserError(f"{folder.bundle}: is quantized already ({bundle.quantization}); compress the run it came from")
    return folder, recipe, bundle


def _checked_bits(bits: int, records: int, max_loss: float) -> Bits:
    if records < 1:
        raise UserError(f"--records {records}: a number >= 1 is needed; ranges are taken from records")
    if not 0 <= max_loss <= 100:
        raise UserError(f"--max-loss {max_loss}: points of accuracy from 0 to 100 are needed")
    for allowed in get_args(Bits):
        if bits == allowed:
            return allowed
    raise UserError(f"--bits {bits}: allowed: {', '.join(map(str, get_args(Bits)))}")


def _checked_pruning(steps: int, finetune: str, score: str) -> tuple[Duration | None, Score]:
    """How long each training is, None: as is usual; and the score."""
    if not 1 <= steps <= 100:
        raise UserError(f"--steps {steps}: 1 to 100 are allowed")
    try:
        length = Duration.parse(finetune) if finetune else None
    except ValueError:
        length = Duration(0, "steps")
    if length is not None and not length.value:
        raise UserError(f"--finetune {finetune}: a length is needed, such as 2 epochs or 600 steps")
    for allowed in get_args(Score):
        if score == allowed:
            return length, allowed
    raise UserError(f"--score {score}: allowed: {', '.join(get_args(Score))}")


def _check_effects(
    wanted: Target, weights_only: bool, bits: int, records: int, steps: int, finetune: str, score: str
) -> None:
    """UserError for an option that would be without effect."""
    integers = wanted.kind in ("int8", "size")
    told = {
        "--weights-only": weights_only and wanted.kind != "int8",
        "--records": records != RECORDS and wanted.kind != "int8",
        "--bits": bits != 8 and not integers,
        "--steps": steps != STEPS and wanted.kind == "int8",
        "--finetune": bool(finetune) and wanted.kind == "int8",
        "--score": score != "l2" and wanted.kind == "int8",
    }
    for option, useless in told.items():
        if useless:
            raise UserError(f"{option} has no effect with --target {wanted.text}; leave it out")


def _free(folder: Path) -> Path:
    """The folder; UserError where it holds anything but an older compressed bundle, which is replaced."""
    ours = (folder / FACTS).is_file() and (
        (folder / FACTS_OF_COMPRESSION).is_file() or load_bundle(folder).quantization is not None
    )
    if folder.exists() and not ours:
        raise UserError(
            f"{folder}: exists, and is no compressed bundle that could be replaced; name another: --out FOLDER"
        )
    known = {WEIGHTS, FACTS, CARD, FACTS_OF_COMPRESSION, PICTURE}
    others = sorted(path.name for path in folder.iterdir() if path.name not in known) if ours else []
    if others:
        raise UserError(
            f"{folder}: would be replaced, and holds {others[0]} too; take it out, or name another: --out FOLDER"
        )
    return folder


def _fault(wanted: Target, variants: list[Variant], max_loss: float, bits: Bits, *, weights_only: bool) -> str:
    """Why the last variant is not what was asked for; empty: it is."""
    first, last = variants[0], variants[-1]
    lost = points_lost(first.evaluation, last.evaluation)
    if lost > max_loss + 1e-9:
        enough = [one for one in variants[1:-1] if points_lost(first.evaluation, one.evaluation) <= max_loss + 1e-9]
        advice = f"{'' if weights_only else '--weights-only, or '}training with train.quantize (docs/compress.md)"
        if wanted.kind != "int8":
            # Of a size only the last one has integers: the files of those before say nothing of it.
            tells = enough and wanted.kind != "size"
            reached = f"--target {_reached(wanted, first, enough[-1])}, " if tells else ""
            fewer_bits = "--bits 4, " if wanted.kind == "size" and bits == 8 else ""
            advice = f"{reached}{fewer_bits}a longer --finetune, more --steps, or a larger --max-loss"
        return (
            f"{last.name} lose {lost:.2f} points of top-1 accuracy on {first.evaluation.n:,} records, and --max-loss "
            f"allows {max_loss:g}; nothing was written; try {advice}"
        )
    if wanted.kind == "latency" and last.latencies[0].median > wanted.value:
        return (
            f"a prediction of {last.name} takes {last.latencies[0].median:.3g} ms, and {wanted.text} was asked for; "
            "nothing was written; measure on a quiet machine, or ask for less"
        )
    return ""


def _reached(wanted: Target, first: Variant, one: Variant) -> str:
    """What a variant would have been enough for."""
    if wanted.kind == "flops":
        return f"flops={one.flops / first.flops:.3g}"
    return f"latency={1000 * one.latencies[0].median:.0f}us"
