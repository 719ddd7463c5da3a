"""What a model server is sent and sends back: one row a request, without padding.

A model is called `<role>_<bundle id>` there, so that bundles live beside one another and none can
answer for another. Of a graph's inputs (see the manifest) these travel in another form:

    ids with a mask of one row      the ids alone, as many as there are; the mask follows
    ids with a mask of several      the ids of all of them in one run, and the length of each

Knows nothing of Triton, and nothing of how rows are padded again: `export` writes that.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.execution.models import GenerateRow, ScoreRow, candidate_ids, encoder_ids
from engine.formats.manifest import Manifest, ModelSpec

ROLES = ("encoder", "generator", "click_model")
IDS_OF_MASK = {
    "attention_mask": "input_ids",
    "context_mask": "context_ids",
    "candidate_mask": "candidate_ids",
}
LENGTHS = "candidate_lengths"  # what travels in place of `candidate_mask`
VARIES = -1  # a dimension that differs from row to row

Arrays = dict[str, NDArray[np.int64] | NDArray[np.float32]]


class Tensor(NamedTuple):
    """One input or output of a row, without the leading 1."""

    name: str
    dtype: str  # "int64" or "float32"
    dims: tuple[int, ...]
    is_flat: bool = False  # ids whose number differs from row to row, to be padded by the server


class Wire(NamedTuple):
    """What a model takes and gives."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def model_name(role: str, manifest: Manifest) -> str:
    """Returns what a bundle's model is called on a server."""
    return f"{role}_{manifest.bundle_id}"


def specs(manifest: Manifest) -> dict[str, ModelSpec]:
    """Returns role -> model of those that the bundle has."""
    found = {role: getattr(manifest, role) for role in ROLES}
    return {role: spec for role, spec in found.items() if spec is not None}


def wire_of(spec: ModelSpec) -> Wire:
    """Returns what travels for a model with this signature."""
    inputs: list[Tensor] = []
    for name, (dtype, _batch, *sizes) in spec.inputs.items():
        dims = tuple(d if isinstance(d, int) else VARIES for d in sizes)
        if name in IDS_OF_MASK.values():
            inputs.append(Tensor(name, str(dtype), (VARIES,), is_flat=True))
        elif name not in IDS_OF_MASK:
            inputs.append(Tensor(name, str(dtype), dims))
        elif len(dims) > 1:
            inputs.append(Tensor(LENGTHS, str(dtype), dims[:-1]))
    outputs = [
        Tensor(name, str(dtype), tuple(d if isinstance(d, int) else VARIES for d in sizes))
        for name, (dtype, _batch, *sizes) in spec.outputs.items()
    ]
    return Wire(tuple(inputs), tuple(outputs))


def encoder_row(ids: Sequence[int], max_tokens: int) -> Arrays:
    """Returns the inputs of one text; longer ones are cut at their end."""
    return {"input_ids": _ids(encoder_ids(ids, max_tokens))}


def generator_row(row: GenerateRow) -> Arrays:
    """Returns the inputs of one prompt."""
    return {
        "input_ids": _ids(row.prompt_ids),
        "slots": _ids(row.rung.slots),
        "max_new_tokens": _ids(row.rung.max_new_tokens),
        "first_token_range": _ids(row.first_token_range),
    }


def click_model_row(row: ScoreRow, num_candidates: int, max_candidate_tokens: int) -> Arrays:
    """Returns the inputs of one context and its candidates.

    Args:
        row: At least one candidate; longer ones are cut at their end.
        num_candidates: The row is padded to this many, so that rows can share a batch.
        max_candidate_tokens: Most ids of a candidate.
    """
    missing = num_candidates - len(row.candidate_ids)
    all_ids = [candidate_ids(ids, max_candidate_tokens) for ids in row.candidate_ids]
    all_ids += [candidate_ids((), max_candidate_tokens)] * missing
    features_CF = np.pad(row.features_CF.astype(np.float32), ((0, missing), (0, 0)))
    return {
        "context_ids": _ids(row.context_ids),
        "candidate_ids": _ids([i for ids in all_ids for i in ids]),
        LENGTHS: _ids([len(ids) for ids in all_ids]),
        "features": features_CF[None],
    }


def _ids(ids: Sequence[int]) -> NDArray[np.int64]:
    """Returns int64 (1, L)."""
    return np.array([ids], np.int64)
