"""The click model as one graph: context and candidates in one pass.

The context is read once, and all candidates attend to it.

    context_ids, context_mask       int64 (B, P), right padded
    candidate_ids, candidate_mask   int64 (B, C, T), right padded
    features                        float32 (B, C, F)
    click_logit                     float32 (B, C)

# B batch, C candidates, T tokens per candidate with padding, X of all candidates without it,
# F features
"""

from collections.abc import Mapping

import numpy as np
import onnx

from export.attention import above_prefix, by_group, mask_where
from export.builder import Scope, Weights, make_model, value
from export.decoder import Array, Decoder
from export.linear import Scales
from train.clicks.model import MAX_DEVIATIONS
from train.generation.decoder import DecoderShape


def build_click_model(
    state: Mapping[str, Array],
    head: Mapping[str, Array],
    shape: DecoderShape,
    cos_sin: tuple[Array, Array],
    *,
    activation_scales: Scales | None = None,
    real_type: str = "float32",
) -> onnx.ModelProto:
    """Returns the click model's graph.

    Args:
        state: the backbone's arrays, see `Decoder`.
        head: weights and biases of "features" (E, F), "mixed" (E, E), "hidden" (E, D + F) and
            "out" (1, 2 E), "mean" and "scale" (F). With s = silu, and f the features less their
            mean over their scale, cut at `MAX_DEVIATIONS`,
            logit = out([s(mixed(s(features(f)))), s(hidden([last hidden state, f]))]). It is
            always float32: it is small, and nothing looks whether fp16 would hold its numbers.
        shape: sizes of the backbone.
        cos_sin: rotary tables.
        activation_scales: see `Decoder`.
        real_type: of the backbone's weights and activations, float32 or float16; int8 goes with
            float32.
    """
    scope = Scope(Weights(real_type))
    weights = scope.weights
    decoder = Decoder(scope, state, shape, cos_sin, activation_scales)
    tokens = _Tokens(scope)
    num_context = scope.dim("context_ids", 1)
    context_lengths = scope.op("ReduceSum", "context_mask", scope.constant([1]), keepdims=1)
    positions = scope.op(
        "Concat",
        scope.op("Add", context_lengths, tokens.offsets),
        scope.op("Expand", scope.range(num_context), scope.op("Shape", "context_ids")),
        axis=1,
    )
    hidden_context = scope.op("Equal", "context_mask", scope.constant(0))
    to_context = scope.op("Unsqueeze", mask_where(scope, hidden_context), scope.constant([1, 2]))
    shape_BXP = scope.shape(1, 1, tokens.count, 1)
    top = scope.op("Concat", tokens.mask(), scope.op("Expand", to_context, shape_BXP), axis=3)
    mask = by_group(scope, above_prefix(scope, top, num_context), decoder.attention.groups)

    ids = scope.op("Concat", tokens.ids, "context_ids", axis=1)
    stream = decoder.embed(scope, ids)
    for layer in range(shape.num_layers):
        heads, x = decoder.heads(scope, layer, stream, positions)
        mixed = decoder.attention.attend(scope, heads, mask)
        if layer == shape.num_layers - 1:  # of each candidate only the last token is read
            mixed = scope.op("GatherND", mixed, tokens.last, batch_dims=1)
            x = scope.op("GatherND", x, tokens.last, batch_dims=1)
        stream = decoder.after_attention(scope, layer, x, mixed)
    hidden = scope.cast(decoder.final_norm(scope, stream), "float32")  # (B, C, D)

    def linear(name: str, x: str) -> str:
        weight = weights.add(f"head.{name}.weight", np.asarray(head[f"{name}.weight"].T, "float32"))
        bias = weights.add(f"head.{name}.bias", np.asarray(head[f"{name}.bias"], "float32"))
        return scope.op("Add", scope.op("MatMul", x, weight), bias)

    def silu(x: str) -> str:
        return scope.op("QuickGelu", x, alpha=1.0)

    features = scope.op("Sub", "features", scope.constant(head["mean"], "float32"))
    features = scope.op("Div", features, scope.constant(head["scale"], "float32"))
    limits = [scope.constant(bound, "float32") for bound in (-MAX_DEVIATIONS, MAX_DEVIATIONS)]
    features = scope.op("Clip", features, *limits)
    of_features = silu(linear("mixed", silu(linear("features", features))))
    of_text = silu(linear("hidden", scope.op("Concat", hidden, features, axis=2)))
    logit = linear("out", scope.op("Concat", of_features, of_text, axis=2))
    logit = scope.op("Squeeze", logit, scope.constant([2]))
    scope.nodes.append(onnx.helper.make_node("Identity", [logit], ["click_logit"]))
    num_features = head["hidden.weight"].shape[1] - shape.hidden
    inputs = [
        value("context_ids", "int64", ["batch", "context"]),
        value("context_mask", "int64", ["batch", "context"]),
        value("candidate_ids", "int64", ["batch", "candidates", "tokens"]),
        value("candidate_mask", "int64", ["batch", "candidates", "tokens"]),
        value("features", "float32", ["batch", "candidates", num_features]),
    ]
    return make_model(
        scope, "click_model", inputs, [value("click_logit", "float32", ["batch", "candidates"])]
    )


class _Tokens:
    """The candidates' tokens without their padding, side by side; names of tensors.

    X is the most tokens that the candidates of a row have together. Rows with fewer are filled up
    with padding, which nothing that is read can see.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        flat = [scope.reshape(name, 0, -1) for name in ("candidate_ids", "candidate_mask")]
        lengths = scope.op("ReduceSum", "candidate_mask", scope.constant([2]), keepdims=0)
        ends = scope.op("CumSum", lengths, scope.constant(1))  # (B, C)
        most = scope.op("ReduceMax", scope.op("ReduceSum", lengths, scope.constant([1])))
        self.count = scope.op("Max", scope.reshape(most, 1), scope.constant([1]))  # X
        # Tokens first, padding last, both in their order.
        size = scope.dim(flat[0], 1)
        rank = scope.op("Sub", scope.op("Mul", flat[1], size), scope.range(size))
        _, places = scope.ops("TopK", [rank, self.count], 2, axis=1)  # (B, X)
        length = scope.dim("candidate_ids", 2)
        self.ids = scope.op("GatherElements", flat[0], places, axis=1)  # (B, X)
        self.offsets = scope.op("Mod", places, length)  # (B, X): place in the candidate
        self._candidates = scope.op("Div", places, length)  # (B, X)
        last = scope.op("Max", scope.op("Sub", ends, scope.constant(1)), scope.constant(0))
        self.last = scope.op("Unsqueeze", last, scope.constant([2]))  # (B, C, 1), into X

    def mask(self) -> str:
        """Returns real (B, 1, X, X): a token sees itself and those before it in its candidate."""
        scope = self._scope

        def pairs(op: str, x: str) -> str:
            column = scope.op("Unsqueeze", x, scope.constant([2]))
            return scope.op(op, column, scope.op("Unsqueeze", x, scope.constant([1])))

        is_other = scope.op("Not", pairs("Equal", self._candidates))
        hidden = scope.op("Or", is_other, pairs("Less", self.offsets))
        return scope.op("Unsqueeze", mask_where(scope, hidden), scope.constant([1]))
