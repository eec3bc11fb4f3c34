"""Frozen features: each record once, whatever the batches and devices."""

import jax
import numpy as np
import pytest
from flax import nnx

from pcls.config import Recipe, with_overrides
from pcls.data.dataset import open_dataset
from pcls.data.sources.source import Subset
from pcls.errors import UserError
from pcls.nn.dropout import Dropout
from pcls.nn.module import ModelDef
from pcls.nn.norm import BatchNorm
from pcls.parallel.mesh import make_mesh
from pcls.pretrained.bundle import load_bundle
from pcls.run.features import features_of


@pytest.fixture(scope="module")
def bundle(finished_run):
    return load_bundle(finished_run / "bundle")


@pytest.fixture(scope="module")
def dataset(bundle):
    return open_dataset(with_overrides(Recipe(), {"data.source": "digits"}).data, bundle.preprocessing)


def features(bundle, source, **options):
    options = {"threads": 0, "batch_size": 64} | options
    return features_of(bundle.definition(), bundle.params, bundle.stats, source, bundle.preprocessing, **options)


@pytest.fixture(scope="module")
def found(bundle, dataset):
    return features(bundle, dataset.evaluation)


def test_the_head_on_the_features_gives_the_accuracy_of_the_evaluation(bundle, found):
    logits = found.values @ bundle.params["head/kernel"] + bundle.params["head/bias"]
    assert np.mean(logits.argmax(1) == found.labels) == pytest.approx(bundle.metrics["top1"], abs=1e-6)


def test_every_record_is_there_once_with_its_label(dataset, found):
    np.testing.assert_array_equal(found.records, np.arange(359))
    np.testing.assert_array_equal(found.labels, dataset.evaluation.labels)
    assert found.values.shape == (359, 64)
    assert found.values.dtype == np.float32


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 50), (8, 1000), (8, 9)])
def test_batches_and_devices_change_nothing(bundle, dataset, found, devices, batch_size):
    mesh = make_mesh(-1, devices=jax.devices()[:devices])
    other = features(bundle, dataset.evaluation, mesh=mesh, batch_size=batch_size)
    np.testing.assert_array_equal(other.records, found.records)
    np.testing.assert_array_equal(other.labels, found.labels)
    np.testing.assert_allclose(other.values, found.values, rtol=1e-4, atol=1e-5)


def test_a_part_of_the_records_has_the_features_of_that_part(bundle, dataset, found):
    chosen = np.array([300, 5, 5, 17])
    part = features(bundle, Subset(dataset.evaluation, chosen))
    np.testing.assert_allclose(part.values, found.values[chosen], rtol=1e-4, atol=1e-5)
    some = found.chosen(chosen)
    assert (len(some), some.records.tolist()) == (4, chosen.tolist())


class Damaged(Subset):
    """Records of which two cannot be decoded."""

    def read(self, records, preprocessing, draws):
        read = super().read(records, preprocessing, draws)
        return read._replace(decoded=~np.isin(records, (3, 40)))


def test_records_that_cannot_be_decoded_are_left_out(bundle, dataset, found):
    damaged = features(bundle, Damaged(dataset.evaluation, np.arange(100)))
    np.testing.assert_array_equal(damaged.records, np.delete(np.arange(100), [3, 40]))
    np.testing.assert_allclose(damaged.values, found.values[damaged.records], rtol=1e-4, atol=1e-5)


class Normalised(nnx.Module):
    """BatchNorm and dropout before the head."""

    def __init__(self, rngs):
        self.bn, self.dropout = BatchNorm(100, rngs=rngs), Dropout(0.9, 0)
        self.head = nnx.Linear(100, 2, rngs=rngs)

    def __call__(self, images, training=None):
        return self.head(self.dropout(self.embed(images, training), training))

    def embed(self, images, training=None):
        return self.bn(images.reshape(len(images), -1), training)


def test_running_statistics_are_used_and_nothing_is_dropped(bundle, dataset):
    model = ModelDef.of(lambda rngs: Normalised(rngs))
    params, stats = jax.jit(model.init)(jax.random.key(0))
    mean, var = (np.full(100, value, np.float32) for value in (0.5, 4.0))
    few, preprocessing = Subset(dataset.evaluation, np.arange(5)), bundle.preprocessing
    found = features_of(model, params, stats | {"bn/mean": mean, "bn/var": var}, few, preprocessing, threads=0)
    pixels = dataset.evaluation.read(np.arange(5), preprocessing, None).images.reshape(5, -1)
    inputs = (pixels / 255 - preprocessing.mean) / preprocessing.std
    np.testing.assert_allclose(found.values, (inputs - 0.5) / np.sqrt(4 + 1e-5), rtol=1e-4, atol=1e-5)


def test_a_model_without_a_head_is_refused(bundle, dataset):
    headless = ModelDef.of(lambda rngs: nnx.Linear(3, 4, rngs=rngs))
    with pytest.raises(UserError, match=r"the model has no head \(head/kernel\)"):
        features_of(headless, {}, {}, dataset.evaluation, bundle.preprocessing)


def test_more_than_the_memory_holds_is_refused_before_it_is_taken(bundle, dataset, monkeypatch):
    monkeypatch.setattr("pcls.run.features.MEMORY_SHARE", 1e-9)
    with pytest.raises(UserError, match=r"the features of 359 images, 64 each, take 0\.0 GB, more than"):
        features(bundle, dataset.evaluation)
