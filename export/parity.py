"""Does a graph give what it should? Checks that fail an export, with the figures they measured.

The oracle of fp32 graphs is torch, unbatched (`train.generation.reference`). What int8 and fp16
graphs write is held against what fp32 thinks of it, and int8 also against itself at other batch
sizes and paddings. The other models' checks are in `encoder_parity.py` and `click_parity.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from engine.execution.device import CPU, Device, open_session
from export.checkpoint import DecoderCheckpoint, Run
from export.requests import Decoding, SampleRequest, decoding
from train.generation.likelihood import list_logprobs
from train.generation.reference import Decoded, decode
from train.generation.sampler import ListPrompt

_PAD = 0
MAX_TIE_GAP = 1e-3  # two logits closer than this may swap by rounding
MAX_BATCH_DIFFERENCE = 1e-4  # of a logit or log-probability, between a batch and its rows alone
_MAX_LOGPROB_DIFFERENCE = 1e-3  # of a sequence, between fp32 and torch
_EMPTY_BEAM = -1e8  # log-probabilities below this are of beams for which there was nothing left
_MAX_TIED_SHARE = 0.05  # of requests that fp32 answers otherwise than torch
# Between reduced and fp32, a token of what the reduced one writes. Trained and random generators
# have up to 0.014 in int8 and 0.0004 in fp16, examples/bundle 0.057 in int8.
_MAX_TOKEN_LOGPROB_GAP = {"int8": 0.1, "fp16": 0.01}
# Of sequences. The gap says that probabilities are right, this that the likeliest are chosen:
# generators have 0.92 and more in int8, 0.99 in fp16, examples/bundle 0.94 in int8.
_MIN_FIRST_TOKEN_EQUAL_SHARE = 0.5


class ParityError(ValueError):
    """A graph does not give what its reference gives; nothing is exported."""


def check_at_most(what: str, measured: float, limit: float, remedy: str = "") -> None:
    """Raises ParityError unless a figure is within its limit; nan is not."""
    if not measured <= limit:
        advice = f": {remedy}" if remedy else ""
        raise ParityError(f"{what} is {measured:.2g}, must be at most {limit:g}{advice}")


class Generated(NamedTuple):
    """Sequences of one request."""

    ids: list[list[int]]  # per sequence, ending with <|eos|> unless cut by the limit
    logprobs: NDArray[np.float32]  # (S)


def session_of(
    model: onnx.ModelProto, num_threads: int = 1, device: Device = CPU
) -> ort.InferenceSession:
    """Returns a session for a graph in memory.

    Raises:
        ValueError: the device cannot be used.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    return open_session(model.SerializeToString(), options, device)


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
    """Runs requests with equal numbers of slots as one batch, padded to at least `min_length`.

    Raises:
        ParityError: a log-probability is not finite.
    """
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
    if not np.isfinite(logprobs).all():
        raise ParityError(f"the generator gives log-probabilities that are not finite: {logprobs}")
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
        ParityError: a sequence differs where the reference's best two logits are not a tie, or
            does so at a tie in more than one of twenty requests, or log-probabilities differ.
    """
    num_equal = num_tied = num_tied_requests = 0
    differences = [0.0]
    for batch in _by_slots(run, requests, mode, 8):
        for (request, how), got in zip(batch, generate(session, batch), strict=True):
            prompt = request.prompt
            num_tied_before = num_tied
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
                    differences.append(abs(float(logprob) - expected.logprob))
                elif _is_tie(expected, ids, is_beam=mode == "beam"):
                    num_tied += 1
                else:
                    raise ParityError(
                        f"{mode} graph differs from the torch reference in scenario "
                        f"{request.scenario}: {ids} instead of {expected.ids}"
                    )
            num_tied_requests += num_tied > num_tied_before
    most = max(1, round(_MAX_TIED_SHARE * len(requests)))
    if num_tied_requests > most:
        raise ParityError(
            f"{mode} graph parts from the torch reference at near ties in {num_tied_requests} of "
            f"{len(requests)} requests, at most {most} may"
        )
    difference = float(np.max(differences))  # nan if one is
    check_at_most(
        f"{mode} graph's largest difference to torch of a sequence's log-probability",
        difference,
        _MAX_LOGPROB_DIFFERENCE,
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
            if got.ids != alone.ids or difference > MAX_BATCH_DIFFERENCE:
                raise ParityError(
                    f"{mode} graph gives another answer in a batch than alone in scenario "
                    f"{one[0].scenario}: {got.ids} {got.logprobs} and {alone.ids} {alone.logprobs}"
                )
    return {"sequences": num_sequences, "max_logprob_difference": difference}


@torch.inference_mode()
def agreement(
    exact: ort.InferenceSession,
    reduced: ort.InferenceSession,
    checkpoint: DecoderCheckpoint,
    run: Run,
    requests: Sequence[SampleRequest],
    mode: str,
) -> dict[str, float]:
    """Compares a graph of reduced precision with fp32.

    Shares are of the sequences that it writes: fp32 writes the same one, or one of the same first
    token, from the same starting token; beams count whatever their order. The gap is of all of
    them, equal or not: between the log-probability that the graph gives and that of the same
    sequence in torch.
    """
    equal, first, gaps = list[bool](), list[bool](), list[float]()
    for batch in _by_slots(run, requests, mode, 16):
        pairs = zip(batch, generate(exact, batch), generate(reduced, batch), strict=True)
        for (request, how), a, b in pairs:
            texts = {(slot, *ids) for slot, ids in zip(how.slots, a.ids, strict=True)}
            starts = {text[:2] for text in texts}
            expected = _logprobs_in_torch(checkpoint, request, how, b)
            for slot, ids, got, logprob in zip(how.slots, b.ids, b.logprobs, expected, strict=True):
                if got < _EMPTY_BEAM:
                    continue
                equal.append((slot, *ids) in texts)
                first.append((slot, ids[0]) in starts)
                gaps.append(abs(float(got) - logprob) / len(ids))
    return {
        "sequences": len(equal),
        "equal_share": float(np.mean(equal)),
        "first_token_equal_share": float(np.mean(first)),
        "mean_token_logprob_gap": float(np.mean(gaps)),
    }


def _logprobs_in_torch(
    checkpoint: DecoderCheckpoint, request: SampleRequest, how: Decoding, written: Generated
) -> list[float]:
    """Returns the log-probabilities that torch gives to sequences; 0 for empty beams."""
    prompt = request.prompt
    one = ListPrompt(prompt.ids, how.slots, how.max_new_tokens, prompt.first_token_range)
    ids_SN = torch.full((len(how.slots), max(map(len, written.ids))), _PAD)
    for ids, logprob, ids_N in zip(written.ids, written.logprobs, ids_SN, strict=True):
        if logprob >= _EMPTY_BEAM:
            ids_N[: len(ids)] = torch.tensor(ids)
    return list_logprobs(checkpoint.model, [one], ids_SN[None, None])[0, 0].sum(-1).tolist()


def check_agreement(figures: Mapping[str, float], precision: str) -> None:
    """Raises ParityError unless a graph of reduced precision still gives what fp32 gives.

    Args:
        figures: Of `agreement`.
        precision: "int8" or "fp16".
    """
    check_at_most(
        f"the {precision} generator's mean gap to fp32 of a token's log-probability",
        figures["mean_token_logprob_gap"],
        _MAX_TOKEN_LOGPROB_GAP[precision],
        remedy="export with precision fp32",
    )
    share = figures["first_token_equal_share"]
    if not share >= _MIN_FIRST_TOKEN_EQUAL_SHARE:
        raise ParityError(
            f"the {precision} generator begins {share:.2g} of its sequences as fp32 does, must be "
            f"at least {_MIN_FIRST_TOKEN_EQUAL_SHARE:g}: export with precision fp32"
        )


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
