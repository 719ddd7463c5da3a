"""Builds ONNX graphs node by node. Knows nothing of models.

A `Scope` collects the nodes of one graph or subgraph; `Weights` holds the initializers of the
outermost graph, each stored once, which subgraphs see by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
_CONTRIB = "com.microsoft"
_CONTRIB_OPS = {
    "FusedMatMul",
    "MatMulIntegerToFloat",
    "QuickGelu",
    "RotaryEmbedding",
    "SkipSimplifiedLayerNormalization",
}
DTYPES = {
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bool": TensorProto.BOOL,
}


@dataclass
class Weights:
    """Initializers of a graph by name; equal small constants are stored once."""

    real_type: str = "float32"  # of all real numbers inside the graph: float32 or float16
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    constant_prefix: str = "const_"
    _constants: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def add(self, name: str, value: NDArray[Any]) -> str:
        """Stores a tensor under a name that must be new, and returns the name."""
        assert name not in self.tensors, name
        self.tensors[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def add_real(self, name: str, value: NDArray[Any]) -> str:
        """Stores a tensor of real numbers in the graph's type."""
        return self.add(name, np.asarray(value, self.real_type))

    def constant(self, value: Any, dtype: str = "int64") -> str:
        """Returns the name of a small constant, stored once however often it is asked for."""
        array = np.asarray(value, dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.add(f"{self.constant_prefix}{len(self._constants)}", array)
        return self._constants[key]


class Scope:
    """Nodes of one graph. Method `op` appends a node and returns its output's name."""

    def __init__(self, weights: Weights, prefix: str = "") -> None:
        """Starts an empty graph; `prefix` keeps the names of a subgraph apart."""
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.prefix = prefix

    def ops(
        self, op_type: str, inputs: Sequence[str], num_outputs: int, /, **attributes: Any
    ) -> list[str]:
        """Appends a node and returns the names of its outputs."""
        index = len(self.nodes)
        outputs = [f"{self.prefix}{op_type}_{index}_{i}" for i in range(num_outputs)]
        domain = _CONTRIB if op_type in _CONTRIB_OPS else ""
        name = f"{self.prefix}{op_type}_{index}"
        self.nodes.append(
            helper.make_node(op_type, list(inputs), outputs, name=name, domain=domain, **attributes)
        )
        return outputs

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Appends a node with one output and returns the output's name."""
        return self.ops(op_type, inputs, 1, **attributes)[0]

    def constant(self, value: Any, dtype: str = "int64") -> str:
        """Returns the name of a constant."""
        return self.weights.constant(value, dtype)

    def real(self, value: Any) -> str:
        """Returns the name of a constant of the graph's real type."""
        return self.weights.constant(value, self.weights.real_type)

    def cast(self, x: str, dtype: str) -> str:
        """Returns `x` in another type."""
        return self.op("Cast", x, to=DTYPES[dtype])

    def reshape(self, x: str, *shape: int | str) -> str:
        """Reshapes `x`; a dimension is a number (0 copies, -1 infers) or a scalar's name."""
        if all(isinstance(d, int) for d in shape):
            return self.op("Reshape", x, self.constant(list(shape)))
        return self.op("Reshape", x, self.shape(*shape))

    def shape(self, *dims: int | str) -> str:
        """Returns a shape vector of numbers and int64 vectors of one element, by name."""
        parts = [self.constant([d]) if isinstance(d, int) else d for d in dims]
        return self.op("Concat", *parts, axis=0)

    def dim(self, x: str, axis: int) -> str:
        """Returns dimension `axis` of `x` as an int64 vector of one element."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def range(self, length: str) -> str:
        """Returns the int64 vector 0, 1, ..., length - 1; `length` is a vector of one element."""
        count = self.op("Squeeze", length)
        return self.op("Range", self.constant(0), count, self.constant(1))

    def transpose(self, x: str, *order: int) -> str:
        """Returns `x` with its axes in the given order."""
        return self.op("Transpose", x, perm=list(order))

    def slice(self, x: str, start: int | str, end: int | str, axis: int) -> str:
        """Returns x[start:end] along one axis; bounds are numbers or int64 vectors by name."""
        bounds = [self.constant([b]) if isinstance(b, int) else b for b in (start, end)]
        return self.op("Slice", x, *bounds, self.constant([axis]))

    def subgraph(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[str],
        dtypes: Sequence[str],
    ) -> onnx.GraphProto:
        """Returns this scope as the body of a Loop or If; output shapes stay open."""
        infos = [
            helper.make_tensor_value_info(o, DTYPES[d], None)
            for o, d in zip(outputs, dtypes, strict=True)
        ]
        return helper.make_graph(self.nodes, name, list(inputs), infos)


def value(name: str, dtype: str, shape: Sequence[str | int] | None) -> onnx.ValueInfoProto:
    """Describes a graph input or output; None leaves the shape open."""
    return helper.make_tensor_value_info(name, DTYPES[dtype], shape)


def make_model(
    scope: Scope,
    name: str,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """Returns the finished model with every initializer in its outermost graph."""
    graph = helper.make_graph(
        scope.nodes, name, list(inputs), list(outputs), list(scope.weights.tensors.values())
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="queryrec")
