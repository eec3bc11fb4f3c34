"""Evaluation where records carry several labels, or none, beside that of scikit-learn; logits are pixels."""

import json
import re
import warnings
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    hamming_loss,
    precision_score,
    recall_score,
)

from pcls.data.pipeline import evaluation_batches
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.arrays import ArraySource
from pcls.errors import UserError
from pcls.evaluation import label_sets
from pcls.evaluation.label_sets import (
    LabelScores,
    choosing_half,
    collect_scores,
    label_evaluation,
    make_score_step,
    rates_at,
)
from pcls.evaluation.ranking import average_precision
from pcls.evaluation.text import evaluation_json, evaluation_text
from pcls.evaluation.thresholds import Thresholds, best_threshold, choose, probabilities, threshold_of_all
from pcls.parallel.mesh import batch_sharding, make_mesh, replicated
from pcls.training.losses import label_sets_cross_entropy

RECORDS, CLASSES = 83, 5


def some_scores(records=RECORDS, classes=CLASSES, seed=3, levels=9):
    """Targets, and logits that know something of them; few levels, so that there are many ties."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((records, classes)) < np.linspace(0.6, 0.1, classes)).astype(np.uint8)
    levels = rng.integers(0, levels, (records, classes)) + 3 * targets
    return targets, (levels - 6.0).astype(np.float32)


def scores_of(targets, logits):
    return LabelScores(np.arange(len(targets)), targets, logits, np.zeros(len(targets), np.float32))


# Average precision


@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_average_precision_is_that_of_scikit_learn_with_any_number_of_ties(levels):
    targets, logits = some_scores(levels=levels)
    for label in range(CLASSES):
        found = average_precision(targets[:, label] > 0, logits[:, label])
        assert found == pytest.approx(average_precision_score(targets[:, label], logits[:, label]), rel=1e-12)


def test_average_precision_by_hand():
    # Ranks 1 and 3 of four: (1/1 + 2/3) / 2.
    carries = np.array([True, False, True, False])
    assert average_precision(carries, np.array([0.9, 0.8, 0.7, 0.1])) == pytest.approx((1 + 2 / 3) / 2)
    # All tied: each with the precision of all.
    assert average_precision(carries, np.zeros(4)) == 0.5
    assert average_precision(np.zeros(4, bool), np.zeros(4)) is None
    # What is no number is the lowest.
    assert average_precision(np.array([True, False]), np.array([np.nan, -1e30])) == 0.5


# Thresholds


def f1_at(carries, scores, threshold):
    given = scores >= threshold
    return 2 * (given & carries).sum() / max(given.sum() + carries.sum(), 1)


def test_no_threshold_has_a_better_f1_than_the_best_one():
    targets, logits = some_scores()
    for label in range(CLASSES):
        carries, scores = targets[:, label] > 0, probabilities(logits[:, label])
        best = best_threshold(carries, scores)
        others = [f1_at(carries, scores, value) for value in [0, *np.unique(scores), 1]]
        assert f1_at(carries, scores, best) == pytest.approx(max(others))
        # Halfway between two scores: rounding moves no record over it.
        assert np.abs(scores - best).min() > 1e-3


def test_of_equally_good_thresholds_the_highest_is_chosen_and_neighbours_are_told_apart():
    assert best_threshold(np.array([True, False]), np.array([0.75, 0.25])) == 0.5
    # Giving it to all is as good as any: below the lowest score.
    assert best_threshold(np.array([True, True]), np.array([0.5, 0.5])) == 0.25
    one = np.nextafter(0.5, 1)
    assert best_threshold(np.array([True, False]), np.array([one, 0.5])) == one


def test_a_label_with_few_carriers_gets_the_threshold_of_all():
    targets, logits = some_scores(400, 3)
    targets[:, 2] = 0
    targets[:9, 2] = 1
    found = choose(targets, logits)
    assert found.own.tolist() == [True, True, False]
    assert found.values[2] == threshold_of_all(targets, logits)
    targets[9, 2] = 1
    assert choose(targets, logits).own.all()
    # A label that nearly all carry is no better known.
    assert choose(1 - targets[:, 2:] * (np.arange(400) < 9)[:, None], logits[:, 2:]).own.tolist() == [False]


def test_the_threshold_of_all_has_the_best_f1_of_its_grid():
    targets, logits = some_scores(400, 3)
    carries, scores = targets.ravel() > 0, probabilities(logits).ravel()
    by_threshold = [f1_at(carries, scores, number / 100) for number in range(1, 100)]
    found = threshold_of_all(targets, logits)
    assert f1_at(carries, scores, found) == pytest.approx(max(by_threshold))
    assert threshold_of_all(np.zeros((4, 2), np.uint8), np.zeros((4, 2))) == 0.5


# Rates


def test_rates_are_those_of_scikit_learn():
    targets, logits = some_scores()
    thresholds = Thresholds(np.linspace(0.2, 0.8, CLASSES), np.ones(CLASSES, bool))
    given = probabilities(logits) >= thresholds.values
    rates, rows = rates_at(scores_of(targets, logits), thresholds, tuple("abcde"))
    assert rates.n == RECORDS
    for kind in ("micro", "macro"):
        for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            expected = score(targets, given, average=kind, zero_division=0)
            assert getattr(rates, f"{kind}_{name}") == pytest.approx(expected), (kind, name)
    assert rates.hamming == pytest.approx(hamming_loss(targets, given))
    assert rates.subset_accuracy == pytest.approx(accuracy_score(targets, given))
    np.testing.assert_allclose([row.f1 for row in rows], f1_score(targets, given, average=None))


def test_a_model_that_answers_nan_gives_no_label():
    targets = np.ones((4, 2), np.uint8)
    rates, _ = rates_at(scores_of(targets, np.full((4, 2), np.nan, np.float32)), Thresholds.even(2), ("a", "b"))
    assert (rates.micro_recall, rates.hamming, rates.subset_accuracy) == (0, 1, 0)


# The whole


def evaluation(targets, logits, **settings):
    names = tuple(f"label {number}" for number in range(targets.shape[1]))
    return label_evaluation(scores_of(targets, logits), size=len(targets), class_names=names, **settings)


def test_thresholds_are_measured_on_records_that_they_were_not_chosen_on():
    targets, logits = some_scores(600)
    scores = scores_of(targets, logits)
    half = choosing_half(scores, None)
    assert abs(half.sum() - 300) < 10
    # The halves have the same labels, rare ones too.
    np.testing.assert_allclose(targets[half].mean(0), targets[~half].mean(0), atol=0.05)
    found = evaluation(targets, logits)
    assert found.thresholds == tuple(choose(targets[half], logits[half]).values)
    assert (
        found.chosen
        == rates_at(scores_of(targets[~half], logits[~half]), choose(targets[half], logits[half]), tuple("abcde"))[0]
    )
    assert found.chosen.n + half.sum() == 600
    # What the chosen half has no part in changes no threshold.
    logits[~half] *= -1
    assert evaluation(targets, logits).thresholds == found.thresholds
    assert evaluation(targets, logits).chosen.micro_f1 < 0.6 < found.chosen.micro_f1


def test_records_of_one_group_stay_in_one_half():
    targets, logits = some_scores(200)
    groups = np.arange(200) // 4
    half = choosing_half(scores_of(targets, logits), groups)
    assert 60 < half.sum() < 140
    assert all(len(np.unique(half[groups == group])) == 1 for group in range(50))


def test_a_label_that_no_held_out_record_carries_is_left_out_of_the_means_and_told():
    targets, logits = some_scores()
    targets[:, 3] = 0
    found = evaluation(targets, logits)
    own = [average_precision_score(targets[:, label], logits[:, label]) for label in (0, 1, 2, 4)]
    assert found.score == pytest.approx(np.mean(own))
    assert found.precisions[3] is None
    assert found.notices == ("left out of the means, because no held-out record carries them: label 3",)
    text = evaluation_text(found)
    assert re.search(r"^label 3 +0 +- +0\.\d+\* +0\.0000", text, re.M)
    assert text.endswith(found.notices[0])
    assert json.loads(json.dumps(evaluation_json(found), allow_nan=False))["labels"][3]["average_precision"] is None


def test_too_few_records_keep_even_thresholds_and_say_so():
    found = evaluation(*some_scores(19))
    assert found.thresholds == (0.5,) * CLASSES
    assert found.chosen == found.even
    assert "all thresholds are 0.5: 19 records are too few to choose them" in found.notices


def test_an_evaluation_of_nothing_is_all_zeros():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluation(np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.float32))
    assert (found.n, found.score, found.loss, found.even.micro_f1) == (0, 0, 0, 0)
    evaluation_text(found)


def test_text_names_the_worst_of_many_labels():
    targets, logits = some_scores(200, 40)
    text = evaluation_text(evaluation(targets, logits))
    assert "the 20 worst of 40 labels; --json has all" in text
    worst = min(range(40), key=lambda label: average_precision_score(targets[:, label], logits[:, label]))
    assert text.split("\n\n")[1].splitlines()[1].startswith(f"label {worst} ")


# The compiled step


class Pixels:
    """Logits are the pixels, times a factor."""

    def apply(self, params, stats, images, lengths=None):
        return images.reshape(len(images), -1) * params["factor"], stats


@cache
def compiled(devices):
    mesh = make_mesh(devices, devices=jax.devices()[:devices])
    preprocessing = Preprocessing(1, CLASSES, 1, (0.5,), (1.0,))
    step = make_score_step(Pixels(), preprocessing, "float32", label_sets_cross_entropy)
    whole, rows = replicated(mesh), batch_sharding(mesh)
    return preprocessing, jax.jit(step, in_shardings=(whole, whole, rows), out_shardings=whole)


def collected(devices, batch_size, undecodable=()):
    targets, _ = some_scores()
    images = np.random.default_rng(7).integers(0, 256, (RECORDS, 1, CLASSES, 1)).astype(np.uint8)
    preprocessing, step = compiled(devices)
    source = ArraySource(images, targets, tuple("abcde"), "pixels")
    rows = np.arange(batch_size)
    with evaluation_batches(source, preprocessing, batch_size=batch_size, rows=rows, threads=0) as batches:
        outputs = []
        for batch in batches:
            weight = np.where(np.isin(batch.record, undecodable), 0, batch.weight).astype(np.float32)
            outputs.append(step({"factor": jnp.float32(8)}, {}, batch._replace(weight=weight)))
    return targets, images, collect_scores(outputs, size=RECORDS, classes=CLASSES)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 7), (1, 83), (8, 8), (8, 48)])
def test_every_record_counts_once_whatever_the_batches_and_devices(devices, batch_size):
    targets, images, found = collected(devices, batch_size)
    np.testing.assert_array_equal(found.records, np.arange(RECORDS))
    np.testing.assert_array_equal(found.targets, targets)
    logits = (images.reshape(RECORDS, -1) / 255 - 0.5) * 8
    np.testing.assert_allclose(found.logits, logits, atol=1e-5)
    expected = np.mean(np.logaddexp(0, -logits) * targets + np.logaddexp(0, logits) * (1 - targets), 1)
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)


def test_what_could_not_be_decoded_is_in_no_number():
    _, _, whole = collected(1, 7)
    _, _, found = collected(1, 7, undecodable=(0, 5, 82))
    rest = np.delete(np.arange(RECORDS), (0, 5, 82))
    np.testing.assert_array_equal(found.records, rest)
    np.testing.assert_array_equal(found.logits, whole.logits[rest])
    evaluated = label_evaluation(found, size=RECORDS, class_names=tuple("abcde"))
    assert (evaluated.n, evaluated.undecodable) == (80, 3)


def test_logits_that_would_not_fit_are_refused_before_memory_is_taken(monkeypatch):
    monkeypatch.setattr(label_sets, "LOGITS_BYTES", 4 * RECORDS * CLASSES - 1)
    with pytest.raises(UserError, match=r"the logits of 83 held-out records and 5 labels take .* or fewer"):
        collect_scores(iter(()), size=RECORDS, classes=CLASSES)
