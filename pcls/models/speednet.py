"""A small network for images of about 32 x 32 that is trained in seconds on a GPU. Source: Jordan 2024.

Its first convolution whitens 2 x 2 patches: it is computed from training images and not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pcls.nn.conv import Conv
from pcls.nn.norm import BatchNorm
from pcls.nn.pooling import max_pool_2x2
from pcls.nn.training import TrainingPass

WIDTHS = (64, 256, 256)
STEM = "stem/kernel"
PATCH = 2
# Of what the head sees; as the head has no bias, of the logits too.
FEATURE_SCALE = 1 / 9
# Added to the variance of a direction: those of least variance are noise.
WHITENING_EPS = 5e-4
# Images whose patches are held at once.
PIECE = 256

# PyTorch's: within 1 / sqrt(fan-in) of zero.
_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class SpeedNet(nnx.Module):
    """The whitening convolution, three groups of two convolutions, the maximum over positions, the head.

    1,971,640 parameters for 3 channels and 10 classes.

    Args:
      channels, classes: of images and logits.
      widths: channels of the groups.
      dtype: of the computation.
    """

    def __init__(
        self, *, channels: int, classes: int, widths: Sequence[int] = WIDTHS, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        whitened = 2 * PATCH * PATCH * channels
        self.stem = Conv(
            channels, whitened, PATCH, pad=0, bias=True, kernel_init=partly_identity, dtype=dtype, rngs=rngs
        )
        pairs = zip((whitened, *widths), widths, strict=False)
        self.stages = nnx.List([Group(inputs, width, dtype=dtype, rngs=rngs) for inputs, width in pairs])
        self.head = nnx.Linear(widths[-1], classes, use_bias=False, kernel_init=_uniform, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to [batch, classes] logits."""
        return self.head(self.embed(images, training))

    def embed(self, images: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to the input of the head [batch, features]."""
        x = _gelu(self.stem(images))
        for group in self.stages:
            x = group(x, training)
        return x.max((1, 2)) * FEATURE_SCALE


class Group(nnx.Module):
    """Convolution and pooling, convolution; each normalised without a scale, then GELU."""

    def __init__(self, inputs: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv1 = Conv(inputs, width, 3, kernel_init=partly_identity, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, eps=1e-12, scaled=False, rngs=rngs)
        self.conv2 = Conv(width, width, 3, kernel_init=partly_identity, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(width, eps=1e-12, scaled=False, rngs=rngs)

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, height // 2, width // 2, width]."""
        x = _gelu(self.bn1(max_pool_2x2(self.conv1(x)), training))
        return _gelu(self.bn2(self.conv2(x), training))


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def partly_identity(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """A kernel whose first outputs are its inputs, as many as there are of both; the others are drawn.

    Args:
      key: of the others.
      shape: size, size, inputs, outputs.
      dtype: of the result.
    """
    size, _, inputs, outputs = shape
    same = min(inputs, outputs)
    middle = np.zeros((size, size, inputs, same))
    middle[size // 2, size // 2, :same] = np.eye(same)
    return jnp.concatenate([jnp.asarray(middle, dtype), _uniform(key, shape, dtype)[..., same:]], -1)


def whitening_stem(images: np.ndarray) -> dict[str, np.ndarray]:
    """The first convolution for a training set: its outputs are uncorrelated there, and of about the same size.

    Half of the filters are the directions in which patches vary, from the most to the least, each divided by its
    deviation; the others are their negatives, so that the activation loses nothing.

    Args:
      images: [n, height, width, channels], normalised; some thousands suffice.

    Returns:
      Path to the kernel, [2, 2, channels, 8 * channels] float32.
    """
    channels = images.shape[-1]
    size = PATCH * PATCH * channels
    second, count = np.zeros((size, size)), 0
    for start in range(0, len(images), PIECE):
        patches = _patches(images[start : start + PIECE])
        second += patches.T @ patches
        count += len(patches)
    variances, directions = np.linalg.eigh(second / count)
    # Of the most variance first.
    filters = (directions / np.sqrt(variances.clip(0) + WHITENING_EPS))[:, ::-1]
    kernel = np.concatenate([filters, -filters], 1).reshape(PATCH, PATCH, channels, 2 * size)
    return {STEM: kernel.astype(np.float32)}


def _patches(images: np.ndarray) -> np.ndarray:
    """[patches, 4 * channels] float64, in the order of a kernel's rows, columns and inputs."""
    height, width = images.shape[1] - PATCH + 1, images.shape[2] - PATCH + 1
    views = [images[:, i : i + height, j : j + width] for i in range(PATCH) for j in range(PATCH)]
    return np.concatenate(views, -1).reshape(-1, PATCH * PATCH * images.shape[-1]).astype(np.float64)
