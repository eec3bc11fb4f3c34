"""Convolutions over NHWC images: the device's own, and on CPU other arithmetic for the same numbers.

XLA's CPU convolution is fast where kernels are dense and maps large. Elsewhere it is not: forward and back together a
1 x 1 convolution takes twice as long as products of rows, a depthwise one 8 to 27 times as long as multiplying and
adding shifted maps, a grouped one 30 to 57 times as long as with the kernel's gradient of the dense one, and a 3 x 3
convolution of 2 x 2 positions 200 ms instead of 4. benchmarks/convolutions.py measures all of them and writes
convolve_forms.json, by which the form is chosen; whatever it says, the numbers are those of the plain convolution.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from pcls.nn.platform import target_platform

# Rows of zeros above and below, and columns on the left and on the right.
Pads = tuple[tuple[int, int], tuple[int, int]]
Kind = Literal["pointwise", "depthwise", "grouped", "dense"]
Form = Literal["native", "pointwise", "depthwise", "grouped", "patches"]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
TABLE = Path(__file__).parent / "convolve_forms.json"
# What gives the numbers of a convolution of a kind, beside the device's own.
FORMS_OF: Mapping[Kind, tuple[Form, ...]] = {
    "pointwise": ("pointwise",),
    "depthwise": ("depthwise",),
    "grouped": ("grouped",),
    "dense": ("patches",),
}


def convolve(x: Array, kernel: Array, *, stride: int, pads: Pads | Literal["SAME"], groups: int = 1) -> Array:
    """A convolution with its gradients, in the form that is fastest where it is compiled for.

    Args:
      x: [batch, height, width, inputs].
      kernel: [size, size, inputs / groups, outputs], in x's type.
      stride: on both axes.
      pads: zeros around x; `SAME`: as TensorFlow's.
      groups: inputs and outputs are split into this many.

    Returns:
      [batch, height out, width out, outputs] in x's type.
    """
    pads = pads_of(x.shape, kernel.shape, stride, pads)
    y = FORMS[chosen_form(x.shape, kernel.shape, stride, pads, groups)](x, kernel, stride, pads, groups)
    # jax 0.12 makes one YNN program of some convolutions in a row and the mean after them, and it reads memory that
    # nobody has written to: NaN, on a Xeon with AMX.
    return lax.optimization_barrier(y) if x.dtype == jnp.bfloat16 and target_platform() == "cpu" else y


def pads_of(shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: int, pads: Pads | Literal["SAME"]) -> Pads:
    """The zeros around an image, of `SAME` too; by the shapes of x and of the kernel."""
    if pads != "SAME":
        return pads
    rows, columns = lax.padtype_to_pads(shape[1:3], kernel_shape[:2], (stride, stride), "SAME")
    return (rows[0], rows[1]), (columns[0], columns[1])


def chosen_form(shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: int, pads: Pads, groups: int) -> Form:
    """The form for the device that is compiled for, by the shapes of x and of the kernel."""
    if target_platform() != "cpu":
        return "native"
    height, width = _output_size(shape, kernel_shape[0], stride, pads)
    kind, (size, _, inputs, _) = kind_of(kernel_shape, pads, groups), kernel_shape
    return fastest(measured(), kind, size, stride, height * width / inputs)


def kind_of(kernel_shape: tuple[int, ...], pads: Pads, groups: int) -> Kind:
    """What a convolution is, by its kernel [size, size, inputs / groups, outputs]."""
    size, _, width, outputs = kernel_shape
    if size == 1 and groups == 1 and pads == ((0, 0), (0, 0)):
        return "pointwise"
    if width == 1 and groups == outputs:
        return "depthwise"
    return "grouped" if groups > 1 else "dense"


class Choice(NamedTuple):
    """The form that was fastest, a row of the table.

    Attributes:
      kind, size, stride: of the convolution; height of its kernel.
      up_to: output positions of an image, by the input channels that an output sees; infinite: any number above those
        of other rows.
      form: the fastest.
    """

    kind: Kind
    size: int
    stride: int
    up_to: float
    form: Form


@functools.cache
def measured() -> tuple[Choice, ...]:
    """The rows of the table; read when a CPU is first compiled for."""
    rows: Iterable[dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))["choices"]
    return tuple(Choice(**row | {"up_to": float("inf") if row["up_to"] is None else row["up_to"]}) for row in rows)


def fastest(choices: Iterable[Choice], kind: Kind, size: int, stride: int, positions: float) -> Form:
    """What the table says of a convolution.

    Sizes and strides that nobody measured are taken for the nearest that somebody did, of two the smaller.

    Args:
      choices: the table.
      kind, size, stride: of the convolution; height of its kernel.
      positions: of the output of an image, for each channel of its input.
    """
    rows = [row for row in choices if row.kind == kind and positions <= row.up_to]
    allowed = [row for row in rows if row.form in ("native", *FORMS_OF[kind])]

    def distance(row: Choice) -> tuple[float, ...]:
        return abs(row.size - size), row.size, abs(row.stride - stride), row.stride, row.up_to

    return min(allowed, key=distance).form if allowed else "native"


def _output_size(shape: tuple[int, ...], size: int, stride: int, pads: Pads) -> tuple[int, int]:
    height, width = ((shape[1 + axis] + sum(pads[axis]) - size) // stride + 1 for axis in range(2))
    return height, width


def _native(x: Array, kernel: Array, stride: int, pads: Pads, groups: int) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT, feature_group_count=groups
    )


def _pointwise(x: Array, kernel: Array, stride: int, pads: Pads, groups: int) -> Array:
    # As rows: over three axes the kernel's gradient takes as long as the convolution's.
    return _product(x[:, ::stride, ::stride], kernel[0, 0])


def _patches(x: Array, kernel: Array, stride: int, pads: Pads, groups: int) -> Array:
    """One matrix product with the patch of every position."""
    return _product(patches_of(x, kernel.shape[0], stride, pads), kernel.reshape(-1, kernel.shape[-1]))


def patches_of(x: Array, size: int, stride: int, pads: Pads) -> Array:
    """What a kernel of so many rows and columns meets at every output position, [..., size * size * inputs]."""
    return jnp.concatenate([view for row in _views(x, size, stride, pads) for view in row], -1)


def _product(x: Array, kernel: Array) -> Array:
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


def _views(x: Array, size: int, stride: int, pads: Pads) -> list[list[Array]]:
    """Of each row and column of a kernel, what it meets at every output position."""
    height, width = _output_size(x.shape, size, stride, pads)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows = [x[:, i : i + (height - 1) * stride + 1 : stride] for i in range(size)]
    return [[row[:, :, j : j + (width - 1) * stride + 1 : stride] for j in range(size)] for row in rows]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(x: Array, kernel: Array, stride: int, pads: Pads, groups: int) -> Array:
    """Multiplies shifted maps and adds them up: one loop over the output."""
    views = _views(x, kernel.shape[0], stride, pads)
    return functools.reduce(
        jnp.add,
        [view * kernel[i, j, 0] for i, row in enumerate(views) for j, view in enumerate(row)],
    )


def _depthwise_forward(
    x: Array, kernel: Array, stride: int, pads: Pads, groups: int
) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(x, kernel, stride, pads, groups), (x, kernel)


def _depthwise_backward(
    stride: int, pads: Pads, groups: int, saved: tuple[Array, Array], grads: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    size = kernel.shape[0]
    # The same sum, turned around, over the gradients with zeros where the stride left positions out.
    around = [_pads_back(size, stride, pads[axis], x.shape[1 + axis], grads.shape[1 + axis]) for axis in range(2)]
    spread = lax.pad(grads, jnp.zeros((), grads.dtype), ((0, 0, 0), *around, (0, 0, 0)))
    x_grads = _depthwise(spread, kernel[::-1, ::-1], 1, ((0, 0), (0, 0)), groups)
    kernel_grads = jnp.stack([_sums(row, grads) for row in _views(x, size, stride, pads)])
    return x_grads, kernel_grads[:, :, None].astype(kernel.dtype)


def _pads_back(size: int, stride: int, pads: tuple[int, int], length: int, outputs: int) -> tuple[int, int, int]:
    """Of an axis: before, after and between the gradients, so that the turned kernel gives one for each input."""
    reached = (outputs - 1) * stride + 1
    return size - 1 - pads[0], length + pads[0] - reached, stride - 1


def _sums(views: list[Array], grads: Array) -> Array:
    """[size, channels], float32, of a row of the kernel, by one reduction of several operands.

    It reads the gradients once: 7 x 7 takes a quarter of what a sum for each operand takes.
    """
    products = [(view * grads).astype(jnp.float32) for view in views]
    zeros = [jnp.float32(0)] * len(products)
    return jnp.stack(lax.reduce(products, zeros, lambda a, b: [p + q for p, q in zip(a, b, strict=True)], (0, 1, 2)))


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _grouped(x: Array, kernel: Array, stride: int, pads: Pads, groups: int) -> Array:
    """The device's own, but for the kernel's gradient: that of the dense kernel, of which the blocks are taken."""
    return _native(x, kernel, stride, pads, groups)


def _grouped_forward(
    x: Array, kernel: Array, stride: int, pads: Pads, groups: int
) -> tuple[Array, tuple[Array, Array]]:
    return _native(x, kernel, stride, pads, groups), (x, kernel)


def _grouped_backward(
    stride: int, pads: Pads, groups: int, saved: tuple[Array, Array], grads: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    (x_grads,) = jax.vjp(lambda x: _native(x, kernel, stride, pads, groups), x)[1](grads)
    size, _, width, outputs = kernel.shape
    dense = jnp.zeros((size, size, width * groups, outputs), kernel.dtype)
    (dense_grads,) = jax.vjp(lambda dense: convolve(x, dense, stride=stride, pads=pads), dense)[1](grads)
    blocks = dense_grads.reshape(size, size, groups, width, groups, outputs // groups)
    of_groups = jnp.moveaxis(jnp.diagonal(blocks, axis1=2, axis2=4), -1, 3)
    return x_grads, of_groups.reshape(kernel.shape)


_grouped.defvjp(_grouped_forward, _grouped_backward)

FORMS: dict[Form, Callable[[Array, Array, int, Pads, int], Array]] = {
    "native": _native,
    "pointwise": _pointwise,
    "depthwise": _depthwise,
    "grouped": _grouped,
    "patches": _patches,
}
