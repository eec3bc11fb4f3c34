"""Recurrent layers beside torch's, with its weights: outputs, final states and gradients, packed sequences too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.nn.module import ModelDef
from pcls.nn.recurrent import Recurrent

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.peer

BATCH, STEPS, INPUTS, HIDDEN = 4, 13, 5, 8
LENGTHS = [13, 9, 4, 1]
MODULES = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}


def by_path(peer, cell: str, *, gradients: bool) -> dict[str, jax.Array]:
    """torch's weights or their gradients by the paths of `Recurrent`.

    torch has two biases. Both are added, so each has the gradient of the sum; the second one of a GRU's new gate is
    multiplied with the reset gate.
    """
    found = {}
    for name, weight in peer.items():
        kind, layer = name.split("_l")
        side = "backward" if layer.endswith("_reverse") else "forward"
        path = f"layers/{layer.removesuffix('_reverse')}/{side}"
        if kind == "weight_ih":
            found[f"{path}/kernel"] = weight.T
        elif kind == "weight_hh":
            found[f"{path}/recurrent"] = weight.T
        elif kind == "bias_ih":
            found[f"{path}/bias"] = weight.copy()
        else:
            added = slice(None, 2 * HIDDEN if cell == "gru" else None)
            if not gradients:
                found[f"{path}/bias"][added] += weight[added]
            if cell == "gru":
                found[f"{path}/reset_bias"] = weight[2 * HIDDEN :]
    return found


def numpy_of(tensors):
    return {name: tensor.detach().numpy() for name, tensor in tensors}


def torch_results(peer, x, packed):
    """Outputs, final states of the last layer, and the gradients of a weighted sum of the outputs."""
    inputs = torch.tensor(x, requires_grad=True)
    if packed:
        outputs, state = peer(torch.nn.utils.rnn.pack_padded_sequence(inputs, LENGTHS, batch_first=True))
        outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)
    else:
        outputs, state = peer(inputs)
    (outputs * torch.cos(torch.arange(outputs.numel())).reshape(outputs.shape)).sum().backward()
    hidden = state[0] if isinstance(state, tuple) else state
    last = hidden.unflatten(0, (peer.num_layers, -1))[-1].transpose(0, 1).flatten(1)
    grads = numpy_of((name, parameter.grad) for name, parameter in peer.named_parameters())
    return outputs.detach().numpy(), last.detach().numpy(), inputs.grad.numpy(), grads


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cell", MODULES)
def test_two_bidirectional_layers_and_their_gradients_are_those_of_torch(cell, packed):
    torch.manual_seed(0)
    peer = MODULES[cell](INPUTS, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
    x = np.random.default_rng(0).normal(size=(BATCH, STEPS, INPUTS)).astype(np.float32)
    outputs, last, grad_x, grads = torch_results(peer, x, packed)
    model = ModelDef.of(
        lambda rngs: Recurrent(cell, INPUTS, HIDDEN, layers=2, bidirectional=True, dtype=jnp.float32, rngs=rngs),
        takes_lengths=True,
    )
    params = by_path(numpy_of(peer.named_parameters()), cell, gradients=False)
    assert params.keys() == model.params.keys()
    lengths = jnp.array(LENGTHS) if packed else None

    def loss(params, x):
        (found, final), _ = model.apply(params, {}, x, None, lengths)
        return jnp.sum(found * jnp.cos(jnp.arange(found.size)).reshape(found.shape)), (found, final)

    with jax.default_matmul_precision("highest"):
        (_, (found, final)), (found_grads, found_x) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    np.testing.assert_allclose(found, outputs, rtol=0, atol=1e-5)
    np.testing.assert_allclose(final, last, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found_x, grad_x, rtol=0, atol=1e-5)
    for path, wanted in by_path(grads, cell, gradients=True).items():
        np.testing.assert_allclose(found_grads[path], wanted, rtol=0, atol=1e-5 * max(1, np.abs(wanted).max()))
