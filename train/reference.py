"""The slow, obvious decoder: one full forward per new token, no cache, no batch.

What the exported graph must equal. Knows nothing of prompts or scenarios.
"""

from typing import Any, NamedTuple

import torch

from engine.vocabulary import EOS_ID, NUM_CONTROL_IDS, SEP_ID


class Decoded(NamedTuple):
    """One greedily decoded sequence."""

    ids: list[int]  # ends with <|eos|> unless the limit came first
    logprob: float  # sum over ids of log softmax over the allowed ids
    gaps: list[float]  # per step, best minus second-best allowed logit


@torch.inference_mode()
def decode(
    model: Any,
    prompt_ids: list[int],
    slot_id: int,
    max_new_tokens: int,
    first_token_range: tuple[int, int],
) -> Decoded:
    """Returns the greedy continuation of a prompt and a slot token.

    Control ids are never chosen. At the first step and after <|sep|> the choice is limited to
    `first_token_range`.

    Args:
        model: a transformers causal language model.
        prompt_ids: the prompt.
        slot_id: token that starts the sequence.
        max_new_tokens: at least 1.
        first_token_range: [first, end).
    """
    ids, gaps, logprob, previous = [*prompt_ids, slot_id], list[float](), 0.0, SEP_ID
    new = list[int]()
    while len(new) < max_new_tokens:
        logits = model(torch.tensor([ids])).logits[0, -1].float().clone()
        logits[:NUM_CONTROL_IDS] = -torch.inf
        if previous == SEP_ID:
            logits[: first_token_range[0]] = -torch.inf
            logits[first_token_range[1] :] = -torch.inf
        best = torch.topk(logits, 2)
        previous = int(logits.argmax())
        logprob += float(torch.log_softmax(logits, -1)[previous])
        gaps.append(float(best.values[0] - best.values[1]))
        new.append(previous)
        ids.append(previous)
        if previous == EOS_ID:
            break
    return Decoded(new, logprob, gaps)
