"""The click model as one graph: context and candidates in one pass.

The context is read once, and all candidates attend to it.

    context_ids, context_mask       int64 (B, P), right padded
    candidate_ids, candidate_mask   int64 (B, C, T), right padded
    features                        float32 (B, C, F)
    click_logit                     float32 (B, C)

# B batch, C candidates, T tokens per candidate, F features
"""

from collections.abc import Mapping

import numpy as np
import onnx

from export.attention import Heads, by_group, causal_mask, mask_where
from export.builder import Scope, Weights, make_model, value
from export.decoder import Array, Decoder, DecoderShape


def build_click_model(
    state: Mapping[str, Array],
    head: Mapping[str, Array],
    shape: DecoderShape,
    cos_sin: tuple[Array, Array],
    *,
    activation_scales: Mapping[str, float] | None = None,
    real_type: str = "float32",
) -> onnx.ModelProto:
    """Returns the click model's graph.

    Args:
        state: the backbone's arrays, see `Decoder`.
        head: "hidden.weight" (E, D + F), "hidden.bias" (E), "out.weight" (1, E), "out.bias" (1);
            logit = out(silu(hidden([last hidden state, features]))). It is never int8: it is small.
        shape: sizes of the backbone.
        cos_sin: rotary tables.
        activation_scales: see `Decoder`.
        real_type: of weights and activations, float32 or float16; int8 goes with float32.
    """
    scope = Scope(Weights(real_type))
    weights = scope.weights
    decoder = Decoder(scope, state, shape, cos_sin, activation_scales)
    num_candidates, length = scope.dim("candidate_ids", 1), scope.dim("candidate_ids", 2)
    num_context = scope.dim("context_ids", 1)
    num_tokens = scope.op("Mul", num_candidates, length)
    context_lengths = scope.op("ReduceSum", "context_mask", scope.constant([1]), keepdims=1)
    order = scope.op("Add", context_lengths, _range(scope, length))  # (B, T)
    positions = scope.op(
        "Concat",
        scope.op("Tile", order, scope.shape(1, num_candidates)),
        scope.op("Expand", _range(scope, num_context), scope.op("Shape", "context_ids")),
        axis=1,
    )
    groups = decoder.attention.groups
    mask = _mask(scope, length, scope.op("Mul", num_candidates, scope.constant([groups])))
    context_mask = by_group(scope, causal_mask(scope, num_context), groups)

    last = scope.op("ReduceSum", "candidate_mask", scope.constant([2]), keepdims=0)
    last = scope.op("Max", scope.op("Sub", last, scope.constant(1)), scope.constant(0))  # (B, C)
    starts = scope.op("Mul", _range(scope, num_candidates), length)
    last = scope.op("Unsqueeze", scope.op("Add", last, starts), scope.constant([2]))  # into X

    ids = scope.op("Concat", scope.reshape("candidate_ids", 0, -1), "context_ids", axis=1)
    stream = decoder.embed(scope, ids)
    sizes = scope.op("Concat", num_tokens, num_context, axis=0)
    for layer in range(shape.num_layers):
        heads, x = decoder.heads(scope, layer, stream, positions)
        parts = [scope.ops("Split", [part, sizes], 2, axis=2) for part in heads]
        own, context = (Heads(*part) for part in zip(*parts, strict=True))
        mixed = decoder.attention.blocks(scope, own, context, mask, num_candidates, length)
        if layer == shape.num_layers - 1:  # of each candidate only the last token is read
            mixed = scope.op("GatherND", decoder.joined(scope, mixed), last, batch_dims=1)
            x = scope.op("GatherND", x, last, batch_dims=1)
        else:
            read = decoder.attention.attend(scope, context, context_mask)
            mixed = decoder.joined(scope, scope.op("Concat", mixed, read, axis=2))
        stream = decoder.after_attention(scope, layer, x, mixed)
    hidden = decoder.final_norm(scope, stream)  # (B, C, D)
    joint = scope.op("Concat", hidden, scope.cast("features", real_type), axis=2)
    h = scope.op("MatMul", joint, weights.add_real("head.hidden.weight", head["hidden.weight"].T))
    h = scope.op("Add", h, weights.add_real("head.hidden.bias", head["hidden.bias"]))
    h = scope.op("QuickGelu", h, alpha=1.0)  # alpha 1 is silu
    logit = scope.op("MatMul", h, weights.add_real("head.out.weight", head["out.weight"].T))
    logit = scope.op("Add", logit, weights.add_real("head.out.bias", head["out.bias"]))
    logit = scope.op("Squeeze", scope.cast(logit, "float32"), scope.constant([2]))
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


def _range(scope: Scope, length: str) -> str:
    """Returns int64 (length): 0, 1, ..."""
    return scope.op("Range", scope.constant(0), scope.op("Squeeze", length), scope.constant(1))


def _mask(scope: Scope, length: str, num_blocks: str) -> str:
    """Returns float (B, 1, G * C * T, T + P): causal in a candidate, and the context's tokens."""
    own = scope.op("Expand", causal_mask(scope, length), scope.shape(num_blocks, 1, 1))
    own = scope.reshape(own, 1, 1, -1, length)
    hidden = scope.op("Equal", "context_mask", scope.constant(0))
    context = scope.op("Unsqueeze", mask_where(scope, hidden), scope.constant([1, 2]))
    num_rows = scope.op("Mul", num_blocks, length)
    own = scope.op("Expand", own, scope.shape(scope.dim("context_mask", 0), 1, 1, 1))
    context = scope.op("Expand", context, scope.shape(1, 1, num_rows, 1))
    return scope.op("Concat", own, context, axis=3)


def head_state(state: Mapping[str, Array]) -> dict[str, Array]:
    """Returns the head's arrays of a click model's state dict, without their "head." prefix."""
    return {
        name.removeprefix("head."): np.asarray(array, np.float32)
        for name, array in state.items()
        if name.startswith("head.")
    }
