"""The layers of a transformer decoder as ONNX nodes: Llama and Qwen families.

Who sees whom is the attention's part (`export.attention`). Knows nothing of what is decoded.

# B batch, X tokens of a row, K kv heads, G query heads per kv head, H head dim, D model dim
"""

from collections.abc import Mapping
from typing import NamedTuple

from export.attention import Attention, Heads
from export.builder import Scope
from export.linear import Array, Linears, Scales
from train.generation.decoder import DecoderShape


class Stream(NamedTuple):
    """The residual stream: real (B, X, D), and an addition to it that is still to be made."""

    x: str
    pending: str = ""


class Decoder:
    """Emits the layers of one checkpoint into scopes."""

    def __init__(
        self,
        outer: Scope,
        state: Mapping[str, Array],
        shape: DecoderShape,
        cos_sin: tuple[Array, Array],
        activation_scales: Scales | None,
    ) -> None:
        """Stores embedding and rotary tables; layers are stored when first used.

        Args:
            outer: the outermost scope, whose tensors all scopes see.
            state: arrays by their transformers names, without the leading "model.".
            shape: sizes.
            cos_sin: rotary tables, float32 (positions, H / 2) each; a call may read no more
                tokens of a row than they have positions.
            activation_scales: scale of the input of each linear layer, by the names that
                `export.calibration` gives, see `Linears`.
        """
        self.shape = shape
        self.attention = Attention(
            num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads, head_dim=shape.head_dim
        )
        self._weights = outer.weights
        self._linears = Linears(outer, state, activation_scales)
        self._norms: dict[str, str] = {}
        self._cos = self._weights.add_real("rotary_cos", cos_sin[0])
        self._sin = self._weights.add_real("rotary_sin", cos_sin[1])

    def embed(self, scope: Scope, ids: str) -> Stream:
        """Returns the stream (B, X, D) of int64 (B, X) ids, clipped to the vocabulary."""
        return Stream(self._linears.embed(scope, ids))

    def logits(self, scope: Scope, stream: Stream) -> str:
        """Returns real (B, X, V) logits of a residual stream."""
        return self._linears.logits(scope, self.final_norm(scope, stream))

    def final_norm(self, scope: Scope, stream: Stream) -> str:
        """Returns the normalised output of the last layer."""
        return self._norm(scope, "norm", stream)[0]

    def heads(self, scope: Scope, layer: int, stream: Stream, positions: str) -> tuple[Heads, str]:
        """Starts a layer: returns queries, keys and values, and the stream with its addition made.

        Args:
            scope: where nodes go.
            layer: index of the layer.
            stream: residual stream (B, X, D).
            positions: int64 (B, X).
        """
        s, name = self.shape, f"layers.{layer}.self_attn"
        h, x = self._norm(scope, f"layers.{layer}.input_layernorm", stream)
        parts = [f"{name}.{p}_proj" for p in "qkv"]
        joint = self._linears.linear(scope, h, f"layers.{layer}.qkv", parts)
        joint = scope.reshape(joint, 0, 0, s.num_heads + 2 * s.num_kv_heads, s.head_dim)
        joint = scope.transpose(joint, 0, 2, 1, 3)
        sizes = scope.constant([s.num_heads + s.num_kv_heads, s.num_kv_heads])
        both, values = scope.ops("Split", [joint, sizes], 2, axis=1)
        sizes = scope.constant([s.num_heads, s.num_kv_heads])
        if f"{name}.q_norm.weight" in self._linears.state:  # Qwen3
            query, keys = scope.ops("Split", [both, sizes], 2, axis=1)
            query = self._norm(scope, f"{name}.q_norm", Stream(query))[0]
            keys = self._norm(scope, f"{name}.k_norm", Stream(keys))[0]
            both = scope.op("Concat", query, keys, axis=1)
        turned = scope.op("RotaryEmbedding", both, positions, self._cos, self._sin)
        query, keys = scope.ops("Split", [turned, sizes], 2, axis=1)
        return Heads(query, keys, values), x

    def after_attention(self, scope: Scope, layer: int, x: str, mixed: str) -> Stream:
        """Ends a layer: output projection and feed-forward network.

        Args:
            scope: where nodes go.
            layer: index of the layer.
            x: the stream as `heads` returned it, (B, X, D).
            mixed: the attention's output (B, X, K * G * H).
        """
        name, linear = f"layers.{layer}", self._linears.linear
        out = linear(scope, mixed, f"{name}.o", [f"{name}.self_attn.o_proj"])
        h, x = self._norm(scope, f"{name}.post_attention_layernorm", Stream(x, out))
        gate = linear(scope, h, f"{name}.gate_up", [f"{name}.mlp.gate_proj"])
        up = linear(scope, h, f"{name}.gate_up", [f"{name}.mlp.up_proj"])
        h = scope.op("Mul", scope.op("QuickGelu", gate, alpha=1.0), up)  # alpha 1 is silu
        return Stream(x, linear(scope, h, f"{name}.down", [f"{name}.mlp.down_proj"]))

    def _norm(self, scope: Scope, name: str, stream: Stream) -> tuple[str, str]:
        """Returns the normalised stream, and the stream with its addition made."""
        if name not in self._norms:
            weight = self._linears.state[f"{name}.weight"]
            self._norms[name] = self._weights.add_real(name, weight)
        gain, eps = self._norms[name], self.shape.norm_eps
        if not stream.pending:
            args = (stream.x, gain)
            return scope.op("SimplifiedLayerNormalization", *args, epsilon=eps, axis=-1), stream.x
        outputs = scope.ops(
            "SkipSimplifiedLayerNormalization", [stream.x, stream.pending, gain], 4, epsilon=eps
        )
        return outputs[0], outputs[3]
