"""Matrix products of a checkpoint as ONNX nodes, in fp32 or static int8; stores each once.

Knows nothing of transformers beyond the names of their weights.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from export.builder import Scope, Weights

Array = NDArray[np.float32]


class Linears:
    """Emits linear layers and the embedding of one checkpoint into scopes."""

    def __init__(
        self,
        weights: Weights,
        state: Mapping[str, Array],
        activation_scales: Mapping[str, float] | None,
    ) -> None:
        """Stores the embedding; other matrices are stored when first used.

        Args:
            weights: where initializers go.
            state: arrays by their transformers names, without the leading "model.".
            activation_scales: scale of the input of each linear layer, by the names that
                `export.calibration` gives; None builds fp32.
        """
        self.weights = weights
        self.state = state
        self._scales = activation_scales
        self._stored: dict[str, tuple[str, str, str]] = {}  # matrix, its scale, bias
        self._is_tied = "lm_head.weight" not in state
        embedding = state["embed_tokens.weight"]
        self._num_ids = len(embedding)
        if activation_scales is None:
            weights.add("embedding", embedding)
        else:
            self._store("embedding", embedding.T, "")

    def embed(self, scope: Scope, ids: str) -> str:
        """Returns float32 (B, X, D) embeddings of int64 (B, X) ids; ids out of range are clipped.

        Int8 embeddings lie transposed, because the tied output matrix needs them so.
        """
        ids = scope.op("Clip", ids, scope.constant(0), scope.constant(self._num_ids - 1))
        if self._scales is None:
            return scope.op("Gather", "embedding", ids, axis=0)
        matrix, scale, _ = self._stored["embedding"]
        columns = scope.op("Gather", matrix, ids, axis=1)  # int8 (D, B, X)
        rows = scope.op("Cast", scope.transpose(columns, 1, 2, 0), to=1)
        scale = scope.op("Gather", scale, ids, axis=0)
        return scope.op("Mul", rows, scope.op("Unsqueeze", scale, scope.constant([-1])))

    def logits(self, scope: Scope, x: str) -> str:
        """Returns float32 (B, X, V) logits of normalised hidden states (B, X, D)."""
        if not self._is_tied:
            return self.linear(scope, x, "lm_head", ["lm_head"])
        if self._scales is None:
            return scope.op("FusedMatMul", x, "embedding", transB=1)
        return self._integer_matmul(scope, x, self._scales["lm_head"], self._stored["embedding"])

    def linear(self, scope: Scope, x: str, key: str, names: list[str]) -> str:
        """Applies the linear layers `names`, which share an input, as one matrix product.

        Args:
            scope: where nodes go.
            x: float32 (..., inputs).
            key: the input's name in the activation scales.
            names: of the layers, in the order of their outputs.
        """
        if key not in self._stored:
            matrix = np.concatenate([self.state[f"{n}.weight"] for n in names]).T
            biases = [self.state[f"{n}.bias"] for n in names if f"{n}.bias" in self.state]
            assert len(biases) in (0, len(names)), names
            bias = self.weights.add(f"{key}.bias", np.concatenate(biases)) if biases else ""
            self._store(key, matrix, bias)
        if self._scales is not None:
            return self._integer_matmul(scope, x, self._scales[key], self._stored[key])
        matrix_name, _, bias = self._stored[key]
        out = scope.op("MatMul", x, matrix_name)
        return scope.op("Add", out, bias) if bias else out

    def _store(self, key: str, matrix: Array, bias: str) -> None:
        if self._scales is None:
            self._stored[key] = (self.weights.add(f"{key}.weight", matrix), "", bias)
            return
        quantised, scale = quantise_columns(matrix)
        name = self.weights.add(f"{key}.weight_q", quantised)
        self._stored[key] = (name, self.weights.add(f"{key}.weight_scale", scale), bias)

    def _integer_matmul(
        self, scope: Scope, x: str, scale: float, stored: tuple[str, str, str]
    ) -> str:
        """Multiplies uint8 activations by int8 weights: the fast pair on x86 with VNNI.

        The activation scale is a constant and the zero point 128, so a row's result does not
        depend on the other rows of its batch.
        """
        a_scale, zero = scope.constant(scale, "float32"), scope.constant(128, "uint8")
        matrix, w_scale, bias = stored
        quantised = scope.op("QuantizeLinear", x, a_scale, zero)
        inputs = [quantised, matrix, a_scale, w_scale, zero, "", bias]
        return scope.op("MatMulIntegerToFloat", *(inputs if bias else inputs[:5]))


def quantise_columns(matrix: Array) -> tuple[NDArray[np.int8], Array]:
    """Returns int8 (rows, columns) weights and a float32 (columns) scale per output channel."""
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-8).astype(np.float32) / 127
    return np.clip(np.rint(matrix / scale), -127, 127).astype(np.int8), scale
