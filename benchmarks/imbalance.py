"""What methods for unbalanced classes give on a long-tailed Fashion-MNIST: `python benchmarks/imbalance.py`.

Needs the original files: --data FOLDER (default ../shared/data/fashion-mnist). The same network and steps for all.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from _ledger import append

import pcls

RATIO, STEPS = 100, 1500
METHODS = {
    "plain cross-entropy": [],
    "class weights, inverse": ["imbalance.class_weights=inverse"],
    "class weights, effective number": ["imbalance.class_weights=effective"],
    "focal, 2": ["imbalance.focal=2"],
    "logit adjustment, 1 (balanced softmax)": ["imbalance.logit_adjustment=1"],
    "logit adjustment, 1.5": ["imbalance.logit_adjustment=1.5"],
    "margin 2, effective weights from step 1200": [
        "imbalance.margin=2",
        "imbalance.class_weights=effective",
        "imbalance.class_weights_from=1200 steps",
    ],
}


def score(data: Path, overrides: list[str], seed: int) -> float:
    """Balanced accuracy on the whole test part, in %."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"data.path={data}", f"data.long_tail={RATIO}", f"train.duration={STEPS} steps"]
        settings += [f"train.seed={seed}", f"run.dir={folder}/run", f"evaluate.every={STEPS} steps", *overrides]
        return 100 * pcls.train("fashion_mnist_cnn", settings).evaluation.summary()["balanced"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(__file__).parent.parent.parent / "shared" / "data" / "fashion-mnist"
    parser.add_argument("--data", type=Path, default=shared)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rows, plain = [], 0.0
    for name, overrides in METHODS.items():
        found = np.array([score(arguments.data, overrides, seed) for seed in range(arguments.seeds)])
        plain = plain or float(found.mean())
        gain = "" if name.startswith("plain") else f"{found.mean() - plain:+.2f}"
        each = ", ".join(f"{score:.2f}" for score in found)
        rows.append([name, f"{found.mean():.2f} ± {found.std(ddof=1):.2f}", each, gain])
        print(" | ".join(rows[-1]), flush=True)
    append(
        f"Unbalanced classes: Fashion-MNIST with a long tail, ratio {RATIO}, cnn28, {STEPS} steps",
        ["method", f"balanced accuracy %, mean ± deviation of {arguments.seeds} seeds", "each", "over plain"],
        rows,
        packages=["jax", "flax", "optax"],
        note="data.long_tail leaves 6,000 records of the first class and 60 of the last; the test part is whole and "
        "balanced, so that its top-1 is the same number. Recipe fashion_mnist_cnn; nothing was chosen by it.",
    )


if __name__ == "__main__":
    main()
