"""Does a click model's graph give what it should? As `parity.py`, with torch for an oracle.

Requests have different numbers of candidates; a batch is filled up as the engine does it.
"""

# N candidates of all requests, one request after another; C of one request; F features
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch.nn.functional import silu

from engine.formats.features import FEATURE_NAMES
from engine.formats.vocabulary import EOS_ID
from export.checkpoint import DecoderCheckpoint, Run
from export.parity import MAX_BATCH_DIFFERENCE, check_at_most, pad
from export.requests import SampleRequest, candidate_ids
from train.clicks.model import MAX_DEVIATIONS

_MAX_DIFFERENCE = 1e-3  # of a logit: of fp32 to torch, of fp16 between a batch and its rows alone
# Of logits, to torch. Trained and random click models have up to 0.022 in int8, 0.0007 in fp16.
_MAX_MEAN_DIFFERENCE = {"int8": 0.1, "fp16": 0.01}

Floats = NDArray[np.float32]


def sample_features(
    head: Mapping[str, np.ndarray], requests: Sequence[SampleRequest], seed: int
) -> list[Floats]:
    """Returns float32 (C, F) of each request, distributed as what the model was trained on."""
    rng = np.random.default_rng(seed)
    spread = np.where(np.isfinite(head["scale"]), head["scale"], 1)
    shapes = [(len(request.candidates), len(FEATURE_NAMES)) for request in requests]
    return [(head["mean"] + spread * rng.normal(size=s)).astype(np.float32) for s in shapes]


@torch.inference_mode()
def click_reference(
    checkpoint: DecoderCheckpoint,
    head: Mapping[str, np.ndarray],
    run: Run,
    requests: Sequence[SampleRequest],
    features: Sequence[Floats],
) -> Floats:
    """Returns the torch reference's float32 (N) logits: one full forward per candidate."""
    w = {name: torch.from_numpy(array) for name, array in head.items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    logits: list[float] = []
    for request, features_CF in zip(requests, features, strict=True):
        found = candidate_ids(run, request.candidates)
        for ids, features_F in zip(found, features_CF, strict=True):
            row = torch.tensor([[*request.context_ids, *ids]])
            last = checkpoint.model(row).last_hidden_state[0, -1]
            f = (torch.from_numpy(features_F) - w["mean"]) / w["scale"]
            f = f.clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS)
            of_features = silu(linear("mixed", silu(linear("features", f))))
            of_text = silu(linear("hidden", torch.cat([last, f])))
            logits.append(float(linear("out", torch.cat([of_features, of_text]))))
    return np.asarray(logits, np.float32)


def click_graph(
    session: ort.InferenceSession,
    run: Run,
    requests: Sequence[SampleRequest],
    features: Sequence[Floats],
) -> Floats:
    """Returns the click model graph's float32 (N) logits of all requests as one batch."""
    most = max(len(request.candidates) for request in requests)
    context_ids, context_mask = pad([r.context_ids for r in requests])
    features_BCF = np.zeros((len(requests), most, features[0].shape[1]), np.float32)
    rows: list[list[int]] = []
    for request, features_CF, own_CF in zip(requests, features_BCF, features, strict=True):
        features_CF[: len(own_CF)] = own_CF
        found = candidate_ids(run, request.candidates)
        rows += [*found, *[[EOS_ID]] * (most - len(found))]
    ids, mask = pad(rows)
    shape = (len(requests), most, -1)
    feed = {
        "context_ids": context_ids,
        "context_mask": context_mask,
        "candidate_ids": ids.reshape(shape),
        "candidate_mask": mask.reshape(shape),
        "features": features_BCF,
    }
    logits_BC = np.asarray(session.run(["click_logit"], feed)[0])
    return np.concatenate(
        [row[: len(r.candidates)] for row, r in zip(logits_BC, requests, strict=True)]
    )


def check_exact(got_N: Floats, expected_N: Floats) -> dict[str, float]:
    """Compares logits of the fp32 graph with torch.

    Raises:
        ParityError: they differ by more than 1e-3.
    """
    difference = float(np.abs(got_N - expected_N).max())
    check_at_most("the click model's largest difference to torch", difference, _MAX_DIFFERENCE)
    return {"max_difference": difference}


def check_reduced(
    session: ort.InferenceSession,
    precision: str,
    run: Run,
    requests: Sequence[SampleRequest],
    features: Sequence[Floats],
    expected_N: Floats,
) -> dict[str, float]:
    """Compares an int8 or fp16 graph with torch, and all requests in a batch with each alone.

    Raises:
        ParityError: logits differ from torch by more than rounding explains on average, or in a
            batch from those alone.
    """
    got_N = click_graph(session, run, requests, features)
    alone_N = np.concatenate(
        [click_graph(session, run, [r], [f]) for r, f in zip(requests, features, strict=True)]
    )
    mean_difference = float(np.abs(got_N - expected_N).mean())
    batch_difference = float(np.abs(got_N - alone_N).max())
    check_at_most(
        f"the {precision} click model's mean difference to torch",
        mean_difference,
        _MAX_MEAN_DIFFERENCE[precision],
        remedy="export with precision fp32",
    )
    check_at_most(
        f"the {precision} click model's largest difference between a batch and its rows alone",
        batch_difference,
        _MAX_DIFFERENCE if precision == "fp16" else MAX_BATCH_DIFFERENCE,
    )
    return {
        f"mean_{precision}_difference": mean_difference,
        "batch_difference": batch_difference,
    }
