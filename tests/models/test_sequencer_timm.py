"""Sequencer2D beside timm's, to the digit, with weights copied."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.models.registry import customary_model
from pcls.models.sequencer import Sequencer2D
from pcls.nn.module import ModelDef

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


def weights_of(state):
    """timm's state dict under the paths of `Sequencer2D`."""
    weights = {}
    for name, tensor in state.items():
        path = name.replace(".", "/").replace("stem/proj", "stem").replace("head/fc", "head")
        for old, new in (
            ("downsample/down", "downsample"),
            ("rnn_tokens/fc", "mix/union"),
            ("mlp_channels/fc1", "expand"),
            ("mlp_channels/fc2", "project"),
        ):
            path = path.replace(old, new)
        array = np.asarray(tensor)
        if "rnn_tokens" in path:
            path = _direction_path(path)
        elif path.endswith("weight"):
            path = path.replace("weight", "scale" if array.ndim == 1 else "kernel")
        # Convolutions: outputs, inputs, height, width.
        weights[path] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return weights


def _direction_path(path):
    parents, _, name = path.rpartition("/")
    axis = "vertical" if parents.endswith("rnn_v") else "horizontal"
    kind = {
        "weight_ih": "kernel",
        "weight_hh": "recurrent",
        "bias_ih": "bias",
        "bias_hh": "recurrent_bias",
    }[name.partition("_l0")[0]]
    return f"{parents.rpartition('/')[0].replace('rnn_tokens', 'mix')}/{axis}/{int('reverse' in name)}/{kind}"


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
    weights, model = weights_of(peer.state_dict()), ours()
    assert {path: leaf.shape for path, leaf in model.params.items()} == {path: a.shape for path, a in weights.items()}
    with jax.default_matmul_precision("highest"):
        found, _ = jax.jit(lambda weights, images: model.apply(weights, {}, images))(weights, images)
    assert np.linalg.norm(found - expected) <= 5e-5 * np.linalg.norm(expected)
    assert np.linalg.norm(expected - expected.mean(0)) > 0.01 * np.linalg.norm(expected)


def test_the_paths_and_shapes_of_the_small_one_are_those_of_timm(sequencer):
    import torch

    with torch.device("meta"):
        state = sequencer.sequencer2d_s().state_dict()
    # Stand-ins with the shapes but without the memory.
    expected = weights_of({name: np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in state.items()})
    found = customary_model("sequencer2d_s").params
    assert {path: leaf.shape for path, leaf in found.items()} == {path: array.shape for path, array in expected.items()}
