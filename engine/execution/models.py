"""The three models as functions of token ids: padding in, cutting out. Knows nothing of texts.

Each `run` takes a batch of rows and returns one result per row; a row's result does not depend
on its neighbours or on padding. It raises NotFinite if a number is not finite, as of a model
that overflows; where a generator gives ids alone, it takes a row of which no sequence begins as
asked for one. To be called from one thread.

# B batch, P prompt tokens, S slots, N new tokens, C candidates, T tokens, F features, D dim
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engine.errors import NotFinite
from engine.formats.vocabulary import EOS_ID
from engine.scheduling.planner import Rung

GENERATOR_OUTPUTS = ("sequences", "logprobs")  # the second of graphs that search
_PAD_MULTIPLE = 8  # lengths are padded to multiples of this, so that there are few shapes
A = TypeVar("A", bound=NDArray[np.generic])
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


class GenerateRow(NamedTuple):
    """One prompt to generate for."""

    prompt_ids: Sequence[int]
    first_token_range: tuple[int, int]
    rung: Rung


class Sequences(NamedTuple):
    """What was generated for one prompt: per slot the ids, and whether they ended by themselves."""

    ids: list[list[int]]  # without <|eos|>
    is_finished: list[bool]
    # Natural log of each one's probability among texts that may begin as asked, <|eos|> included;
    # None where it is not known.
    logprobs: list[float | None] | None = None


class ScoreRow(NamedTuple):
    """One context and its candidates."""

    context_ids: Sequence[int]
    candidate_ids: Sequence[Sequence[int]]  # C
    features_CF: Floats


class Encoder:
    """Texts to unit vectors."""

    def __init__(self, session: ort.InferenceSession, max_tokens: int) -> None:
        """Wraps a session; longer inputs are cut at their end."""
        self._session = session
        self._max_tokens = max_tokens

    def run(self, rows: Sequence[Sequence[int]]) -> Floats:
        """Returns float32 (B, D), row i for ids i."""
        cut = [encoder_ids(r, self._max_tokens) for r in rows]
        ids_BT, mask_BT = _padded(cut, self._max_tokens)
        feed = {"input_ids": ids_BT, "attention_mask": mask_BT}
        return checked("embedding", self._session.run(["embedding"], feed)[0])


class Generator:
    """Prompts to token sequences."""

    def __init__(self, session: ort.InferenceSession, max_prompt_tokens: int) -> None:
        """Wraps a session."""
        self._session = session
        self._max_prompt_tokens = max_prompt_tokens
        given = {output.name for output in session.get_outputs()}
        self._outputs = [name for name in GENERATOR_OUTPUTS if name in given]

    def run(self, rows: Sequence[GenerateRow]) -> list[Sequences]:
        """Returns the sequences of each row; all rows must have the same number of slots."""
        ids_BP, mask_BP = _padded([r.prompt_ids for r in rows], self._max_prompt_tokens)
        feed = {
            "input_ids": ids_BP,
            "attention_mask": mask_BP,
            "slots": np.array([r.rung.slots for r in rows], np.int64),
            "max_new_tokens": np.array([r.rung.max_new_tokens for r in rows], np.int64),
            "first_token_range": np.array([r.first_token_range for r in rows], np.int64),
        }
        outputs = self._session.run(self._outputs, feed)
        for name, array in zip(self._outputs, outputs, strict=True):
            checked(name, array)
        for sequences_SN, row in zip(outputs[0], rows, strict=True):
            check_begin(sequences_SN, row)
        return [
            cut_sequences(*parts, limits=row.rung.max_new_tokens)
            for *parts, row in zip(*(o.tolist() for o in outputs), rows, strict=True)
        ]


class ClickModel:
    """Contexts and candidates to click logits."""

    def __init__(
        self, session: ort.InferenceSession, *, max_context_tokens: int, max_candidate_tokens: int
    ) -> None:
        """Wraps a session; longer candidates are cut at their end."""
        self._session = session
        self._max_context_tokens = max_context_tokens
        self._max_candidate_tokens = max_candidate_tokens

    def run(self, rows: Sequence[ScoreRow], num_candidates: int) -> list[Floats]:
        """Returns float32 (C) logits per row, C its own number of candidates.

        Args:
            rows: The batch.
            num_candidates: Rows are padded to this many candidates.
        """
        size = self._max_candidate_tokens
        context_BP, context_mask_BP = _padded(
            [r.context_ids for r in rows], self._max_context_tokens
        )
        num_features = rows[0].features_CF.shape[1]
        features_BCF = np.zeros((len(rows), num_candidates, num_features), np.float32)
        flat: list[Sequence[int]] = []
        for features_CF, row in zip(features_BCF, rows, strict=True):
            features_CF[: len(row.candidate_ids)] = row.features_CF
            flat += [candidate_ids(ids, size) for ids in row.candidate_ids]
            flat += [candidate_ids((), size)] * (num_candidates - len(row.candidate_ids))
        ids_XT, mask_XT = _padded(flat, size)
        shape = (len(rows), num_candidates, ids_XT.shape[1])
        feed = {
            "context_ids": context_BP,
            "context_mask": context_mask_BP,
            "candidate_ids": ids_XT.reshape(shape),
            "candidate_mask": mask_XT.reshape(shape),
            "features": features_BCF,
        }
        logits_BC = checked("click_logit", self._session.run(["click_logit"], feed)[0])
        return [
            logits_C[: len(row.candidate_ids)]
            for logits_C, row in zip(logits_BC, rows, strict=True)
        ]


def checked(name: str, array: A) -> A:
    """Returns a model's output.

    Raises:
        NotFinite: a number in it is not finite.
    """
    if not np.isfinite(array).all():
        raise _not_finite(name)
    return array


def check_begin(sequences_SN: Ids, row: GenerateRow) -> None:
    """Checks that of a row's sequences some begin in the range that was asked for.

    Ids outside it have lower logits than any in it, unless these are not numbers. Not of each
    sequence: beams for which nothing is left end at once.

    Raises:
        NotFinite: none does, though the range is not empty.
    """
    first, end = row.first_token_range
    begin_S = sequences_SN[:, 0]
    if first < end and not ((begin_S >= first) & (begin_S < end)).any():
        raise _not_finite("what the generator chooses from")


def _not_finite(name: str) -> NotFinite:
    return NotFinite(
        f"{name} is not finite: the model overflows, or the device fails; fp16 graphs overflow "
        "where fp32 ones do not"
    )


def encoder_ids(ids: Sequence[int], max_tokens: int) -> Sequence[int]:
    """Returns what the encoder reads of a text: at least one id."""
    return ids[:max_tokens] or (0,)


def candidate_ids(ids: Sequence[int], max_tokens: int) -> Sequence[int]:
    """Returns what the click model reads of a candidate; at least one id: none is all padding."""
    return ids[:max_tokens] or (EOS_ID,)


def cut_sequences(
    sequences: list[list[int]],
    logprobs: list[float | None] | None = None,
    *,
    limits: Sequence[int],
) -> Sequences:
    """Returns the new tokens of one row (S, N): each sequence up to <|eos|> or its own limit.

    Args:
        sequences: ids of S sequences, N each.
        logprobs: of each, S; None if the graph does not give them.
        limits: most ids of each, S.
    """
    cut: list[list[int]] = []
    is_finished: list[bool] = []
    for ids, limit in zip(sequences, limits, strict=True):
        end = ids.index(EOS_ID) if EOS_ID in ids else -1
        cut.append(ids[:end] if end >= 0 else ids[:limit])
        is_finished.append(end >= 0)
    return Sequences(cut, is_finished, logprobs)


def _padded(rows: Sequence[Sequence[int]], max_length: int) -> tuple[Ids, Ids]:
    """Returns ids and mask, int64 (B, L), right padded with 0; L at most `max_length`."""
    lengths = [len(r) for r in rows]
    longest = max(lengths)
    length = min(max_length, -(-longest // _PAD_MULTIPLE) * _PAD_MULTIPLE)
    assert longest <= length, f"{longest} ids do not fit {max_length}"
    mask = np.arange(length) < np.array(lengths)[:, None]
    ids = np.zeros((len(rows), length), np.int64)
    ids[mask] = [i for r in rows for i in r]
    return ids, mask.astype(np.int64)
