"""Calibration: fits against scipy and the truth that the logits were drawn from."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from pcls.evaluation import quality
from pcls.evaluation.calibration import (
    AS_IT_IS,
    TEMPERATURES,
    chosen_method,
    cross_validated,
    fit,
    fit_temperature,
    fit_vector,
    scaled,
    stratified_folds,
)
from pcls.evaluation.quality import scores
from pcls.evaluation.text import fit_text


def drawn(n, classes=5, seed=0, sharpness=2.0):
    """Logits whose softmax are the true probabilities of the labels."""
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.normal(size=(n, classes))
    labels = (log_softmax(logits, axis=1) + rng.gumbel(size=logits.shape)).argmax(1)
    return logits.astype(np.float32), labels


@pytest.fixture(scope="module")
def overconfident():
    logits, labels = drawn(4000)
    return 3 * logits, labels


def nll(logits, labels):
    return scores(logits, labels).nll.mean()


def test_the_temperature_is_that_of_a_search_by_scipy_and_near_the_truth(overconfident):
    logits, labels = overconfident
    (scale,), bias = fit_temperature(logits, labels)
    expected = minimize_scalar(
        lambda t: nll(logits / t, labels), bounds=(0.1, 10), method="bounded", options={"xatol": 1e-8}
    ).x
    assert 1 / scale == pytest.approx(expected, rel=1e-4)
    assert 1 / scale == pytest.approx(3, rel=0.05)
    assert bias.tolist() == [0]


def test_the_temperature_does_not_depend_on_chunks(overconfident, monkeypatch):
    whole = fit_temperature(*overconfident)[0]
    vector = fit_vector(*overconfident)
    monkeypatch.setattr(quality, "NUMBERS_AT_ONCE", 5 * 900)
    assert fit_temperature(*overconfident)[0] == pytest.approx(whole, rel=1e-9)
    np.testing.assert_allclose(fit_vector(*overconfident), vector, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 0.7, 3.3, 40])
def test_a_temperature_changes_no_answer(temperature):
    logits = np.random.default_rng(3).normal(size=(50_000, 20)).astype(np.float32)
    found = scaled(logits, (np.array([1 / temperature]), np.zeros(1)))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.argmax(1), logits.argmax(1))


def test_a_model_that_is_never_wrong_or_knows_nothing_gets_a_bearable_temperature():
    labels = np.arange(30) % 3
    right = np.eye(3, dtype=np.float32)[labels]
    assert 1 / fit_temperature(right, labels)[0][0] == pytest.approx(TEMPERATURES[0])
    assert 1 / fit_temperature(-right, labels)[0][0] == pytest.approx(TEMPERATURES[1])
    # Without any slope no temperature is better than another; the scores are finite.
    assert np.isfinite(fit_temperature(np.zeros((30, 3), np.float32), labels)[0][0])


def test_vector_scaling_finds_the_scales_and_biases_that_were_put_in():
    logits, labels = drawn(40_000, 3)
    scale, bias = np.array([2.0, 1.0, 0.5]), np.array([1.0, 0.0, -1.0])
    found_scale, found_bias = fit_vector(((logits - bias) / scale).astype(np.float32), labels)
    np.testing.assert_allclose(found_scale, scale, rtol=0.06)
    # Only differences of biases change probabilities.
    np.testing.assert_allclose(found_bias - found_bias.mean(), bias, atol=0.08)


def test_vector_scaling_ends_where_its_objective_has_no_slope():
    logits, labels = drawn(300, 4)
    scale, bias = fit_vector(logits, labels)
    (start,), _ = fit_temperature(logits, labels)

    def objective(scale, bias):
        prior = ((scale / start - 1) ** 2).sum() + (bias**2).sum()
        return scores(logits.astype(np.float64) * scale + bias, labels).nll.sum() + prior / 2

    best = objective(scale, bias)
    for place in range(4):
        for step in (-0.05, 0.05):
            moved = np.eye(4)[place] * step
            assert objective(scale + moved, bias) > best
            assert objective(scale, bias + moved) > best


def test_a_class_without_records_stays_near_the_temperature():
    logits, labels = drawn(500, 4)
    kept = labels < 3
    scale, bias = fit_vector(logits[kept], labels[kept])
    (start,), _ = fit_temperature(logits[kept], labels[kept])
    assert np.isfinite([scale, bias]).all()
    assert abs(scale[3] / start - 1) < 2
    assert -5 < bias[3] < 0


def test_folds_have_the_same_records_of_every_class_give_or_take_one():
    labels = np.repeat([0, 1, 2], [23, 5, 12])
    fold = stratified_folds(labels, 5, 0)
    for label in range(3):
        counts = np.bincount(fold[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert np.bincount(fold).tolist() == [8] * 5
    np.testing.assert_array_equal(fold, stratified_folds(labels, 5, 0))
    assert (fold != stratified_folds(labels, 5, 1)).any()


def test_a_temperature_is_chosen_where_it_is_all_that_is_wrong(overconfident):
    losses = cross_validated(*overconfident, seed=0)
    assert chosen_method(losses) == "temperature"
    assert losses["temperature"].mean() < losses["none"].mean() - 0.5


def test_scales_and_biases_are_chosen_where_classes_differ():
    logits, labels = drawn(2000, 4)
    assert chosen_method(cross_validated(logits + np.float32([2, 0, 0, -2]), labels, seed=0)) == "vector"


def test_nothing_is_chosen_for_a_model_that_a_temperature_makes_worse():
    same = np.linspace(1, 2, 50)
    losses = {"none": same, "temperature": same + 0.01, "vector": same + np.resize([0.5, -0.5], 50)}
    assert chosen_method(losses) == "none"


def test_a_fit_is_measured_on_records_that_it_has_not_seen(overconfident):
    logits, labels = overconfident
    fitted = np.arange(len(labels)) % 2 == 0
    found = fit(logits, labels, fitted, "auto", 0)
    assert (found.method, found.fitted, found.measured) == ("temperature", 2000, 2000)
    assert found.candidates.keys() == {"none", "temperature", "vector"}
    assert found.scaling[0] == fit_temperature(logits[fitted], labels[fitted])[0]
    rest = scores(logits[~fitted], labels[~fitted])
    assert found.before.quality.nll == pytest.approx(rest.nll.mean(), rel=1e-12)
    assert found.after.top1 == found.before.top1 == rest.correct.mean()
    assert found.after.quality.ece < found.before.quality.ece / 2
    assert found.after.quality.nll < found.before.quality.nll
    assert found.after.quality.brier < found.before.quality.brier
    assert fit(logits, labels, fitted, "auto", 0) == found


def test_a_calibration_that_makes_the_other_records_worse_is_not_taken_unless_it_was_named(overconfident):
    # The half that is fitted to is overconfident, the other one is right as it is.
    sharp, labels = overconfident
    fitted = np.arange(len(labels)) % 2 == 0
    tempered = scaled(sharp, fit_temperature(sharp, labels))
    logits = np.where(fitted[:, None], sharp, tempered)
    found, named = (fit(logits, labels, fitted, method, 0) for method in ("auto", "temperature"))
    assert (found.method, found.scaling, found.worse) == ("none", AS_IT_IS, False)
    assert found.before == found.after == named.before
    assert found.rejected == {"temperature": named.after.quality.nll}
    assert (named.method, named.worse, dict(named.rejected)) == ("temperature", True, {})
    nll = found.before.quality.nll, named.after.quality.nll
    assert "temperature makes the 2,000 other records less likely, NLL {:.4f} -> {:.4f}".format(*nll) in fit_text(found)


def test_a_method_that_is_named_is_not_chosen(overconfident):
    logits, labels = (array[:200] for array in overconfident)
    found = fit(logits, labels, np.arange(200) < 100, "none", 0)
    assert (found.method, dict(found.candidates)) == ("none", {})
    assert found.before == found.after
