"""An ONNX graph in the making: tensors, constants, and the few operations that every translation needs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx

from pcls.nn.quantized import INPUT_BITS, LARGEST

# A network is traced with this many examples: a prime that is no size of a layer, so that a dimension that it divides
# counts examples, and its quotient what there are of each.
BATCH = 10_007
# onnxruntime reads these since 1.14 (2023); newer ones would add nothing that is used here.
OPSET, IR_VERSION = 18, 8
_PRODUCTS = frozenset(("Conv", "Gemm", "MatMul"))
# Nodes that give numbers of their first input, each as it was.
_MOVING = frozenset(("MaxPool", "ReduceMax", "Reshape", "Slice", "Transpose"))


class Tensor(NamedTuple):
    """What a graph computes.

    Attributes:
      name: in the graph.
      shape: as the program means it; 1 where it is the same along a dimension, whatever that dimension's size.
      layout: axis of the stored tensor that each axis is: ONNX convolves channels first, and what follows elementwise
        stays so.
    """

    name: str
    shape: tuple[int, ...]
    layout: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Scaled:
    """A constant of small integers. It is one in the graph too, and what it stands for is computed there.

    Attributes:
      values: int8.
      scales: [n] float32, by which the values along an axis of n are multiplied.
      axis: that axis.
    """

    values: np.ndarray
    scales: np.ndarray
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        return self.values.shape


# An array is known before the graph runs.
Value = np.ndarray | Scaled | Tensor


def of_batch(shape: Sequence[int]) -> bool:
    """Whether a dimension counts examples."""
    return any(size and size % BATCH == 0 for size in shape)


def inverse(permutation: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes one."""
    return tuple(int(axis) for axis in np.argsort(permutation))


class Graph:
    """Nodes and constants, in the order in which they are computed.

    Attributes:
      nodes, constants: of all that was asked for; what the output does not need is left out in the end.
      corners: of a maximum over some of the corners of all blocks of 2 x 2 positions, channels first: of what, and
        which of them, each as its first row and column.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.corners: dict[str, tuple[str, frozenset[tuple[int, ...]]]] = {}
        self._named: dict[bytes, str] = {}
        self._batch: str | None = None
        self._inputs: list[str] = []
        self._plain: dict[Tensor, Tensor] = {}
        self._made_by: dict[str, onnx.NodeProto] = {}
        self._floats: dict[tuple[str, str, int], Tensor] = {}
        self._integers: dict[str, Scaled] = {}
        self._rounded: dict[tuple[str, float], str] = {}
        self._before_rounding: dict[str, tuple[str, np.ndarray]] = {}

    def input(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """What the graph is given."""
        self._inputs.append(name)
        return Tensor(name, shape, tuple(range(len(shape))))

    def node(self, op: str, inputs: Sequence[Value], shape: Sequence[int], **attributes: Any) -> Tensor:
        """A new node of one output; of inputs what is stored is taken, as it lies."""
        (out,) = self.split(op, inputs, [shape], **attributes)
        return out

    def split(
        self, op: str, inputs: Sequence[Value], shapes: Sequence[Sequence[int]], **attributes: Any
    ) -> list[Tensor]:
        """A new node of several outputs."""
        names = [f"{op.lower()}_{len(self.nodes)}{f'_{place}' if place else ''}" for place in range(len(shapes))]
        given = [self._name(value) for value in inputs]
        self.nodes.append(onnx.helper.make_node(op, given, names, name=names[0], **attributes))
        self._made_by |= dict.fromkeys(names, self.nodes[-1])
        return [Tensor(name, tuple(shape), tuple(range(len(shape)))) for name, shape in zip(names, shapes, strict=True)]

    def _name(self, value: Value) -> str:
        value = self.floats(value) if isinstance(value, Scaled) else value
        return value.name if isinstance(value, Tensor) else self.constant(value)

    def floats(self, value: Scaled) -> Tensor:
        """What small integers stand for, as plain arithmetic of constants: whoever opens the file does it once.

        Beside floats onnxruntime would do `DequantizeLinear` anew for each batch, or round what is multiplied with it.
        """
        key = self.constant(value.values), self.constant(value.scales), value.axis
        if key not in self._floats:
            shape = [1] * len(value.shape)
            shape[value.axis] = value.scales.size
            whole = self.node("Cast", [value.values], value.shape, to=onnx.TensorProto.FLOAT)
            self._floats[key] = self.node("Mul", [whole, value.scales.reshape(shape)], value.shape)
            self._integers[self._floats[key].name] = value
        return self._floats[key]

    def constant(self, array: np.ndarray) -> str:
        """The name of a constant; equal ones are one."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).digest()
        if digest not in self._named:
            self._named[digest] = f"constant_{len(self.constants)}"
            self.constants[self._named[digest]] = array
        return self._named[digest]

    def plain(self, value: Value) -> Value:
        """The same in the order of its own axes."""
        if not isinstance(value, Tensor) or value.layout == tuple(range(len(value.shape))):
            return value
        if value not in self._plain:
            self._plain[value] = self.node("Transpose", [value], value.shape, perm=value.layout)
        return self._plain[value]

    def in_layout(self, value: Value, layout: tuple[int, ...]) -> Value:
        """What is stored in a layout, in its order there; what has fewer axes is a scalar and stays."""
        if len(value.shape) != len(layout) or (isinstance(value, Tensor) and value.layout == layout):
            return value
        return self.transposed(value, inverse(layout))

    def transposed(self, value: Value, permutation: Sequence[int]) -> Value:
        """Axes in another order."""
        if isinstance(value, np.ndarray):
            return value.transpose(permutation)
        if isinstance(value, Scaled):
            return Scaled(value.values.transpose(permutation), value.scales, list(permutation).index(value.axis))
        stored = tuple(value.layout[axis] for axis in permutation)
        shape = tuple(value.shape[axis] for axis in permutation)
        if stored == tuple(range(len(stored))):
            return Tensor(value.name, shape, stored)
        if value.name in self._before_rounding:
            # Turned first: between rounded numbers and a product that reads them is nothing then.
            before, step = self._before_rounding[value.name]
            turned = self.node("Transpose", [value._replace(name=before)], shape, perm=stored)
            return self.rounded(turned, step)
        return self.node("Transpose", [value], shape, perm=stored)

    def reshaped(self, value: Value, shape: Sequence[int]) -> Value:
        """The same numbers, in order, in another shape."""
        shape = tuple(shape)
        if value.shape == shape:
            return self.plain(value)
        if isinstance(value, np.ndarray):
            return value.reshape(shape)
        target = np.array([-1 if size and size % BATCH == 0 else size for size in shape], np.int64)
        return self.node("Reshape", [self.plain(value), target], shape)

    def full(self, value: Value, shape: Sequence[int]) -> Value:
        """All of a shape, where a value holds only what differs, in the order of its own axes."""
        shape = tuple(shape)
        if value.shape == shape:
            return self.plain(value)
        if isinstance(value, np.ndarray) and not of_batch(shape):
            return np.broadcast_to(value, shape)
        return self.node("Expand", [self.plain(value), self._sizes(shape)], shape)

    def maximum(self, left: Tensor, right: Tensor) -> Tensor:
        """The larger of two values that lie alike; of all four corners of blocks of 2 x 2 one pooling."""
        (source, some), (other, others) = (self.corners.get(value.name, ("", frozenset())) for value in (left, right))
        if not source or source != other:
            return self.node("Max", [left, right], ())
        if len(some | others) == 4:
            return self.node("MaxPool", [Tensor(source, (), ())], (), kernel_shape=(2, 2), strides=(2, 2))
        made = self.node("Max", [left, right], ())
        self.corners[made.name] = source, some | others
        return made

    def biased(self, value: Tensor, bias: np.ndarray) -> Tensor | None:
        """A value plus a number for each channel, which the product that it comes from adds by itself, or None.

        Args:
          value: of a convolution or of a product of two matrices; channels on the second axis of what is stored.
          bias: [channels].
        """

        def with_bias(node: onnx.NodeProto) -> Tensor | None:
            inputs = [*node.input, self.constant(bias)]
            if node.op_type == "Conv" and len(node.input) == 2:
                return self._again(node, inputs)
            # Of floats onnxruntime makes it a Gemm by itself.
            if node.op_type == "MatMul" and len(value.shape) == 2 and node.input[0] in self._before_rounding:
                return self._again(node, inputs, "Gemm")
            return None

        # A maximum of sums with the same number is the sum of the maximum with it.
        return self._at_product(value.name, frozenset(("MaxPool",)), with_bias)

    def rounded(self, value: Tensor, step: np.ndarray) -> Tensor:
        """A value to the nearest of -127 to 127 steps, as it lies: to int8 and back."""
        key = value.name, float(step)
        if key not in self._rounded:
            self._rounded[key] = self._rounded_anew(value, step).name
            self._before_rounding[self._rounded[key]] = value.name, step
        return value._replace(name=self._rounded[key])

    def _rounded_anew(self, value: Tensor, step: np.ndarray) -> Tensor:
        def in_steps(value: Tensor) -> Tensor:
            whole = self.node("QuantizeLinear", [value, step, np.zeros((), np.int8)], ())
            return self.node("DequantizeLinear", [whole, step, np.zeros((), np.int8)], ())

        if not self.never_negative(value.name):
            # int8 has one number more below 0.
            return in_steps(self.node("Max", [value, np.negative(LARGEST[INPUT_BITS] * step)], ()))
        # onnxruntime multiplies in integers only where both factors are such, and what is made is rounded at once.
        # Before a ReLU or a maximum it comes to the same.
        through = frozenset(("MaxPool", "Relu", "Reshape", "Transpose"))

        def in_integers(node: onnx.NodeProto) -> Tensor | None:
            kernel = self._integers.get(node.input[1])
            if kernel is None or node.input[0] not in self._before_rounding:
                return None
            given = [kernel.values, kernel.scales, np.zeros(kernel.scales.shape, np.int8)]
            integers = self.node("DequantizeLinear", given, (), axis=kernel.axis)
            return in_steps(self._again(node, [node.input[0], integers.name, *node.input[2:]]))

        return in_steps(self._at_product(value.name, through, in_integers) or value)

    def _at_product(
        self, name: str, through: frozenset[str], change: Callable[[onnx.NodeProto], Tensor | None]
    ) -> Tensor | None:
        """What is computed, with a change at the product that it comes from by nodes of some kinds alone, or None.

        All of them are written anew: others may read the old ones, and those that nobody reads are left out.
        """
        node = self._made_by.get(name)
        if node is None or node.op_type in _PRODUCTS:
            return None if node is None else change(node)
        below = self._at_product(node.input[0], through, change) if node.op_type in through else None
        return None if below is None else self._again(node, [below.name, *node.input[1:]])

    def _again(self, node: onnx.NodeProto, inputs: Sequence[str], op: str | None = None) -> Tensor:
        """A new node like another one, of other inputs; of another kind, where one is named."""
        attributes = {found.name: onnx.helper.get_attribute_value(found) for found in node.attribute}
        return self.node(op or node.op_type, [Tensor(name, (), ()) for name in inputs], (), **attributes)

    def never_negative(self, name: str) -> bool:
        """Whether what is computed is known to be 0 or more: as a ReLU makes it, and moved since."""
        node = self._made_by.get(name)
        if node is None or node.op_type not in _MOVING:
            return node is not None and node.op_type in ("Relu", "Sigmoid")
        return self.never_negative(node.input[0])

    def _sizes(self, shape: tuple[int, ...]) -> Value:
        """A shape as numbers that the graph knows when it runs."""
        if not of_batch(shape):
            return np.array(shape, np.int64)
        sizes = [
            self._examples(size // BATCH) if size and size % BATCH == 0 else np.array([size], np.int64)
            for size in shape
        ]
        return sizes[0] if len(sizes) == 1 else self.node("Concat", sizes, (len(sizes),), axis=0)

    def _examples(self, times: int) -> Tensor:
        """[1], how many examples there are, times a number."""
        if self._batch is None:
            given = Tensor(self._inputs[0], (), ())
            self._batch = self.node("Shape", [given], (1,), start=0, end=1).name
        batch = Tensor(self._batch, (1,), (0,))
        return batch if times == 1 else self.node("Mul", [batch, np.array([times], np.int64)], (1,))

    def model(
        self,
        inputs: Mapping[Tensor, np.dtype],
        output: Tensor,
        metadata: Mapping[str, str],
        *,
        producer: tuple[str, str],
    ) -> onnx.ModelProto:
        """The finished model.

        Args:
          inputs: with their types.
          output: float32.
          metadata: texts that travel with it.
          producer: name and version of the program that made it.
        """

        def info(tensor: Tensor, dtype: np.dtype) -> onnx.ValueInfoProto:
            shape = ["batch" if size == BATCH else size for size in tensor.shape]
            return onnx.helper.make_tensor_value_info(tensor.name, onnx.helper.np_dtype_to_tensor_dtype(dtype), shape)

        nodes, used = self._needed(output.name)
        graph = onnx.helper.make_graph(
            nodes,
            "classifier",
            [info(tensor, dtype) for tensor, dtype in inputs.items()],
            [info(output, np.dtype(np.float32))],
            [onnx.numpy_helper.from_array(array, name) for name, array in self.constants.items() if name in used],
        )
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        made.producer_name, made.producer_version = producer
        onnx.helper.set_model_props(made, dict(metadata))
        return made

    def _needed(self, output: str) -> tuple[list[onnx.NodeProto], set[str]]:
        """The nodes that an output comes from, in order, and the names of all that they read."""
        nodes, used = [], {output}
        for node in reversed(self.nodes):
            if used.intersection(node.output):
                nodes.append(node)
                used.update(node.input)
        return nodes[::-1], used


def size_of(shape: Sequence[int]) -> int:
    """Numbers in a shape."""
    return math.prod(shape)
