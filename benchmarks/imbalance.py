"""What methods for unbalanced classes give on a long-tailed Fashion-MNIST: `python benchmarks/imbalance.py`.

Needs the original files: --data FOLDER (default ../shared/data/fashion-mnist). The same network, the same steps and the
same augmentation for all; once without any, once with mirrored and shifted images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from _ledger import append

import pcls
from pcls.run.session import Run

RATIO, STEPS = 100, 1500
# Deferred weights and the second stage take the last fifth.
LATE = STEPS * 4 // 5
AUGMENTATIONS = {
    "no augmentation": [],
    "mirrored, shifted by up to 2 pixels": ["augment.flip=true", "augment.shift=2"],
}
LDAM = ["model.head=cosine", "imbalance.margin=15"]
DEFERRED = ["imbalance.class_weights=effective", f"imbalance.class_weights_from={LATE} steps"]
METHODS = {
    "plain cross-entropy": [],
    "class weights, inverse": ["imbalance.class_weights=inverse"],
    "class weights, effective number": ["imbalance.class_weights=effective"],
    "focal, 2": ["imbalance.focal=2"],
    "logit adjustment, 1 (balanced softmax)": ["imbalance.logit_adjustment=1"],
    "logit adjustment after training, 1": ["imbalance.posthoc_adjustment=1"],
    "margin 2, effective weights late": ["imbalance.margin=2", *DEFERRED],
    "head of cosines, margin 0.5, effective weights late (LDAM-DRW)": [*LDAM, *DEFERRED],
    "sampling, square root": ["data.sampling=square_root"],
    "sampling, balanced": ["data.sampling=balanced"],
    "sampling, progressive": ["data.sampling=progressive"],
}
DECOUPLED = "head trained anew on balanced samples (cRT)"
SECOND_STAGE = [
    "data.sampling=balanced",
    "transfer.head=new",
    # Few steps for new numbers: with 0.001 they do not get far.
    "optimizer.lr=0.01",
    'optimizer.freeze=[{match: "^(?!head/)"}]',
]


def score(settings: list[str], seed: int) -> float:
    """Balanced accuracy on the whole test part, in %."""
    with tempfile.TemporaryDirectory() as folder:
        run = _train([*settings, f"train.seed={seed}"], STEPS, Path(folder) / "run")
        return 100 * run.evaluation.summary()["balanced"]


def decoupled_score(settings: list[str], seed: int) -> float:
    """The same of a plain training whose head is drawn and trained anew in the last fifth. Source: Kang et al. 2020."""
    with tempfile.TemporaryDirectory() as folder:
        first = _train([*settings, f"train.seed={seed}"], LATE, Path(folder) / "first")
        again = [*settings, *SECOND_STAGE, f"model.init={first.path}", f"train.seed={seed + 1000}"]
        return 100 * _train(again, STEPS - LATE, Path(folder) / "second").evaluation.summary()["balanced"]


def _train(settings: list[str], steps: int, folder: Path) -> Run:
    lengths = [f"{key}={steps} steps" for key in ("train.duration", "evaluate.every", "checkpoint.every")]
    return pcls.train("fashion_mnist_cnn", [*settings, *lengths, f"run.dir={folder}"])


def rows_of(settings: list[str], seeds: int, methods: list[str]) -> list[list[str]]:
    """A row a method."""
    rows, plain = [], 0.0
    for name in methods:
        of_seed = decoupled_score if name == DECOUPLED else score
        overrides = [*settings, *METHODS.get(name, [])]
        found = np.array([of_seed(overrides, seed) for seed in range(seeds)])
        plain = plain or float(found.mean())
        gain = "" if name.startswith("plain") else f"{found.mean() - plain:+.2f}"
        deviation = f" ± {found.std(ddof=1):.2f}" if seeds > 1 else ""
        rows.append([name, f"{found.mean():.2f}{deviation}", ", ".join(f"{score:.2f}" for score in found), gain])
        print(" | ".join(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(__file__).parent.parent.parent / "shared" / "data" / "fashion-mnist"
    parser.add_argument("--data", type=Path, default=shared)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="methods whose names hold this, beside the plain one")
    arguments = parser.parse_args()
    names = [name for name in (*METHODS, DECOUPLED) if arguments.only in name or name.startswith("plain")]
    for augmentation, overrides in AUGMENTATIONS.items():
        print(augmentation, flush=True)
        data = [f"data.path={arguments.data}", f"data.long_tail={RATIO}"]
        rows = rows_of([*data, *overrides], arguments.seeds, names)
        if arguments.only:
            continue
        append(
            f"Unbalanced classes: Fashion-MNIST with a long tail, ratio {RATIO}, cnn28, {STEPS} steps, {augmentation}",
            ["method", f"balanced accuracy %, mean ± deviation of {arguments.seeds} seeds", "each", "over plain"],
            rows,
            packages=["jax", "flax", "optax"],
            note="data.long_tail leaves 6,000 records of the first class and 60 of the last; the test part is whole "
            f"and balanced, so that its top-1 is the same. Recipe fashion_mnist_cnn; late: from step {LATE:,} on.",
        )


if __name__ == "__main__":
    main()
