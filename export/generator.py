"""The generator as one graph: prefill, then the whole decode loop inside ONNX.

Inputs and outputs (design of the bundle, `generator`):

    input_ids, attention_mask   int64 (B, P), right padded
    slots                       int64 (B, S): the token that starts each sequence
    max_new_tokens              int64 (B, S): at least 1 is taken
    first_token_range           int64 (B, 2): [first, end) of the ids that may begin a text,
                                that is, the first new token and each one after <|sep|>
    sequences                   int64 (B, S, N): greedy; <|pad|> after <|eos|> or the limit
    logprobs                    float32 (B, S), optional: sum over the new tokens of the log
                                of softmax over the ids that were allowed

`slots` mode gives S slot tokens, `list` mode one <|list|> token: the graph is the same.

# R = B * S rows, V vocabulary, C = V / 128 groups of ids
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from engine.vocabulary import EOS_ID, NUM_CONTROL_IDS, SEP_ID
from export.builder import Scope, Weights, make_model, value
from export.decoder import MASKED, Array, Decoder, DecoderShape, KeyValue, Stream, SuffixFrame


def build_generator(
    state: Mapping[str, Array],
    shape: DecoderShape,
    cos_sin: tuple[Array, Array],
    *,
    activation_scales: Mapping[str, float] | None = None,
    with_logprobs: bool = False,
) -> onnx.ModelProto:
    """Returns the generator graph of a checkpoint; see `Decoder` for the arguments.

    Raises:
        ValueError: the vocabulary is not a multiple of 128.
    """
    if shape.vocabulary % NUM_CONTROL_IDS:
        raise ValueError(f"vocabulary of {shape.vocabulary} is not a multiple of {NUM_CONTROL_IDS}")
    weights = Weights()
    decoder = Decoder(weights, state, shape, cos_sin, activation_scales)
    scope = Scope(weights)
    prompt_kv = decoder.prefix(scope, "input_ids")
    num_slots = scope.dim("slots", 1)
    frame = decoder.suffix_frame(scope, "attention_mask", num_slots, scope.constant([1]))
    lengths = scope.op("ReduceSum", "attention_mask", scope.constant([1]), keepdims=1)  # (B, 1)
    limits = scope.op("Max", "max_new_tokens", scope.constant(1))
    slot_shape = scope.op("Shape", "slots")
    num_kv = scope.constant([shape.num_kv_heads])
    empty = scope.op(
        "ConstantOfShape",
        scope.op(
            "Concat",
            scope.dim("slots", 0), num_kv, num_slots, scope.constant([0, shape.head_dim]),
            axis=0,
        ),
    )  # fmt: skip
    zeros = scope.op("Expand", scope.constant(0, "float32"), slot_shape)
    running = scope.op("Expand", scope.constant(False, "bool"), slot_shape)

    body, carried = _loop_body(decoder, frame, lengths, limits, prompt_kv, with_logprobs)
    initial = ["slots", running, zeros, *([empty] * (2 * shape.num_layers))]
    outputs = scope.ops(
        "Loop",
        [scope.op("ReduceMax", limits, keepdims=0), scope.constant(True, "bool"), *initial],
        carried + 1,
        body=body,
    )
    scope.nodes.append(
        onnx.helper.make_node("Transpose", [outputs[carried]], ["sequences"], perm=[1, 2, 0])
    )
    if with_logprobs:
        scope.nodes.append(onnx.helper.make_node("Identity", [outputs[2]], ["logprobs"]))
    inputs = [
        value("input_ids", "int64", ["batch", "prompt"]),
        value("attention_mask", "int64", ["batch", "prompt"]),
        value("slots", "int64", ["batch", "slots"]),
        value("max_new_tokens", "int64", ["batch", "slots"]),
        value("first_token_range", "int64", ["batch", 2]),
    ]
    results = [value("sequences", "int64", ["batch", "slots", "new_tokens"])]
    if with_logprobs:
        results.append(value("logprobs", "float32", ["batch", "slots"]))
    return make_model(scope, "generator", inputs, results)


def _loop_body(
    decoder: Decoder,
    frame: SuffixFrame,
    lengths: str,
    limits: str,
    prompt_kv: list[KeyValue],
    with_logprobs: bool,
) -> tuple[onnx.GraphProto, int]:
    """Returns the body of the decode loop and the number of values it carries.

    Names from the outer graph: `lengths` int64 (B, 1) of the prompts, `limits` int64 (B, S).
    """
    shape = decoder.shape
    body = Scope(decoder.weights, "step_")
    names = ["step", "running_in", "tokens", "finished", "logprobs_in"]
    dtypes = ["int64", "bool", "int64", "bool", "float32"]
    past = [KeyValue(f"keys_{i}", f"values_{i}") for i in range(shape.num_layers)]
    kv_names = [name for kv in past for name in kv]
    inputs = [
        value(n, d, [] if n in ("step", "running_in") else None)
        for n, d in zip([*names, *kv_names], [*dtypes, *["float32"] * len(kv_names)], strict=True)
    ]
    positions = body.op("Expand", body.op("Add", lengths, "step"), body.op("Shape", "tokens"))
    positions = body.reshape(positions, -1, 1)
    stream, new_kv = Stream(decoder.embed(body, "tokens")), list[str]()
    for layer in range(shape.num_layers):
        stream, kv = decoder.suffix_layer(
            body, layer, stream, frame, positions, prompt_kv[layer], past=past[layer]
        )
        new_kv += kv
    logits = decoder.logits(body, stream)  # (B, S, V)
    token, logprob = _choose(body, logits, shape.vocabulary, with_logprobs)
    token = body.op("Reshape", token, body.op("Shape", "tokens"))
    total = "logprobs_in"
    if with_logprobs:
        logprob = body.op("Reshape", logprob, body.op("Shape", "tokens"))
        kept = body.op("Where", "finished", body.constant(0, "float32"), logprob)
        total = body.op("Add", total, kept)
    token = body.op("Where", "finished", body.constant(0), token)
    at_limit = body.op("GreaterOrEqual", body.op("Add", "step", body.constant(1)), limits)
    ended = body.op("Or", body.op("Equal", token, body.constant(EOS_ID)), at_limit)
    finished = body.op("Or", "finished", ended)
    still = body.op("Cast", body.op("Not", finished), to=7)
    running = body.op("Cast", body.op("ReduceMax", still, keepdims=0), to=9)
    carried = [running, token, finished, body.op("Identity", total), *new_kv]
    kinds = ["bool", "int64", "bool", "float32", *["float32"] * len(new_kv), "int64"]
    emitted = body.op("Identity", token)
    return body.subgraph("decode", inputs, [*carried, emitted], kinds), len(carried) - 1


def _choose(body: Scope, logits: str, vocabulary: int, with_logprobs: bool) -> tuple[str, str]:
    """Emits the greedy choice; returns int64 (R) tokens and float32 (R) log-probabilities.

    Where a text begins (first step, or after <|sep|>) the choice is limited to the row's range.
    Masking the logits costs about as much as the choice itself, so it has a branch of its own.
    """
    begins = body.op(
        "Or",
        body.op("Equal", "step", body.constant(0)),
        body.op("Equal", "tokens", body.constant(SEP_ID)),
    )  # (B, S)
    any_begins = body.op("ReduceMax", body.op("Cast", begins, to=7), keepdims=0)

    masked = Scope(body.weights, "begin_")
    ids = masked.constant(np.arange(vocabulary))
    first, end = masked.ops("Split", ["first_token_range"], 2, axis=1, num_outputs=2)
    first, end = (masked.op("Unsqueeze", b, masked.constant([2])) for b in (first, end))  # (B,1,1)
    inside = masked.op(
        "And", masked.op("GreaterOrEqual", ids, first), masked.op("Less", ids, end)
    )  # (B, 1, V)
    continues = masked.op("Unsqueeze", masked.op("Not", begins), masked.constant([2]))
    allowed = masked.op("Or", inside, continues)
    limited = masked.op("Where", allowed, logits, masked.constant(MASKED, "float32"))

    free = Scope(body.weights, "free_")
    branches: list[onnx.GraphProto] = []
    for scope, source in ((masked, limited), (free, logits)):
        chosen = _argmax(scope, source, vocabulary, with_logprobs)
        kinds = ["int64", "float32"][: len(chosen)]
        branches.append(scope.subgraph(scope.prefix + "choice", [], chosen, kinds))
    outputs = body.ops(
        "If",
        [body.op("Cast", any_begins, to=9)],
        2 if with_logprobs else 1,
        then_branch=branches[0],
        else_branch=branches[1],
    )
    return outputs[0], outputs[-1]


def _argmax(scope: Scope, logits: str, vocabulary: int, with_logprobs: bool) -> list[str]:
    """Emits argmax over ids 128 to V - 1 in two levels: over groups of 128, then inside one.

    Group 0 holds the control tokens, which are never generated. Ties go to the lower id.
    """
    groups = vocabulary // NUM_CONTROL_IDS
    by_group = scope.reshape(logits, -1, groups, NUM_CONTROL_IDS)  # (R, C, 128)
    maxima = scope.op("ReduceMax", by_group, scope.constant([2]), keepdims=0)
    maxima = scope.slice(maxima, 1, groups, 1)
    group = scope.op("ArgMax", maxima, axis=1, keepdims=1)
    group = scope.op("Add", group, scope.constant(1))  # (R, 1)
    inside = scope.op("GatherND", by_group, group, batch_dims=1)  # (R, 128)
    within = scope.op("ArgMax", inside, axis=1, keepdims=0)
    base = scope.op("Mul", scope.op("Squeeze", group, scope.constant([1])), scope.constant(128))
    token = scope.op("Add", base, within)
    if not with_logprobs:
        return [token]
    best = scope.op("ReduceMax", maxima, scope.constant([1]), keepdims=1)
    emittable = scope.slice(by_group, 1, groups, 1)
    shifted = scope.op("Sub", emittable, scope.op("Unsqueeze", best, scope.constant([2])))
    total = scope.op("ReduceSum", scope.op("Exp", shifted), scope.constant([1, 2]), keepdims=0)
    return [token, scope.op("Neg", scope.op("Log", total))]


def rotary_tables(
    inverse_frequencies: NDArray[np.float32], num_positions: int, scaling: float = 1.0
) -> tuple[Array, Array]:
    """Returns float32 (positions, H / 2) cosines and sines of rotary position embedding."""
    angles = np.outer(np.arange(num_positions), inverse_frequencies.astype(np.float64))
    cosines, sines = np.cos(angles) * scaling, np.sin(angles) * scaling
    return cosines.astype(np.float32), sines.astype(np.float32)
