"""A JAX program as an ONNX graph: each primitive of its jaxpr as one node or a few.

Written here: the jax2onnx that can be installed beside the checkpoints' Orbax does not know jax 0.12, and makes
thousands of nodes of a ResNet (docs/export.md). The primitives are those that the models of the registry use in
prediction; another one is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal  # type: ignore[attr-defined]

from pcls.deliver.export_graph import Graph, Scaled, Tensor, Value, inverse, of_batch, size_of
from pcls.deliver.export_quantized import ROUND, STAND_FOR, step_of
from pcls.errors import UserError

# Arguments: the graph, the equation, its operands.
Translation = Callable[[Graph, Any, Sequence[Value]], Value]


def to_onnx(
    function: Callable[..., Any],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    metadata: Mapping[str, str],
    *,
    producer: tuple[str, str],
) -> onnx.ModelProto:
    """An ONNX model of any number of examples with the output `logits`.

    Args:
      function: of arrays by name to logits [batch, classes]; what else it needs is constant.
      inputs: by name, shape and type of each; the first dimension is `BATCH`, and is any number afterwards.
      metadata: texts that travel with the model.
      producer: name and version of the program that makes it.

    Raises:
      UserError: it does what is not translated.
    """
    # Without jit a loop over time is its steps, one after the other: ONNX's loops are slower, and their form in a jaxpr
    # is another one in each version of jax.
    with jax.disable_jit():
        traced = jax.make_jaxpr(lambda arrays: function(**arrays))(dict(inputs))
    graph = Graph()
    given = {name: graph.input(name, inputs[name].shape) for name in sorted(inputs)}
    (logits,) = _run(graph, traced.jaxpr, [np.asarray(array) for array in traced.consts], list(given.values()))
    output = graph.node("Identity", [graph.full(logits, traced.out_avals[0].shape)], traced.out_avals[0].shape)
    output = output._replace(name="logits")
    graph.nodes[-1].output[0] = output.name
    types = {tensor: np.dtype(inputs[name].dtype) for name, tensor in given.items()}
    model = graph.model(types, output, metadata, producer=producer)
    onnx.checker.check_model(model)
    return model


def _run(graph: Graph, jaxpr: Jaxpr, constants: Sequence[Value], arguments: Sequence[Value]) -> list[Value]:
    known: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Value:
        return np.asarray(atom.val) if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        known.update(zip(equation.outvars, _translate(graph, equation, [*map(read, equation.invars)]), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _translate(graph: Graph, equation: Any, operands: list[Value]) -> list[Value]:
    name = equation.primitive.name
    inner = next((equation.params[key] for key in ("jaxpr", "call_jaxpr") if key in equation.params), None)
    if inner is not None and name != "scan":
        closed = isinstance(inner, ClosedJaxpr)
        constants = inner.consts if closed else ()
        return _run(graph, inner.jaxpr if closed else inner, [np.asarray(array) for array in constants], operands)
    if name in _SAME:
        return operands
    if name == "split":
        return _split(graph, equation, operands[0])
    if name == STAND_FOR:
        values, scales = operands
        assert isinstance(values, np.ndarray) and isinstance(scales, np.ndarray)
        return [Scaled(values, scales, values.ndim - 1)]
    if name not in _TAKE_SCALED:
        operands = [graph.floats(operand) if isinstance(operand, Scaled) else operand for operand in operands]
    result = equation.outvars[0].aval
    if 0 in result.shape:
        return [np.zeros(result.shape, result.dtype)]
    elementwise = name in _ELEMENTWISE
    if name in _LAZY:
        return [_LAZY[name](graph, equation, operands)]
    known = [operand for operand in operands if isinstance(operand, np.ndarray)]
    if len(known) == len(operands) and (elementwise or not of_batch(result.shape)):
        arrays = np.broadcast_arrays(*known) if elementwise else _full(graph, equation, operands)
        return [np.asarray(equation.primitive.bind(*arrays, **equation.params))]
    if elementwise:
        return [_elementwise(graph, _ELEMENTWISE[name], equation, operands)]
    if name not in _WHOLE:
        raise UserError(
            f"--to onnx: the model does {name!r} somewhere, which is not translated; export it with --to stablehlo"
        )
    return [_WHOLE[name](graph, equation, operands)]


def _full(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Any]:
    return [graph.full(value, atom.aval.shape) for value, atom in zip(operands, equation.invars, strict=True)]


# Elementwise: operands may be stored channels first, and what does not vary along a dimension is not repeated there.


def _elementwise(graph: Graph, translate: Translation, equation: Any, operands: Sequence[Value]) -> Tensor:
    tensors = [value for value in operands if isinstance(value, Tensor)]
    # Of several one that is not plain, as what a convolution made: it is the larger one, more often than not.
    layout = max((value.layout for value in tensors), key=lambda axes: (len(axes), axes != tuple(range(len(axes)))))
    shape = np.broadcast_shapes(*(value.shape for value in operands))
    stored = [graph.in_layout(value, layout) for value in operands]
    made = translate(graph, equation, stored)
    assert isinstance(made, Tensor)
    return Tensor(made.name, shape, layout)


def _op(name: str, **attributes: Any) -> Translation:
    """One node; its own shape is that of the equation, which `_elementwise` writes."""
    return lambda graph, equation, operands: graph.node(name, operands, (), **attributes)


def _chain(*names: str) -> Translation:
    def translate(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
        value: Value = graph.node(names[0], operands, ())
        for name in names[1:]:
            value = graph.node(name, [value], ())
        return value

    return translate


def _add(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    """A number for each channel is a product's own bias."""
    for value, other in (operands, operands[::-1]):
        if isinstance(value, Tensor) and isinstance(other, np.ndarray) and other.ndim > 1:
            channels = value.shape[value.layout.index(1)]
            each = other.shape[1] == other.size == channels
            made = graph.biased(value, other.reshape(-1)) if each else None
            if made is not None:
                return made
    return graph.node("Add", operands, ())


def _maximum(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    """With 0 it is a ReLU, which onnxruntime computes together with what is before it."""
    for value, other in (operands, operands[::-1]):
        zero = isinstance(other, np.ndarray) and other.dtype == np.float32 and other.size == 1 and not other.any()
        if zero and isinstance(value, Tensor):
            return graph.node("Relu", [value], ())
    left, right = operands
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return graph.maximum(left, right)
    return graph.node("Max", operands, ())


def _constant_like(equation: Any, number: float) -> np.ndarray:
    return np.asarray(number, equation.outvars[0].aval.dtype)


def _erfc(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    return graph.node("Sub", [_constant_like(equation, 1), graph.node("Erf", operands, ())], ())


def _expm1(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    """tanh(x / 2) * (exp(x) + 1), which is the same, and exact near 0."""
    half = graph.node("Tanh", [graph.node("Mul", [operands[0], _constant_like(equation, 0.5)], ())], ())
    above = graph.node("Add", [graph.node("Exp", operands, ()), _constant_like(equation, 1)], ())
    return graph.node("Mul", [half, above], ())


def _log1p(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    return graph.node("Log", [graph.node("Add", [operands[0], _constant_like(equation, 1)], ())], ())


def _power(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    exponent = equation.params["y"]
    if exponent == 2:
        return graph.node("Mul", [operands[0], operands[0]], ())
    return graph.node("Pow", [operands[0], _constant_like(equation, exponent)], ())


def _select(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    which, when_false, when_true = operands
    return graph.node("Where", [which, when_true, when_false], ())


def _cast(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    wanted = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"]))
    return graph.node("Cast", operands, (), to=wanted)


def _round(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    (value,) = operands
    assert isinstance(value, Tensor)
    return graph.rounded(value, step_of(equation.params["largest"]))


def _square(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    return graph.node("Mul", [operands[0], operands[0]], ())


# Products, and what may stand between one and its kernel: the integers themselves are turned.
_TAKE_SCALED = frozenset(("conv_general_dilated", "dot_general", "transpose"))
_SAME = frozenset(("copy", "copy_p", "name", "optimization_barrier", "stop_gradient"))
_ELEMENTWISE: Mapping[str, Translation] = {
    "abs": _op("Abs"),
    "add": _add,
    "and": _op("And"),
    "ceil": _op("Ceil"),
    "convert_element_type": _cast,
    "cos": _op("Cos"),
    "div": _op("Div"),
    "eq": _op("Equal"),
    "erf": _op("Erf"),
    "erfc": _erfc,
    "exp": _op("Exp"),
    "expm1": _expm1,
    "floor": _op("Floor"),
    "ge": _op("GreaterOrEqual"),
    "gt": _op("Greater"),
    "integer_pow": _power,
    "le": _op("LessOrEqual"),
    "log": _op("Log"),
    "log1p": _log1p,
    "logistic": _op("Sigmoid"),
    "lt": _op("Less"),
    "max": _maximum,
    "min": _op("Min"),
    "mul": _op("Mul"),
    "ne": _chain("Equal", "Not"),
    "neg": _op("Neg"),
    "not": _op("Not"),
    "or": _op("Or"),
    # The sign of the dividend, as in C.
    "rem": _op("Mod", fmod=1),
    ROUND: _round,
    "rsqrt": _chain("Sqrt", "Reciprocal"),
    "select_n": _select,
    "sign": _op("Sign"),
    "sin": _op("Sin"),
    "sqrt": _op("Sqrt"),
    "square": _square,
    "sub": _op("Sub"),
    "tanh": _op("Tanh"),
}


# What repeats nothing: sizes of 1 stand for any.


def _broadcast(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    shape = [1] * len(equation.params["shape"])
    for axis, size in zip(equation.params["broadcast_dimensions"], operands[0].shape, strict=True):
        shape[axis] = size
    return graph.reshaped(operands[0], shape)


def _transpose(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    return graph.transposed(operands[0], equation.params["permutation"])


def _squeeze(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    gone = {axis % len(operands[0].shape) for axis in equation.params["dimensions"]}
    return graph.reshaped(operands[0], [size for axis, size in enumerate(operands[0].shape) if axis not in gone])


def _iota(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    shape, axis = equation.params["shape"], equation.params["dimension"]
    if of_batch(shape[axis : axis + 1]):
        raise UserError("--to onnx: the model counts its examples, which is not translated; use --to stablehlo")
    small = [1] * len(shape)
    small[axis] = shape[axis]
    return np.arange(shape[axis], dtype=equation.params["dtype"]).reshape(small)


_LAZY: Mapping[str, Translation] = {
    "broadcast_in_dim": _broadcast,
    "iota": _iota,
    "squeeze": _squeeze,
    "transpose": _transpose,
}


# What looks at whole arrays.


def _stored(graph: Graph, equation: Any, value: Value) -> Tensor:
    """An operand with nothing left out, as it lies."""
    shape = equation.invars[0].aval.shape
    made = value if value.shape == shape else graph.full(value, shape)
    # A constant that is repeated for all examples.
    assert isinstance(made, Tensor)
    return made


def _convolve(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    x, kernel = _full_or_stored(graph, equation, operands)
    params, spec = equation.params, equation.params["dimension_numbers"]
    if params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
        raise UserError("--to onnx: the model has a transposed convolution, which is not translated")
    shape = equation.outvars[0].aval.shape
    before, after = zip(*params["padding"], strict=True)
    x, kernel = graph.transposed(x, spec.lhs_spec), graph.transposed(kernel, spec.rhs_spec)
    made = graph.node(
        "Conv",
        [x, kernel],
        shape,
        strides=params["window_strides"],
        pads=(*before, *after),
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )
    return Tensor(made.name, shape, inverse(spec.out_spec))


def _full_or_stored(graph: Graph, equation: Any, operands: Sequence[Value]) -> list[Value]:
    return [
        value if value.shape == atom.aval.shape else graph.full(value, atom.aval.shape)
        for value, atom in zip(operands, equation.invars, strict=True)
    ]


def _max_pool(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    params, shape = equation.params, equation.outvars[0].aval.shape
    value = _stored(graph, equation, operands[0])
    first, *places, last = range(len(shape))
    if {params["window_dimensions"][axis] for axis in (first, last)} != {1} or set(params["base_dilation"]) != {1}:
        raise UserError("--to onnx: the model pools over channels, which is not translated; use --to stablehlo")
    order = (first, last, *places)
    kernel, strides, dilations = (
        [params[key][axis] for axis in places] for key in ("window_dimensions", "window_strides", "window_dilation")
    )
    before, after = zip(*(params["padding"][axis] for axis in places), strict=True)
    made = graph.node(
        "MaxPool",
        [graph.transposed(value, order)],
        shape,
        kernel_shape=kernel,
        strides=strides,
        pads=(*before, *after),
        dilations=dilations,
    )
    return Tensor(made.name, shape, inverse(order))


def _reduction(op: str) -> Translation:
    def translate(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
        value = _stored(graph, equation, operands[0])
        gone = {value.layout[axis] for axis in equation.params["axes"]}
        shape = equation.outvars[0].aval.shape
        made = graph.node(op, [value, np.array(sorted(gone), np.int64)], shape, keepdims=0)
        left = [axis for axis in value.layout if axis not in gone]
        return Tensor(made.name, shape, tuple(sorted(left).index(axis) for axis in left))

    return translate


def _dot(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    left, right = _full_or_stored(graph, equation, operands)
    (left_over, right_over), (left_of, right_of) = equation.params["dimension_numbers"]
    left_free = [axis for axis in range(len(left.shape)) if axis not in (*left_over, *left_of)]
    right_free = [axis for axis in range(len(right.shape)) if axis not in (*right_over, *right_of)]
    each = [left.shape[axis] for axis in left_of]
    rows, columns = ([left.shape[axis] for axis in left_free], [right.shape[axis] for axis in right_free])
    over = size_of([left.shape[axis] for axis in left_over])
    a = graph.transposed(left, (*left_of, *left_free, *left_over))
    b = graph.transposed(right, (*right_of, *right_over, *right_free))
    # Several axes of rows are left as they are, where nothing else is a batch of products.
    inner = [*each, *(rows if not each and rows else [size_of(rows)])]
    a = graph.reshaped(a, (*inner, over))
    b = graph.reshaped(b, (*each, over, size_of(columns)))
    made = graph.node("MatMul", [a, b], (*inner, size_of(columns)))
    return graph.reshaped(made, equation.outvars[0].aval.shape)


def _reshape(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    return graph.reshaped(_full(graph, equation, operands)[0], equation.params["new_sizes"])


def _concatenate(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    # An edge that nothing is padded by has no size.
    parts = [part for part in _full(graph, equation, operands) if 0 not in part.shape]
    if len(parts) == 1:
        return parts[0]
    return graph.node("Concat", parts, equation.outvars[0].aval.shape, axis=equation.params["dimension"])


def _stack(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    axis, shape = equation.params["axis"], equation.outvars[0].aval.shape
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    parts = [graph.reshaped(part, one) for part in _full(graph, equation, operands)]
    return graph.node("Concat", parts, shape, axis=axis)


def _split(graph: Graph, equation: Any, operand: Value) -> list[Value]:
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    shapes = [atom.aval.shape for atom in equation.outvars]
    value = graph.full(operand, equation.invars[0].aval.shape)
    if isinstance(value, np.ndarray):
        return list(np.split(value, np.cumsum(sizes)[:-1], axis))
    return list(graph.split("Split", [value, np.array(sizes, np.int64)], shapes, axis=axis))


def _slice(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    value, params = _stored(graph, equation, operands[0]), equation.params
    strides = params["strides"] or [1] * len(value.shape)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    cut = {axis: row for axis, row in enumerate(bounds) if row != (0, value.shape[axis], 1)}
    return _sliced(graph, value, cut, equation.outvars[0].aval.shape)


def _reverse(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    value = _stored(graph, equation, operands[0])
    # To before the first: any number that far below.
    cut = {axis: (-1, -(2**31), -1) for axis in equation.params["dimensions"]}
    return _sliced(graph, value, cut, value.shape)


def _sliced(graph: Graph, value: Tensor, cut: Mapping[int, tuple[int, int, int]], shape: Sequence[int]) -> Tensor:
    if not cut:
        return value
    starts, ends, steps = (np.array(row, np.int64) for row in zip(*cut.values(), strict=True))
    axes = np.array([value.layout[axis] for axis in cut], np.int64)
    made = graph.node("Slice", [value, starts, ends, axes, steps], shape)
    halved = all(value.shape[axis] == 2 * shape[axis] for axis in cut)
    if halved and axes.tolist() == [2, 3] and steps.tolist() == [2, 2]:
        graph.corners[made.name] = value.name, frozenset((tuple(starts.tolist()),))
    return Tensor(made.name, tuple(shape), value.layout)


def _pad(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    value, shape = _stored(graph, equation, operands[0]), equation.outvars[0].aval.shape
    config = equation.params["padding_config"]
    if min(min(row) for row in config) < 0:
        raise UserError("--to onnx: the model pads by less than nothing, which is not translated; use --to stablehlo")
    for axis, (_, _, between) in enumerate(config):
        if between and value.shape[axis] > 1:
            value = _spread(graph, value, axis, between, operands[1])
    rows = [config[axis] for axis in inverse(value.layout)]
    if not any(before or after for before, after, _ in rows):
        return value
    pads = np.array([row[0] for row in rows] + [row[1] for row in rows], np.int64)
    made = graph.node("Pad", [value, pads, operands[1]], shape)
    return Tensor(made.name, shape, value.layout)


def _spread(graph: Graph, value: Tensor, axis: int, between: int, filling: Value) -> Tensor:
    """As many of the filling between every two numbers along an axis: behind each, then without those at the end."""
    size, (head, tail) = value.shape[axis], (value.shape[:axis], value.shape[axis + 1 :])
    behind = [0] * (2 * len(value.shape) + 2)
    behind[len(value.shape) + 1 + axis + 1] = between
    single = graph.reshaped(value, (*head, size, 1, *tail))
    padded = graph.node("Pad", [single, np.array(behind, np.int64), filling], (*head, size, 1 + between, *tail))
    whole = graph.reshaped(padded, (*head, size * (1 + between), *tail))
    assert isinstance(whole, Tensor)
    end = size * (1 + between) - between
    return _sliced(graph, whole, {axis: (0, end, 1)}, (*head, end, *tail))


def _gather(graph: Graph, equation: Any, operands: Sequence[Value]) -> Value:
    """Of each row its own place along an axis, as `take_along_axis` has it."""
    value, places = _full(graph, equation, operands)
    numbers, shape = equation.params["dimension_numbers"], equation.outvars[0].aval.shape
    axes = numbers.start_index_map
    kept = [axis for axis in range(len(shape)) if axis not in numbers.offset_dims]
    expected = [size if (axis,) != axes else shape[axis] for axis, size in enumerate(value.shape)]
    if (
        len(axes) != 1
        or numbers.collapsed_slice_dims != axes
        or [*shape] != expected
        or len(kept) + 1 != len(places.shape)
    ):
        raise UserError("--to onnx: the model looks numbers up in a way that is not translated; use --to stablehlo")
    small = [size if axis in kept else 1 for axis, size in enumerate(shape)]
    along = graph.full(graph.reshaped(places, small), shape)
    return graph.node("GatherElements", [value, along], shape, axis=axes[0])


_WHOLE: Mapping[str, Translation] = {
    "concatenate": _concatenate,
    "conv_general_dilated": _convolve,
    "dot_general": _dot,
    "gather": _gather,
    "pad": _pad,
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_window_max": _max_pool,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "stack": _stack,
}
