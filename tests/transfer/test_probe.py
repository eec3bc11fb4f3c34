"""Probes of a tiny run's features, through Python and the command line."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import pcls
from pcls.cli import main
from pcls.data.split import few_of_each, held_out
from pcls.errors import UserError
from pcls.evaluation.probes import L2_GRID, L2_OF_FEW, chosen_l2
from pcls.parallel.mesh import make_mesh
from pcls.pretrained.bundle import load_bundle, save_bundle
from pcls.run.features import Features
from pcls.transfer.probe import bundle_features, probe, probe_data, probes_text

SHOTS = 20


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(-1, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def found(finished_run, mesh):
    return probe(finished_run, "digits", shots=(SHOTS, None), seeds=2, mesh=mesh)


@pytest.fixture(scope="module")
def features(finished_run, mesh):
    """Those of the records to fit to, and of those held out."""
    bundle = load_bundle(finished_run / "bundle")
    dataset = probe_data(bundle, "digits")
    return tuple(bundle_features(bundle, dataset, part, mesh=mesh) for part in (dataset.train, dataset.evaluation))


def row_of(found, kind, shots):
    (row,) = [row for row in found.rows if (row.kind, row.shots) == (kind, shots)]
    return row


def test_every_kind_is_fitted_to_every_number_of_records(found):
    assert [(row.shots, row.kind) for row in found.rows] == [
        (shots, kind) for shots in (SHOTS, None) for kind in ("knn", "mean", "lda", "linear")
    ]
    assert {len(row.accuracies) for row in found.rows if row.shots} == {2}
    assert {len(row.accuracies) for row in found.rows if not row.shots} == {1}
    assert (found.model, found.features, found.train, found.held_out) == ("cnn28", 64, 1438, 359)


def peer_of(kind, row, train):
    """scikit-learn's classifier of a kind, as the row was fitted."""
    if kind == "knn":
        return KNeighborsClassifier(20, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07))
    if kind == "linear":
        return make_pipeline(StandardScaler(), LogisticRegression(C=1 / row.l2[0], solver="newton-cholesky"))
    means = np.stack([train.values[train.labels == label].mean(0) for label in range(10)])
    shrinkage = ledoit_wolf_shrinkage(train.values - means[train.labels], assume_centered=True)
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)


@pytest.mark.parametrize("shots", [SHOTS, None])
@pytest.mark.parametrize("kind", ["knn", "lda", "linear"])
def test_the_accuracy_is_that_of_scikit_learn_on_the_same_features(found, features, kind, shots):
    train, evaluation = features
    row = row_of(found, kind, shots)
    train = train.chosen(few_of_each(train.labels, shots, seed=0)) if shots else train
    with threadpool_limits(1):
        theirs = peer_of(kind, row, train).fit(train.values, train.labels).score(evaluation.values, evaluation.labels)
    assert row.accuracies[0] == pytest.approx(theirs, abs=0.006)
    assert theirs > 0.5


def test_more_records_are_better_than_few(found):
    for kind in ("knn", "linear"):
        assert row_of(found, kind, None).mean > row_of(found, kind, SHOTS).mean


def test_the_penalty_is_the_best_on_records_that_the_fit_did_not_see(features, mesh):
    train, _ = features
    some = train.chosen(few_of_each(train.labels, 40, seed=3))
    held = held_out(some.labels, 0.2, 3)
    scores = []
    for l2 in L2_GRID:
        with threadpool_limits(1):
            scaler = StandardScaler().fit(some.values[~held])
            peer = LogisticRegression(C=1 / l2, solver="newton-cholesky")
            peer.fit(scaler.transform(some.values[~held]), some.labels[~held])
            scores.append(peer.score(scaler.transform(some.values[held]), some.labels[held]))
    chosen = chosen_l2(some.values, some.labels, 10, seed=3, mesh=mesh)
    assert scores[L2_GRID.index(chosen)] >= max(scores) - 0.02
    assert min(scores) < max(scores) - 0.02


def test_where_no_record_can_be_held_out_the_penalty_is_the_middle_one(features, mesh):
    train, _ = features
    few = train.chosen(few_of_each(train.labels, 2, 0))
    assert chosen_l2(few.values, few.labels, 10, seed=0, mesh=mesh) == L2_OF_FEW


def test_the_text_has_a_line_for_each_row_and_says_how_l2_was_chosen(found):
    lines = probes_text(found).splitlines()
    assert lines[0] == "cnn28: 64 features; 1,438 records to fit to, 359 held out, 10 classes"
    row = row_of(found, "knn", SHOTS)
    assert f"20       knn     {100 * row.mean:.2f} ± {100 * row.deviation:.2f}" in lines
    assert any(
        line.startswith("l2: the best of 0.1, 1, 10, 100, 1000 on 20% of the records to fit to") for line in lines
    )
    assert "accuracy on the records held out; mean ± deviation of 2 draws" in lines


@pytest.fixture
def said(capsys):
    def run(*argv):
        code = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


def test_the_verb_prints_one_json_object_for_scripts(finished_run, said):
    options = ("--kind", "mean", "--shots", "3,all", "--seeds", "2", "--json")
    code, lines, _ = said("probe", finished_run, "--data", "digits", *options, "data.validation=0.5")
    summary = json.loads(lines[0])
    assert (code, len(lines)) == (0, 1)
    assert (summary["train"] + summary["held_out"], summary["features"]) == (1797, 64)
    assert 850 < summary["held_out"] < 950
    assert [(row["kind"], row["shots"], len(row["accuracies"])) for row in summary["rows"]] == [
        ("mean", 3, 2),
        ("mean", None, 1),
    ]
    assert summary["rows"][0]["mean"] == pytest.approx(np.mean(summary["rows"][0]["accuracies"]))


def test_a_class_with_fewer_records_than_asked_for_is_told(finished_run, tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("many", 12), ("few", 6)):
        (tmp_path / name).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 256, (10, 10), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    (tmp_path / "many" / "0.png").write_bytes(b"no picture")
    found = probe(finished_run, str(tmp_path), ["data.validation=0.3"], kinds=["mean"], shots=(6,), seeds=2)
    assert found.notices == (
        "records that could not be decoded, and are left out: 1",
        "6 a class: classes that have fewer records, and give all: 1 of 2; 'few' has 4",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kind", "svm"), "--kind svm: there is no such probe; known: knn, mean, lda, linear, all"),
        (("--shots", "0"), "--shots '0': numbers of records a class, or all, are needed, as in 1,5,20,all"),
        (("--shots", "1,x"), "--shots '1,x': numbers of records a class, or all, are needed, as in 1,5,20,all"),
        (("--shots", "²"), "--shots '²': numbers of records a class, or all, are needed, as in 1,5,20,all"),
        (("--seeds", "0"), "--seeds is 0; 1 or more draws are needed"),
        (
            ("train.seed=3",),
            "train.seed=3: has no effect on a probe, which trains no network; only data.* has",
        ),
        (
            ("data.image_size=20",),
            "the weights of cnn28 are for images of 10 x 10 and no others; leave data.image_size out",
        ),
        (("data.classes=[3]",), "digits: only one class; a classifier needs two or more"),
    ],
)
def test_what_cannot_be_asked_for_is_told_in_one_line(finished_run, said, options, message):
    code, _, errors = said("probe", finished_run, "--data", "digits", *options)
    assert (code, errors) == (2, [f"pcls: {message}"])


def test_a_model_of_images_takes_no_sequences(finished_run, tmp_path, said):
    np.savez(tmp_path / "some.npz", values=np.zeros((8, 2)), lengths=np.full(4, 2), labels=np.arange(4) % 2)
    code, _, errors = said("probe", finished_run, "--data", tmp_path / "some.npz")
    assert code == 2
    assert errors == ["pcls: the weights expect pictures, and data.source=sequences has sequences; name other data"]


def test_damaged_weights_are_told(finished_run, tmp_path, mesh):
    bundle = load_bundle(finished_run / "bundle")
    bundle.params["dense/bias"][:] = np.nan
    save_bundle(bundle, tmp_path / "bundle")
    with pytest.raises(UserError, match="the features hold NaN or infinity"):
        probe(tmp_path / "bundle", "digits", kinds=["lda"], mesh=mesh)


def test_python_has_the_same_function(finished_run):
    found = pcls.probe(finished_run, "digits", kinds=["mean"], shots=[None])
    assert len(found.rows) == 1
    assert found.rows[0].deviation is None


@pytest.mark.system
def test_two_processes_find_what_one_finds(finished_run):
    with socket.socket() as meeting:
        meeting.bind(("127.0.0.1", 0))
        port = meeting.getsockname()[1]
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "pcls", "--coordinator", f"127.0.0.1:{port}", "--processes", "2"),
                *("--process", str(index), "probe", finished_run, "--data", "digits", "--shots", "all", "--json"),
                "data.per_class=2",
            ],
            env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        told = [process.communicate(timeout=240)[0].splitlines()[-1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert told[0] == told[1]
    alone = probe(finished_run, "digits", ["data.per_class=2"])
    # So few that no penalty is chosen: one fit. Devices and batches do not divide the records held out.
    assert (alone.train, alone.held_out) == (20, 1777)
    for one, several in zip(alone.rows, json.loads(told[0])["rows"], strict=True):
        assert several["accuracies"] == pytest.approx(one.accuracies, abs=0.002)
        assert several["l2"] == list(one.l2)


def test_features_of_sequences_of_several_lengths_are_probed_too(tmp_path, tiny_sequences):
    found = probe(*tiny_sequences, kinds=["mean", "lda"], shots=(None,))
    assert min(row.mean for row in found.rows) > 0.7
    assert isinstance(found.rows[0].accuracies[0], float)


@pytest.fixture(scope="module")
def tiny_sequences(tmp_path_factory):
    """A bundle of an untrained lstm, and sequences whose class is their level."""
    from dataclasses import replace

    from pcls.config import Recipe, with_overrides
    from pcls.data.dataset import open_dataset
    from pcls.pretrained.bundle import Bundle

    folder = tmp_path_factory.mktemp("sequences")
    rng = np.random.default_rng(0)
    lengths, labels = rng.integers(2, 9, 80), np.arange(80) % 2
    levels = np.repeat(np.where(labels, 2.0, -2.0), lengths)[:, None]
    np.savez(folder / "some.npz", values=levels + rng.normal(size=(len(levels), 3)), lengths=lengths, labels=labels)
    section = with_overrides(Recipe(), {"data.source": "sequences", "data.path": str(folder / "some.npz")}).data
    preprocessing = open_dataset(section).preprocessing
    bundle = Bundle("lstm", ("a", "b"), preprocessing, "float32", {}, {}, {}, options={"hidden": 8})
    params, stats = jax.device_get(jax.jit(bundle.definition().init)(jax.random.key(0)))
    save_bundle(replace(bundle, params=params, stats=stats), folder / "bundle")
    return folder / "bundle", str(folder / "some.npz")


def test_a_mask_or_numbers_choose_rows():
    some = Features(np.arange(6.0, dtype=np.float32).reshape(3, 2), np.array([0, 1, 2]), np.arange(3))
    assert some.chosen(np.array([True, False, True])).labels.tolist() == [0, 2]
    assert some.chosen(np.array([2, 2])).values.tolist() == [[4, 5], [4, 5]]
