"""How long a save of 300 MB blocks the training loop, beside how long it takes in all: `make bench`.

And the share of a run's time that saving such a state after every epoch costs, the default: of a simple recurrent
network on the embedded digits, whose epochs are short. `--dry` prints the tables and leaves the ledger alone; `--mb N`
takes another size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import _ledger
from _worker import median_and_range

ROUNDS = 7
EPOCHS = 5
LEAVES = 60


def measure(folder: Path, megabytes: int) -> dict[str, list[float]]:
    """Seconds of each round, by what was done; the first, which warms up, is left out."""
    import jax
    import jax.numpy as jnp

    from pcls.checkpoint.leaves import verify_leaves
    from pcls.checkpoint.manifest import read_manifest, verify
    from pcls.checkpoint.store import CheckpointStore, manifest_of

    rows = megabytes * 1_000_000 // (LEAVES * 4 * 1000)
    # Random: weights hardly compress either.
    draw = jax.jit(
        lambda key: {f"params/{i}": jax.random.normal(jax.random.fold_in(key, i), (rows, 1000)) for i in range(LEAVES)}
    )
    give_up = jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)
    found: dict[str, list[float]] = {
        name: [] for name in ("blocked", "usual", "after", "save", "listing", "files", "leaves", "load")
    }

    def timed(name: str, act):
        start = time.perf_counter()
        result = act()
        found[name].append(time.perf_counter() - start)
        return result

    store = CheckpointStore(folder, warn=print, agree=int)
    tree = jax.block_until_ready(draw(jax.random.key(0)))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)
    for step in range(1, ROUNDS + 2):
        tree = timed("usual", lambda tree=tree: jax.block_until_ready(give_up(tree)))
        start = time.perf_counter()
        timed("blocked", lambda step=step, tree=tree: store.save(step, tree))
        # What the loop does next gives the buffers up: that has to wait for their copies, if there are any.
        tree = timed("after", lambda tree=tree: jax.block_until_ready(give_up(tree)))
        store.wait()
        found["save"].append(time.perf_counter() - start)
        own = folder / str(step)
        manifest = timed("listing", lambda own=own: manifest_of(own, full=False))
        timed("files", lambda own=own, manifest=manifest: verify(own, manifest))
        timed("leaves", lambda own=own, manifest=manifest: verify_leaves(own, manifest.leaves))
        timed("load", lambda: jax.block_until_ready(store.restore(like)))
    assert read_manifest(folder / str(ROUNDS + 1)).step == ROUNDS + 1
    store.close()
    return {name: seconds[1:] for name, seconds in found.items()}


def share_of_run(folder: Path, megabytes: int) -> tuple[float, float, float]:
    """Seconds of an epoch, seconds of it that the loop was blocked by saving, and megabytes of the state."""
    import pcls
    from pcls.checkpoint.manifest import read_manifest
    from pcls.observe.sinks import read_metrics

    # Parameters and two moments.
    hidden = int((megabytes * 1_000_000 / 4 / 3) ** 0.5)
    settings = {
        "model.name": "rnn",
        "model.hidden": hidden,
        "optimizer.name": "adamw",
        "data.image_size": 8,
        "train.batch_size": 128,
        "train.duration": f"{EPOCHS} epochs",
        "evaluate.every": "1 epochs",
        "checkpoint.every": "1 epochs",
        "run.dir": str(folder),
    }
    pcls.train("digits_rnn", settings)
    # A row before each save but the last: what waits for that one is no loop any more.
    rows = [row for row in read_metrics(folder) if row["kind"] == "goodput"][: EPOCHS - 1]
    first, last = rows[0], rows[-1]
    step = max((folder / "checkpoints").iterdir(), key=lambda step: int(step.name))
    epoch, blocked = ((last[key] - first[key]) / (len(rows) - 1) for key in ("seconds", "lost_to_checkpoint"))
    return epoch, blocked, read_manifest(step).bytes / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--mb", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch) / "checkpoints", arguments.mb)
        epoch, blocked, size = share_of_run(Path(scratch) / "run", arguments.mb)
    shares = [100 * blocked / save for blocked, save in zip(found["blocked"], found["save"], strict=True)]
    names = {
        "blocked": "the loop is blocked",
        "usual": "a pass over the state that gives up its arrays, as a step does, while nothing is saved",
        "after": "the same right after a save was started",
        "save": "the whole save: written, read back, digested, retention",
        "listing": "cheap validity: manifest and sizes",
        "files": "full validity: digests of files",
        "leaves": "digests of leaves (pcls checkpoints verify)",
        "load": "full validity, load, digests of what was loaded",
    }
    rows = [[text, median_and_range([1e3 * s for s in found[name]], ",.0f")] for name, text in names.items()]
    _ledger.append(
        f"Checkpoints of {arguments.mb:,} MB",
        ["what", "ms"],
        [*rows, ["blocked, % of the save", median_and_range(shares, ".1f")]],
        packages=["jax", "orbax-checkpoint", "tensorstore"],
        note=f"{LEAVES} float32 arrays of random numbers, {ROUNDS} rounds after one to warm up, medians (ranges); "
        "files in the page cache. Gate: blocked < 5 % of one save.",
        dry=arguments.dry,
    )
    _ledger.append(
        f"Saving {size:,.0f} MB after every epoch",
        ["an epoch", "of it blocked by saving", "share"],
        [[f"{epoch:.1f} s", f"{1e3 * blocked:,.0f} ms", f"{blocked / epoch:.2%}"]],
        packages=["jax", "orbax-checkpoint", "tensorstore"],
        note=f"rnn on the embedded digits, 8 x 8, AdamW, saved at the default interval; mean of the epochs between the "
        f"first and the last of {EPOCHS}, as the run's own goodput books them. Gate: < 1 % of wall time.",
        dry=arguments.dry,
    )


if __name__ == "__main__":
    main()
