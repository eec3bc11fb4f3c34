"""Model FLOPs and activations, counted on the function as written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn  # type: ignore[attr-defined]

from pcls.nn.module import ModelDef
from pcls.nn.platform import compiling_for

# Backward computes two products (for the input and for the weights) where forward computes one.
TRAINING_FLOPS_PER_FORWARD = 3


def analytic_flops(fn: Callable[..., Any], *arguments: Any) -> int:
    """FLOPs of the matrix products and convolutions of a function, two for each multiply-add.

    Counted on the function as written, before any compiler, as publications count a model: borders that are padding
    count, zeros that a dilated input inserts do not, element-wise work does not.

    Args:
      fn: anything that jax traces. A scan counts its body by its length, a conditional its dearest branch, a while loop
        its body once.
      arguments: arrays or `jax.ShapeDtypeStruct`.
    """
    return _count(_traced(fn, arguments), _product_flops)


def analytic_activations(fn: Callable[..., Any], *arguments: Any) -> int:
    """Numbers that come out of the matrix products and convolutions of a function; memory traffic goes with them.

    Args:
      fn, arguments: as in `analytic_flops`.

    Source: Radosavovic et al. 2020, who count convolutions only.
    """
    return _count(_traced(fn, arguments), lambda equation: math.prod(_shape(equation.outvars[0])))


def image_costs(model: ModelDef, shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[int, int]:
    """FLOPs of one image through a model, and the bytes that its products and convolutions put out.

    Args:
      model: of the registry.
      shape: [height, width, channels] of the image.
      dtype: of the activations.
    """
    arguments = (model.apply, model.params, model.stats, jax.ShapeDtypeStruct((1, *shape), dtype))
    return analytic_flops(*arguments), dtype.itemsize * analytic_activations(*arguments)


def layer_flops(model: ModelDef, shape: tuple[int, ...]) -> dict[str, int]:
    """FLOPs of each convolution and dense layer for one image, by path, as `analytic_flops` counts them.

    Args:
      model: of the registry.
      shape: [height, width, channels] of the image.
    """
    noting = _Noting()
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    jax.eval_shape(replace(model, predicting=noting).apply, model.params, model.stats, image)
    return noting.flops


@dataclass(frozen=True)
class _Noting:
    """A model's own arithmetic, which notes the size of its products while it is traced."""

    flops: dict[str, int] = field(default_factory=dict)

    def weights(self, params: dict[str, Any]) -> dict[str, Any]:
        return params

    def product(self, path: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def product(inputs: Any, kernel: Any, *rest: Any, **settings: Any) -> Any:
            out = own(inputs, kernel, *rest, **settings)
            self.flops[path] = self.flops.get(path, 0) + 2 * out.size * math.prod(kernel.shape[:-1])
            return out

        return product


def _traced(fn: Callable[..., Any], arguments: tuple[Any, ...]) -> Jaxpr:
    # On CPU a depthwise convolution is written as sums, which are not counted.
    with compiling_for("tpu"):
        return jax.make_jaxpr(fn)(*arguments).jaxpr


def _count(jaxpr: Jaxpr, of_product: Callable[[JaxprEqn], int]) -> int:
    """What the products and convolutions of a jaxpr count together, given the count of one."""
    return sum(_count_equation(equation, of_product) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn, of_product: Callable[[JaxprEqn], int]) -> int:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        return of_product(equation)
    inner = [_count(jaxpr, of_product) for value in params.values() for jaxpr in _jaxprs(value)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _product_flops(equation: JaxprEqn) -> int:
    return _dot_flops(equation) if equation.primitive.name == "dot_general" else _convolution_flops(equation)


def _dot_flops(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution_flops(equation: JaxprEqn) -> int:
    """Each output is a sum over the kernel's window and input channels; the kernel has those of one group only."""
    kernel, out = _shape(equation.invars[1]), _shape(equation.outvars[0])
    _, inputs, *window = equation.params["dimension_numbers"].rhs_spec
    products = math.prod(out) * math.prod(kernel[axis] for axis in (inputs, *window))
    return 2 * products // math.prod(equation.params["lhs_dilation"])


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _jaxprs(value: Any) -> Iterator[Jaxpr]:
    """The jaxprs in a parameter of an equation: of a jit, scan, conditional, checkpoint or custom gradient."""
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _jaxprs(each)
