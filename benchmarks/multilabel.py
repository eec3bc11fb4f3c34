"""mAP where pictures carry several labels, by loss and beside scikit-learn: `python benchmarks/multilabel.py`.

The pictures are made of scikit-learn's handwritten digits, none, one or two in each; no digit of a held-out picture is
in one that is trained on. The linear models see the same pixels.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from _ledger import append
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier

import pcls

TRAINED_DIGITS, TRAINED, HELD_OUT = 1400, 4000, 2000
LEARNING_RATE = "optimizer.lr=0.001"
METHODS = {
    "sigmoid": ["train.loss=sigmoid"],
    "sigmoid, labels carried weighed inversely": ["train.loss=sigmoid", "imbalance.class_weights=inverse"],
    "asymmetric": ["train.loss=asymmetric"],
    "asymmetric, gamma_neg 2, no clip": [
        "train.loss=asymmetric",
        "train.asymmetric.gamma_neg=2",
        "train.asymmetric.clip=0",
    ],
}
PEER = "scikit-learn, one logistic regression a label"


def pictures(digits: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [count, 16, 16] uint8 of some of the digits, and their labels [count, 10]."""
    everything = load_digits()
    images, labels = np.zeros((count, 16, 16)), np.zeros((count, 10), np.uint8)
    for picture in range(count):
        for left in (0, 8):
            if rng.random() < 0.8:
                digit, top = rng.choice(digits), rng.integers(0, 9)
                images[picture, top : top + 8, left : left + 8] = everything.images[digit]
                labels[picture, everything.target[digit]] = 1
    return np.round(images * (255 / 16)).astype(np.uint8), labels


def write_set(path: Path, trained: int, held_out: int) -> dict[str, np.ndarray]:
    """The set as an archive, and its arrays."""
    rng = np.random.default_rng(0)
    order = rng.permutation(1797)
    images, labels = pictures(order[:TRAINED_DIGITS], trained, rng)
    eval_images, eval_labels = pictures(order[TRAINED_DIGITS:], held_out, rng)
    arrays = {"images": images, "labels": labels, "eval_images": eval_images, "eval_labels": eval_labels}
    np.savez(path, **arrays)
    return arrays


def trained_scores(settings: list[str], seed: int, length: str) -> dict[str, float]:
    """What a run's evaluation says."""
    with tempfile.TemporaryDirectory() as folder:
        lengths = [f"{key}={length}" for key in ("train.duration", "evaluate.every", "checkpoint.every")]
        places = [f"train.seed={seed}", f"run.dir={folder}/run"]
        return dict(pcls.train("digits_cnn", [*settings, *lengths, *places]).evaluation.summary())


def peer_score(arrays: dict[str, np.ndarray]) -> float:
    """mAP of linear models on the pixels."""
    flat = {name: arrays[name].reshape(len(arrays[name]), -1) / 255 for name in ("images", "eval_images")}
    model = OneVsRestClassifier(LogisticRegression(max_iter=1000)).fit(flat["images"], arrays["labels"])
    return float(average_precision_score(arrays["eval_labels"], model.predict_proba(flat["eval_images"])))


def shown(values: list[float]) -> str:
    """`91.02 ± 0.31`."""
    deviation = f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.2f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--length", default="20 epochs")
    parser.add_argument("--trained", type=int, default=TRAINED)
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    parser.add_argument("--dry", action="store_true", help="print only")
    arguments = parser.parse_args()
    columns = ["model", "mAP %", "micro F1 at 0.5", "at chosen thresholds"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.npz"
        arrays = write_set(path, arguments.trained, arguments.held_out)
        data = ["data.source=arrays", f"data.path={path}", "data.labels=several", LEARNING_RATE]
        rows = []
        for name, settings in METHODS.items():
            found = [trained_scores([*data, *settings], seed, arguments.length) for seed in range(arguments.seeds)]
            keys = ("map", "micro_f1", "chosen_micro_f1")
            rows.append([name, *(shown([score[key] for score in found]) for key in keys)])
            print(" | ".join(rows[-1]), flush=True)
        rows.append([PEER, shown([peer_score(arrays)]), "", ""])
        print(" | ".join(rows[-1]), flush=True)
    if arguments.dry:
        return
    append(
        f"Several labels a record: {arguments.trained:,} pictures of up to two digits, cnn28, {arguments.length}",
        columns,
        rows,
        packages=["jax", "flax", "optax", "scikit-learn"],
        note=f"Mean ± deviation of {arguments.seeds} seeds, on {arguments.held_out:,} pictures of digits that no "
        "training picture holds; digits stand left and right, each with a probability of 0.8, at any height. "
        "Thresholds are chosen on one half of these pictures and measured on the other.",
    )


if __name__ == "__main__":
    main()
