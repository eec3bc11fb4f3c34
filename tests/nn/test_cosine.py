"""The cosine head against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcls.models.registry import define_model
from pcls.nn.cosine import CosineHead

RNG = np.random.default_rng(0)
X, KERNEL = RNG.normal(0, 3, (5, 8)), RNG.normal(0, 2, (8, 3))


def head_with(kernel, dtype=jnp.float32):
    head = CosineHead(*kernel.shape, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    head.kernel = nnx.Param(jnp.asarray(kernel, jnp.float32))
    return head


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.3)])
def test_logits_are_thirty_times_the_cosines(dtype, error):
    cosines = X @ KERNEL / np.linalg.norm(X, axis=1)[:, None] / np.linalg.norm(KERNEL, axis=0)
    found = head_with(KERNEL, dtype)(jnp.asarray(X, dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, float), 30 * cosines, atol=error)


def test_lengths_of_features_and_kernels_change_nothing():
    lengths = np.array([0.01, 1, 100])
    found = head_with(KERNEL * lengths)(jnp.asarray(7 * X, jnp.float32))
    np.testing.assert_allclose(found, head_with(KERNEL)(jnp.asarray(X, jnp.float32)), rtol=1e-4, atol=1e-5)


def test_features_that_are_zero_have_finite_logits_and_gradients():
    head = head_with(KERNEL)
    logits, gradient = jax.value_and_grad(lambda x: head(x).sum())(jnp.zeros((1, 8)))
    assert float(logits) == 0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("name", "size"), [("cnn28", 28), ("rnn28", 28), ("resnet18_cifar", 32), ("lstm", 8), ("lru", 8), ("crnn", 32)]
)
def test_every_model_takes_it_in_the_place_of_its_own(name, size):
    sizes = {"height": size, "width": size, "channels": 1, "classes": 7}
    plain, cosine = define_model(name, **sizes), define_model(name, **sizes, head="cosine")
    assert plain.params.keys() - cosine.params.keys() == {"head/bias"}
    assert cosine.params["head/kernel"].shape == plain.params["head/kernel"].shape
    params, stats = jax.eval_shape(cosine.init, jax.random.key(0))
    logits, _ = jax.eval_shape(cosine.apply, params, stats, jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32))
    assert logits.shape == (2, 7)
