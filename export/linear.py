"""Matrix products of a checkpoint as ONNX nodes, real-valued or int8; stores each matrix once.

Knows nothing of transformers beyond the names of their weights.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.builder import Scope
from export.calibration import LEVELS

Array = NDArray[np.float32]

# CPUs without VNNI add pairs of uint8 x int8 products in 16 bits that saturate: 2 * 255 * 64 is
# the most that fits. Weights of this range are exact everywhere, so one graph serves every CPU.
_MAX_WEIGHT = 64
Scales = Mapping[str, float | None]


class Linears:
    """Emits linear layers and the embedding of one checkpoint into scopes."""

    def __init__(
        self,
        outer: Scope,
        state: Mapping[str, Array],
        activation_scales: Scales | None,
    ) -> None:
        """Stores the embedding; other matrices are stored when first used.

        Args:
            outer: the outermost scope, whose tensors all scopes see.
            state: arrays by their transformers names, without the leading "model.".
            activation_scales: scale of the input of each linear layer, by the names that
                `export.calibration` gives; None in its place: each row of it has its own. Without
                any scales all stay real.
        """
        self.state = state
        self._outer = outer
        self._weights = outer.weights
        self._scales = activation_scales
        self._stored: dict[str, _Matrix] = {}
        # By scope, input and scale.
        self._quantised: dict[tuple[int, str, float | None], _Quantised] = {}
        embedding = state["embed_tokens.weight"]
        self._num_ids = len(embedding)
        self._is_tied = "lm_head.weight" not in state
        self._embedding_scale = ""
        if activation_scales is None:
            self._weights.add_real("embedding", embedding)
        else:
            by_column, scale = quantise_columns(embedding.T)
            self._weights.add("embedding", by_column.T)
            self._embedding_scale = self._weights.add("embedding_scale", scale)

    def embed(self, scope: Scope, ids: str) -> str:
        """Returns real (B, X, D) embeddings of int64 (B, X) ids; ids out of range are clipped."""
        ids = scope.op("Clip", ids, scope.constant(0), scope.constant(self._num_ids - 1))
        rows = scope.op("Gather", "embedding", ids, axis=0)
        if self._scales is None:
            return rows
        scale = scope.op("Gather", self._embedding_scale, ids, axis=0)
        scale = scope.op("Unsqueeze", scale, scope.constant([-1]))
        return scope.op("Mul", scope.cast(rows, "float32"), scale)

    def logits(self, scope: Scope, x: str) -> str:
        """Returns real (B, X, V) logits of normalised hidden states (B, X, D)."""
        if not self._is_tied:
            return self.linear(scope, x, "lm_head", ["lm_head"])
        if self._scales is None:
            return scope.op("FusedMatMul", x, "embedding", transB=1)
        if "lm_head" not in self._stored:
            # Stored once, by row; ONNX Runtime makes the transposed copy when it loads the graph.
            turned = self._outer.transpose("embedding", 1, 0)
            self._stored["lm_head"] = _Matrix(turned, self._embedding_scale, "")
        return self._integer_matmul(scope, x, self._scales["lm_head"], "lm_head")

    def linear(self, scope: Scope, x: str, key: str, names: Sequence[str]) -> str:
        """Applies the linear layers `names`, which share an input, as one matrix product.

        Args:
            scope: where nodes go.
            x: real (..., inputs).
            key: the input's name in the activation scales.
            names: of the layers, in the order of their outputs.
        """
        name = names[0] if len(names) == 1 else key
        if name not in self._stored:
            matrix = np.concatenate([self.state[f"{n}.weight"] for n in names]).T
            biases = [self.state[f"{n}.bias"] for n in names if f"{n}.bias" in self.state]
            assert len(biases) in (0, len(names)), names
            bias = self._weights.add_real(f"{name}.bias", np.concatenate(biases)) if biases else ""
            self._stored[name] = self._store(name, matrix, bias)
        if self._scales is not None:
            return self._integer_matmul(scope, x, self._scales[key], name)
        stored = self._stored[name]
        out = scope.op("MatMul", x, stored.values)
        return scope.op("Add", out, stored.bias) if stored.bias else out

    def _store(self, name: str, matrix: Array, bias: str) -> "_Matrix":
        if self._scales is None:
            return _Matrix(self._weights.add_real(f"{name}.weight", matrix), "", bias)
        quantised, scale = quantise_columns(matrix)
        values = self._weights.add(f"{name}.weight_q", quantised)
        return _Matrix(values, self._weights.add(f"{name}.weight_scale", scale), bias)

    def _integer_matmul(self, scope: Scope, x: str, a_scale: float | None, name: str) -> str:
        """Multiplies uint8 activations by int8 weights: the fast pair on x86.

        The activation scale is a constant or each row's own, and the zero point 128, so a row's
        result does not depend on the other rows of its batch.
        """
        place = (id(scope), x, a_scale)
        if place not in self._quantised:
            self._quantised[place] = _quantise(scope, x, a_scale)
        values, scale, row_scale = self._quantised[place]
        matrix = self._stored[name]
        inputs = [values, matrix.values, scale, matrix.scale, scope.constant(128, "uint8")]
        if not row_scale:
            if matrix.bias:
                inputs += ["", matrix.bias]
            return scope.op("MatMulIntegerToFloat", *inputs)
        out = scope.op("Mul", scope.op("MatMulIntegerToFloat", *inputs), row_scale)
        return scope.op("Add", out, matrix.bias) if matrix.bias else out


class _Quantised(NamedTuple):
    """Names of uint8 activations, their scale, and one a row beside it; "" if there is none."""

    values: str
    scale: str
    row_scale: str


def _quantise(scope: Scope, x: str, a_scale: float | None) -> _Quantised:
    zero = scope.constant(128, "uint8")
    scale = scope.constant(1.0 if a_scale is None else a_scale, "float32")
    if a_scale is not None:
        return _Quantised(scope.op("QuantizeLinear", x, scale, zero), scale, "")
    # The node's own scale is one number for all rows, so rows are brought to one range before.
    largest = scope.op("ReduceMax", scope.op("Abs", x), scope.constant([-1]), keepdims=1)
    least = scope.constant(1e-8, "float32")
    row_scale = scope.op(
        "Mul", scope.op("Max", largest, least), scope.constant(1 / LEVELS, "float32")
    )
    values = scope.op("QuantizeLinear", scope.op("Div", x, row_scale), scale, zero)
    return _Quantised(values, scale, row_scale)


class _Matrix(NamedTuple):
    """Names of a stored matrix (inputs, outputs) and what belongs to it; "" where missing."""

    values: str
    scale: str
    bias: str


def quantise_columns(matrix: Array) -> tuple[NDArray[np.int8], Array]:
    """Returns int8 (rows, columns) weights and a float32 (columns) scale per output channel."""
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-8).astype(np.float32) / _MAX_WEIGHT
    rounded = np.rint(matrix / scale)
    return np.clip(rounded, -_MAX_WEIGHT, _MAX_WEIGHT).astype(np.int8), scale
