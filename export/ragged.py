"""Wraps a graph so that it takes rows without padding, run together, and pads them itself.

Triton's ONNX Runtime backend joins requests of different lengths only if a model takes their ids
in one run (`input_ids` int64 (X), X all ids of a batch) with the place where each request's end
(`input_ids_ends` int32 (B), which Triton counts). Around the same body, with its weights stored
once, the wrapper turns them into padded ids and masks, see `engine.execution.wire`. Everything is
clamped: one row with bad ids, lengths or limits gets a useless answer, but neither fails nor
changes those it shares a batch with.

Knows nothing of Triton's configuration.

# B batch, X ids of all rows, L padded length, C candidates, T padded length of one
"""

from collections.abc import Mapping
from typing import NamedTuple

import onnx

from engine.execution.wire import IDS_OF_MASK, LENGTHS, Wire
from export.builder import Scope, Weights, value

_PAD_MULTIPLE = 8  # as the engine pads, so that there are few shapes
_MAX_LENGTH = 1 << 20  # claimed by a row for a candidate; sums of it stay far from overflow
_INT32, _INT64 = onnx.TensorProto.INT32, onnx.TensorProto.INT64


class Limits(NamedTuple):
    """What a graph can take; more would fail it."""

    vocabulary: int  # ids are below
    max_tokens: Mapping[str, int]  # by input of ids: of one row, or of one candidate
    max_new_tokens: int = 1


def ends_name(ids_name: str) -> str:
    """Returns the input that says where each row of a flat input ends."""
    return f"{ids_name}_ends"


def build_ragged(body: onnx.ModelProto, wire: Wire, limits: Limits) -> onnx.ModelProto:
    """Returns a graph with the inputs of `wire` and an `_ends` input for each flat one.

    Args:
        body: The graph of the bundle; left as it is.
        wire: What travels for it.
        limits: What it can take.
    """
    model = onnx.ModelProto()
    model.CopyFrom(body)
    graph = model.graph
    masks = {ids: mask for mask, ids in IDS_OF_MASK.items()}
    flat = [t.name for t in wire.inputs if t.is_flat]
    clamped = [t.name for t in wire.inputs if t.name in ("slots", "max_new_tokens")]
    replaced = {n: f"wire_{n}" for n in (*flat, *(masks[n] for n in flat), *clamped)}
    _rename_inputs(graph, replaced)

    scope = Scope(Weights(constant_prefix="wire_const_"), "wire_")
    last_id = limits.vocabulary - 1
    for name in flat:
        starts, counts = _rows(scope, name)
        if masks[name] == "candidate_mask":
            starts, counts = _candidates(scope, starts, counts)
        ids, mask = _padded(scope, name, starts, counts, limits.max_tokens[name])
        _emit(scope, "Clip", [ids, *_range(scope, 0, last_id)], replaced[name])
        _emit(scope, "Identity", [mask], replaced[masks[name]])
    for name in clamped:
        bounds = (0, last_id) if name == "slots" else (1, limits.max_new_tokens)
        _emit(scope, "Clip", [name, *_range(scope, *bounds)], replaced[name])

    nodes = [*scope.nodes, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.initializer.extend(scope.weights.tensors.values())
    for tensor in wire.inputs:
        if tensor.is_flat:
            graph.input.append(value(tensor.name, tensor.dtype, [f"{tensor.name}_total"]))
            ends = onnx.helper.make_tensor_value_info(ends_name(tensor.name), _INT32, ["batch"])
            graph.input.append(ends)
        else:
            dims = [d if d > 0 else f"{tensor.name}_{i}" for i, d in enumerate(tensor.dims)]
            graph.input.append(value(tensor.name, tensor.dtype, ["batch", *dims]))
    return model


def _rows(scope: Scope, name: str) -> tuple[str, str]:
    """Returns where each row begins and how many ids it has, int64 (B) each."""
    ends = scope.op("Cast", ends_name(name), to=_INT64)
    starts = scope.op("Concat", scope.constant([0]), scope.slice(ends, 0, -1, 0), axis=0)
    return starts, scope.op("Sub", ends, starts)


def _candidates(scope: Scope, starts: str, counts: str) -> tuple[str, str]:
    """Returns where each candidate begins and how many ids it has, int64 (B, C) each.

    Lengths that say more than the row has do not reach into the next row.
    """
    last = scope.constant([-1])
    said = scope.op("Clip", LENGTHS, *_range(scope, 0, _MAX_LENGTH))
    before = scope.op("CumSum", said, scope.constant(1), exclusive=1)
    left = scope.op("Sub", scope.op("Unsqueeze", counts, last), before)
    starts = scope.op("Add", scope.op("Unsqueeze", starts, last), before)
    return starts, scope.op("Min", said, left)


def _padded(scope: Scope, name: str, starts: str, counts: str, longest: int) -> tuple[str, str]:
    """Returns ids and mask, int64 (..., L), of runs of ids, given int64 (...) each.

    L is the largest count, rounded up, at most `longest`. No mask is all 0: softmax needs one 1.
    """
    last, multiple = scope.constant([-1]), scope.constant(_PAD_MULTIPLE)
    kept = scope.op("Clip", counts, *_range(scope, 1, longest))
    widest = scope.op("ReduceMax", kept, keepdims=0)
    widest = scope.op("Add", widest, scope.constant(_PAD_MULTIPLE - 1))
    widest = scope.op("Mul", scope.op("Div", widest, multiple), multiple)
    widest = scope.op("Min", widest, scope.constant(longest))
    steps = scope.op("Range", scope.constant(0), widest, scope.constant(1))  # (L)
    mask = scope.op("Less", steps, scope.op("Unsqueeze", kept, last))
    is_read = scope.op("And", mask, scope.op("Less", steps, scope.op("Unsqueeze", counts, last)))
    places = scope.op("Add", steps, scope.op("Unsqueeze", starts, last))
    # What is not read is one zero behind the ids of all rows.
    end = scope.op("Squeeze", scope.dim(name, 0))
    ids = scope.op("Concat", name, scope.constant([0]), axis=0)
    ids = scope.op("Gather", ids, scope.op("Where", is_read, places, end))
    return ids, scope.op("Cast", mask, to=_INT64)


def _range(scope: Scope, low: int, high: int) -> tuple[str, str]:
    return scope.constant(low), scope.constant(high)


def _emit(scope: Scope, op_type: str, inputs: list[str], output: str) -> None:
    node = onnx.helper.make_node(op_type, inputs, [output], name=f"{op_type}_{output}")
    scope.nodes.append(node)


def _rename_inputs(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Renames what nodes read, in subgraphs too."""
    for node in graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_inputs(attribute.g, names)
