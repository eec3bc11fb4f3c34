"""An ONNX graph in the making: tensors, constants, and the few operations that every translation needs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

# A network is traced with this many examples: a prime that is no size of a layer, so that a dimension that it divides
# counts examples, and its quotient what there are of each.
BATCH = 10_007
# onnxruntime reads these since 1.14 (2023); newer ones would add nothing that is used here.
OPSET, IR_VERSION = 18, 8


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


# An array is known before the graph runs.
Value = np.ndarray | Tensor


def of_batch(shape: Sequence[int]) -> bool:
    """Whether a dimension counts examples."""
    return any(size and size % BATCH == 0 for size in shape)


def inverse(permutation: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes one."""
    return tuple(int(axis) for axis in np.argsort(permutation))


class Graph:
    """Nodes and constants, in the order in which they are computed."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._named: dict[bytes, str] = {}
        self._batch: str | None = None
        self._inputs: list[str] = []
        self._plain: dict[Tensor, Tensor] = {}

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
        given = [value.name if isinstance(value, Tensor) else self.constant(value) for value in inputs]
        self.nodes.append(onnx.helper.make_node(op, given, names, name=names[0], **attributes))
        return [Tensor(name, tuple(shape), tuple(range(len(shape)))) for name, shape in zip(names, shapes, strict=True)]

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
        if isinstance(value, np.ndarray) or value.layout == tuple(range(len(value.shape))):
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
        stored = tuple(value.layout[axis] for axis in permutation)
        shape = tuple(value.shape[axis] for axis in permutation)
        if stored == tuple(range(len(stored))):
            return Tensor(value.name, shape, stored)
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
