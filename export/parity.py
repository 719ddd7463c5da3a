"""Does a graph give what it should? Checks that fail an export, with the figures they measured.

The oracle of fp32 graphs is torch, unbatched (`train.generation.reference`); int8 graphs are
compared with the fp32 graph, and with themselves at other batch sizes and paddings.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch.nn.functional import silu

from engine.execution.device import CPU, Device, providers
from export.checkpoint import DecoderCheckpoint, Run
from export.requests import Decoding, SampleRequest, candidate_ids, decoding
from train.clicks.model import MAX_DEVIATIONS
from train.generation.reference import Decoded, decode

_PAD = 0
MAX_TIE_GAP = 1e-3  # two logits closer than this may swap by rounding
MAX_LOGPROB_DIFFERENCE = 1e-4  # between a batch and its rows alone


class ParityError(ValueError):
    """A graph does not give what its reference gives; nothing is exported."""


class Generated(NamedTuple):
    """Sequences of one request."""

    ids: list[list[int]]  # per sequence, ending with <|eos|> unless cut by the limit
    logprobs: NDArray[np.float32]  # (S)


def session_of(
    model: onnx.ModelProto, num_threads: int = 1, device: Device = CPU
) -> ort.InferenceSession:
    """Returns a session for a graph in memory."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    return ort.InferenceSession(model.SerializeToString(), options, providers=providers(device))


def pad(rows: Sequence[Sequence[int]], length: int = 0) -> tuple[NDArray[np.int64], ...]:
    """Returns right-padded ids and mask, both int64 (rows, longest or `length`)."""
    length = max(length, *(len(r) for r in rows))
    ids = np.zeros((len(rows), length), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def generate(
    session: ort.InferenceSession,
    requests: Sequence[tuple[SampleRequest, Decoding]],
    min_length: int = 0,
) -> list[Generated]:
    """Runs requests with equal numbers of slots as one batch, padded to at least `min_length`."""
    ids, mask = pad([r.prompt.ids for r, _ in requests], min_length)
    limits = np.asarray([d.max_new_tokens for _, d in requests])
    sequences, logprobs = session.run(
        ["sequences", "logprobs"],
        {
            "input_ids": ids,
            "attention_mask": mask,
            "slots": np.asarray([d.slots for _, d in requests]),
            "max_new_tokens": limits,
            "first_token_range": np.asarray([r.prompt.first_token_range for r, _ in requests]),
        },
    )
    return [
        Generated([ids[: ids.index(_PAD)] if _PAD in ids else ids for ids in rows], lp)
        for rows, lp in zip(sequences.tolist(), logprobs, strict=True)
    ]


def check_reference(
    session: ort.InferenceSession,
    checkpoint: DecoderCheckpoint,
    run: Run,
    requests: Sequence[SampleRequest],
    mode: str,
) -> dict[str, float]:
    """Compares the fp32 graph, in ragged batches, with the torch reference.

    Raises:
        ParityError: a sequence differs where the reference's best two logits are not a tie.
    """
    num_equal = num_tied = 0
    difference = 0.0
    for batch in _by_slots(run, requests, mode, 8):
        for (request, how), got in zip(batch, generate(session, batch), strict=True):
            prompt = request.prompt
            row = decode(
                checkpoint.model,
                prompt.ids,
                how.slots,
                how.max_new_tokens,
                prompt.first_token_range,
                mode,
            )
            for ids, logprob, expected in zip(got.ids, got.logprobs, row, strict=True):
                if ids == expected.ids:
                    num_equal += 1
                    difference = max(difference, abs(float(logprob) - expected.logprob))
                elif _is_tie(expected, ids, is_beam=mode == "beam"):
                    num_tied += 1
                else:
                    raise ParityError(
                        f"{mode} graph differs from the torch reference in scenario "
                        f"{request.scenario}: {ids} instead of {expected.ids}"
                    )
    return {
        "sequences": num_equal + num_tied,
        "equal": num_equal,
        "diverged_at_tie": num_tied,
        "max_logprob_difference": difference,
    }


def check_batch_invariance(
    session: ort.InferenceSession, run: Run, requests: Sequence[SampleRequest], mode: str
) -> dict[str, float]:
    """Compares ragged, over-padded batches of 16 with each row alone.

    Raises:
        ParityError: tokens differ, or log-probabilities by more than 1e-4.
    """
    num_sequences, difference = 0, 0.0
    for batch in _by_slots(run, requests, mode, 16):
        longest = max(len(r.prompt.ids) for r, _ in batch)
        together = generate(session, batch, min_length=longest + 7)
        for one, got in zip(batch, together, strict=True):
            alone = generate(session, [one])[0]
            num_sequences += len(got.ids)
            difference = max(difference, float(np.abs(got.logprobs - alone.logprobs).max()))
            if got.ids != alone.ids or difference > MAX_LOGPROB_DIFFERENCE:
                raise ParityError(
                    f"{mode} graph gives another answer in a batch than alone in scenario "
                    f"{one[0].scenario}: {got.ids} {got.logprobs} and {alone.ids} {alone.logprobs}"
                )
    return {"sequences": num_sequences, "max_logprob_difference": difference}


def agreement(
    exact: ort.InferenceSession,
    quantised: ort.InferenceSession,
    run: Run,
    requests: Sequence[SampleRequest],
    mode: str,
) -> dict[str, float]:
    """Compares a quantised graph with the fp32 graph: equal sequences and log-probability gap."""
    equal, first, gaps = list[bool](), list[bool](), list[float]()
    for batch in _by_slots(run, requests, mode, 16):
        pairs = zip(generate(exact, batch), generate(quantised, batch), strict=True)
        for a, b in pairs:
            for x, y, lx, ly in zip(a.ids, b.ids, a.logprobs, b.logprobs, strict=True):
                equal.append(x == y)
                first.append(x[0] == y[0])
                if x == y:
                    gaps.append(abs(float(lx - ly)) / len(x))
    return {
        "sequences": len(equal),
        "equal_share": float(np.mean(equal)),
        "first_token_equal_share": float(np.mean(first)),
        "mean_token_logprob_gap": float(np.mean(gaps)) if gaps else float("nan"),
    }


@torch.inference_mode()
def click_reference(
    checkpoint: DecoderCheckpoint,
    head: Mapping[str, np.ndarray],
    run: Run,
    requests: list[SampleRequest],
    features: np.ndarray,
) -> np.ndarray:
    """Returns the torch reference's float32 (B, C) logits: one full forward per candidate."""
    w = {name: torch.from_numpy(array) for name, array in head.items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    logits = np.zeros(features.shape[:2], np.float32)
    for b, request in enumerate(requests):
        for c, ids in enumerate(candidate_ids(run, request.candidates)):
            row = torch.tensor([[*request.context_ids, *ids]])
            last = checkpoint.model(row).last_hidden_state[0, -1]
            f = (torch.from_numpy(features[b, c]) - w["mean"]) / w["scale"]
            f = f.clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS)
            of_features = silu(linear("mixed", silu(linear("features", f))))
            of_text = silu(linear("hidden", torch.cat([last, f])))
            logits[b, c] = float(linear("out", torch.cat([of_features, of_text])))
    return logits


def click_graph(
    session: ort.InferenceSession, run: Run, requests: list[SampleRequest], features: np.ndarray
) -> np.ndarray:
    """Returns the click model graph's float32 (B, C) logits of all requests as one batch."""
    context_ids, context_mask = pad([r.context_ids for r in requests])
    rows = [ids for r in requests for ids in candidate_ids(run, r.candidates)]
    ids, mask = pad(rows)
    shape = (len(requests), features.shape[1], -1)
    feed = {
        "context_ids": context_ids,
        "context_mask": context_mask,
        "candidate_ids": ids.reshape(shape),
        "candidate_mask": mask.reshape(shape),
        "features": features,
    }
    return np.asarray(session.run(["click_logit"], feed)[0])


def _by_slots(
    run: Run, requests: Sequence[SampleRequest], mode: str, size: int
) -> Iterable[list[tuple[SampleRequest, Decoding]]]:
    """Yields batches of at most `size` requests with equal numbers of slots."""
    groups: dict[int, list[tuple[SampleRequest, Decoding]]] = {}
    for request in requests:
        how = decoding(run, request.scenario, mode)
        groups.setdefault(len(how.slots), []).append((request, how))
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _is_tie(expected: Decoded, ids: list[int], *, is_beam: bool) -> bool:
    """Returns whether the reference nearly tied where the sequences part; in beams, anywhere."""
    if is_beam:
        return min(expected.gaps) < MAX_TIE_GAP
    for step, gap in enumerate(expected.gaps):
        if step >= len(ids) or ids[step] != expected.ids[step]:
            return gap < MAX_TIE_GAP
    return False
