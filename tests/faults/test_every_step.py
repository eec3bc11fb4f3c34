"""For each step k of a run of 40: stopped at k and resumed, it ends with the bits of a run that was not."""

import shutil
from contextlib import nullcontext

import pytest

import pcls
from pcls.checkpoint.manifest import read_manifest
from pcls.data.order import Order

from .conftest import TINY

pytestmark = pytest.mark.faults

STEPS = 40
SETTINGS = TINY | {"train.duration": f"{STEPS} steps", "checkpoint.every": f"{STEPS} steps"}
UNFREEZE = [{"match": "^conv1/", "until": "13 steps"}, {"match": "^conv2/", "until": "29 steps"}]
CASES = {
    "CNN": {},
    "LSTM": {"model.name": "lstm", "model.hidden": 16},
    "accumulation of 4": {"train.accumulate": 4},
    "layers unfrozen at steps 13 and 29": {"optimizer.name": "adamw", "optimizer.freeze": UNFREEZE},
    "CNN with BatchNorm": {"model.name": "speednet", "model.widths": [4, 8, 8]},
}
# Its compilation takes seconds, also from the cache.
STOPS = {"CNN with BatchNorm": (1, 13, 20, 39)}


@pytest.fixture
def fed(monkeypatch):
    """The records of every training batch from here on, in order."""
    from pcls.run.session import Session

    records, place = [], Session.place

    def noting(self, batch):
        records.extend(batch.record.reshape(-1, batch.record.shape[-1]).tolist())
        return place(self, batch)

    monkeypatch.setattr(Session, "place", noting)
    return records


def leaves(path):
    return read_manifest(path / "checkpoints" / str(STEPS)).leaves


@pytest.mark.parametrize("name", CASES)
def test_a_run_stopped_at_any_step_resumes_to_the_same_bits(name, tmp_path, fed, monkeypatch, counted):
    settings = SETTINGS | CASES[name]
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    pcls.train("digits_cnn", settings | {"run.dir": str(undisturbed)})
    expected = leaves(undisturbed)
    assert {leaf.split("/")[0] for leaf in expected} >= {"step", "params", "opt_state", "ema", "key"}
    assert any(leaf.startswith("stats/") for leaf in expected) is ("BatchNorm" in name)
    order = Order(1438, settings["train.batch_size"], 0)
    records = [order.records_of_step(step)[0].tolist() for step in range(STEPS)]
    assert fed == records
    # One run that saves after every step stands for the 39 that stop there: it is the same call at the same place.
    saving = {"run.dir": str(stopped), "checkpoint.every": "1 steps", "checkpoint.keep": STEPS}
    pcls.train("digits_cnn", settings | saving)
    assert leaves(stopped) == expected
    counts = counted("stopped at each step of a run of 40, resumed, and equal in every leaf and in the records fed")
    # What each resumed run leaves out of its report; all are the same.
    monkeypatch.setattr("pcls.run.session.stop_requests", lambda *given: nullcontext(lambda step: False))
    for step in STOPS.get(name, range(1, STEPS)):
        path = tmp_path / str(step)
        shutil.copytree(stopped, path, ignore=shutil.ignore_patterns("checkpoints", "bundle"))
        shutil.copytree(stopped / "checkpoints" / str(step), path / "checkpoints" / str(step))
        fed.clear()
        pcls.resume(path, {"checkpoint.every": f"{STEPS} steps"})
        assert fed == records[step:], step
        found = leaves(path)
        differing = [leaf for leaf in expected if found.get(leaf) != expected[leaf]]
        assert not differing, (step, differing)
        assert found.keys() == expected.keys()
        counts[name] += 1
        shutil.rmtree(path)
