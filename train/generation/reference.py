"""The slow, obvious decoder: a full forward per new token, without cache or padding.

What the exported graphs must equal, mode by mode (`export.generator`). Knows nothing of prompts
or scenarios.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.formats.vocabulary import EOS_ID, NUM_CONTROL_IDS, SEP_ID


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
        return row.greedy(slots, max_new_tokens)
    alone = [i for i, slot in enumerate(slots) if slot != slots[-1]]
    greedy = row.greedy([slots[i] for i in alone], [max_new_tokens[i] for i in alone])
    found = dict(zip(alone, greedy, strict=True))
    width = len(slots) - len(alone)
    beams = iter(row.search(slots[-1], max_new_tokens[-1], width))
    return [found[i] if i in found else next(beams) for i in range(len(slots))]


class _Row:
    """One prompt."""

    def __init__(
        self, model: Any, prompt_ids: list[int], first: tuple[int, int], ends: Sequence[int]
    ) -> None:
        self._model, self._prompt_ids = model, prompt_ids
        self._first, self._ends = first, ends

    def greedy(self, slots: Sequence[int], limits: Sequence[int]) -> list[Decoded]:
        decoded = [Decoded([], 0.0, []) for _ in slots]
        running = list(range(len(slots)))
        while running:
            logits_RV = self._logits([[slots[i], *decoded[i].ids] for i in running])
            for i, logits_V in zip(list(running), logits_RV, strict=True):
                ids, total, gaps = decoded[i]
                best = torch.topk(logits_V, 2).values
                token = int(logits_V.argmax())
                total += float(torch.log_softmax(logits_V, -1)[token])
                decoded[i] = Decoded([*ids, token], total, [*gaps, float(best[0] - best[1])])
                if token in self._ends or len(ids) + 1 >= limits[i]:
                    running.remove(i)
        return decoded

    def search(self, slot: int, limit: int, width: int) -> list[Decoded]:
        beams, gaps = [_Beam([], 0.0, False)], list[float]()
        for step in range(limit):
            options = [b for b in beams if b.is_finished]
            running = [b for b in beams if not b.is_finished]
            if not running:
                break
            logits_RV = self._logits([[slot, *b.ids] for b in running])
            for beam, logprobs_V in zip(running, torch.log_softmax(logits_RV, -1), strict=True):
                best = torch.topk(logprobs_V, min(width + 1, len(logprobs_V)))
                for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                    if value > -torch.inf:
                        is_finished = token in self._ends or step + 1 == limit
                        options.append(_Beam([*beam.ids, token], beam.total + value, is_finished))
            options.sort(key=lambda b: -b.total)
            kept = options[: width + 1]
            gaps.append(min([a.total - b.total for a, b in pairwise(kept)], default=1.0))
            beams = kept[:width]
        found = [Decoded(b.ids, b.total, gaps) for b in beams]
        return found + [Decoded([EOS_ID], -1e9, gaps)] * (width - len(found))

    def _logits(self, rows: list[list[int]]) -> Tensor:
        """Returns float32 (R, V) logits of the next tokens; of ids that are not allowed, -inf.

        Args:
            rows: starting token and new tokens of R sequences of one length.
        """
        ids_RL = torch.tensor([[*self._prompt_ids, *row] for row in rows])
        logits_RV = self._model(ids_RL).logits[:, -1].float().clone()
        logits_RV[:, :NUM_CONTROL_IDS] = -torch.inf
        for row, logits_V in zip(rows, logits_RV, strict=True):
            if len(row) == 1 or row[-1] == SEP_ID:
                logits_V[: self._first[0]] = -torch.inf
                logits_V[self._first[1] :] = -torch.inf
        return logits_RV
