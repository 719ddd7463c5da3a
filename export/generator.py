"""The whole decode as one ONNX graph: prompt once, then a loop over new tokens.

    input_ids, attention_mask   int64 (B, P), right padded
    slots                       int64 (B, S): the token that starts each sequence
    max_new_tokens              int64 (B, S): at least 1 is taken
    first_token_range           int64 (B, 2): [first, end) of the ids that may begin a text,
                                that is, the first new token and each one after <|sep|>
    sequences                   int64 (B, S, N): <|pad|> after <|eos|> or the limit
    logprobs                    float32 (B, S), optional: sum over the new tokens of the log
                                of softmax over the ids that were allowed

`slots` gives S slot tokens, `list` one <|list|> token, both greedy and the same graph. With
`beams`, the sequences of a row that begin with the token of its last one are the beams of one
search, best first; they share a limit. Keys and values of beams never move: a mask says which of
the row's tokens are a beam's own.

# R = B * S rows, V vocabulary, U tokens of a row so far, G query heads per kv head
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from engine.vocabulary import EOS_ID, NUM_CONTROL_IDS
from export.attention import KeyValue, by_group, mask_where
from export.builder import Scope, Weights, make_model, value
from export.choice import NONE, beam_search, greedy
from export.decoder import Array, Decoder, DecoderShape


def build_generator(
    state: Mapping[str, Array],
    shape: DecoderShape,
    cos_sin: tuple[Array, Array],
    *,
    activation_scales: Mapping[str, float] | None = None,
    beams: bool = False,
    with_logprobs: bool = False,
    real_type: str = "float32",
) -> onnx.ModelProto:
    """Returns the generator graph of a checkpoint.

    Args:
        state: see `Decoder`, like the next two.
        shape: sizes.
        cos_sin: rotary tables.
        activation_scales: see `Decoder`.
        beams: search instead of choosing greedily.
        with_logprobs: add the output `logprobs`.
        real_type: of weights and activations, float32 or float16; int8 goes with float32.

    Raises:
        ValueError: the vocabulary is not a multiple of 128.
    """
    if shape.vocabulary % NUM_CONTROL_IDS:
        raise ValueError(f"vocabulary of {shape.vocabulary} is not a multiple of {NUM_CONTROL_IDS}")
    outer = Scope(Weights(real_type))
    decoder = Decoder(outer, state, shape, cos_sin, activation_scales)
    prompt_kv = decoder.prefix(outer, "input_ids")
    loop = _Loop(outer, decoder, prompt_kv, beams=beams, with_logprobs=with_logprobs)
    loop.emit()
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


@dataclass
class _State:
    """What the loop carries from step to step: names inside, and outside before and after."""

    names: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    initial: list[str] = field(default_factory=list)

    def carry(self, name: str, dtype: str, initial: str) -> str:
        self.names.append(name)
        self.dtypes.append(dtype)
        self.initial.append(initial)
        return name


class _Loop:
    """Emits the decode loop."""

    def __init__(
        self,
        outer: Scope,
        decoder: Decoder,
        prompt_kv: list[KeyValue],
        *,
        beams: bool,
        with_logprobs: bool,
    ) -> None:
        self.outer, self.decoder, self.prompt_kv = outer, decoder, prompt_kv
        self.beams, self.with_logprobs = beams, with_logprobs
        self.num_slots = outer.dim("slots", 1)
        self.lengths = outer.op(
            "ReduceSum", "attention_mask", outer.constant([1]), keepdims=1
        )  # (B, 1)
        self.limits = outer.op("Max", "max_new_tokens", outer.constant(1))
        order = outer.op(
            "Range", outer.constant(0), outer.op("Squeeze", self.num_slots), outer.constant(1)
        )
        self.order = outer.op("Unsqueeze", order, outer.constant([0]))  # (1, S)

    def emit(self) -> None:
        """Appends the loop and the graph's outputs to the outer scope."""
        outer, shape = self.outer, self.decoder.shape
        slot_shape = outer.op("Shape", "slots")
        state = _State()
        tokens = state.carry("tokens", "int64", "slots")
        finished = state.carry(
            "finished", "bool", outer.op("Expand", outer.constant(False, "bool"), slot_shape)
        )
        sums = self.beams or self.with_logprobs
        if sums:
            state.carry("totals", "float32", self._initial_totals(slot_shape))
        if self.beams:
            none = outer.op(
                "Expand", outer.constant([[[0]]]), outer.shape(outer.dim("slots", 0), self.num_slots, 0)
            )
            state.carry("written", "int64", none)  # (B, S, step)
            state.carry("owners", "int64", none)  # (B, S, step): whose each earlier token was
        else:
            state.carry("mask", self.outer.weights.real_type, self._prompt_mask())
        empty = outer.op(
            "Expand",
            outer.real([[[[0]]]]),
            outer.shape(outer.dim("slots", 0), shape.num_kv_heads, 0, shape.head_dim),
        )
        for layer in range(shape.num_layers):
            for part in ("keys", "values"):
                state.carry(f"{part}_{layer}", outer.weights.real_type, empty)

        body = Scope(outer.weights, "step_")
        carried, emitted = self._body(body, tokens, finished)
        is_running = carried.pop("running")
        outputs = [is_running, *(carried[n] for n in state.names), *emitted]
        kinds = ["bool", *state.dtypes, *["int64"] * len(emitted)]
        inputs = [value("step", "int64", []), value("running_in", "bool", [])]
        inputs += [value(n, d, None) for n, d in zip(state.names, state.dtypes, strict=True)]
        results = outer.ops(
            "Loop",
            [
                outer.op("ReduceMax", self.limits, keepdims=0),
                outer.constant(True, "bool"),
                *state.initial,
            ],
            len(state.names) + len(emitted),
            body=body.subgraph("decode", inputs, outputs, kinds),
        )
        final = dict(zip(state.names, results, strict=False))
        if self.beams:
            last = onnx.helper.make_node("Identity", [final["written"]], ["sequences"])
        else:
            last = onnx.helper.make_node("Transpose", [results[-1]], ["sequences"], perm=[1, 2, 0])
        outer.nodes.append(last)
        if self.with_logprobs:
            outer.nodes.append(onnx.helper.make_node("Identity", [final["totals"]], ["logprobs"]))

    def _body(self, body: Scope, tokens: str, finished: str) -> tuple[dict[str, str], list[str]]:
        """Emits one step; returns what it carries on, by name, and what it appends to outputs."""
        shape, decoder = self.decoder.shape, self.decoder
        carried: dict[str, str] = {}
        positions = body.op("Add", self.lengths, "step")
        positions = body.op("Expand", positions, body.op("Shape", tokens))  # (B, S)
        if self.beams:
            mask = self._beam_mask(body)
        else:
            mask = carried["mask"] = body.op("Concat", self._slot_mask(), "mask", axis=-1)
        stream = decoder.embed(body, tokens)
        for layer in range(shape.num_layers):
            heads, x = decoder.heads(body, layer, stream, positions)
            past = KeyValue(f"keys_{layer}", f"values_{layer}")
            mixed, seen = decoder.attention.step(body, heads, self.prompt_kv[layer], past, mask)
            carried[past.keys], carried[past.values] = seen
            stream = decoder.after_attention(body, layer, x, decoder.joined(body, mixed))
        logits = decoder.logits(body, stream)  # (B, S, V)
        emitted: list[str] = []
        if self.beams:
            chosen = beam_search(body, logits, shape.vocabulary, self.num_slots, "totals", finished)
            by_row = body.op("Unsqueeze", chosen.parents, body.constant([2]))
            finished = body.op("GatherElements", finished, chosen.parents, axis=1)
            token = chosen.tokens
            new = body.op("Unsqueeze", token, body.constant([2]))
            written = body.op("GatherND", "written", by_row, batch_dims=1)
            carried["written"] = body.op("Concat", written, new, axis=2)
            owners = body.op("GatherND", self._with_own(body), by_row, batch_dims=1)
            carried["owners"] = owners
            carried["totals"] = chosen.totals
        else:
            token, logprob = greedy(
                body, logits, shape.vocabulary, with_logprobs=self.with_logprobs
            )
            if self.with_logprobs:
                kept = body.op("Where", finished, body.constant(0, "float32"), logprob)
                carried["totals"] = body.op("Add", "totals", kept)
            token = body.op("Where", finished, body.constant(0), token)
            emitted.append(body.op("Identity", token))
        at_limit = body.op(
            "GreaterOrEqual", body.op("Add", "step", body.constant(1)), self.limits
        )
        ended = body.op("Or", body.op("Equal", token, body.constant(EOS_ID)), at_limit)
        carried["tokens"] = token
        carried["finished"] = body.op("Or", finished, ended)
        still = body.cast(body.op("Not", carried["finished"]), "int64")
        carried["running"] = body.cast(body.op("ReduceMax", still, keepdims=0), "bool")
        return carried, emitted

    def _initial_totals(self, slot_shape: str) -> str:
        """Returns float32 (B, S) zeros; of the beams that begin alike all but the first are out.

        Also emits `is_beam`, bool (B, S): whether a sequence begins like the last one of its row.
        """
        outer = self.outer
        zeros = outer.op("Expand", outer.constant(0, "float32"), slot_shape)
        if not self.beams:
            return zeros
        last = outer.op("Gather", "slots", outer.constant([-1]), axis=1)
        equal = onnx.helper.make_node("Equal", ["slots", last], ["is_beam"], name="is_beam")
        outer.nodes.append(equal)
        number = outer.op("CumSum", outer.cast("is_beam", "int64"), outer.constant(1))
        is_later = outer.op("And", "is_beam", outer.op("Greater", number, outer.constant(1)))
        return outer.op("Where", is_later, outer.constant(NONE, "float32"), zeros)

    def _prompt_mask(self) -> str:
        """Returns real (B, 1, G * S, P): which prompt tokens exist."""
        outer = self.outer
        hidden = outer.op("Equal", "attention_mask", outer.constant(0))
        mask = outer.op("Unsqueeze", mask_where(outer, hidden), outer.constant([1, 2]))
        rows = outer.op("Mul", self.num_slots, outer.constant([self.decoder.attention.groups]))
        return outer.op("Expand", mask, outer.shape(1, 1, rows, 1))

    def _slot_mask(self) -> str:
        """Returns real (B, 1, G * S, S): of the tokens of one step, each slot sees its own."""
        outer = self.outer
        if not hasattr(self, "_slot_block"):
            column = outer.transpose(self.order, 1, 0)
            other = outer.op("Not", outer.op("Equal", column, self.order))  # (S, S)
            block = by_group(outer, mask_where(outer, other), self.decoder.attention.groups)
            batch = outer.shape(outer.dim("slots", 0), 1, 1, 1)
            self._slot_block = outer.op("Expand", block, batch)
        return self._slot_block

    def _with_own(self, body: Scope) -> str:
        """Returns int64 (B, S, step + 1): whose token each sequence sees, the newest first."""
        own = body.op("Expand", self.order, body.op("Shape", "tokens"))
        return body.op("Concat", body.op("Unsqueeze", own, body.constant([2])), "owners", axis=2)

    def _beam_mask(self, body: Scope) -> str:
        """Returns real (B, 1, G * S, U + P): a beam sees its own tokens and the prompt."""
        owners = body.op("Unsqueeze", self._with_own(body), body.constant([3]))
        other = body.op("Not", body.op("Equal", owners, body.reshape(self.order, 1, 1, 1, -1)))
        own = body.reshape(mask_where(body, other), 0, 0, -1)  # (B, S, U)
        own = body.op("Unsqueeze", own, body.constant([1]))
        if not hasattr(self, "_prompt_block"):
            self._prompt_block = self._prompt_mask()
        own = by_group(body, own, self.decoder.attention.groups)
        return body.op("Concat", own, self._prompt_block, axis=-1)


def rotary_tables(
    inverse_frequencies: NDArray[np.float32], num_positions: int, scaling: float = 1.0
) -> tuple[Array, Array]:
    """Returns float32 (positions, H / 2) cosines and sines of rotary position embedding."""
    angles = np.outer(np.arange(num_positions), inverse_frequencies.astype(np.float64))
    cosines, sines = np.cos(angles) * scaling, np.sin(angles) * scaling
    return cosines.astype(np.float32), sines.astype(np.float32)
