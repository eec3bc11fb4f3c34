"""Convolutions over NHWC images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.nn.convolve import Pads, convolve
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


@jax.custom_vjp
def _convolve_few_inputs(x: Array, kernel: Array) -> Array:
    """The same convolution; the kernel's gradient is one matmul over patches, 2 ms less in cnn28's step on CPU."""
    return _convolve(x, kernel)


def _few_inputs_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel), (x, kernel)


def _few_inputs_backward(saved: tuple[Array, Array], grads: Array) -> tuple[Array, Array]:
    x, kernel = saved
    size, _, inputs, outputs = kernel.shape
    height, width = grads.shape[1:3]
    planes = x.transpose(3, 0, 1, 2)
    patches = jnp.stack([planes[:, :, i : i + height, j : j + width] for i in range(size) for j in range(size)])
    kernel_grads = patches.reshape(size * size * inputs, -1) @ grads.reshape(-1, outputs)
    # Dropped by the compiler where nothing asks for it, as below a first layer.
    full = ((size - 1, size - 1), (size - 1, size - 1))
    x_grads = jax.lax.conv_general_dilated(
        grads, kernel[::-1, ::-1].swapaxes(2, 3), (1, 1), full, dimension_numbers=_LAYOUT
    )
    return x_grads, kernel_grads.reshape(kernel.shape)


_convolve_few_inputs.defvjp(_few_inputs_forward, _few_inputs_backward)
