import json

import numpy as np
import pytest

from pcls.config import load_recipe
from pcls.data.sources.arrays import ArraySource
from pcls.pretrained.bundle import CARD, FACTS, load_bundle
from pcls.run.delivery import handed_on, held_out_digest
from pcls.run.evaluate import read_evaluation
from pcls.run.folder import RunFolder


@pytest.fixture(scope="module")
def training(finished_run):
    return load_bundle(finished_run / "bundle").training


def test_a_run_notes_its_recipe_its_records_and_its_versions(training, finished_run):
    assert training.recipe["train.duration"] == "12 steps"
    assert training.recipe["data.source"] == "digits"
    assert (training.records, training.held_out) == (1438, 359)
    assert training.versions.keys() >= {"pcls", "jax", "numpy"}
    assert "    train.batch_size: 32" in (finished_run / "bundle" / CARD).read_text().splitlines()


def test_the_rates_of_classes_are_those_of_the_evaluation(training, finished_run):
    _, predictions = read_evaluation(RunFolder(finished_run))
    assert sum(rates.support for rates in training.classes) == 359
    for number, rates in enumerate(training.classes):
        own = predictions.labels == number
        assert rates.recall == pytest.approx((predictions.predicted[own] == number).mean())


def test_a_bundle_names_no_place_on_the_machine(finished_run, tmp_path):
    texts = (finished_run / "bundle" / FACTS).read_text() + (finished_run / "bundle" / CARD).read_text()
    assert str(finished_run) not in texts
    assert "run.dir" not in texts
    recipe = load_recipe(
        "digits_cnn",
        {
            "run.dir": str(tmp_path),
            "model.init": str(tmp_path / "pretrained"),
            "data.source": "manifest",
            "data.path": "s3://user:password@bucket/list.csv?token=1",
            "data.quarantine": "~/photos/bad.json",
        },
    )
    kept = handed_on(recipe)
    assert kept["model.init"] == "pretrained"
    assert kept["data.path"] == "s3://bucket/list.csv"
    assert kept["data.quarantine"] == "bad.json"
    assert "run.dir" not in kept
    assert json.loads(json.dumps(kept)) == kept


def source(labels, title="digits"):
    return ArraySource(np.zeros((len(labels), 2, 2, 1), np.uint8), np.array(labels, np.int32), ("a", "b"), title)


def test_other_records_other_labels_and_another_order_have_another_digest():
    digests = [held_out_digest(source(labels)) for labels in ([0, 1], [0, 1, 1], [1, 0], [0, 0])]
    assert len(set(digests)) == 4
    assert held_out_digest(source([0, 1], "/elsewhere/digits")) == digests[0]
    assert all(len(digest) == len("sha256:") + 64 for digest in digests)
