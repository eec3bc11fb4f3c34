"""Every model by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx

from pcls.errors import UserError
from pcls.models.classic import Cnn28, irnn28, rnn28
from pcls.models.resnet import resnet18, resnet50
from pcls.nn.module import ModelDef


@dataclass(frozen=True)
class Entry:
    """A model's facts.

    Attributes:
      description: one line.
      build: takes channels, classes, dtype and rngs, and height and width where `fixed_size` says so.
      image_size: the customary height and width in pixels.
      min_size: the smallest height and width in pixels.
      channels, classes: the customary ones, for which `pcls models list` counts parameters.
      fixed_size: weights depend on the image size.
    """

    description: str
    build: Callable[..., nnx.Module]
    image_size: int
    min_size: int
    channels: int
    classes: int
    fixed_size: bool


MODELS: dict[str, Entry] = {
    "cnn28": Entry("two convolutions and two dense layers", Cnn28, 28, 10, 1, 10, True),
    "rnn28": Entry("simple recurrent network (tanh) over the rows of the image", rnn28, 28, 2, 1, 10, True),
    "irnn28": Entry("the same with ReLU and an identity start (Le et al. 2015)", irnn28, 28, 2, 1, 10, True),
    "resnet18": Entry("residual network, 18 layers (He et al. 2015)", resnet18, 224, 32, 3, 1000, False),
    "resnet50": Entry("residual network, 50 layers, bottlenecks (He et al. 2015)", resnet50, 224, 32, 3, 1000, False),
}


def model_entry(name: str) -> Entry:
    """The facts of a model; UserError with the nearest known name."""
    if name in MODELS:
        return MODELS[name]
    close = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.4)
    hint = f"the nearest is {close[0]!r}" if close else f"known: {', '.join(MODELS)}"
    raise UserError(f"model.name is {name!r}; there is no such model; {hint}")


def define_model(
    name: str, *, height: int, width: int, channels: int, classes: int, precision: str = "float32"
) -> ModelDef:
    """A model for images of a size, without its arrays.

    Raises:
      UserError: unknown name, or images too small for it.
    """
    entry = model_entry(name)
    if min(height, width) < entry.min_size:
        raise UserError(
            f"{name} needs images of {entry.min_size} x {entry.min_size} or more, and these are {height} x {width}; "
            f"set data.image_size, for example to {entry.image_size}"
        )
    size = {"height": height, "width": width} if entry.fixed_size else {}
    dtype = jnp.dtype(precision)
    return ModelDef.of(lambda rngs: entry.build(**size, channels=channels, classes=classes, dtype=dtype, rngs=rngs))


def customary_model(name: str) -> ModelDef:
    """A model at its customary image size and class count."""
    entry = model_entry(name)
    size = entry.image_size
    return define_model(name, height=size, width=size, channels=entry.channels, classes=entry.classes)
