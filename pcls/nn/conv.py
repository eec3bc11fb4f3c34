"""Convolutions over NHWC images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.nn.convolve import FORMS, Pads, convolve
from pcls.nn.platform import target_platform
from pcls.nn.pooling import max_pool_2x2
from pcls.nn.remat import named_product

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Conv(nnx.Module):
    """A convolution with square kernel, padded by half of it on every side, as public weights expect.

    (TensorFlow's padding puts a strided convolution's odd row of zeros on the other side.)

    Args:
      inputs, outputs: channels.
      size: of the kernel.
      stride: on both axes.
      pad: rows of zeros on every side; None: half of the kernel; `same`: as TensorFlow's SAME, as few as the output's
        size needs, the odd one below and on the right.
      groups: inputs and outputs are split into this many, each with its own kernel; `inputs`: depthwise.
      bias: whether a bias is added.
      kernel_init: of the kernel.
      dtype: of the computation; parameters are float32.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        pad: int | Literal["same"] | None = None,
        groups: int = 1,
        bias: bool = False,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, inputs // groups, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None
        self.stride = stride
        rows = size // 2 if pad is None else pad
        self.pads: Pads | Literal["SAME"] = "SAME" if rows == "same" else ((rows, rows), (rows, rows))
        self.groups = groups
        self.dtype = dtype
        self.product: Callable[..., Array] = convolve

    def __call__(self, x: Array) -> Array:
        """[batch, height, width, inputs] to [batch, ceil(height / stride), ceil(width / stride), outputs]."""
        kernel = self.kernel[...].astype(self.dtype)
        y = self.product(x.astype(self.dtype), kernel, stride=self.stride, pads=self.pads, groups=self.groups)
        y = named_product(y)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class ConvPool(nnx.Module):
    """A convolution without padding, 2 x 2 maximum pooling, bias, ReLU.

    The maximum commutes with bias and ReLU, so both come after it, on a quarter of the positions.

    Args:
      inputs, outputs: channels.
      size: of the square kernel, odd.
      dtype: of the computation; parameters are float32.
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        shape = (size, size, inputs, outputs)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.dtype = dtype
        self.product: Callable[..., Array] = convolve_valid

    def __call__(self, x: Array) -> Array:
        """[batch, height, width, inputs] to [batch, (height - size + 1) // 2, (width - size + 1) // 2, outputs]."""
        # A last odd row or column would be left out by the pooling: without it conv2 of cnn28 has a sixth less to do.
        even = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2].astype(self.dtype)
        pooled = max_pool_2x2(self.product(even, self.kernel[...].astype(self.dtype)))
        return nnx.relu(pooled + self.bias[...].astype(self.dtype))


def convolve_valid(x: Array, kernel: Array) -> Array:
    """A convolution with stride 1 and no padding.

    Args:
      x: [batch, height, width, inputs].
      kernel: [size, size, inputs, outputs], in x's type.
    """
    few_inputs_on_cpu = kernel.shape[2] <= 4 and target_platform() == "cpu"
    return (_convolve_few_inputs if few_inputs_on_cpu else _convolve)(x, kernel)


def _convolve(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=_LAYOUT)


def _convolve_few_inputs(x: Array, kernel: Array) -> Array:
    """The same convolution: with jax 0.10 cnn28 takes 0.8 of the time, trained or asked; with 0.12 as long (CPU)."""
    return _sum_of_maps(x, kernel) if kernel.shape[2] == 1 else FORMS["patches"](x, kernel, 1, ((0, 0), (0, 0)), 1)


@jax.custom_vjp
def _sum_of_maps(x: Array, kernel: Array) -> Array:
    """Of one input: the image in all its shifts, times their weights, added up in one loop with what comes after."""
    size, _, _, outputs = kernel.shape
    weights = kernel.astype(jnp.float32).reshape(-1, outputs)
    maps = [image * own for image, own in zip(_shifted(x.astype(jnp.float32), size), weights, strict=True)]
    return functools.reduce(jnp.add, maps).astype(x.dtype)


def _shifted(x: Array, size: int) -> list[Array]:
    """What each of the size * size weights of a kernel meets: [batch, height - size + 1, width - size + 1, inputs]."""
    height, width = (length - size + 1 for length in x.shape[1:3])
    return [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]


def _sum_of_maps_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _sum_of_maps(x, kernel), (x, kernel)


def _sum_of_maps_backward(saved: tuple[Array, Array], grads: Array) -> tuple[Array, Array]:
    """Gradients, the kernel's as one matrix product: 2 ms less in cnn28's step."""
    x, kernel = saved
    size, _, _, outputs = kernel.shape
    kernel_grads = jnp.stack(_shifted(x, size)).reshape(size * size, -1) @ grads.reshape(-1, outputs)
    # Dropped by the compiler where nothing asks for it, as below a first layer.
    full = ((size - 1, size - 1), (size - 1, size - 1))
    x_grads = jax.lax.conv_general_dilated(
        grads, kernel[::-1, ::-1].swapaxes(2, 3), (1, 1), full, dimension_numbers=_LAYOUT
    )
    return x_grads, kernel_grads.reshape(kernel.shape)


_sum_of_maps.defvjp(_sum_of_maps_forward, _sum_of_maps_backward)
