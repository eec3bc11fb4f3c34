"""The LSTM by cuDNN: what is handed to jax's kernel, against jax's own description of it; on a GPU, the kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import rnn

from pcls.errors import UserError
from pcls.models.registry import define_model
from pcls.nn.recurrent.cells import GRU, LSTM
from pcls.nn.recurrent.layer import SequentialLayer

STEPS, BATCH, INPUTS, HIDDEN = 6, 4, 3, 5
LENGTHS = jnp.array([6, 1, 4, 0])
X = jnp.asarray(np.random.default_rng(0).normal(size=(STEPS, BATCH, INPUTS)), jnp.float32).at[2:, 1].set(jnp.nan)


def described(x, h_0, c_0, weights, seq_lengths, input_size, hidden_size, num_layers, dropout, bidirectional):
    """`jax.experimental.rnn.lstm` in plain jax."""
    assert (np.asarray(seq_lengths) >= 1).all(), "cuDNN refuses an empty sequence"
    sizes = input_size, hidden_size, num_layers
    unpacked = rnn.unpack_lstm_weights(weights, *sizes, bidirectional)
    return rnn.lstm_ref(x, h_0, c_0, *unpacked, seq_lengths, *sizes, dropout, bidirectional)


def layer_of(form, *, bidirectional, cell=None, **options):
    return SequentialLayer(
        cell or LSTM(),
        INPUTS,
        HIDDEN,
        form=form,
        bidirectional=bidirectional,
        rngs=nnx.Rngs(1),
        **{"dtype": jnp.float32, **options},
    )


def values_and_gradients(form, x, lengths, bidirectional):
    graph, params = nnx.split(layer_of(form, bidirectional=bidirectional))

    def total(params, x):
        outputs, last = nnx.merge(graph, params)(x, lengths)
        return jnp.sum(jnp.sin(outputs)) + jnp.sum(last**2), (outputs, last)

    (_, values), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(params, x)
    return jax.tree.leaves((values, gradients))


def assert_equals_the_scan(bidirectional, lengths, tolerance):
    x = X if lengths is not None else jnp.nan_to_num(X)
    found = values_and_gradients("cudnn", x, lengths, bidirectional)
    for a, b in zip(found, values_and_gradients("sequential", x, lengths, bidirectional), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.system
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_the_kernel_gets_what_the_scan_computes_with(monkeypatch, bidirectional, lengths):
    monkeypatch.setattr(rnn, "lstm", described)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert_equals_the_scan(bidirectional, lengths, 1e-5)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_the_kernel_on_a_gpu_equals_the_scan(bidirectional, lengths):
    with jax.default_matmul_precision("highest"):
        assert_equals_the_scan(bidirectional, lengths, 1e-4)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="needs a machine without a GPU")
def test_without_a_gpu_the_error_says_so():
    with pytest.raises(
        UserError, match=r"model\.form is cudnn, which needs an NVIDIA GPU, and jax finds devices of kind cpu"
    ):
        layer_of("cudnn", bidirectional=False)(X)


def test_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match=r"float32 only, and train\.precision is bfloat16"):
        layer_of("cudnn", bidirectional=False, dtype=jnp.bfloat16)(X)


@pytest.mark.parametrize("options", [{"cell": GRU("after")}, {"truncate": 2}, {"chunk": 2}], ids=str)
def test_what_it_does_not_run_is_refused(options):
    with pytest.raises(UserError, match=r"runs an LSTM only, without model\.truncate and model\.chunk"):
        layer_of("cudnn", bidirectional=False, **options)


def test_a_model_says_which_forms_it_has():
    size = {"height": 4, "width": 4, "channels": 1, "classes": 2}
    with pytest.raises(UserError, match=r"model\.form is 'parallel'; lstm runs sequential or cudnn"):
        define_model("lstm", **size, form="parallel")
    with pytest.raises(UserError, match=r"model\.form is 'cudnn'; lru runs sequential or parallel"):
        define_model("lru", **size, form="cudnn")
