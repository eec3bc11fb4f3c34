"""BatchNorm folded into the convolution before it: one layer less to run, to quantize and to export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from pcls.models.crnn import StemBlock
from pcls.models.inverted import ConvNorm
from pcls.models.resnet import BasicBlock, Bottleneck, DeepStem, ResNet, Shortcut
from pcls.models.speednet import Group
from pcls.nn.module import Arrays, ModelDef
from pcls.nn.norm import BatchNorm, Folded

# Of each module, its convolutions and the BatchNorm that follows each. Between them may be a maximum over positions: in
# `Group`, whose BatchNorm has no scale and so a gain above 0, and in `ResNet`, whose stem is the same in either order.
_LAYERS: Mapping[type[nnx.Module], Mapping[str, str]] = {
    ConvNorm: {"conv": "bn"},
    StemBlock: {"conv": "norm"},
    Group: {"conv1": "bn1", "conv2": "bn2"},
    Shortcut: {"conv": "bn"},
    BasicBlock: {"conv1": "bn1", "conv2": "bn2"},
    Bottleneck: {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3"},
    DeepStem: {"conv1": "bn1", "conv2": "bn2"},
    ResNet: {"conv1": "bn1"},
}


class Pair(NamedTuple):
    """A convolution and the BatchNorm that follows it.

    Attributes:
      conv, norm: paths of the two layers.
      eps: of the BatchNorm.
    """

    conv: str
    norm: str
    eps: float


def fold_batch_norm(definition: ModelDef, params: Arrays, stats: Arrays) -> tuple[ModelDef, Arrays, Arrays]:
    """The same classifier with the gain and shift of every BatchNorm in the convolution before it.

    In exact arithmetic its predictions are the same; in float32 they differ by rounding. Of a model without BatchNorm
    it is the model itself.

    Args:
      definition: of the model.
      params, stats: by path, float32.

    Returns:
      Definition, params and stats of the folded model: each folded convolution has a `bias`, its BatchNorm has nothing
      left. Training passes leave it as it is, too: it has no running statistics.
    """
    pairs = batch_norm_pairs(definition.module())
    if not pairs:
        return definition, params, stats
    folded = definition.changed(lambda model: _without_norms(model, pairs))
    params, stats = dict(params), dict(stats)
    for pair in pairs:
        params |= _folded(pair, params, stats)
    return folded, {path: params[path] for path in folded.params}, {path: stats[path] for path in folded.stats}


def batch_norm_pairs(model: nnx.Module) -> list[Pair]:
    """Every convolution of a model that a BatchNorm follows, in the order of its modules."""
    pairs = []
    for path, module in nnx.iter_modules(model):
        for conv, norm in _LAYERS.get(type(module), {}).items():
            layer = getattr(module, norm)
            if isinstance(layer, BatchNorm):
                # What leaves a deep stem is its third convolution's.
                last = f"{conv}/conv3" if isinstance(getattr(module, conv), DeepStem) else conv
                pairs.append(Pair(_joined(path, last), _joined(path, norm), layer.eps))
    return pairs


def _joined(path: tuple[Any, ...], name: str) -> str:
    return "/".join((*map(str, path), name))


def _without_norms(model: nnx.Module, pairs: list[Pair]) -> nnx.Module:
    for pair in pairs:
        conv: Any = _layer(model, pair.conv)
        if conv.bias is None:
            # `data`: it was None, which flax takes for a setting.
            conv.bias = nnx.data(nnx.Param(jnp.zeros(conv.kernel.shape[-1:], jnp.float32)))
        parent, _, name = pair.norm.rpartition("/")
        setattr(_layer(model, parent), name, Folded())
    return model


def _layer(model: nnx.Module, path: str) -> Any:
    layer: Any = model
    for part in path.split("/") if path else ():
        layer = layer[int(part)] if part.isdecimal() else getattr(layer, part)
    return layer


def _folded(pair: Pair, params: Arrays, stats: Arrays) -> Arrays:
    """Kernel and bias of a convolution that does what its BatchNorm did; computed in float64, float32."""

    def wide(array: Any) -> np.ndarray:
        return np.asarray(array, np.float64)

    mean, var = wide(stats[f"{pair.norm}/mean"]), wide(stats[f"{pair.norm}/var"])
    # A BatchNorm may have no scale.
    gain = wide(params.get(f"{pair.norm}/scale", 1)) / np.sqrt(var + pair.eps)
    shift = wide(params[f"{pair.norm}/bias"]) - mean * gain
    kernel, before = wide(params[f"{pair.conv}/kernel"]), wide(params.get(f"{pair.conv}/bias", 0))
    # Outputs are the kernel's last axis, of depthwise and grouped convolutions too.
    return {
        f"{pair.conv}/kernel": (kernel * gain).astype(np.float32),
        f"{pair.conv}/bias": (before * gain + shift).astype(np.float32),
    }
