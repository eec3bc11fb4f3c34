"""Runs on unbalanced classes, put together as users put them."""

from dataclasses import replace

import numpy as np
import pytest

import pcls
from pcls.config import Recipe, with_overrides
from pcls.data.order import Order, SampledOrder
from pcls.errors import UserError
from pcls.pretrained.bundle import load_bundle
from pcls.pretrained.exporting import export_timm
from pcls.run.evaluate import evaluate_run
from pcls.run.folder import RunFolder
from pcls.run.setup import prepare
from pcls.training.plan import training_order

LABELS = np.repeat([0, 1, 2], [90, 9, 1]).astype(np.int32)


def order_of(labels=LABELS, **overrides) -> Order:
    recipe = with_overrides(Recipe(), {"train.batch_size": 10, "train.duration": "35 steps"} | overrides)
    return training_order(recipe, len(LABELS), labels=labels)


# Sampling


def test_natural_sampling_is_the_plain_order():
    assert order_of() == Order(100, 10, 0)


@pytest.mark.parametrize("sampling", ["balanced", "square_root", "progressive"])
def test_a_recipe_samples_classes_over_as_many_passes_as_it_has(sampling):
    order = order_of(**{"data.sampling": sampling, "train.seed": 3})
    assert isinstance(order, SampledOrder)
    assert (order.seed, order.sampling, order.passes, order.epoch_steps) == (3, sampling, 4, 10)
    # Where nobody has read the labels, as when only memory is asked for, it takes as many steps.
    assert order_of(None, **{"data.sampling": sampling}) == Order(100, 10, 0)


def test_progressive_sampling_of_one_epoch_is_refused():
    with pytest.raises(UserError) as raised:
        order_of(**{"data.sampling": "progressive", "train.duration": "10 steps"})
    assert str(raised.value) == (
        "data.sampling=progressive moves with each pass over the records, and the run has only one; "
        "write a longer train.duration, or data.sampling=balanced"
    )


def test_sampled_classes_come_in_no_buckets():
    with pytest.raises(UserError) as raised:
        with_overrides(Recipe(), {"data.source": "ts", "data.buckets": 3, "data.sampling": "balanced"})
    assert str(raised.value) == (
        "override data.sampling: data.sampling balanced draws records of all lengths; leave out data.buckets, or this"
    )


@pytest.mark.system
@pytest.mark.parametrize("where", [{}, {"data.on_device": True}])
def test_a_sampled_run_stopped_halfway_resumes_to_the_same_bits(where, tiny, tmp_path, stop_after, final_state):
    sampled = tiny | where | {"data.sampling": "balanced", "data.long_tail": 50}
    pcls.train("digits_cnn", sampled | {"run.dir": str(tmp_path / "whole")})
    stop_after(5)
    with pytest.raises(pcls.RestartRequested):
        pcls.train("digits_cnn", sampled | {"run.dir": str(tmp_path / "parts")})
    stop_after(0)
    pcls.resume(tmp_path / "parts")
    found, expected = final_state(tmp_path / "parts"), final_state(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


# Weights by name, and the head of cosines


def test_a_weight_for_a_class_that_the_data_has_not_ends_a_run_before_its_folder_is_made(tiny, tmp_path):
    weighted = tiny | {"imbalance.class_weights": "given", "imbalance.weights": {"3": 2.0, "ten": 2.0}}
    with pytest.raises(UserError, match="weights names 'ten', and the data has no such class; classes: 0, 1, 2, 3, 4"):
        pcls.train("digits_cnn", weighted | {"run.dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def cosine_run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cosine") / "run"
    overrides = {"model.head": "cosine", "imbalance.margin": 15.0, "run.dir": str(folder)}
    return pcls.train("digits_cnn", tiny | overrides)


def test_a_bundle_with_a_cosine_head_predicts_as_its_run(cosine_run):
    bundle = load_bundle(cosine_run.path / "bundle")
    assert bundle.options == {"head": "cosine"}
    assert "head/bias" not in bundle.params
    assert evaluate_run(cosine_run.path).summary() == cosine_run.evaluation.summary()
    assert cosine_run.evaluation.top1 > 0.2


def test_a_head_that_is_kept_is_of_the_kind_that_was_trained(cosine_run, tiny, tmp_path):
    started = tiny | {"model.init": str(cosine_run.path), "run.dir": str(tmp_path / "run")}
    with pytest.raises(UserError, match="head"):
        pcls.train("digits_cnn", started)
    run = pcls.train("digits_cnn", started | {"model.head": "cosine"})
    assert run.evaluation.loss < cosine_run.evaluation.loss


def test_a_cosine_head_is_exported_nowhere(cosine_run, tmp_path):
    bundle = replace(load_bundle(cosine_run.path / "bundle"), model="resnet18")
    with pytest.raises(UserError, match="is cosine, and timm has no such head; train one"):
        export_timm(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Adjustment after training


@pytest.fixture(scope="module")
def adjusted_runs(tiny, tmp_path_factory):
    """A plain run, and the same with its head adjusted afterwards."""
    folder = tmp_path_factory.mktemp("adjusted")
    tailed = tiny | {"data.long_tail": 50}
    plain = pcls.train("digits_cnn", tailed | {"run.dir": str(folder / "plain")})
    adjusted = {"imbalance.posthoc_adjustment": 0.5, "run.dir": str(folder / "run")}
    return plain, pcls.train("digits_cnn", tailed | adjusted)


def test_the_delivered_bias_is_lowered_by_the_shares_and_the_training_knows_nothing_of_it(adjusted_runs, final_state):
    plain, run = adjusted_runs
    labels = prepare(RunFolder(run.path).recipe()).dataset.train.labels
    shares = np.bincount(labels) / len(labels)
    assert shares.max() > 20 * shares.min()
    before, after = (load_bundle(each.path / "bundle").params for each in adjusted_runs)
    np.testing.assert_allclose(after["head/bias"], before["head/bias"] - 0.5 * np.log(shares), rtol=1e-5)
    np.testing.assert_array_equal(after["head/kernel"], before["head/kernel"])
    states = [final_state(each.path) for each in adjusted_runs]
    for name in states[0].keys() - {"best_top1"}:
        np.testing.assert_array_equal(states[0][name], states[1][name], err_msg=name)
    assert plain.evaluation.loss != run.evaluation.loss


def test_every_evaluation_sees_the_adjusted_head(adjusted_runs):
    _, run = adjusted_runs
    assert evaluate_run(run.path).summary() == run.evaluation.summary()


def test_a_head_without_bias_cannot_be_adjusted(tiny, tmp_path):
    overrides = {"model.head": "cosine", "imbalance.posthoc_adjustment": 1.0, "run.dir": str(tmp_path / "run")}
    with pytest.raises(UserError, match=r"moves the bias of the head, and that of cnn28 with model\.head=cosine"):
        pcls.train("digits_cnn", tiny | overrides)


# A head trained anew


def test_a_second_stage_trains_a_new_head_on_balanced_samples_and_leaves_the_rest(adjusted_runs, tiny, tmp_path):
    plain, _ = adjusted_runs
    stage = {
        "data.long_tail": 50,
        "data.sampling": "balanced",
        "model.init": str(plain.path),
        "transfer.head": "new",
        "optimizer.freeze": [{"match": "^(?!head/)"}],
        "run.dir": str(tmp_path / "run"),
    }
    run = pcls.train("digits_cnn", tiny | stage)
    before, after = (load_bundle(each.path / "bundle").params for each in (plain, run))
    moved = {path for path, array in after.items() if not np.array_equal(array, before[path])}
    assert moved == {"head/kernel", "head/bias"}
