"""The whole decode as one ONNX graph: the prompt once, then a loop over new tokens.

    input_ids, attention_mask   int64 (B, P), right padded
    slots                       int64 (B, S): the token that starts each sequence
    max_new_tokens              int64 (B, S): at least 1 is taken
    first_token_range           int64 (B, 2): [first, end) of the ids that may begin a text
    sequences                   int64 (B, S, N): <|pad|> after the end or the limit
    logprobs                    float32 (B, S), optional: sum over the new tokens of the log
                                of softmax over the ids that were allowed

Modes, one graph each:

    slots   every sequence is a text, begun by its own slot token; greedy, to <|eos|> or <|sep|>
    list    as slots, but <|sep|> parts the texts of a sequence, and each begins in the range
    beam    the sequences of a row that begin with the token of its last one are the beams of one
            search, best first, with a common limit; the others, such as the auxiliary text, are
            greedy

Prompt and starting tokens are read in one pass. Keys and values of beams never move: a mask says
which of the row's tokens are a beam's own.

# R = B * S rows, V vocabulary, U tokens of a row so far, G query heads per kv head
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from engine.formats.vocabulary import EOS_ID, NUM_CONTROL_IDS, SEP_ID
from export.attention import Heads, above_prefix, by_group, mask_where
from export.builder import Scope, Weights, make_model, value
from export.choice import BeamSearch, Chooser
from export.decoder import Array, Decoder
from export.linear import Scales
from export.options import Mode
from train.generation.decoder import DecoderShape


def build_generator(
    state: Mapping[str, Array],
    shape: DecoderShape,
    cos_sin: tuple[Array, Array],
    *,
    mode: Mode = "slots",
    activation_scales: Scales | None = None,
    with_logprobs: bool = False,
    real_type: str = "float32",
) -> onnx.ModelProto:
    """Returns the generator graph of a checkpoint.

    Args:
        state: see `Decoder`, like the next two.
        shape: sizes.
        cos_sin: rotary tables.
        mode: how it decodes.
        activation_scales: see `Decoder`.
        with_logprobs: add the output `logprobs`.
        real_type: of weights and activations, float32 or float16; int8 goes with float32.

    Raises:
        ValueError: the vocabulary is not a multiple of 128.
    """
    if shape.vocabulary % NUM_CONTROL_IDS:
        raise ValueError(f"vocabulary of {shape.vocabulary} is not a multiple of {NUM_CONTROL_IDS}")
    outer = Scope(Weights(real_type))
    decoder = Decoder(outer, state, shape, cos_sin, activation_scales)
    _Decode(outer, decoder, mode, with_logprobs=with_logprobs).emit()
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
    return make_model(outer, "generator", inputs, results)


class _State(dict[str, str]):
    """Names of the tensors that go from step to step, by what they are.

    tokens, finished    int64, bool (B, S): the last token of each sequence, and whether it ended
    written             int64 (B, S, step): all tokens
    totals              float32 (B, S): summed log-probabilities, where wanted
    mask                real (B, 1, G * S, U): what a sequence sees; of greedy modes
    owners              int64 (B, S, step): whose each token is that a beam sees, newest first
    keys_L, values_L    real (B, K, U, H): of layer L; the newest tokens first, the prompt last
    """

    def dtype(self, key: str, real_type: str) -> str:
        """Returns the element type of an entry."""
        kinds = {"finished": "bool", "totals": "float32"}
        if key in ("tokens", "written", "owners"):
            return "int64"
        return kinds.get(key, real_type)


class _Decode:
    """Emits prompt, loop and outputs."""

    def __init__(self, outer: Scope, decoder: Decoder, mode: Mode, *, with_logprobs: bool) -> None:
        self.outer, self.decoder, self.mode = outer, decoder, mode
        self.groups = decoder.attention.groups
        self.with_logprobs = with_logprobs
        self.num_slots = outer.dim("slots", 1)
        vocabulary = decoder.shape.vocabulary
        self.chooser = Chooser(outer, vocabulary, with_logprobs=with_logprobs)
        self.search = BeamSearch(outer, vocabulary) if mode == "beam" else None
        self.lengths = outer.op(
            "ReduceSum", "attention_mask", outer.constant([1]), keepdims=1
        )  # (B, 1)
        self.limits = outer.op("Max", "max_new_tokens", outer.constant(1))
        self.order = outer.op(
            "Unsqueeze", outer.range(self.num_slots), outer.constant([0])
        )  # (1, S)
        column = outer.transpose(self.order, 1, 0)
        other = mask_where(outer, outer.op("Not", outer.op("Equal", column, self.order)))
        # real (B, 1, S, S): of the tokens of one step, each sequence sees its own
        self.own_mask = outer.op("Expand", other, outer.shape(outer.dim("slots", 0), 1, 1, 1))
        hidden = outer.op("Equal", "attention_mask", outer.constant(0))
        prompt = outer.op("Unsqueeze", mask_where(outer, hidden), outer.constant([1, 2]))
        # real (B, 1, S, P): the prompt's tokens without padding
        self.prompt_mask = outer.op("Expand", prompt, outer.shape(1, 1, self.num_slots, 1))

    def emit(self) -> None:
        """Appends everything to the outer scope."""
        outer = self.outer
        state = self._first()
        real = outer.weights.real_type
        body = Scope(outer.weights, "step_")
        carried = self._step(body, _State({k: k for k in state}))
        inputs = [value("step", "int64", []), value("running_in", "bool", [])]
        inputs += [value(k, state.dtype(k, real), None) for k in state]
        outputs = [self._is_running(body, carried), *(carried[k] for k in state)]
        kinds = ["bool", *(state.dtype(k, real) for k in state)]
        longest = outer.op("ReduceMax", self.limits, keepdims=0)
        results = outer.ops(
            "Loop",
            [
                outer.op("Sub", longest, outer.constant(1)),
                self._is_running(outer, state),
                *state.values(),
            ],
            len(state),
            body=body.subgraph("decode", inputs, outputs, kinds),
        )
        final = dict(zip(state, results, strict=True))
        named = {"sequences": "written"} | ({"logprobs": "totals"} if self.with_logprobs else {})
        for name, key in named.items():
            outer.nodes.append(onnx.helper.make_node("Identity", [final[key]], [name]))

    def _first(self) -> _State:
        """Reads prompts and starting tokens in one pass and chooses the first new tokens."""
        outer, decoder, num_layers = self.outer, self.decoder, self.decoder.shape.num_layers
        num_prompt = outer.dim("input_ids", 1)
        slot_shape = outer.op("Shape", "slots")
        ids = outer.op("Concat", "slots", "input_ids", axis=1)
        positions = outer.op(
            "Concat",
            outer.op("Expand", self.lengths, slot_shape),
            outer.op("Expand", outer.range(num_prompt), outer.op("Shape", "input_ids")),
            axis=1,
        )
        slot_mask = outer.op("Concat", self.own_mask, self.prompt_mask, axis=-1)
        mask = by_group(outer, above_prefix(outer, slot_mask, num_prompt), self.groups)
        slot_mask = by_group(outer, slot_mask, self.groups)
        stream, state = decoder.embed(outer, ids), _State()
        for layer in range(num_layers):
            heads, x = decoder.heads(outer, layer, stream, positions)
            state[f"keys_{layer}"], state[f"values_{layer}"] = heads.keys, heads.values
            is_last = layer == num_layers - 1
            if is_last:  # of the prompt nothing but keys and values is read any more
                query = outer.slice(heads.query, 0, self.num_slots, 2)
                heads = heads._replace(query=query)
                x = outer.slice(x, 0, self.num_slots, 1)
            mixed = decoder.attention.attend(outer, heads, slot_mask if is_last else mask)
            stream = decoder.after_attention(outer, layer, x, mixed)
        logits = self.chooser.begin(outer, decoder.logits(outer, stream))
        state["tokens"] = "slots"
        state["finished"] = outer.op("Expand", outer.constant(False, "bool"), slot_shape)
        none = outer.op(
            "Expand", outer.constant([[[0]]]), outer.shape(outer.dim("slots", 0), self.num_slots, 0)
        )
        state["written"] = none
        if self.search is not None:
            state["totals"], state["owners"] = self.search.totals(), none
        else:
            state["mask"] = slot_mask
            if self.with_logprobs:
                zero = outer.constant(0, "float32")
                state["totals"] = outer.op("Expand", zero, slot_shape)
        return self._chosen(outer, state, logits, outer.constant(1), is_first=True)

    def _step(self, body: Scope, state: _State) -> _State:
        """Emits one more token per sequence."""
        shape, decoder = self.decoder.shape, self.decoder
        number = body.op("Add", "step", body.constant(1))  # of tokens written before this step
        positions = body.op(
            "Expand", body.op("Add", self.lengths, number), body.op("Shape", state["tokens"])
        )  # (B, S)
        if self.search is not None:
            mask = self._beam_mask(body, state["owners"])
        else:
            own = by_group(self.outer, self.own_mask, self.groups)
            mask = state["mask"] = body.op("Concat", own, state["mask"], axis=-1)
        stream = decoder.embed(body, state["tokens"])
        for layer in range(shape.num_layers):
            heads, x = decoder.heads(body, layer, stream, positions)
            keys = body.op("Concat", heads.keys, state[f"keys_{layer}"], axis=2)
            values = body.op("Concat", heads.values, state[f"values_{layer}"], axis=2)
            state[f"keys_{layer}"], state[f"values_{layer}"] = keys, values
            mixed = decoder.attention.attend(body, Heads(heads.query, keys, values), mask)
            stream = decoder.after_attention(body, layer, x, mixed)
        logits = decoder.logits(body, stream)  # (B, S, V)
        number = body.op("Add", number, body.constant(1))
        return self._chosen(body, state, logits, number, is_first=False)

    def _chosen(
        self, scope: Scope, state: _State, logits: str, number: str, *, is_first: bool
    ) -> _State:
        """Chooses the next tokens; `number` counts them, these included."""
        finished, written = state["finished"], state["written"]
        if self.search is not None:
            chosen = self.search.step(scope, logits, state["totals"], finished)
            token, state["totals"] = chosen.tokens, chosen.totals
            by_row = scope.op("Unsqueeze", chosen.parents, scope.constant([2]))
            finished = scope.op("GatherElements", finished, chosen.parents, axis=1)
            written = scope.op("GatherND", written, by_row, batch_dims=1)
            owners = self._with_own(scope, state["owners"])
            state["owners"] = scope.op("GatherND", owners, by_row, batch_dims=1)
        else:
            choose = self.chooser.greedy
            if self.mode == "list" and not is_first:
                choose = self.chooser.greedy_in_list
            token, logprob = choose(scope, logits, state["tokens"])
            if self.with_logprobs:
                kept = scope.op("Where", finished, scope.constant(0, "float32"), logprob)
                state["totals"] = scope.op("Add", state["totals"], kept)
            token = scope.op("Where", finished, scope.constant(0), token)
        new = scope.op("Unsqueeze", token, scope.constant([2]))
        state["tokens"], state["written"] = token, scope.op("Concat", written, new, axis=2)
        ended = scope.op("Equal", token, scope.constant(EOS_ID))
        if self.mode != "list":
            is_separator = scope.op("Equal", token, scope.constant(SEP_ID))
            ended = scope.op("Or", ended, is_separator)
        at_limit = scope.op("GreaterOrEqual", number, self.limits)
        state["finished"] = scope.op("Or", finished, scope.op("Or", ended, at_limit))
        return state

    def _is_running(self, scope: Scope, state: _State) -> str:
        """Returns bool: whether some sequence has not ended."""
        still = scope.cast(scope.op("Not", state["finished"]), "int64")
        return scope.cast(scope.op("ReduceMax", still, keepdims=0), "bool")

    def _with_own(self, scope: Scope, owners: str) -> str:
        """Returns int64 (B, S, step + 1): whose token each sequence sees, the newest first."""
        own = scope.op("Expand", self.order, scope.op("Shape", "slots"))
        return scope.op("Concat", scope.op("Unsqueeze", own, scope.constant([2])), owners, axis=2)

    def _beam_mask(self, body: Scope, owners: str) -> str:
        """Returns real (B, 1, G * S, U): a beam sees its own tokens and the prompt."""
        seen = body.op("Unsqueeze", self._with_own(body, owners), body.constant([3]))
        other = body.op("Not", body.op("Equal", seen, body.reshape(self.order, 1, 1, 1, -1)))
        own = body.reshape(mask_where(body, other), 0, 1, self.num_slots, -1)
        mask = body.op("Concat", own, self.prompt_mask, axis=-1)
        return by_group(body, mask, self.groups)


def rotary_tables(
    inverse_frequencies: NDArray[np.float32], num_positions: int, scaling: float = 1.0
) -> tuple[Array, Array]:
    """Returns float32 (positions, H / 2) cosines and sines of rotary position embedding."""
    angles = np.outer(np.arange(num_positions), inverse_frequencies.astype(np.float64))
    cosines, sines = np.cos(angles) * scaling, np.sin(angles) * scaling
    return cosines.astype(np.float32), sines.astype(np.float32)
