"""Classifiers on frozen features, beside scikit-learn's."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler, normalize
from threadpoolctl import threadpool_limits

from pcls.errors import UserError
from pcls.evaluation import probes
from pcls.evaluation.probes import fit_lda, fit_linear, fit_means, nearest_neighbours
from pcls.parallel.mesh import make_mesh

CLASSES = 10


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """scikit-learn's threads and jax's wait for each other where there are few cores: 20 s instead of 0.1 s."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(-1, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def digits():
    """Features and labels of handwritten digits, to fit and to test; some pixels are the same in all of them."""
    pixels, labels = load_digits(return_X_y=True)
    return pixels[:1203].astype(np.float32), labels[:1203], pixels[1203:].astype(np.float32), labels[1203:]


def objective(kernel, bias, features, labels, l2, scale, weights):
    """The mean of what is minimised, in float64, for a kernel on features as they are."""
    logits = features.astype(np.float64) @ kernel + bias
    top = logits.max(1, keepdims=True)
    losses = np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(labels)), labels]
    return (weights @ losses + l2 / 2 * np.sum((kernel * scale[:, None]) ** 2)) / weights.sum()


@pytest.mark.parametrize("l2", [0.1, 10.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_linear_probe_finds_the_optimum_that_scikit_learn_finds(digits, one_device, l2, weighted):
    features, labels, tested, expected = digits
    weights = np.where(labels < 3, 0.25, 1.5) if weighted else np.ones(len(labels))
    scaler = StandardScaler().fit(features.astype(np.float64), sample_weight=weights)
    peer = LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-6)
    peer.fit(scaler.transform(features.astype(np.float64)), labels, sample_weight=weights)
    kernel = peer.coef_.T / scaler.scale_[:, None]
    best = objective(kernel, peer.intercept_ - scaler.mean_ @ kernel, features, labels, l2, scaler.scale_, weights)
    options = {"mesh": one_device} | ({"weights": weights} if weighted else {})
    probe = fit_linear(features, labels, CLASSES, l2=l2, **options)
    found = objective(probe.kernel, probe.bias, features, labels, l2, scaler.scale_, weights)
    assert probe.converged
    assert 1 < probe.iterations < 200
    assert best <= found <= best * 1.001 + 1e-5
    assert probe.loss == pytest.approx(found, rel=1e-3)
    theirs = peer.score(scaler.transform(tested), expected)
    assert np.mean(probe.logits(tested).argmax(1) == expected) == pytest.approx(theirs, abs=0.003)


def test_few_records_of_many_features_are_fitted_too(digits, one_device):
    features, labels, tested, _ = digits
    probe = fit_linear(features[:50], labels[:50], CLASSES, l2=1.0, mesh=one_device)
    scaler = StandardScaler().fit(features[:50])
    peer = LogisticRegression(C=1.0, solver="newton-cholesky").fit(scaler.transform(features[:50]), labels[:50])
    theirs = peer.predict_proba(scaler.transform(tested))
    logits = probe.logits(tested)
    ours = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(ours / ours.sum(1, keepdims=True), theirs, atol=0.02)


def test_the_probe_is_the_same_on_one_device_and_on_eight(digits):
    features, labels, tested, _ = digits
    one, eight = (
        fit_linear(features, labels, CLASSES, l2=1.0, mesh=make_mesh(-1, devices=jax.devices()[:count]))
        for count in (1, 8)
    )
    # 1,203 rows do not divide by eight.
    np.testing.assert_allclose(one.logits(tested), eight.logits(tested), atol=0.02)
    assert one.loss == pytest.approx(eight.loss, rel=1e-4)


def test_records_of_weight_0_do_not_count(digits, one_device):
    features, labels, tested, _ = digits
    weights = np.arange(len(labels)) < 800
    wrong = np.where(weights, labels, (labels + 1) % CLASSES)
    some = fit_linear(features, wrong, CLASSES, l2=10.0, weights=weights, mesh=one_device)
    only = fit_linear(features[:800], labels[:800], CLASSES, l2=10.0, mesh=one_device)
    np.testing.assert_allclose(some.logits(tested), only.logits(tested), atol=0.02)


def test_a_fit_that_is_stopped_says_that_it_has_not_converged(digits, one_device):
    features, labels, *_ = digits
    probe = fit_linear(features, labels, CLASSES, l2=1e-3, max_iterations=3, mesh=one_device)
    assert (probe.iterations, probe.converged) == (3, False)


def test_features_that_are_not_finite_are_refused(digits):
    features, labels, *_ = digits
    broken = features.copy()
    broken[7, 3] = np.nan
    with pytest.raises(UserError, match="the features hold NaN or infinity"):
        fit_linear(broken, labels, CLASSES, l2=1.0)
    with pytest.raises(ValueError, match="above 0 is needed"):
        fit_linear(features, labels, CLASSES, l2=0.0)


@pytest.mark.parametrize("shrinkage", [None, 0.3])
def test_discriminant_analysis_is_scikit_learns(digits, one_device, shrinkage):
    features, labels, tested, expected = digits
    probe = fit_lda(features, labels, CLASSES, shrinkage=shrinkage, mesh=one_device)
    if shrinkage is None:
        means = np.stack([features[labels == label].mean(0) for label in range(CLASSES)])
        shrinkage = ledoit_wolf_shrinkage(features - means[labels], assume_centered=True)
        assert 0.001 < shrinkage < 0.1
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(features, labels)
    theirs = peer.decision_function(tested)
    ours = probe.logits(tested)
    # Logits may have any constant.
    np.testing.assert_allclose(ours - ours.mean(1, keepdims=True), theirs - theirs.mean(1, keepdims=True), atol=0.05)
    assert np.mean(ours.argmax(1) == expected) == pytest.approx(peer.score(tested, expected), abs=0.002)


def test_discriminant_analysis_of_one_record_a_class_is_the_nearest_record(digits, one_device):
    features, labels, tested, _ = digits
    first = np.array([np.flatnonzero(labels == label)[0] for label in range(CLASSES)])
    probe = fit_lda(features[first], labels[first], CLASSES, mesh=one_device)
    distances = np.linalg.norm(tested[:, None] - features[first], axis=2)
    chosen = distances[np.arange(len(tested)), probe.logits(tested).argmax(1)]
    # Two may be equally near.
    np.testing.assert_allclose(chosen, distances.min(1), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_ has at least 1 zero")
def test_the_nearest_mean_is_scikit_learns_nearest_centroid_of_directions(digits):
    features, labels, tested, expected = digits
    probe = fit_means(features, labels, CLASSES)
    centre = features.mean(0)
    peer = NearestCentroid().fit(normalize(features - centre), labels)
    np.testing.assert_array_equal(probe.logits(tested).argmax(1), peer.predict(normalize(tested - centre)))
    assert np.mean(probe.logits(tested).argmax(1) == expected) > 0.85


def test_a_class_without_records_is_never_the_nearest(digits):
    features, labels, tested, _ = digits
    without = labels != 4
    predicted = fit_means(features[without], labels[without], CLASSES).logits(tested).argmax(1)
    assert set(predicted) == set(range(CLASSES)) - {4}


def cosine_votes(features, labels, tested, neighbours):
    peer = KNeighborsClassifier(neighbours, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07))
    return peer.fit(features, labels).predict_proba(tested)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_nearest_neighbours_vote_as_scikit_learns_do(digits, devices, monkeypatch):
    # Small blocks, so that there are several of both, and none is full.
    monkeypatch.setattr(probes, "QUERIES", 100)
    monkeypatch.setattr(probes, "BLOCK", 64)
    features, labels, tested, _ = digits
    mesh = make_mesh(-1, devices=jax.devices()[:devices])
    votes = nearest_neighbours(features, labels, CLASSES, tested, mesh=mesh)
    assert votes.shape == (len(tested), CLASSES)
    theirs = cosine_votes(features, labels, tested, 20)
    np.testing.assert_allclose(votes / votes.sum(1, keepdims=True), theirs, atol=1e-3)


def test_all_records_vote_where_there_are_few(digits, one_device):
    features, labels, tested, _ = digits
    votes = nearest_neighbours(features[:7], labels[:7], CLASSES, tested, mesh=one_device)
    np.testing.assert_allclose(
        (votes / votes.sum(1, keepdims=True))[:, :7], cosine_votes(features[:7], labels[:7], tested, 7), atol=1e-4
    )


def test_more_than_a_device_holds_is_refused_before_it_is_placed(digits):
    features, *_ = digits
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1e5})
    mesh = SimpleNamespace(local_devices=[device], shape={"data": 2, "fsdp": 1, "model": 1})
    # 1,203 x 64 numbers of 4 bytes, twice, half of them on each of two devices.
    with pytest.raises(UserError, match=r"take 0\.0 GB, and it has 0\.0 GB; take fewer records"):
        probes._check_memory(features.size, mesh)
    probes._check_memory(features.size // 4, mesh)
