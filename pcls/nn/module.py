"""A module is built once, then split: the compiled step sees only flat dicts of arrays, by path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
from flax import nnx
from jax import Array

from pcls.nn.conv import Conv, ConvPool
from pcls.nn.norm import BatchNorm
from pcls.nn.quantized import Arithmetic
from pcls.nn.training import TrainingPass

# `layer1/0/conv1/kernel` -> array. Flat, so that a rule over parameter paths is a dict comprehension, and a weight
# file is the dict itself.
Arrays = dict[str, Any]

# Of every classifier the last layer; of one that is dense, its arrays.
HEAD = "head/"
HEAD_KERNEL, HEAD_BIAS = "head/kernel", "head/bias"


@dataclass(frozen=True)
class ModelDef:
    """A model without its arrays.

    Attributes:
      graph: flax's graph definition.
      params, stats: paths to shapes and types of the trained parameters and the running statistics.
      build: makes the module from a key.
      takes_lengths: whether it reads sequences of several lengths: called with `lengths=` too.
      predicting, learning: what it computes with instead of its own numbers, in predictions and in training passes;
        None: with these.
    """

    graph: Any
    params: Mapping[str, jax.ShapeDtypeStruct]
    stats: Mapping[str, jax.ShapeDtypeStruct]
    build: Callable[[Array], nnx.Module]
    takes_lengths: bool = False
    predicting: Arithmetic | None = None
    learning: Arithmetic | None = None

    @classmethod
    def of(cls, build: Callable[[nnx.Rngs], nnx.Module], *, takes_lengths: bool = False) -> ModelDef:
        """Traces the constructor for shapes; no array is made."""

        def from_key(key: Array) -> nnx.Module:
            return build(nnx.Rngs(key))

        graph, params, stats = _split(nnx.eval_shape(from_key, jax.random.key(0)))
        return cls(graph, params, stats, from_key, takes_lengths)

    def module(self) -> Any:
        """The module, with shapes in the place of its arrays."""
        return nnx.merge(self.graph, _nested(dict(self.params)), _nested(dict(self.stats)))

    def changed(self, change: Callable[[Any], Any]) -> ModelDef:
        """The model with its module changed, as by other layers in place of some.

        Args:
          change: takes the module, of shapes or of arrays, and returns it changed.
        """
        graph, params, stats = _split(change(self.module()))

        def shapes(arrays: Arrays) -> Arrays:
            return {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in arrays.items()}

        return replace(
            self, graph=graph, params=shapes(params), stats=shapes(stats), build=lambda key: change(self.build(key))
        )

    def init(self, key: Array) -> tuple[Arrays, Arrays]:
        """Parameters and statistics; call it under jit with output shardings, so that they are born sharded."""
        _, params, stats = _split(self.build(key))
        return params, stats

    def apply(
        self,
        params: Arrays,
        stats: Arrays,
        images: Array,
        training: TrainingPass | None = None,
        lengths: Array | None = None,
        frozen: Set[str] = frozenset(),
        entered: list[Array] | None = None,
    ) -> tuple[Array, Arrays]:
        """Logits [batch, classes], and the statistics: of this batch alone when training, else the given ones.

        Args:
          params, stats: by path.
          images: [batch, height, width, channels].
          training: None: prediction.
          lengths: [batch] int32, rows of each image that count; a model that takes none sees all rows. None: all count.
          frozen: paths of statistics that training does not take anew, but normalises by.
          entered: gets what enters the head, [batch, features]; None: nobody asks.
        """
        model = self._merged(params, stats, self.predicting if training is None else self.learning)
        if frozen:
            _freeze(model, frozen)
        if entered is not None:
            _tap(model, entered)
        logits = model(images, training, lengths=lengths) if self.takes_lengths else model(images, training)
        return logits, _flat(nnx.state(model, nnx.BatchStat))

    def embed(self, params: Arrays, stats: Arrays, images: Array, lengths: Array | None = None) -> Array:
        """The input of the head in a prediction, [batch, features]; arguments as `apply` has them."""
        model = self._merged(params, stats, self.predicting)
        return model.embed(images, lengths=lengths) if self.takes_lengths else model.embed(images)

    def features(self, params: Arrays, stats: Arrays, images: Array) -> list[Array]:
        """The map after each stage of a network that has stages, [batch, height / n, width / n, channels] each.

        Args:
          params, stats: by path.
          images: [batch, height, width, channels].
        """
        return self._merged(params, stats, self.predicting).features(images)

    def classify_features(self, params: Arrays, stats: Arrays, last: Array) -> Array:
        """Logits [batch, classes] in a prediction from the last of the maps that `features` gives.

        Args:
          params, stats: by path.
          last: [batch, height / n, width / n, channels].
        """
        model = self._merged(params, stats, self.predicting)
        return model.head(model.pooled(last))

    def _merged(self, params: Arrays, stats: Arrays, arithmetic: Arithmetic | None) -> Any:
        if arithmetic is None:
            return nnx.merge(self.graph, _nested(params), _nested(stats))
        model = nnx.merge(self.graph, _nested(arithmetic.weights(params)), _nested(stats))
        for path, layer in nnx.iter_modules(model):
            name = "/".join(map(str, path))
            if isinstance(layer, Conv | ConvPool):
                layer.product = arithmetic.product(name, layer.product)
            elif isinstance(layer, nnx.Linear):
                layer.dot_general = arithmetic.product(name, layer.dot_general)
        return model

    @property
    def parameter_count(self) -> int:
        """Trained numbers."""
        return sum(leaf.size for leaf in self.params.values())


def _freeze(model: nnx.Module, frozen: Set[str]) -> None:
    for path, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            module.frozen = "/".join(map(str, (*path, "mean"))) in frozen


def _tap(model: Any, entered: list[Array]) -> None:
    head = model.head

    def tapped(inputs: Array, *others: Any) -> Array:
        entered.append(inputs)
        return head(inputs, *others)

    model.head = tapped


def _split(module: nnx.Module) -> tuple[Any, Arrays, Arrays]:
    # flax types a split by two filters as a tuple of unknown length.
    graph, params, stats = cast("tuple[Any, Any, Any]", nnx.split(module, nnx.Param, nnx.BatchStat))
    return graph, _flat(params), _flat(stats)


def _flat(state: Any) -> Arrays:
    leaves, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
    return {"/".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def _nested(arrays: Arrays) -> dict[Any, Any]:
    root: dict[Any, Any] = {}
    for path, leaf in arrays.items():
        *parents, last = (int(part) if part.isdecimal() else part for part in path.split("/"))
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return root
