import csv
import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

import pcls
from pcls.config import flat_recipe, load_recipe
from pcls.data.dataset import open_dataset
from pcls.observe.sinks import read_metrics
from pcls.run.evaluate import read_evaluation
from pcls.run.folder import RunFolder


def test_a_finished_run_holds_all_that_the_other_verbs_need(finished_run):
    assert sorted(path.name for path in finished_run.iterdir()) == [
        "bundle",
        "checkpoints",
        "data.json",
        "environment.json",
        "evaluation.json",
        "metrics.csv",
        "metrics.jsonl",
        "parameters.csv",
        "predictions.npz",
        "preprocessing.json",
        "recipe.yaml",
        "status.json",
        "tensorboard",
    ]
    assert sorted(int(path.name) for path in (finished_run / "checkpoints").iterdir()) == [4, 8, 12]
    assert RunFolder(finished_run).status() == {"status": "finished", "step": 12, "steps": 12}


def test_the_saved_recipe_is_the_one_that_was_trained(finished_run, tiny):
    recipe = load_recipe("digits_cnn", tiny | {"run.dir": str(finished_run)})
    assert load_recipe(finished_run / "recipe.yaml") == recipe
    assert flat_recipe(RunFolder(finished_run).recipe())["train.batch_size"] == 32


def test_the_saved_environment_names_versions_and_devices(finished_run):
    environment = json.loads((finished_run / "environment.json").read_text())
    assert environment["devices"] == "8 x cpu"
    assert set(environment["packages"]) >= {"jax", "flax", "optax", "grain", "orbax-checkpoint"}


def test_the_metric_rows_follow_the_recipe(finished_run):
    rows = read_metrics(finished_run)
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("eval", 6),
        ("goodput", 6),
        ("train", 10),
        ("train", 12),
        ("eval", 12),
        ("goodput", 12),
    ]
    train = rows[2]
    assert train["epoch"] == 10 * 32 / 1438
    # 3e-3, a cosine over 12 steps, after 9 finished ones.
    assert train["lr"] == pytest.approx(3e-3 * (1 + math.cos(math.pi * 9 / 12)) / 2, rel=1e-6)
    assert 1.5 < train["loss"] < 3.5
    assert 0 <= train["accuracy"] <= 1
    assert "eta" not in train
    with (finished_run / "metrics.csv").open(newline="") as file:
        assert [(row["kind"], int(row["step"])) for row in csv.DictReader(file)] == [
            (row["kind"], row["step"]) for row in rows
        ]


def test_images_on_the_devices_and_four_steps_a_dispatch_train_the_same(finished_run, tiny, tmp_path, final_state):
    path = tmp_path / "run"
    pcls.train("digits_cnn", tiny | {"run.dir": str(path), "data.on_device": True, "train.steps_per_dispatch": 4})
    found, expected = final_state(path), final_state(finished_run)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    rows, others = ([row for row in read_metrics(run) if row["kind"] == "eval"] for run in (path, finished_run))
    assert [row["step"] for row in rows] == [row["step"] for row in others] == [6, 12]
    assert [row["top1"] for row in rows] == [row["top1"] for row in others]
    # Steps 9 to 12 are one dispatch, which passes over the row of step 10.
    assert [row["step"] for row in read_metrics(path) if row["kind"] == "train"] == [12]


def test_the_kept_evaluation_counts_every_held_out_record_once(finished_run):
    evaluation, predictions = read_evaluation(RunFolder(finished_run))
    dataset = open_dataset(RunFolder(finished_run).recipe().data)
    assert evaluation.n == len(dataset.evaluation) == 359
    np.testing.assert_array_equal(predictions.records, np.arange(359))
    np.testing.assert_array_equal(predictions.labels, dataset.evaluation.labels)
    assert evaluation.top1 == np.mean(predictions.labels == predictions.predicted)
    assert evaluation.top1 == np.trace(evaluation.confusion) / 359


def test_a_second_evaluation_gives_the_same_numbers(finished_run, tmp_path):
    path = shutil.copytree(finished_run, tmp_path / "run")
    (path / "evaluation.json").unlink()
    assert pcls.evaluate(path).summary() == read_evaluation(RunFolder(finished_run))[0].summary()
    assert (path / "evaluation.json").read_text() == (finished_run / "evaluation.json").read_text()


@pytest.mark.faults
def test_an_evaluation_beside_a_live_run_disturbs_nothing(finished_run, tmp_path, capsys):
    path = shutil.copytree(finished_run, tmp_path / "run")
    # As it is between the last array and the manifest.
    (path / "checkpoints" / "12" / "pcls_manifest.json").unlink()
    assert pcls.evaluate(path).n == 359
    assert "checkpoint step 12 is damaged (it has no manifest: its save was cut off); read step 8" in (
        capsys.readouterr().err
    )
    assert sorted(int(step.name) for step in (path / "checkpoints").iterdir()) == [4, 8, 12]


def test_another_seed_starts_from_other_weights():
    from pcls.run.setup import prepare

    def first(seed):
        setup = prepare(load_recipe("digits_rnn", {"data.image_size": 10, "train.seed": seed}))
        return np.asarray(setup.initial_state().params["recurrent"])

    assert not np.array_equal(first(0), first(1))


@pytest.fixture
def photos(tmp_path):
    """Two classes of 20 grey pictures; the dark one's third is cut short."""
    rng = np.random.default_rng(0)
    for name, mean in (("bright", 200), ("dark", 50)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.normal(mean, 20, (12, 12)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number:02}.png")
    cut = tmp_path / "photos" / "dark" / "02.png"
    cut.write_bytes(cut.read_bytes()[:60])
    return tmp_path / "photos"


def photo_settings(photos, limit, split_seed):
    return {
        "run.dir": str(photos.parent / "run"),
        "data.source": "folder",
        "data.path": str(photos),
        "data.image_size": 10,
        "data.channels": 1,
        "data.max_undecodable": limit,
        "data.split_seed": split_seed,
        "train.batch_size": 16,
        "train.duration": "3 epochs",
        "evaluate.every": "3 epochs",
        "checkpoint.every": "3 epochs",
    }


def split_seed_with(photos, *, held_out):
    """A split that holds the cut picture out, or trains on it."""
    cut = str(photos / "dark" / "02.png")
    for seed in range(50):
        dataset = open_dataset(load_recipe("digits_rnn", photo_settings(photos, 0.5, seed)).data)
        names = [dataset.evaluation.name(record) for record in range(len(dataset.evaluation))]
        if (cut in names) == held_out:
            return seed
    raise AssertionError("every split is the same")


@pytest.mark.faults
def test_a_training_image_that_cannot_be_decoded_is_named_once_and_skipped(photos, capsys):
    seed = split_seed_with(photos, held_out=False)
    run = pcls.train("digits_rnn", photo_settings(photos, 0.05, seed))
    told = [line for line in capsys.readouterr().err.splitlines() if "02.png" in line]
    assert len(told) == 1
    assert told[0].startswith(f"{photos}/dark/02.png cannot be decoded (")
    assert told[0].endswith("; 1 of 32 images skipped, limit 5.00%")
    assert (run.evaluation.n, run.evaluation.undecodable) == (8, 0)


@pytest.mark.faults
def test_a_held_out_image_that_cannot_be_decoded_is_counted_apart(photos):
    seed = split_seed_with(photos, held_out=True)
    run = pcls.train("digits_rnn", photo_settings(photos, 0.05, seed))
    assert (run.evaluation.n, run.evaluation.undecodable) == (7, 1)
    assert int(run.evaluation.confusion.sum()) == 7


@pytest.mark.faults
def test_more_undecodable_images_than_the_limit_end_the_run(photos, capsys):
    from pcls.cli import main

    (photos / "dark" / "02.png").write_bytes(b"")
    settings = photo_settings(photos, 0.01, split_seed_with(photos, held_out=False))
    assert main(["train", "digits_rnn", *(f"{key}={value}" for key, value in settings.items())]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pcls: ")]
    assert len(lines) == 1
    assert "dark/02.png cannot be decoded (the file is empty)" in lines[0]
    assert "1 of 32 images skipped, limit 1.00% (data.max_undecodable)" in lines[0]
