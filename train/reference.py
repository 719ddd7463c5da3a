"""The slow, obvious decoder: one full forward per sequence and new token, no cache, no batch.

What the exported graphs must equal, mode by mode (`export.generator`). Knows nothing of prompts
or scenarios.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.vocabulary import EOS_ID, NUM_CONTROL_IDS, SEP_ID


class Decoded(NamedTuple):
    """One decoded sequence."""

    ids: list[int]  # ends with <|eos|> or, but in list mode, <|sep|>, unless the limit came first
    logprob: float  # sum over ids of log softmax over the allowed ids
    gaps: list[float]  # per step, how much better what was chosen was than the next best


class _Beam(NamedTuple):
    ids: list[int]
    total: float
    is_finished: bool


@torch.inference_mode()
def decode(
    model: Any,
    prompt_ids: list[int],
    slots: Sequence[int],
    max_new_tokens: Sequence[int],
    first_token_range: tuple[int, int],
    mode: str = "slots",
) -> list[Decoded]:
    """Returns the continuation of a prompt and each starting token.

    Control ids are never chosen. Where a text begins (at the first step and, in list mode, after
    <|sep|>) the choice is limited to `first_token_range`.

    Args:
        model: a transformers causal language model.
        prompt_ids: the prompt.
        slots: (S) tokens that start the sequences. In beam mode those equal to the last one are
            the beams of one search, and come back best first; an empty beam is [<|eos|>].
        max_new_tokens: (S), at least 1; one value for all beams.
        first_token_range: [first, end).
        mode: "slots", "list" or "beam".
    """
    ends = (EOS_ID,) if mode == "list" else (EOS_ID, SEP_ID)
    row = _Row(model, prompt_ids, first_token_range, ends)
    if mode != "beam":
        return [row.greedy(s, n) for s, n in zip(slots, max_new_tokens, strict=True)]
    width = list(slots).count(slots[-1])
    beams = iter(row.search(slots[-1], max_new_tokens[-1], width))
    return [
        next(beams) if slot == slots[-1] else row.greedy(slot, limit)
        for slot, limit in zip(slots, max_new_tokens, strict=True)
    ]


class _Row:
    """One prompt."""

    def __init__(
        self, model: Any, prompt_ids: list[int], first: tuple[int, int], ends: Sequence[int]
    ) -> None:
        self._model, self._prompt_ids = model, prompt_ids
        self._first, self._ends = first, ends

    def greedy(self, slot: int, limit: int) -> Decoded:
        new, gaps, total = list[int](), list[float](), 0.0
        while len(new) < limit:
            logits_V = self._logits(slot, new)
            best = torch.topk(logits_V, 2).values
            gaps.append(float(best[0] - best[1]))
            token = int(logits_V.argmax())
            total += float(torch.log_softmax(logits_V, -1)[token])
            new.append(token)
            if token in self._ends:
                break
        return Decoded(new, total, gaps)

    def search(self, slot: int, limit: int, width: int) -> list[Decoded]:
        beams, gaps = [_Beam([], 0.0, False)], list[float]()
        for step in range(limit):
            options: list[_Beam] = []
            for beam in beams:
                if beam.is_finished:
                    options.append(beam)
                    continue
                logprobs_V = torch.log_softmax(self._logits(slot, beam.ids), -1)
                best = torch.topk(logprobs_V, min(width + 1, len(logprobs_V)))
                for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                    if value > -torch.inf:
                        is_finished = token in self._ends or step + 1 == limit
                        ids = [*beam.ids, token]
                        options.append(_Beam(ids, beam.total + value, is_finished))
            options.sort(key=lambda b: -b.total)
            kept = options[: width + 1]
            gaps.append(min([a.total - b.total for a, b in pairwise(kept)], default=1.0))
            beams = kept[:width]
            if all(b.is_finished for b in beams):
                break
        found = [Decoded(b.ids, b.total, gaps) for b in beams]
        return found + [Decoded([EOS_ID], -1e9, gaps)] * (width - len(found))

    def _logits(self, slot: int, new: list[int]) -> Tensor:
        """Returns float32 (V) logits of the next token; of ids that are not allowed, -inf."""
        ids = torch.tensor([[*self._prompt_ids, slot, *new]])
        logits_V = self._model(ids).logits[0, -1].float().clone()
        logits_V[:NUM_CONTROL_IDS] = -torch.inf
        if not new or new[-1] == SEP_ID:
            logits_V[: self._first[0]] = -torch.inf
            logits_V[self._first[1] :] = -torch.inf
        return logits_V
