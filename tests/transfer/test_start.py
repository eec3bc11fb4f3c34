import shutil
from dataclasses import replace

import numpy as np
import pytest

import pcls
from pcls.config import Recipe, load_recipe, with_overrides
from pcls.data.dataset import open_dataset
from pcls.pretrained.bundle import load_bundle
from pcls.run.bundles import open_bundle
from pcls.run.folder import RunFolder
from pcls.run.setup import prepare
from pcls.run.weights import start_weights
from pcls.transfer.start import adapted_weights, start_from

DIGITS = tuple("0123456789")


def recipe_of(**overrides):
    return with_overrides(Recipe(), {"model.init": "somewhere", **overrides})


@pytest.fixture(scope="module")
def bundle(finished_run):
    return load_bundle(finished_run / "bundle")


def test_a_run_and_its_bundle_open_alike(finished_run, bundle):
    for path in (finished_run, str(finished_run), finished_run / "bundle"):
        found = open_bundle(path)
        assert found.class_names == DIGITS
        np.testing.assert_array_equal(found.params["head/kernel"], bundle.params["head/kernel"])


def test_the_bundle_of_a_run_holds_its_averages(finished_run, bundle, final_state):
    state = final_state(finished_run)
    for path, array in bundle.params.items():
        np.testing.assert_array_equal(array, state[f"ema/0/{path}"])
        assert not np.array_equal(array, state[f"params/{path}"])


def test_equal_class_names_keep_the_head(bundle):
    found = adapted_weights(bundle, bundle.definition(), DIGITS, recipe_of())
    assert found.params.keys() == bundle.params.keys()
    assert found.stats == {}
    assert found.told == "weights: 8 of 8 arrays taken over, 23,626 of 23,626 numbers"
    for path, array in found.params.items():
        np.testing.assert_array_equal(array, bundle.params[path])


def test_the_same_classes_in_another_order_take_their_outputs_along(bundle):
    found = adapted_weights(bundle, bundle.definition(), DIGITS[::-1], recipe_of())
    for name in ("head/kernel", "head/bias"):
        np.testing.assert_array_equal(found.params[name], bundle.params[name][..., ::-1])


def test_classes_that_differ_in_capital_letters_get_a_new_head_and_a_word(bundle):
    named = replace(bundle, class_names=("Ant", "bee", "cat"), params=bundle.params | {"head/bias": np.zeros(3)})
    found = adapted_weights(named, bundle.definition(3), ("ant", "bee", "cat"), recipe_of())
    assert "classes differ from those of the weights in capital letters only, as 'ant': rename them" in found.told


@pytest.mark.parametrize("names", [("ant", "bee", "cat"), DIGITS[:3]])
def test_other_classes_get_a_new_head_on_the_same_body(bundle, names):
    params = adapted_weights(bundle, bundle.definition(len(names)), names, recipe_of(**{"train.seed": 3})).params
    for path in params:
        if path.startswith("head/"):
            assert params[path].shape[-1] == len(names)
            assert not np.array_equal(params[path], bundle.params[path])
        else:
            np.testing.assert_array_equal(params[path], bundle.params[path])
    other = adapted_weights(bundle, bundle.definition(len(names)), names, recipe_of(**{"train.seed": 4})).params
    assert not np.array_equal(params["head/kernel"], other["head/kernel"])


def test_the_state_before_the_first_step_holds_the_pretrained_body(bundle, finished_run):
    settings = {"data.image_size": 10, "train.batch_size": 32, "train.ema_decay": 0.5, "data.classes": [5, 6, 7]}
    recipe = load_recipe("digits_cnn", settings)
    start = start_from(finished_run, recipe)
    setup = prepare(recipe, start.preprocessing)
    state = setup.initial_state(start_weights(start, setup, None))
    for params in (state.params, state.ema[0]):
        np.testing.assert_array_equal(params["conv1/kernel"], bundle.params["conv1/kernel"])
        np.testing.assert_array_equal(params["dense/kernel"], bundle.params["dense/kernel"])
        assert params["head/kernel"].shape == (64, 3)
    assert int(state.step) == 0


def test_another_architecture_is_refused(finished_run):
    with pytest.raises(pcls.UserError, match=r"model\.name is 'rnn28', and the weights in .* are of cnn28"):
        start_from(finished_run, recipe_of(**{"model.name": "rnn28"}))


def test_weights_of_another_order_of_reading_are_refused(tiny, tmp_path):
    overrides = tiny | {
        "model.name": "rnn",
        "model.read": "columns",
        "model.hidden": 4,
        "run.dir": str(tmp_path / "run"),
    }
    run = pcls.train("digits_rnn", overrides | {"train.duration": "2 steps", "train.ema_decay": 0})
    with pytest.raises(
        pcls.UserError, match=r"model\.read is 'rows', and the weights in .* were trained with 'columns'"
    ):
        start_from(run.path, recipe_of(**{"model.name": "rnn", "model.hidden": 4}))


def test_an_unfinished_run_is_refused_with_the_way_on(finished_run, tmp_path):
    path = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(path / "bundle")
    with pytest.raises(pcls.UserError) as caught:
        open_bundle(path)
    assert (
        str(caught.value) == f"{path}: the run has no bundle, which is written when it is finished: pcls resume {path}"
    )


def test_a_folder_that_is_neither_is_refused(tmp_path):
    with pytest.raises(pcls.UserError, match=r"is neither a run's folder \(recipe.yaml\) nor a bundle \(model.json\)"):
        open_bundle(tmp_path)


TUNING = {
    "data.classes": [5, 6, 7, 8, 9],
    "data.per_class": 16,
    "train.duration": "40 steps",
    "train.batch_size": 16,
    "evaluate.every": "40 steps",
    "checkpoint.every": "20 steps",
}


@pytest.fixture(scope="module")
def tuned(finished_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("tuned") / "run"
    return pcls.finetune("digits", finished_run, TUNING | {"run.dir": str(path)})


def test_fine_tuning_learns_new_classes_with_the_preprocessing_of_the_weights(tuned, bundle):
    recipe = RunFolder(tuned.path).recipe()
    dataset = open_dataset(recipe.data)
    assert tuned.evaluation.class_names == ("5", "6", "7", "8", "9")
    assert tuned.evaluation.n == len(dataset.evaluation)
    # Far above the 20 % of chance.
    assert tuned.evaluation.top1 > 0.4
    found = load_bundle(tuned.path / "bundle")
    assert found.preprocessing == bundle.preprocessing
    assert found.model == "cnn28"
    assert {answer.label for answer in pcls.load(tuned).predict([np.zeros((10, 10), np.uint8)])} <= set("56789")


@pytest.mark.faults
def test_a_fine_tuning_run_killed_at_once_resumes_from_the_pretrained_weights(
    finished_run, tuned, tmp_path, final_state, monkeypatch
):
    def killed(*arguments):
        raise KeyboardInterrupt

    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("pcls.run.session.train_loop", killed)
        with pytest.raises(KeyboardInterrupt):
            pcls.finetune("digits", finished_run, TUNING | {"run.dir": str(path)})
    assert [step.name for step in (path / "checkpoints").iterdir()] == ["0"]
    # The source may be gone by then.
    pcls.resume(path)
    found, expected = final_state(path), final_state(tuned.path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_training_a_recipe_from_weights_uses_them(finished_run, tmp_path, tiny, stop_after, final_state):
    stop_after(1)
    settings = {"run.dir": str(tmp_path / "run"), "model.init": str(finished_run), "optimizer.lr": 1e-9}
    with pytest.raises(pcls.RestartRequested):
        pcls.train("digits_cnn", tiny | settings)
    state = final_state(tmp_path / "run")
    for path, array in load_bundle(finished_run / "bundle").params.items():
        np.testing.assert_allclose(state[f"params/{path}"], array, atol=1e-8)
