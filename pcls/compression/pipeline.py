"""`pcls compress`: a finished run's model made smaller, measured before and after, refused where it loses too much."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import jax

from pcls.compression.latency import latencies
from pcls.compression.measured import Compressed, Variant, compressed_json
from pcls.compression.quantize import floats, input_ranges, quantize
from pcls.compression.sensitivity import Sensitivity, sensitivities
from pcls.compression.text import variants_text
from pcls.config.load import with_overrides
from pcls.data.dataset import check_one_label
from pcls.data.pipeline import Batch, evaluation_batches
from pcls.data.sources.source import Source
from pcls.data.workers import usable_cores
from pcls.errors import UserError
from pcls.nn.quantized import Bits, Quantization, quantizer
from pcls.parallel.mesh import local_rows, shard_count
from pcls.parallel.processes import place
from pcls.parallel.tuning import tune_process
from pcls.pretrained.bundle import FACTS, WEIGHTS, Bundle, load_bundle, save_bundle
from pcls.run.calibrate import some_records
from pcls.run.evaluate import Evaluator, saved_preprocessing
from pcls.run.folder import RunFolder
from pcls.run.setup import Setup, prepare

TARGETS = ("int8",)
# Images of a calibration batch, about.
BATCH = 64
# What was measured, beside the bundle's own files.
FACTS_OF_COMPRESSION = "compression.json"
Say = Callable[[str], None]


def compress_run(
    path: str | Path,
    *,
    target: str = "int8",
    weights_only: bool = False,
    bits: int = 8,
    records: int = 256,
    max_loss: float = 1.0,
    out: str | Path = "",
    say: Say,
) -> Compressed:
    """Writes a smaller bundle of a finished run, and leaves the run's own as it is.

    Args:
      path: the run's folder.
      target: `int8`: integers of 8 bits for weights and for the inputs of convolutions and dense layers.
      weights_only: inputs stay as they are.
      bits: of the weights, 8 or 4.
      records: training records that the ranges of inputs are taken from, and held-out ones that each layer by itself
        is tried on.
      max_loss: points of top-1 accuracy on the run's held-out records that it may cost.
      out: folder of the new bundle; empty: beside the run's own.
      say: hears of each step, and what was measured before anything is refused.

    Raises:
      UserError: no such target, a run that is not finished, a folder that holds something else, or more than `max_loss`
        is lost; nothing is written then.
    """
    checked = _checked_bits(target, bits, records, max_loss)
    folder = RunFolder(path)
    if not folder.exists() and (folder.path / FACTS).is_file():
        raise UserError(f"{path}: is a bundle; compression needs the run's data too: name the run's folder")
    # As a prediction sees an image: by one view.
    recipe = with_overrides(folder.recipe(), {"evaluate.tta": "none"})
    check_one_label(recipe.data, "pcls compress")
    if folder.status().get("status") != "finished" or not folder.bundle.is_dir():
        raise UserError(f"{path}: the run is not finished; there is nothing to compress before: pcls resume {path}")
    bundle = load_bundle(folder.bundle)
    if bundle.quantization is not None:
        raise UserError(f"{folder.bundle}: is quantized already ({bundle.quantization}); compress the run it came from")
    name = f"int{bits}{'_weights' if weights_only else ''}"
    target_folder = _free(Path(out) if out else folder.path / f"bundle_{name}")
    quantizer()
    tune_process()
    if jax.process_count() > 1:
        raise UserError("pcls compress measures latencies, in one process; start it without --coordinator")
    setup = prepare(recipe, saved_preprocessing(folder))
    if setup.dataset.class_names != bundle.class_names:
        raise UserError(f"{path}: the data has other classes than the run was trained with; bring the old data back")
    work = _Work(bundle, setup, records, say)
    quantized = [bundle, work.quantized(checked, {})]
    if not weights_only:
        quantized.append(work.quantized(checked, work.ranges()))
    variants = work.measured(quantized)
    if lost := _too_much(variants, max_loss, weights_only=weights_only):
        say(variants_text(variants))
        raise UserError(f"{path}: {lost}")
    last = quantized[-1]
    assert last.quantization is not None
    layers = tuple(work.sensitivities(last.quantization))
    summary = variants[-1].evaluation.summary()
    # Rates of the classes are those of the model as it was.
    training = bundle.training and replace(bundle.training, classes=())
    save_bundle(replace(last, metrics=summary, training=training), target_folder)
    found = Compressed(target_folder, tuple(variants), layers)
    (target_folder / FACTS_OF_COMPRESSION).write_text(json.dumps(compressed_json(found), indent=2) + "\n", "utf-8")
    return found


def _checked_bits(target: str, bits: int, records: int, max_loss: float) -> Bits:
    if target not in TARGETS:
        raise UserError(f"--target {target}: allowed: {', '.join(TARGETS)}")
    if records < 1:
        raise UserError(f"--records {records}: a number >= 1 is needed; ranges are taken from records")
    if not 0 <= max_loss <= 100:
        raise UserError(f"--max-loss {max_loss}: points of accuracy from 0 to 100 are needed")
    for allowed in get_args(Bits):
        if bits == allowed:
            return allowed
    raise UserError(f"--bits {bits}: allowed: {', '.join(map(str, get_args(Bits)))}")


def _free(folder: Path) -> Path:
    """The folder; UserError where it holds anything but an older quantized bundle, which is replaced."""
    if folder.exists() and (not (folder / FACTS).is_file() or load_bundle(folder).quantization is None):
        raise UserError(
            f"{folder}: exists, and is no quantized bundle that could be replaced; name another: --out FOLDER"
        )
    return folder


def _too_much(variants: list[Variant], max_loss: float, *, weights_only: bool) -> str:
    """What is lost, where that is more than allowed; empty: it is not."""
    before, after = variants[0].evaluation, variants[-1].evaluation
    lost = 100 * (round(before.top1 * before.n) - round(after.top1 * after.n)) / max(before.n, 1)
    if lost <= max_loss + 1e-9:
        return ""
    return (
        f"{variants[-1].name} lose {lost:.2f} points of top-1 accuracy on {before.n:,} records, and --max-loss allows "
        f"{max_loss:g}; nothing was written; try {'' if weights_only else '--weights-only, or '}training with "
        "train.quantize (docs/compress.md)"
    )


class _Work:
    """A run's model and data, and what is measured of them."""

    def __init__(self, bundle: Bundle, setup: Setup, records: int, say: Say):
        self._bundle, self._setup, self._records, self._say = bundle, setup, records, say
        self._params, self._stats = dict(bundle.params), dict(bundle.stats)

    def ranges(self) -> dict[str, float]:
        """Of the inputs of each layer, from training records without augmentation."""
        dataset = self._setup.dataset
        source = some_records(replace(dataset, evaluation=dataset.train), self._records).evaluation
        self._say(f"ranges of inputs from {len(source):,} training records")
        arguments = self._params, self._stats, self._batches(source), dataset.preprocessing, self._bundle.precision
        return input_ranges(self._bundle.definition(), *arguments)

    def quantized(self, bits: Bits, ranges: Mapping[str, float]) -> Bundle:
        """The bundle with its weights quantized, and with its inputs where ranges are given."""
        quantization = quantize(self._params, ranges, bits)
        return replace(self._bundle, params=floats(self._params, quantization), quantization=quantization)

    def measured(self, bundles: list[Bundle]) -> list[Variant]:
        """Accuracy on all held-out records, size of the file, latencies in turns."""
        evaluations = []
        for bundle in bundles:
            self._say(f"{_name(bundle)}: {len(self._setup.dataset.evaluation):,} held-out records")
            model, params = bundle.runnable()
            evaluations.append(Evaluator(replace(self._setup, model=model))(params, self._stats)[0])
        self._say("latencies, in turns")
        shape, precision = self._bundle.preprocessing.shape, self._bundle.precision
        times = latencies([(*bundle.runnable(), self._stats) for bundle in bundles], shape, precision)
        return [
            Variant(_name(bundle), evaluation, _file_bytes(bundle), tuple(own))
            for bundle, evaluation, own in zip(bundles, evaluations, times, strict=True)
        ]

    def sensitivities(self, quantization: Quantization) -> list[Sensitivity]:
        """Of each kernel, on some held-out records."""
        batches = self._batches(some_records(self._setup.dataset, self._records).evaluation)
        return sensitivities(
            self._bundle.definition(),
            self._params,
            self._stats,
            quantization,
            batches,
            self._setup.dataset.preprocessing,
            self._bundle.precision,
            self._say,
        )

    def _batches(self, source: Source) -> list[Batch]:
        setup, shards = self._setup, shard_count(self._setup.mesh)
        size = -(-min(BATCH, len(source)) // shards) * shards
        with evaluation_batches(
            source,
            setup.dataset.preprocessing,
            batch_size=size,
            rows=local_rows(setup.batch_sharding, size),
            threads=0 if setup.dataset.in_memory else setup.recipe.data.workers or usable_cores(),
        ) as batches:
            return [place(batch, setup.batch_sharding, size) for batch in batches]


def _name(bundle: Bundle) -> str:
    return str(bundle.quantization or bundle.precision)


def _file_bytes(bundle: Bundle) -> int:
    with tempfile.TemporaryDirectory() as place:
        save_bundle(bundle, Path(place) / "bundle")
        return (Path(place) / "bundle" / WEIGHTS).stat().st_size
