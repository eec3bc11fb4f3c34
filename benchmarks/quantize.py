"""What int8 and int4 cost and save: sizes, accuracy, latency: `python benchmarks/quantize.py`.

ResNet-50 with drawn weights for size and latency; classifiers trained on Fashion-MNIST for accuracy, quantized after
training, and after a second one that is told of it. Needs the original files: --data FOLDER (default
../shared/data/fashion-mnist). `--dry` prints the tables and leaves the ledger alone.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import _ledger
import numpy as np

import pcls

PACKAGES = ["jax", "flax", "qwix"]
# Recipe, and the name of the training that starts from it; empty: none.
RECIPES = {"fashion_mnist_cnn": "fashion_mnist_cnn_int8", "fashion_mnist_rnn": ""}
# What `pcls compress` is told.
WAYS: dict[str, dict[str, Any]] = {
    "int8 weights": {"weights_only": True},
    "int8": {},
    "int4 weights": {"weights_only": True, "bits": 4},
}
ONCE = ["evaluate.every=1000 epochs", "checkpoint.every=1000 epochs"]


def network_rows(name: str, size: int, rounds: int, batches: tuple[int, ...]) -> list[list[str]]:
    """File and latency of a network with drawn weights, as it is and quantized."""
    import jax

    from pcls.compression.latency import latencies
    from pcls.compression.quantize import floats, quantize
    from pcls.data.preprocessing import Preprocessing
    from pcls.models.registry import customary_model
    from pcls.parallel.tuning import tune_process
    from pcls.pretrained.bundle import Bundle

    tune_process()
    definition = customary_model(name)
    params, stats = jax.device_get(jax.jit(definition.init)(jax.random.key(0)))
    preprocessing = Preprocessing(size, size, 3, (0.5,) * 3, (0.25,) * 3)
    classes = tuple(map(str, range(params["head/bias"].size)))
    plain = Bundle(name, classes, preprocessing, "float32", params, stats, {})
    images = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    ranges = watched(definition, params, stats, images)
    bundles = {"float32": plain}
    for way, settings in WAYS.items():
        kept = quantize(params, {} if settings.get("weights_only") else ranges, settings.get("bits", 8))
        bundles[way] = replace(plain, params=floats(params, kept), quantization=kept)
    sizes = {way: file_bytes(bundle) for way, bundle in bundles.items()}
    models = [(*bundle.runnable(), stats) for bundle in bundles.values()]
    times = latencies(models, preprocessing.shape, "float32", batches=batches, rounds=rounds)
    return [
        [
            f"{name}, {way}",
            f"{sizes[way] / 1e6:.2f}",
            f"{sizes[way] / sizes['float32']:.2%}",
            *(f"{one.median:.4g} ({one.low:.4g} to {one.high:.4g})" for one in own),
            *(f"{one.median / first.median:.2f}" for one, first in zip(own, times[0], strict=True)),
        ]
        for way, own in zip(bundles, times, strict=True)
    ]


def watched(definition: Any, params: Any, stats: Any, images: Any) -> dict[str, float]:
    """The ranges of a network's inputs on some images."""
    import jax

    from pcls.compression.quantize import Watching

    def step(params: Any, images: Any) -> Any:
        watching = Watching()
        replace(definition, predicting=watching).apply(params, stats, images)
        return watching.seen

    return {path: float(seen) for path, seen in jax.device_get(jax.jit(step)(params, images)).items()}


def file_bytes(bundle: Any) -> int:
    """Of its weights."""
    from pcls.pretrained.bundle import WEIGHTS, save_bundle

    with tempfile.TemporaryDirectory() as place:
        save_bundle(bundle, Path(place) / "bundle")
        return (Path(place) / "bundle" / WEIGHTS).stat().st_size


def losses(recipe: str, second: str, data: Path, seed: int, overrides: list[str]) -> dict[str, tuple[float, float]]:
    """Of each way: top-1 after it in %, and the points below that of the float32 run that all started from."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = [f"data.path={data}", f"train.seed={seed}", *ONCE, *overrides]
        first = pcls.train(recipe, [*settings, f"run.dir={scratch}/first"])
        base = 100 * first.evaluation.top1
        found = {"float32": (base, 0.0)}

        def tried(run: Any, way: str, told: dict[str, Any]) -> None:
            out = f"{scratch}/{len(found)}"
            last = pcls.compress(run, max_loss=100.0, records=256, out=out, **told).variants[-1]
            found[way] = 100 * last.evaluation.top1, base - 100 * last.evaluation.top1

        for way, told in WAYS.items():
            tried(first, way, told)
        if second:
            own = [*settings, f"model.init={scratch}/first", f"run.dir={scratch}/second"]
            trained = pcls.train(second, own)
            found["trained for int8, float32"] = 100 * trained.evaluation.top1, base - 100 * trained.evaluation.top1
            tried(trained, "trained for int8, int8", {})
        return found


def accuracy_rows(recipe: str, data: Path, seeds: int, overrides: list[str]) -> list[list[str]]:
    """Means and deviations over the seeds, and the worst."""
    runs = [losses(recipe, RECIPES[recipe], data, seed, overrides) for seed in range(seeds)]
    rows = []
    for way in runs[0]:
        top1, lost = (np.array([run[way][place] for run in runs]) for place in (0, 1))
        spread = [values.std(ddof=1) if seeds > 1 else float("nan") for values in (top1, lost)]
        cells = [f"{values.mean():.2f} ± {own:.2f}" for values, own in zip((top1, lost), spread, strict=True)]
        rows.append([f"{recipe}, {way}", *cells, f"{lost.max():.2f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(__file__).parent.parent.parent / "shared" / "data" / "fashion-mnist"
    parser.add_argument("--data", type=Path, default=shared)
    parser.add_argument("--model", default="resnet50", help="whose size and latency are measured; empty: none")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("overrides", nargs="*", default=[], help="of the recipes, as in train.duration='1 epochs'")
    arguments = parser.parse_args()
    tables = []
    if arguments.model:
        batches = (1, 32)
        rows = network_rows(arguments.model, arguments.size, arguments.rounds, batches)
        header = ["network", "file MB", "of float32", *(f"ms, batch {n}" for n in batches)]
        header += [f"of float32, batch {n}" for n in batches]
        note = (
            f"Drawn weights, {arguments.size} px, float32 activations where they are not int8; in turns, "
            f"{arguments.rounds} rounds, median and quartiles. Int8 weights alone run as floats: their times are those "
            "of float32 but for noise. Gate: int8 weights <= 26 % of the float32 file."
        )
        tables.append(("Quantized networks: size and latency", header, rows, note))
    rows = [
        row
        for recipe in arguments.recipes
        for row in accuracy_rows(recipe, arguments.data, arguments.seeds, arguments.overrides)
    ]
    if rows:
        note = (
            f"{arguments.seeds} seeds, {' '.join(arguments.overrides) or 'the recipes as they are'}; top-1 on the "
            "10,000 test images, mean and deviation; points below the float32 run that all started from. Gates: int8 "
            "0.3, trained for int8 0.1."
        )
        tables.append(("Quantized on Fashion-MNIST", ["recipe", "top-1 %", "points lost", "worst seed"], rows, note))
    for title, header, rows, note in tables:
        _ledger.append(title, header, rows, packages=PACKAGES, note=note, dry=arguments.dry)


if __name__ == "__main__":
    main()
