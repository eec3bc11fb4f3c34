"""A classifier without its BatchNorm gives the logits that it gave with it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcls.models import resnet
from pcls.models.crnn import Crnn
from pcls.models.efficientnet import EfficientNet, squeeze
from pcls.models.folding import batch_norm_pairs, fold_batch_norm
from pcls.models.inverted import Fused, Inverted, Single, Stage
from pcls.models.registry import customary_model, define_model
from pcls.models.resnet import BasicBlock, Bottleneck, ResNet
from pcls.models.speednet import SpeedNet
from pcls.nn.module import ModelDef
from pcls.nn.norm import BatchNorm

_STAGES = (
    Stage(Single, 4, (1,)),
    Stage(Fused, 8, (2,), stride=2),
    Stage(Inverted, 8, (2, 1), stride=2, squeeze=squeeze),
)
# Few channels; together they have every kind of block and stem that a BatchNorm is in.
THIN = {
    "residual": partial(ResNet, BasicBlock, (1, 1, 0, 0)),
    "bottlenecks, deep stem": partial(ResNet, Bottleneck, (1, 1, 0, 0), deep=True),
    "grouped, small images": partial(
        ResNet, partial(Bottleneck, groups=4, group_width=16), (1, 0, 0, 0), small_images=True
    ),
    "inverted": partial(EfficientNet, 4, _STAGES, 16, style="tensorflow"),
    "speednet": partial(SpeedNet, widths=(4, 8, 8)),
    "crnn": partial(Crnn, height=8, width=8, widths=(4, 4, 8), hidden=4, layers=1),
}


def thin(kind, monkeypatch):
    monkeypatch.setattr(resnet, "STAGE_WIDTHS", (8, 8, 8, 8))
    return ModelDef.of(
        lambda rngs: THIN[kind](channels=3, classes=5, dtype=jnp.float32, rngs=rngs), takes_lengths=kind == "crnn"
    )


def some_arrays(definition):
    """Weights of which no BatchNorm is near the identity, some channels turned by a negative scale."""
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        if path.endswith("/scale"):
            return rng.uniform(0.5, 1.5, leaf.shape) * rng.choice([-1, 1], leaf.shape)
        return rng.normal(0, 1 / np.sqrt(max(1, np.prod(leaf.shape[:-1]))), leaf.shape)

    params = {path: np.float32(drawn(path, leaf)) for path, leaf in definition.params.items()}
    return params, {path: np.float32(rng.uniform(0.5, 1.5, leaf.shape)) for path, leaf in definition.stats.items()}


@pytest.mark.parametrize("kind", THIN)
def test_logits_are_those_of_the_model_with_its_batch_norm(kind, monkeypatch):
    definition = thin(kind, monkeypatch)
    params, stats = some_arrays(definition)
    folded, folded_params, folded_stats = fold_batch_norm(definition, params, stats)
    assert folded_stats == {}
    assert {array.dtype.name for array in folded_params.values()} == {"float32"}
    size = 8 if kind == "crnn" else 32
    images = jnp.asarray(np.random.default_rng(1).normal(size=(4, size, size, 3)), jnp.float32)
    lengths = jnp.array([8, 7, 3, 1], jnp.int32) if definition.takes_lengths else None

    def logits(model):
        return jax.jit(lambda p, s: model.apply(p, s, images, lengths=lengths)[0])

    expected, found = logits(definition)(params, stats), logits(folded)(folded_params, folded_stats)
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    # Images are told apart, so a layer that is lost shows.
    assert np.std(expected, 0).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["resnet50d", "speednet", "crnn", "mobilenetv3_small_100", "convnext_atto"])
def test_no_batch_norm_is_left_out(name):
    definition = customary_model(name)
    model = nnx.eval_shape(definition.build, jax.random.key(0))
    norms = sum(isinstance(module, BatchNorm) for _, module in nnx.iter_modules(model))
    pairs = batch_norm_pairs(model)
    assert len({pair.conv for pair in pairs}) == len(pairs) == norms == len(definition.stats) // 2


def test_a_model_without_batch_norm_is_itself():
    definition = define_model("cnn28", height=28, width=28, channels=1, classes=2)
    params, stats = some_arrays(definition)
    assert fold_batch_norm(definition, params, stats) == (definition, params, stats)
