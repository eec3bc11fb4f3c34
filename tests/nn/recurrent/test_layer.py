"""What a stack of recurrent layers refuses; what it computes is tested beside torch and a plain loop."""

import jax.numpy as jnp
import pytest
from flax import nnx

from pcls.errors import UserError
from pcls.nn.recurrent import Recurrent


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": "elman"}, "there is no recurrent cell 'elman'; known: rnn, irnn, gru, "),
        ({"layers": 0}, "layers is 0 and hidden is 4; whole numbers >= 1 are needed"),
        ({"hidden": 0}, "layers is 1 and hidden is 0; whole numbers >= 1 are needed"),
        ({"truncate": -1}, "truncate is -1 and chunk is 0; numbers of steps >= 0 are needed"),
        ({"chunk": -2}, "truncate is 0 and chunk is -2; numbers of steps >= 0 are needed"),
        ({"form": "parallel"}, 'form of a layer that runs step by step is "parallel"; write one of sequential, cudnn'),
    ],
    ids=str,
)
def test_what_a_stack_cannot_be_is_refused_in_words(changes, message):
    settings = {"cell": "gru", "inputs": 3, "hidden": 4, "dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    with pytest.raises(UserError) as raised:
        Recurrent(**settings | changes)
    assert str(raised.value).startswith(message)
