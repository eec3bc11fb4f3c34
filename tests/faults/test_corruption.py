"""Every file of a step x {deleted, truncated, zero-filled, 8 bit flips}: never a silent wrong load."""

import random
import shutil

import jax
import numpy as np
import pytest

from pcls.checkpoint.store import CheckpointStore, named_leaves
from pcls.run.evaluate import saved_preprocessing
from pcls.run.folder import RunFolder
from pcls.run.setup import prepare

pytestmark = pytest.mark.faults

FLIPS = 8


def faults(data: bytes, dice: random.Random):
    """What becomes of a file's bytes, by fault; None: the file is gone."""
    yield "deleted", None
    if not data:
        return
    yield "truncated", data[: dice.randrange(len(data))]
    yield "zero-filled", bytes(len(data))
    for _ in range(FLIPS):
        changed = bytearray(data)
        changed[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        yield "a bit flipped", bytes(changed)


def restored(folder, like):
    said = []
    store = CheckpointStore(folder, warn=said.append, agree=int)
    try:
        found = store.restore(like)
    finally:
        store.close()
    return *found, said


def test_no_damaged_file_is_ever_loaded(finished_run, tmp_path, counted):
    run = RunFolder(finished_run)
    like = prepare(run.recipe(), saved_preprocessing(run)).state_shapes
    pristine = tmp_path / "pristine"
    shutil.copytree(run.checkpoints, pristine)
    shutil.rmtree(pristine / "4")
    expected = {}
    for step in (12, 8):
        tree, found, said = restored(pristine, like)
        assert (found, said) == (step, [])
        expected[step] = named_leaves(jax.device_get(tree))
        if step == 12:
            shutil.rmtree(pristine / "12")
    shutil.copytree(run.checkpoints / "12", pristine / "12")

    dice, counts = random.Random(0), counted("one file of a step of the 28 x 28 CNN damaged, the step then loaded")
    files = sorted(path.relative_to(pristine) for path in (pristine / "12").rglob("*") if path.is_file())
    assert len(files) >= 10
    counts["files"] = len(files)
    for file in files:
        data = (pristine / file).read_bytes()
        for number, (fault, changed) in enumerate(faults(data, dice)):
            folder = tmp_path / f"{len(files)}-{number}"
            shutil.copytree(pristine, folder)
            if changed is None:
                (folder / file).unlink()
            else:
                (folder / file).write_bytes(changed)
            tree, step, said = restored(folder, like)
            counts[fault] += 1
            same = all(
                np.array_equal(value, expected[step][name])
                for name, value in named_leaves(jax.device_get(tree)).items()
            )
            counts["fell back one step and said so"] += step == 8 and len(said) == 1 and same
            counts["silent wrong loads"] += not same or not said
            assert step == 8, (file, fault, said)
            assert said[0].endswith("; resumed from step 8, bad step kept as 12.corrupt")
            assert (folder / "12.corrupt").is_dir()
            shutil.rmtree(folder)
    faulty = sum(counts[fault] for fault in ("deleted", "truncated", "zero-filled", "a bit flipped"))
    assert counts["fell back one step and said so"] == faulty
    assert counts["silent wrong loads"] == 0
