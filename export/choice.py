"""Which token comes next: greedy choice and beam search as ONNX nodes.

Control tokens, ids 0 to 127, are never chosen. Where a text begins the choice is limited to the
row's range of ids. Knows nothing of layers and loops.

# B batch, S sequences, R = B * S rows, V vocabulary, C = V / 128 groups of ids
"""

from typing import NamedTuple

import numpy as np
import onnx

from engine.formats.vocabulary import EOS_ID, NUM_CONTROL_IDS, SEP_ID
from export.attention import mask_where
from export.builder import Scope

_NONE = -1e9  # log-probability of a continuation that does not exist
_DEAD = -1e8  # a total below this has one in it


class Beams(NamedTuple):
    """What beam search chose; names of int64 and float32 (B, S) tensors."""

    parents: str  # which sequence each one continues
    tokens: str
    totals: str  # summed log-probabilities


class Chooser:
    """Emits greedy choices among the ids of a vocabulary, and what limits a text's first one."""

    def __init__(self, outer: Scope, vocabulary: int, *, with_logprobs: bool) -> None:
        """Emits what all steps share.

        Args:
            outer: the outermost scope, with `first_token_range` int64 (B, 2) in sight.
            vocabulary: V.
            with_logprobs: whether greedy choices come with their log-probabilities.
        """
        self._vocabulary = vocabulary
        self._with_logprobs = with_logprobs
        ids = outer.constant(np.arange(vocabulary))
        first, end = outer.ops("Split", ["first_token_range"], 2, axis=1, num_outputs=2)
        outside = outer.op("Or", outer.op("Less", ids, first), outer.op("GreaterOrEqual", ids, end))
        # real (B, 1, V), added to logits where a text begins
        self._range_mask = outer.op("Unsqueeze", mask_where(outer, outside), outer.constant([1]))

    def begin(self, scope: Scope, logits: str) -> str:
        """Returns the logits (B, S, V) of a text's first token, limited to the row's range."""
        return scope.op("Add", logits, self._range_mask)

    def greedy(self, scope: Scope, logits: str, tokens: str) -> tuple[str, str]:
        """Emits the greedy choice; returns int64 (B, S) ids and float32 (B, S) log-probabilities.

        Args:
            scope: where nodes go.
            logits: real (B, S, V).
            tokens: int64 (B, S): the tokens so far, for their shape.
        """
        return self._shaped(
            scope, _best(scope, logits, self._vocabulary, 1, self._with_logprobs), tokens
        )

    def greedy_in_list(self, scope: Scope, logits: str, tokens: str) -> tuple[str, str]:
        """Does as `greedy`, and limits the choice after <|sep|>, where the next text begins.

        Masking the logits costs about as much as the choice itself, so it has a branch of its own.
        """
        begins = scope.op("Equal", tokens, scope.constant(SEP_ID))
        any_begins = scope.op("ReduceMax", scope.cast(begins, "int64"), keepdims=0)
        limited, free = Scope(scope.weights, "begin_"), Scope(scope.weights, "free_")
        share = limited.op("Unsqueeze", begins, limited.constant([2]))
        share = limited.cast(share, scope.weights.real_type)
        mask = limited.op("Mul", self._range_mask, share)
        branches: list[onnx.GraphProto] = []
        for branch, source in ((limited, limited.op("Add", logits, mask)), (free, logits)):
            chosen = _best(branch, source, self._vocabulary, 1, self._with_logprobs)
            kinds = ["int64", "float32"][: len(chosen)]
            branches.append(branch.subgraph(branch.prefix + "choice", [], chosen, kinds))
        chosen = scope.ops(
            "If",
            [scope.cast(any_begins, "bool")],
            2 if self._with_logprobs else 1,
            then_branch=branches[0],
            else_branch=branches[1],
        )
        return self._shaped(scope, chosen, tokens)

    def _shaped(self, scope: Scope, chosen: list[str], tokens: str) -> tuple[str, str]:
        shape = scope.op("Shape", tokens)
        ids, *logprobs = (scope.op("Reshape", x, shape) for x in chosen)
        return ids, logprobs[0] if logprobs else ""


class BeamSearch:
    """Emits beam search: the beams of a row are those of its sequences that begin like the last.

    Its other sequences continue greedily by themselves.
    """

    def __init__(self, outer: Scope, vocabulary: int) -> None:
        """Emits what all steps share.

        Args:
            outer: the outermost scope, with `slots` int64 (B, S) in sight.
            vocabulary: V.
        """
        self._outer = outer
        self._vocabulary = vocabulary
        self._width = outer.dim("slots", 1)  # S
        self._order = outer.range(self._width)
        last = outer.op("Gather", "slots", outer.constant([-1]), axis=1)
        self._is_beam = outer.op("Equal", "slots", last)  # (B, S)
        # int64 (B, S): the n-th beam of a row takes the n-th best continuation
        rank = outer.op("CumSum", outer.cast(self._is_beam, "int64"), outer.constant(1))
        self._rank = outer.op("Max", outer.op("Sub", rank, outer.constant(1)), outer.constant(0))
        # float32 (S): a sequence that is over has one continuation, nothing
        self._nothing = outer.op(
            "Where",
            outer.op("Equal", self._order, outer.constant(0)),
            outer.constant(0, "float32"),
            outer.constant(_NONE, "float32"),
        )

    def totals(self) -> str:
        """Returns float32 (B, S) to begin with: of the beams, all alike, all but one are out."""
        outer = self._outer
        is_later = outer.op(
            "And", self._is_beam, outer.op("Greater", self._rank, outer.constant(0))
        )
        none, zero = outer.constant(_NONE, "float32"), outer.constant(0, "float32")
        return outer.op("Where", is_later, none, zero)

    def step(self, scope: Scope, logits: str, totals: str, finished: str) -> Beams:
        """Emits a step.

        A finished beam keeps its total. Where fewer continuations are allowed than there are
        beams, the others end at once, empty.

        Args:
            scope: where nodes go.
            logits: real (B, S, V).
            totals: float32 (B, S) of the sequences so far.
            finished: bool (B, S).
        """
        width, last = self._width, scope.constant([2])
        chosen = _best(scope, logits, self._vocabulary, width, True)  # (R, S)
        by_sequence = scope.shape(-1, width, width)
        tokens, logprobs = (scope.op("Reshape", x, by_sequence) for x in chosen)
        is_over = scope.op("Unsqueeze", finished, last)
        logprobs = scope.op("Where", is_over, self._nothing, logprobs)
        tokens = scope.op("Where", is_over, scope.constant(0), tokens)
        sums = scope.op("Add", scope.op("Unsqueeze", totals, last), logprobs)  # (B, S, S)
        outside = scope.constant(4 * _NONE, "float32")
        ranked = scope.op("Where", scope.op("Unsqueeze", self._is_beam, last), sums, outside)
        flat = scope.constant([0, -1])
        best, places = scope.ops("TopK", [scope.op("Reshape", ranked, flat), width], 2, axis=1)
        best, places = (scope.op("GatherElements", x, self._rank, axis=1) for x in (best, places))
        new = scope.op("GatherElements", scope.op("Reshape", tokens, flat), places, axis=1)
        is_dead = scope.op("Less", best, scope.constant(_DEAD, "float32"))
        new = scope.op("Where", is_dead, scope.constant(EOS_ID), new)
        own_token, own_sum = (
            scope.op("Squeeze", scope.slice(x, 0, 1, 2), last) for x in (tokens, sums)
        )
        return Beams(
            scope.op("Where", self._is_beam, scope.op("Div", places, width), self._order),
            scope.op("Where", self._is_beam, new, own_token),
            scope.op("Where", self._is_beam, best, own_sum),
        )


def _best(
    scope: Scope, logits: str, vocabulary: int, count: int | str, with_logprobs: bool
) -> list[str]:
    """Emits the best ids from 128 to V - 1 in two levels: groups of 128, then inside the best.

    Group 0 holds the control tokens. Ties go to the lower id.

    Args:
        scope: where nodes go.
        logits: real (B, S, V).
        vocabulary: V.
        count: 1, or an int64 vector of one element: how many of each row, best first.
        with_logprobs: also return their log-probabilities among ids that are not masked.

    Returns:
        int64 (R) or (R, count) ids and, if asked for, float32 log-probabilities alike.
    """
    groups = vocabulary // NUM_CONTROL_IDS
    by_group = scope.reshape(logits, -1, groups, NUM_CONTROL_IDS)  # (R, C, 128)
    maxima = scope.op("ReduceMax", by_group, scope.constant([2]), keepdims=0)
    maxima = scope.slice(maxima, 1, groups, 1)
    one, size = scope.constant(1), scope.constant(NUM_CONTROL_IDS)
    if isinstance(count, int):
        group = scope.op("Add", scope.op("ArgMax", maxima, axis=1, keepdims=1), one)  # (R, 1)
        inside = scope.op("GatherND", by_group, group, batch_dims=1)  # (R, 128)
        within = scope.op("ArgMax", inside, axis=1, keepdims=0)
        base = scope.op("Mul", scope.op("Squeeze", group, scope.constant([1])), size)
        ids = scope.op("Add", base, within)
        top = (
            scope.op("ReduceMax", maxima, scope.constant([1]), keepdims=1) if with_logprobs else ""
        )
    else:
        # The best `count` ids lie in the `count` groups of the greatest maxima.
        number = scope.op("Min", count, scope.constant([groups - 1]))
        _, group = scope.ops("TopK", [maxima, number], 2, axis=1, sorted=1)
        # In the order of ids, so that ties go to the lower one.
        order, _ = scope.ops("TopK", [group, number], 2, axis=1, largest=0, sorted=1)
        group = scope.op("Add", order, one)  # (R, count)
        index = scope.op("Unsqueeze", group, scope.constant([2]))
        inside = scope.op("GatherND", by_group, index, batch_dims=1)  # (R, count, 128)
        top, place = scope.ops(
            "TopK", [scope.op("Reshape", inside, scope.constant([0, -1])), count], 2, axis=1
        )
        group = scope.op("GatherElements", group, scope.op("Div", place, size), axis=1)
        ids = scope.op("Add", scope.op("Mul", group, size), scope.op("Mod", place, size))
    if not with_logprobs:
        return [ids]
    top = scope.cast(top, "float32")
    best = scope.slice(top, 0, 1, 1)
    emittable = scope.cast(scope.slice(by_group, 1, groups, 1), "float32")
    shifted = scope.op("Sub", emittable, scope.op("Unsqueeze", best, scope.constant([2])))
    total = scope.op("ReduceSum", scope.op("Exp", shifted), scope.constant([1, 2]), keepdims=0)
    total = scope.op("Unsqueeze", scope.op("Log", total), scope.constant([1]))  # (R, 1)
    logprobs = scope.op("Sub", scope.op("Sub", top, best), total)
    if isinstance(count, int):
        return [ids, scope.op("Squeeze", logprobs, scope.constant([1]))]
    # A row may have fewer allowed ids than `count`; the others rank below every real total.
    is_masked = scope.op("Less", top, scope.constant(-5e4, "float32"))
    return [ids, scope.op("Where", is_masked, scope.constant(_NONE, "float32"), logprobs)]
