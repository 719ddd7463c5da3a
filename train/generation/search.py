"""Beam search for many prompts at once: the likeliest texts of each.

What the exported graph of mode beam must write, and with more beams than it has, what it might
have written. Knows nothing of what texts are for.

# B prompts, W beams of each, N new tokens, X continuations of a beam that are looked at,
# V vocabulary without control ids
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from engine.formats.vocabulary import NUM_CONTROL_IDS
from train.generation.decoder import Decoder

_PAD = 0


class Found(NamedTuple):
    """Texts, best first; a beam that is not there is <|pad|> alone."""

    ids: Tensor  # int64 (B, W, N); <|pad|> after the end
    logprobs: Tensor  # float32 (B, W, N)
    ended: Tensor  # bool (B, W): else cut by the limit


def search(
    decoder: Decoder,
    ids_BP: Tensor,
    lengths_B: Tensor,
    starts_B: Tensor,
    limits_B: Tensor,
    outside_BV: Tensor,
    *,
    width: int,
    ends: Sequence[int],
) -> Found:
    """Returns the `width` best texts that one beam search a prompt finds.

    Args:
        decoder: whose logits leave out control ids.
        ids_BP: int64, right padded with any id.
        lengths_B: int64.
        starts_B: int64, the token that all texts of a prompt start with.
        limits_B: int64, of new tokens.
        outside_BV: bool, ids that must not begin a text.
        width: W.
        ends: ids that end a text.
    """
    device, num_new = decoder.device, int(limits_B.max())
    logits_BV, cache = decoder.read(ids_BP, lengths_B, starts_B[:, None], width, num_new)
    logprobs_BV = logits_BV[:, 0].masked_fill(outside_BV, -torch.inf).log_softmax(-1)
    num_looked = min(width, logprobs_BV.shape[1])
    total_BW, first_BW = logprobs_BV.topk(num_looked)
    total_BW = pad(total_BW, (0, width - num_looked), value=-torch.inf)
    shape = len(ids_BP), width, num_new
    ids_BWN = torch.full(shape, _PAD, device=device)
    logprobs_BWN = torch.zeros(shape, device=device)
    ids_BWN[:, :num_looked, 0], logprobs_BWN[:, :, 0] = first_BW + NUM_CONTROL_IDS, total_BW
    ends_E = torch.tensor(ends, device=device)
    ended_BW = torch.isin(ids_BWN[:, :, 0], ends_E)
    first_row_B1 = torch.arange(len(ids_BP), device=device)[:, None] * width
    for step in range(1, num_new):
        is_over_BW = ended_BW | (step >= limits_B[:, None]) | total_BW.isinf()
        if bool(is_over_BW.all()):
            break
        best = decoder.step(ids_BWN[:, :, step - 1].flatten(), cache).log_softmax(-1)
        gain_RX, token_RX = best.topk(num_looked)
        gain_BWX, token_BWX = gain_RX.view(*shape[:2], -1), token_RX.view(*shape[:2], -1)
        token_BWX = torch.where(is_over_BW[:, :, None], _PAD, token_BWX + NUM_CONTROL_IDS)
        # A text that is over goes on in one way: as it is.
        stays_X = torch.full((num_looked,), -torch.inf, device=device)
        stays_X[0] = 0.0
        gain_BWX = torch.where(is_over_BW[:, :, None], stays_X, gain_BWX)
        total_BW, place_BW = (total_BW[:, :, None] + gain_BWX).flatten(1).topk(width)
        parent_BW = place_BW // num_looked
        rows_BWN = parent_BW[:, :, None].expand(shape)
        ids_BWN, logprobs_BWN = ids_BWN.gather(1, rows_BWN), logprobs_BWN.gather(1, rows_BWN)
        ids_BWN[:, :, step] = token_BWX.flatten(1).gather(1, place_BW)
        logprobs_BWN[:, :, step] = gain_BWX.flatten(1).gather(1, place_BW)
        ended_BW = ended_BW.gather(1, parent_BW) | torch.isin(ids_BWN[:, :, step], ends_E)
        cache.keep((first_row_B1 + parent_BW).flatten())
    is_there_BW = ~total_BW.isinf()
    return Found(
        ids_BWN * is_there_BW[:, :, None],
        logprobs_BWN.masked_fill(~is_there_BW[:, :, None], 0.0),
        ended_BW & is_there_BW,
    )
