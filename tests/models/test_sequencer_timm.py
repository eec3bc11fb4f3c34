"""Sequencer2D beside timm's, to the digit, with weights copied."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.models.sequencer import Sequencer2D
from pcls.nn.module import ModelDef
from pcls.pretrained.exchange import export_weights, import_weights
from pcls.pretrained.names.sequencer import SEQUENCER

pytestmark = pytest.mark.peer

DEPTHS, WIDTHS, PATCHES = (1, 1, 1, 1), (16, 24, 24, 24), (7, 2, 1, 1)


@pytest.fixture(scope="module")
def sequencer(timm):
    return importlib.import_module("timm.models.sequencer")


@pytest.fixture(scope="module")
def peer(sequencer):
    """A small one of timm's, with weights drawn."""
    import torch

    torch.manual_seed(0)
    hidden = [width // 4 for width in WIDTHS]
    model = sequencer.Sequencer2d(
        layers=DEPTHS, patch_sizes=PATCHES, embed_dims=WIDTHS, hidden_sizes=hidden, num_classes=9
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            weight.normal_(centre, 0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5)
    return model


def ours():
    return ModelDef.of(
        lambda rngs: Sequencer2D(DEPTHS, WIDTHS, PATCHES, channels=3, classes=9, dtype=jnp.float32, rngs=rngs)
    )


@pytest.mark.parametrize(("height", "width"), [(42, 42), (28, 56)], ids=["square", "oblong"])
def test_logits_are_those_of_timm(peer, height, width):
    import torch

    images = np.random.default_rng(0).normal(size=(4, height, width, 3)).astype(np.float32)
    with torch.no_grad():
        expected = peer(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    model, state = ours(), {key: tensor.numpy() for key, tensor in peer.state_dict().items()}
    weights, _ = import_weights(model, SEQUENCER, state)
    with jax.default_matmul_precision("highest"):
        found, _ = jax.jit(lambda weights, images: model.apply(weights, {}, images))(weights, images)
    assert np.linalg.norm(found - expected) <= 5e-5 * np.linalg.norm(expected)
    assert np.linalg.norm(expected - expected.mean(0)) > 0.01 * np.linalg.norm(expected)


def test_weights_go_back_to_timm_bit_for_bit(peer):
    state = {key: tensor.numpy() for key, tensor in peer.state_dict().items()}
    exported = export_weights(*import_weights(ours(), SEQUENCER, state), SEQUENCER)
    assert exported.keys() == state.keys()
    for key, tensor in exported.items():
        np.testing.assert_array_equal(tensor, state[key], err_msg=key)
