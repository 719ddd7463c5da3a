"""Does an encoder's graph give what it should? As `parity.py`, with torch for an oracle."""

# N texts, D dimensions
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from export.parity import ParityError, check_at_most, pad

_MAX_DIFFERENCE = 1e-3  # of a coordinate: of fp32 to torch, and between a batch and its rows alone
_MIN_COSINE = 0.98  # mean, of int8 or fp16 with fp32

Floats = NDArray[np.float32]


def embed(session: ort.InferenceSession, rows: Sequence[Sequence[int]]) -> Floats:
    """Returns a graph's unit vectors (N, D) of token ids, as one padded batch."""
    ids, mask = pad(rows)
    return np.asarray(session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})[0])


@torch.inference_mode()
def check_exact(
    session: ort.InferenceSession, model: Any, rows: Sequence[Sequence[int]]
) -> tuple[Floats, dict[str, float]]:
    """Compares the fp32 graph with torch, a text at a time, and returns its vectors (N, D), too.

    Raises:
        ParityError: vectors differ from those of torch, or in a batch from those alone.
    """
    hidden = [model(torch.tensor([ids])).last_hidden_state for ids in rows]
    expected_ND = normalize(torch.cat([h_1LD.mean(1) for h_1LD in hidden])).numpy()
    alone_ND = _each_alone(session, rows)
    difference = float(np.abs(alone_ND - expected_ND).max())
    check_at_most("the encoder's largest difference to torch", difference, _MAX_DIFFERENCE)
    figures = {"max_difference": difference}
    figures["batch_difference"] = _batch_difference(session, rows, alone_ND, "fp32")
    return alone_ND, figures


def check_reduced(
    session: ort.InferenceSession, precision: str, rows: Sequence[Sequence[int]], exact_ND: Floats
) -> dict[str, float]:
    """Compares an int8 or fp16 graph with the vectors of the fp32 graph.

    Raises:
        ParityError: directions differ, or vectors in a batch from those alone.
    """
    alone_ND = _each_alone(session, rows)
    cosine = float((alone_ND * exact_ND).sum(1).mean())
    if not cosine >= _MIN_COSINE:
        raise ParityError(
            f"{precision} encoder's cosine with fp32 is {cosine:.3f}, must be at "
            f"least {_MIN_COSINE}: export with precision fp32"
        )
    return {
        f"mean_cosine_{precision}": cosine,
        f"batch_difference_{precision}": _batch_difference(session, rows, alone_ND, precision),
    }


def _each_alone(session: ort.InferenceSession, rows: Sequence[Sequence[int]]) -> Floats:
    return np.concatenate([embed(session, [ids]) for ids in rows])


def _batch_difference(
    session: ort.InferenceSession, rows: Sequence[Sequence[int]], alone_ND: Floats, precision: str
) -> float:
    difference = float(np.abs(embed(session, rows) - alone_ND).max())
    check_at_most(
        f"the {precision} encoder's largest difference between a padded batch and its rows alone",
        difference,
        _MAX_DIFFERENCE,
    )
    return difference
