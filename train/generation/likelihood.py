"""log pi(list): the probability of given lists under a model, with gradients.

Prompt and lists are packed as in training (`train.models.shared_prefix`): the prompt is read
once. Knows nothing of how lists were made, or of losses.

# B prompts, K lists of each, S sequences of a list, N tokens, M tokens of all sequences,
# L packed tokens, D model dim, V vocabulary without control ids
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.formats.vocabulary import NUM_CONTROL_IDS, SEP_ID
from train.generation.sampler import ListPrompt, check_prompts
from train.models.shared_prefix import IGNORED_LABEL, collate, next_token_labels, pack

_PAD = 0


def list_logprobs(model: Any, prompts: Sequence[ListPrompt], ids_BKSN: Tensor) -> Tensor:
    """Returns float32 (B, K, S, N) log-probabilities of the tokens of lists; 0 at padding.

    Each is the log of softmax over the ids that are allowed at its place, as the sampler's
    `logprobs`: no control ids, and where a text begins only ids of the prompt's range. Their sum
    over S and N is log pi(list). Memory grows with M * V.

    Args:
        model: a transformers causal language model.
        prompts: (B); limits are not looked at.
        ids_BKSN: int64, as the sampler gives them: <|pad|> after the end.

    Raises:
        ValueError: lists do not fit the prompts, or hold what cannot be drawn.
    """
    check_prompts(prompts, model.config.vocab_size)
    device = model.device
    ids_BKSN = ids_BKSN.to(device)
    is_token_BKSN = ids_BKSN != _PAD
    if not prompts:
        return torch.zeros(ids_BKSN.shape, device=device)
    num_slots = len(prompts[0].slots)
    if ids_BKSN.ndim != 4 or ids_BKSN.shape[::2] != (len(prompts), num_slots):
        raise ValueError(
            f"lists have the shape {tuple(ids_BKSN.shape)}: {len(prompts)} prompts of {num_slots} "
            f"slots need ({len(prompts)}, K, {num_slots}, N)"
        )
    begins_BKSN = F.pad(ids_BKSN[..., :-1], (1, 0), value=SEP_ID) == SEP_ID
    ids_V = torch.arange(NUM_CONTROL_IDS, model.config.vocab_size, device=device)
    range_B2 = torch.tensor([p.first_token_range for p in prompts], device=device)
    outside_BV = (ids_V < range_B2[:, :1]) | (ids_V >= range_B2[:, 1:])
    _check_ids(ids_BKSN, is_token_BKSN, begins_BKSN, outside_BV)
    packed = [
        pack(
            prompt.ids,
            [
                [slot, *(i for i in ids_N if i != _PAD)]
                for ids_SN in ids_KSN
                for slot, ids_N in zip(prompt.slots, ids_SN, strict=True)
            ],
        )
        for prompt, ids_KSN in zip(prompts, ids_BKSN.tolist(), strict=True)
    ]
    batch = collate(packed)
    hidden_BLD = model.model(
        input_ids=batch.input_ids.to(device),
        attention_mask=batch.attention_mask.to(device, model.dtype),
        position_ids=batch.position_ids.to(device),
        use_cache=False,
    ).last_hidden_state
    # Packing keeps the order of lists, sequences and tokens, so M runs over both alike.
    is_label_BL = (next_token_labels(batch) != IGNORED_LABEL).to(device)
    logits_MV = model.lm_head(hidden_BLD[is_label_BL])[:, NUM_CONTROL_IDS:].float()
    prompt_of_M = is_token_BKSN.nonzero()[:, 0]
    outside_MV = outside_BV[prompt_of_M] & begins_BKSN[is_token_BKSN][:, None]
    logprobs_MV = logits_MV.masked_fill(outside_MV, -torch.inf).log_softmax(-1)
    chosen_M1 = ids_BKSN[is_token_BKSN][:, None] - NUM_CONTROL_IDS
    zeros_BKSN = logprobs_MV.new_zeros(ids_BKSN.shape)
    return zeros_BKSN.masked_scatter(is_token_BKSN, logprobs_MV.gather(1, chosen_M1))


def _check_ids(
    ids_BKSN: Tensor, is_token_BKSN: Tensor, begins_BKSN: Tensor, outside_BV: Tensor
) -> None:
    """Checks that lists hold nothing that is never drawn."""
    if bool((is_token_BKSN[..., 1:] & ~is_token_BKSN[..., :-1]).any()):
        raise ValueError("a list has <|pad|> between its tokens: it belongs after the end")
    places_BKSN = ids_BKSN - NUM_CONTROL_IDS
    is_known_BKSN = (places_BKSN >= 0) & (places_BKSN < outside_BV.shape[1])
    if not bool((is_known_BKSN | ~is_token_BKSN).all()):
        raise ValueError("a list has control ids, or ids outside of the vocabulary")
    prompts, *_ = (begins_BKSN & is_token_BKSN).nonzero(as_tuple=True)
    if bool(outside_BV[prompts, places_BKSN[begins_BKSN & is_token_BKSN]].any()):
        raise ValueError("a text of a list begins with an id outside of its prompt's range")
