"""The transformer decoder as ONNX nodes: Llama and Qwen families, shared-prefix attention.

A forward has two parts. The *prefix* (prompt or click context) is read once per row and leaves
its keys and values. *Suffixes* (slots or candidates) attend to the prefix and, causally, to
themselves. The prefix's keys and values are never repeated per suffix: all suffixes of a row
stand side by side in the query dimension of one matrix product.

# B batch, P prefix tokens, S suffixes per row, T new tokens per suffix, X = S * T,
# U tokens of a suffix so far, K kv heads, G query heads per kv head, H head dim, D model dim
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from export.builder import Scope, Weights
from export.linear import Array, Linears

MASKED = -1e9  # added to attention scores; finite, so that a fully masked row stays finite
SUPPORTED_MODEL_TYPES = ("llama", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """Sizes of a decoder."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    norm_eps: float

    @classmethod
    def of(cls, config: Any) -> "DecoderShape":
        """Reads a transformers config.

        Raises:
            ValueError: the architecture is not one that the graph implements.
        """
        if config.model_type not in SUPPORTED_MODEL_TYPES:
            raise ValueError(
                f"model_type {config.model_type!r} cannot be exported: "
                f"use one of {', '.join(SUPPORTED_MODEL_TYPES)}"
            )
        if config.hidden_act != "silu":
            raise ValueError(f"hidden_act {config.hidden_act!r} cannot be exported: use 'silu'")
        if getattr(config, "use_sliding_window", False):
            raise ValueError("sliding-window attention cannot be exported: turn it off")
        return cls(
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None)
            or config.hidden_size // config.num_attention_heads,
            hidden=config.hidden_size,
            vocabulary=config.vocab_size,
            norm_eps=config.rms_norm_eps,
        )


class KeyValue(NamedTuple):
    """Names of one layer's keys and values."""

    keys: str
    values: str


class Stream(NamedTuple):
    """The residual stream: float32 (B, X, D), and an addition to it that is still to be made."""

    x: str
    pending: str = ""


class SuffixFrame(NamedTuple):
    """What all layers share about where the suffixes are; names of tensors.

    Made once by `Decoder.suffix_frame`, outside of any loop.
    """

    split: str  # shape (B, S, T, K, G, H) of a reshaped query
    split_kv: str  # shape (B, S, T, K, H)
    query_suffix: str  # shape (B, K, S, T * G, H)
    scores_by_suffix: str  # shape (B, K, S, T * G, P)
    scores_flat: str  # shape (B, K, S * T * G, P)
    mixed: str  # shape (B, K, S, T, G, H)
    num_prefix: str  # P
    prefix_mask: str  # float32 (B, 1, 1, P)


class Decoder:
    """Emits the layers of one checkpoint into scopes."""

    def __init__(
        self,
        weights: Weights,
        state: Mapping[str, Array],
        shape: DecoderShape,
        cos_sin: tuple[Array, Array],
        activation_scales: Mapping[str, float] | None,
    ) -> None:
        """Stores embedding and rotary tables; layers are stored when first used.

        Args:
            weights: where initializers go.
            state: arrays by their transformers names, without the leading "model.".
            shape: sizes.
            cos_sin: rotary tables, float32 (positions, H / 2) each.
            activation_scales: scale of the input of each linear layer, by the names that
                `export.calibration` gives; None builds an fp32 graph.
        """
        self.shape = shape
        self.weights = weights
        self._linears = Linears(weights, state, activation_scales)
        self._norms: dict[str, str] = {}
        self._cos = weights.add("rotary_cos", cos_sin[0])
        self._sin = weights.add("rotary_sin", cos_sin[1])

    def embed(self, scope: Scope, ids: str) -> str:
        """Returns float32 (B, X, D) embeddings of int64 (B, X) ids, clipped to the vocabulary."""
        return self._linears.embed(scope, ids)

    def logits(self, scope: Scope, stream: Stream) -> str:
        """Returns float32 (B, X, V) logits of a residual stream."""
        return self._linears.logits(scope, self.final_norm(scope, stream))

    def final_norm(self, scope: Scope, stream: Stream) -> str:
        """Returns the normalised output of the last layer."""
        return self._norm(scope, "norm", stream)[0]

    def prefix(self, scope: Scope, ids: str) -> list[KeyValue]:
        """Returns each layer's keys and values (B, K, P, H) of int64 (B, P) prefix ids.

        Rows are right padded; padding needs no mask here, since later tokens are never seen.
        The last layer stops after its keys and values: nothing else of it is read.
        """
        s = self.shape
        groups = s.num_heads // s.num_kv_heads
        mask = causal_mask(scope, scope.dim(ids, 1))
        start = scope.constant([0])
        stream, cache = Stream(self.embed(scope, ids)), list[KeyValue]()
        for layer in range(s.num_layers):
            h, x = self._norm(scope, f"layers.{layer}.input_layernorm", stream)
            query, keys, values = self._query_key_value(scope, layer, h, start)
            heads = scope.constant([0, 0, s.num_kv_heads, s.head_dim])
            keys = scope.transpose(scope.op("Reshape", keys, heads), 0, 2, 1, 3)
            values = scope.transpose(scope.op("Reshape", values, heads), 0, 2, 1, 3)
            cache.append(KeyValue(keys, values))
            if layer == s.num_layers - 1:
                break
            query = scope.reshape(query, 0, 0, s.num_kv_heads, groups, s.head_dim)
            query = scope.transpose(query, 0, 2, 3, 1, 4)  # (B, K, G, P, H)
            if groups == 1:
                query = scope.reshape(query, 0, s.num_kv_heads, -1, s.head_dim)
            else:
                keys = scope.op("Unsqueeze", keys, scope.constant([2]))
                values = scope.op("Unsqueeze", values, scope.constant([2]))
            scores = scope.op("Add", self._scores(scope, query, keys), mask)
            mixed = scope.op("MatMul", scope.op("Softmax", scores, axis=-1), values)
            mixed = scope.transpose(mixed, *((0, 2, 1, 3) if groups == 1 else (0, 3, 1, 2, 4)))
            mixed = scope.reshape(mixed, 0, 0, s.num_heads * s.head_dim)
            stream = self._after_attention(scope, layer, x, mixed)
        return cache

    def suffix_frame(
        self, scope: Scope, prefix_mask: str, num_suffixes: str, num_new: str
    ) -> SuffixFrame:
        """Returns the shapes that suffix layers use.

        Args:
            scope: the outermost scope.
            prefix_mask: int64 (B, P), 1 for tokens and 0 for padding.
            num_suffixes: S, an int64 vector of one element.
            num_new: T, likewise.
        """
        s = self.shape
        kv, groups = s.num_kv_heads, s.num_heads // s.num_kv_heads
        length = scope.dim(prefix_mask, 1)
        hidden = scope.op("Equal", prefix_mask, scope.constant(0))
        masked, zero = scope.constant(MASKED, "float32"), scope.constant(0, "float32")
        return SuffixFrame(
            split=scope.shape(-1, num_suffixes, num_new, kv, groups, s.head_dim),
            split_kv=scope.shape(-1, num_suffixes, num_new, kv, s.head_dim),
            query_suffix=scope.shape(0, kv, num_suffixes, -1, s.head_dim),
            scores_by_suffix=scope.shape(0, kv, num_suffixes, -1, length),
            scores_flat=scope.shape(0, kv, -1, length),
            mixed=scope.shape(0, kv, num_suffixes, num_new, groups, s.head_dim),
            num_prefix=length,
            prefix_mask=scope.op(
                "Unsqueeze", scope.op("Where", hidden, masked, zero), scope.constant([1, 2])
            ),
        )

    def suffix_layer(
        self,
        scope: Scope,
        layer: int,
        stream: Stream,
        frame: SuffixFrame,
        positions: str,
        prefix: KeyValue,
        *,
        past: KeyValue | None = None,
        suffix_mask: str | None = None,
        keep: str | None = None,
    ) -> tuple[Stream, KeyValue]:
        """Runs one layer over suffix tokens.

        Args:
            scope: where nodes go.
            layer: index of the layer.
            stream: residual stream (B, X, D).
            frame: shapes and prefix mask.
            positions: int64 (B * X, 1).
            prefix: keys and values (B, K, P, H).
            past: keys and values (B, K, S, U - T, H) of earlier suffix tokens, or None.
            suffix_mask: float32 (T * G, U), added to scores within a suffix, or None.
            keep: int64 (B, Y, 1): indices into X of the tokens that are needed after this
                layer; the stream becomes (B, Y, D). None keeps all.

        Returns:
            The stream after the layer, and the suffix's keys and values (B, K, S, U, H).
        """
        s = self.shape
        h, x = self._norm(scope, f"layers.{layer}.input_layernorm", stream)
        query, keys, values = self._query_key_value(scope, layer, h, positions)
        keys = scope.transpose(scope.op("Reshape", keys, frame.split_kv), 0, 3, 1, 2, 4)
        values = scope.transpose(scope.op("Reshape", values, frame.split_kv), 0, 3, 1, 2, 4)
        if past is not None:
            keys = scope.op("Concat", past.keys, keys, axis=3)
            values = scope.op("Concat", past.values, values, axis=3)
        query = scope.transpose(scope.op("Reshape", query, frame.split), 0, 3, 1, 2, 4, 5)
        q_prefix = scope.reshape(query, 0, s.num_kv_heads, -1, s.head_dim)
        q_suffix = scope.op("Reshape", query, frame.query_suffix)
        on_prefix = scope.op("Add", self._scores(scope, q_prefix, prefix.keys), frame.prefix_mask)
        on_suffix = self._scores(scope, q_suffix, keys)  # (B, K, S, T * G, U)
        if suffix_mask is not None:
            on_suffix = scope.op("Add", on_suffix, suffix_mask)
        on_prefix = scope.op("Reshape", on_prefix, frame.scores_by_suffix)
        # The suffix stands first, so that padding of the prefix only adds zeros at the end.
        scores = scope.op("Concat", on_suffix, on_prefix, axis=4)
        attention = scope.op("Softmax", scores, axis=-1)
        sizes = scope.op("Concat", scope.dim(keys, 3), frame.num_prefix, axis=0)
        to_suffix, to_prefix = scope.ops("Split", [attention, sizes], 2, axis=4)
        from_suffix = scope.op("MatMul", to_suffix, values)  # (B, K, S, T * G, H)
        to_prefix = scope.op("Reshape", to_prefix, frame.scores_flat)
        from_prefix = scope.op("MatMul", to_prefix, prefix.values)
        from_prefix = scope.op("Reshape", from_prefix, frame.query_suffix)
        mixed = scope.op("Reshape", scope.op("Add", from_suffix, from_prefix), frame.mixed)
        mixed = scope.transpose(mixed, 0, 2, 3, 1, 4, 5)
        mixed = scope.reshape(mixed, 0, -1, s.num_heads * s.head_dim)
        if keep is not None:
            mixed = scope.op("GatherND", mixed, keep, batch_dims=1)
            x = scope.op("GatherND", x, keep, batch_dims=1)
        return self._after_attention(scope, layer, x, mixed), KeyValue(keys, values)

    def _after_attention(self, scope: Scope, layer: int, x: str, mixed: str) -> Stream:
        name = f"layers.{layer}"
        out = self._linears.linear(scope, mixed, f"{name}.o", [f"{name}.self_attn.o_proj"])
        h, x = self._norm(scope, f"{name}.post_attention_layernorm", Stream(x, out))
        both = [f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"]
        joint = self._linears.linear(scope, h, f"{name}.gate_up", both)
        gate, up = scope.ops("Split", [joint], 2, axis=-1, num_outputs=2)
        h = scope.op("Mul", scope.op("QuickGelu", gate, alpha=1.0), up)  # alpha 1 is silu
        return Stream(x, self._linears.linear(scope, h, f"{name}.down", [f"{name}.mlp.down_proj"]))

    def _query_key_value(
        self, scope: Scope, layer: int, h: str, positions: str
    ) -> tuple[str, str, str]:
        s, name = self.shape, f"layers.{layer}.self_attn"
        parts = [f"{name}.{p}_proj" for p in "qkv"]
        joint = self._linears.linear(scope, h, f"layers.{layer}.qkv", parts)
        q, kv = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
        if f"{name}.q_norm.weight" in self._linears.state:  # Qwen3
            sizes = scope.constant([q, kv, kv])
            query, keys, values = scope.ops("Split", [joint, sizes], 3, axis=-1)
            query = self._head_norm(scope, f"{name}.q_norm", query, s.num_heads)
            keys = self._head_norm(scope, f"{name}.k_norm", keys, s.num_kv_heads)
            joint = scope.op("Concat", query, keys, axis=-1)
        else:
            joint, values = scope.ops("Split", [joint, scope.constant([q + kv, kv])], 2, axis=-1)
        if positions != scope.constant([0]):
            # One position per row: the operator refuses more tokens than its table has rows.
            joint = scope.reshape(joint, -1, 1, q + kv)
        turned = scope.op("RotaryEmbedding", joint, positions, self._cos, self._sin)
        query, keys = scope.ops("Split", [turned, scope.constant([q, kv])], 2, axis=-1)
        return query, keys, values

    def _head_norm(self, scope: Scope, name: str, x: str, num_heads: int) -> str:
        heads = scope.reshape(x, 0, 0, num_heads, self.shape.head_dim)
        normed, _ = self._norm(scope, name, Stream(heads))
        return scope.reshape(normed, 0, 0, num_heads * self.shape.head_dim)

    def _scores(self, scope: Scope, query: str, keys: str) -> str:
        alpha = float(self.shape.head_dim**-0.5)
        return scope.op("FusedMatMul", query, keys, transB=1, alpha=alpha)

    def _norm(self, scope: Scope, name: str, stream: Stream) -> tuple[str, str]:
        """Returns the normalised stream, and the stream with its addition made."""
        if name not in self._norms:
            weight = self._linears.state[f"{name}.weight"]
            self._norms[name] = self.weights.add(name, weight)
        gain, eps = self._norms[name], self.shape.norm_eps
        if not stream.pending:
            args = (stream.x, gain)
            return scope.op("SimplifiedLayerNormalization", *args, epsilon=eps, axis=-1), stream.x
        outputs = scope.ops(
            "SkipSimplifiedLayerNormalization", [stream.x, stream.pending, gain], 4, epsilon=eps
        )
        return outputs[0], outputs[3]


def causal_mask(scope: Scope, length: str) -> str:
    """Returns float32 (length, length): 0 on and below the diagonal, `MASKED` above."""
    count = scope.op("Squeeze", length)
    steps = scope.op("Range", scope.constant(0), count, scope.constant(1))
    rows = scope.op("Unsqueeze", steps, scope.constant([1]))
    later = scope.op("Less", rows, steps)
    masked, zero = scope.constant(MASKED, "float32"), scope.constant(0, "float32")
    return scope.op("Where", later, masked, zero)
